"""Tar shards of grey images whose caption names their shade, and how training reads them."""

import io
import tarfile

from PIL import Image
from torch.utils.data import DataLoader

from noisyml.data.samplers.plans import PlannedBatches, Shuffle
from noisyml.data.transforms.image import ImageTransform
from noisyml.data.views import TrainingView, whole
from noisyml.targets import texts_of


def encoded(grey, kind="PNG"):
    content = io.BytesIO()
    Image.new("RGB", (4, 3), (grey, grey, grey)).save(content, kind)
    return content.getvalue()


def write_shard(path, numbers, captions="txt"):
    with tarfile.open(path, "w") as shard:
        for i in numbers:
            texts = {"txt": f"shot {i}", "json": f'{{"caption": "shot {i}"}}'}
            members = {"png": encoded(i), captions: texts[captions].encode()}
            for suffix, content in members.items():
                member = tarfile.TarInfo(f"folder/{i:04d}.{suffix}")
                member.size = len(content)
                shard.addfile(member, io.BytesIO(content))


def drawn_from(split, rank=0, world_size=1, start=0, workers=0):
    """Captions and greys of the batches of an epoch, as training reads them."""
    batches = PlannedBatches(
        Shuffle(split.labels, seed=0, batch_size=8), 0, rank, world_size, 3, start
    )
    view = TrainingView(split, split.labels, ImageTransform())
    loader = DataLoader(view, batch_sampler=batches, collate_fn=whole, num_workers=workers)
    return [
        list(zip(texts_of(b["caption"]), b["image"][:, 0, 0, 0].tolist(), strict=True))
        for b in loader
    ]
