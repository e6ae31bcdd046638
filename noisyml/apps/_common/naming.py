"""Pictures of any folder named by a trained model of images and texts."""

from __future__ import annotations

import csv
import hashlib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from noisyml.errors import UserError
from noisyml.runs.folder import RunFolder
from noisyml.storage.files import atomic

if TYPE_CHECKING:
    import torch
    from omegaconf import DictConfig
    from PIL import Image
    from PIL.ImageFont import FreeTypeFont as Font

    from noisyml.apps._common.settings import EvaluateSettings
    from noisyml.data.base import Split
    from noisyml.data.transforms.image import ViewMaker
    from noisyml.methods.image_text.base import ImageText
    from noisyml.metrics.zero_shot import Ensemble, PromptBank

log = logging.getLogger(__name__)

#: Values of K of the flat hits, where true classes are given.
FLAT_HITS = (1, 2, 5, 10)
#: Pictures on the contact sheet, in a row of it, and the side of one in pixels.
SHOWN, IN_A_ROW, TILE = 48, 8, 128
#: Height of the text under a picture of the sheet, pixels.
TEXT = 44


def name_images(
    config: DictConfig, checkpoint: Path, settings: EvaluateSettings, output: RunFolder
) -> dict[str, float]:
    """Write ``predictions.csv`` and ``predictions.png``; flat hits where true classes are given.

    Memory holds the classes and one batch of images, however many images there are.

    Args:
        config: of the run that trained the model.
        checkpoint: its weights.
        settings: ``images``, ``classes``, and what else belongs to them.
        output: receives the files.

    Returns:
        ``images/fh_at_K`` where ``labels`` are given, ``images/number`` and ``images/broken``.

    Raises:
        UserError: files missing, or a model that embeds no texts.
    """
    import torch

    from noisyml.metrics.zero_shot import flat_hits
    from noisyml.storage.class_lists import read_class_names, read_label_lists

    if settings.classes is None:
        raise UserError("images=... needs the names to choose from: classes=FILE, one name a line.")
    names = read_class_names(Path(settings.classes).expanduser(), name=settings.template_set)
    split = folder_split(Path(str(settings.images)).expanduser())
    truth: dict[str, int] = {}
    classes = torch.empty(0, 1, dtype=torch.int64)
    if settings.labels is not None:
        listed, numbers = read_label_lists(Path(settings.labels).expanduser(), len(names))
        classes = torch.from_numpy(numbers)
        truth = {name: row for row, name in enumerate(listed)}
        if not truth.keys() & set(split.keys):
            raise UserError(
                f"labels={settings.labels}: none of its {len(truth)} pictures lies in "
                f"images={settings.images}; a line there begins with '{listed[0][:60]}', and the "
                f"pictures are called as '{split.keys[0]}'."
            )
    method, transform = model_alone(config, checkpoint)
    bank = class_bank(
        method, names, templates_of(settings, config), ensemble_of(settings, config), config
    )
    if settings.candidates == "labelled":
        bank = bank.among(classes[classes >= 0].unique())
    shown = shown_positions(len(split))
    most = max(settings.k, *(FLAT_HITS if truth else (1,)))
    broken: list[str] = []
    hits = torch.zeros(len(FLAT_HITS), dtype=torch.float64)
    best: dict[int, tuple[int, float]] = {}
    with (
        atomic(output.path / "predictions.csv") as temporary,
        temporary.open("w", newline="", encoding="utf-8") as file,
    ):
        table = csv.writer(file, lineterminator="\n")
        head = [f"{part}_{i + 1}" for i in range(settings.k) for part in ("class", "score")]
        table.writerow(["image", *head])
        for batch in batches(split, transform, config):
            for position in batch["broken"].tolist():
                broken.append(split.keys[position])
                table.writerow([split.keys[position], *[""] * len(head)])
            if not len(batch["index"]):
                continue
            nearest, scores = bank.nearest(_unit(method.embed(batch)), most)
            for i, position in enumerate(batch["index"].tolist()):
                top = list(zip(nearest[i].tolist(), scores[i].tolist(), strict=True))
                best[position] = top[0]
                cells = [cell for c, s in top[: settings.k] for cell in (names[c], f"{s:.4f}")]
                table.writerow([split.keys[position], *cells])
            keys = [split.keys[position] for position in batch["index"].tolist()]
            known = [(i, truth[key]) for i, key in enumerate(keys) if key in truth]
            if known:
                at, rows = torch.tensor(known).unbind(1)
                hits += flat_hits(nearest[at], classes[rows], FLAT_HITS).sum(0)
            # The sheet shows a few: what the others are called stands in the table.
            best = {position: top for position, top in best.items() if position in shown}
    sheet(split, best, names).save(output.path / "predictions.png")
    if broken:
        log.warning(
            "%d of %d pictures cannot be decoded, their rows are empty: %s%s",
            len(broken),
            len(split),
            ", ".join(broken[:3]),
            ", ..." if len(broken) > 3 else "",
        )
    metrics = {"images/number": float(len(split)), "images/broken": float(len(broken))}
    if truth:
        # An image without a prediction, or not in the folder, is a miss.
        shares = (hits / len(truth)).tolist()
        metrics |= {f"images/fh_at_{k}": v for k, v in zip(FLAT_HITS, shares, strict=True)}
    return metrics


def folder_split(folder: Path) -> Split:
    """The pictures below a folder, in the order of their paths.

    Raises:
        UserError: there are none.
    """
    import numpy as np

    from noisyml.data.base import Split
    from noisyml.data.inputs import FileImages
    from noisyml.data.readers.folders import IMAGE_SUFFIXES

    found = sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()
    )
    if not found:
        if not folder.is_dir():
            raise UserError(f"images={folder} is no folder; give one of JPEG or PNG files.")
        raise UserError(f"images={folder} holds no picture; give a folder of JPEG or PNG files.")
    labels = np.zeros(len(found), dtype=np.int64)
    return Split("images", FileImages(found, str(folder)), labels, ["image"], found, "")


def model_alone(config: DictConfig, checkpoint: Path) -> tuple[ImageText, ViewMaker]:
    """A trained model and its transform, without the data that it learnt from.

    Raises:
        UserError: a model that embeds no texts.
    """
    from noisyml.assembly.build import another_encoder, with_head
    from noisyml.assembly.nodes import build
    from noisyml.methods.image_text.base import ImageText
    from noisyml.methods.parts import Parts, Sizes

    backbone = build(config.backbone)
    transform: ViewMaker = build(config.transform, mean_colour=backbone.mean_colour)
    encoder = with_head(config, backbone)
    parts = Parts(
        encoder=encoder,
        another_encoder=lambda: another_encoder(config, backbone),
        optimizer=build(config.optimizer),
        scheduler=None,
        evaluators={},
        sizes=Sizes(num_classes=0, embedding_size=encoder.out_features, num_samples=0),
        training=False,
    )
    method = build(config.method, parts=parts)
    if not isinstance(method, ImageText):
        raise UserError(
            f"{type(method).__name__} embeds no texts, so that it cannot choose among names: "
            "images=... needs a run of method=otter."
        )
    method.load_trained(checkpoint)
    return method.eval(), transform


def templates_of(settings: EvaluateSettings, config: DictConfig) -> list[str]:
    """Prompt templates: those of a file, or those by which the run was evaluated."""
    from omegaconf import OmegaConf

    from noisyml.metrics.zero_shot_evaluator import ZeroShotEvaluator
    from noisyml.storage.class_lists import read_templates

    if settings.templates is not None:
        return read_templates(Path(settings.templates).expanduser(), settings.template_set)
    evaluators: Any = OmegaConf.to_container(config.evaluators, resolve=True)
    node = evaluators.get("zero_shot")
    if node is None:
        return ["{}"]
    evaluator = ZeroShotEvaluator(node["templates"], template_set=node.get("template_set", ""))
    return evaluator.templates


def ensemble_of(settings: EvaluateSettings, config: DictConfig) -> Ensemble:
    """Use of several prompts: as given, or that by which the run was evaluated."""
    node = config.evaluators.get("zero_shot")
    found: Ensemble = settings.ensemble or ("mean" if node is None else node.ensemble)
    return found


def class_bank(
    method: ImageText,
    names: Sequence[str],
    templates: Sequence[str],
    ensemble: Ensemble,
    config: DictConfig,
) -> PromptBank:
    """Embeddings of the classes, kept in the cache by the weights and the prompts."""
    import numpy as np
    import torch

    from noisyml.embeddings.extraction import fingerprint
    from noisyml.metrics.zero_shot import PromptBank

    state = method.text_encoder.tokenizer.state()
    parts = [fingerprint(method.text_encoder), state, ensemble, *templates, "", *names]
    name = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]
    file = Path(str(config.paths.cache)).expanduser() / "prompts" / f"{name}.npz"
    if not file.is_file():
        bank = PromptBank.embed(names, templates, method.embed_texts, ensemble)
        with atomic(file) as temporary, temporary.open("wb") as out:
            np.savez(out, embeddings=bank.embeddings.numpy(), classes=bank.classes.numpy())
    with np.load(file, allow_pickle=False) as kept:
        embeddings, classes = (torch.from_numpy(kept[part]) for part in ("embeddings", "classes"))
    return PromptBank(embeddings, classes, ensemble)


def batches(split: Split, transform: ViewMaker, config: DictConfig) -> Iterator[dict[str, Any]]:
    """The pictures batch by batch, with a bar; those that cannot be decoded are left out."""
    from torch.utils.data import DataLoader

    from noisyml.data.views import EvaluationView, whole
    from noisyml.runs.progress import bar

    size = int(config.data.eval_batch_size)
    cuts = [range(at, min(at + size, len(split))) for at in range(0, len(split), size)]
    loader: Any = DataLoader(
        EvaluationView(split, transform, on_broken="skip"),
        batch_sampler=[list(cut) for cut in cuts],
        collate_fn=whole,
        num_workers=int(config.data.num_workers),
    )
    with bar("images") as shown:
        task = shown.add_task("naming", total=len(split), note="")
        for batch in loader:
            yield batch
            shown.advance(task, len(batch["index"]) + len(batch["broken"]))


def shown_positions(number: int) -> set[int]:
    """Positions of the pictures on the sheet, spread evenly."""
    import numpy as np

    return set(np.unique(np.linspace(0, number - 1, min(number, SHOWN)).round().astype(int)))


def sheet(split: Split, best: dict[int, tuple[int, float]], names: Sequence[str]) -> Image.Image:
    """A picture of some of the images, each above its most likely name and the score."""
    from PIL import Image, ImageDraw, ImageOps

    from noisyml.data.checks import sheet_font
    from noisyml.data.inputs import as_rgb

    rows = -(-len(best) // IN_A_ROW) or 1
    page = Image.new("RGB", (IN_A_ROW * TILE, rows * (TILE + TEXT)), "black")
    pen, font = ImageDraw.Draw(page), sheet_font(11)
    for at, (position, (label, score)) in enumerate(sorted(best.items())):
        left, top = at % IN_A_ROW * TILE, at // IN_A_ROW * (TILE + TEXT)
        picture = ImageOps.contain(as_rgb(split.images.load(position)), (TILE - 8, TILE))
        page.paste(
            picture, (left + (TILE - picture.width) // 2, top + (TILE - picture.height) // 2)
        )
        text = fitting(f"{score:.2f} {names[label]}", font, TILE - 8, TEXT // 14)
        pen.multiline_text((left + 4, top + TILE + 2), text, fill="white", font=font, spacing=1)
    return page


def fitting(text: str, font: Font, width: int, lines: int) -> str:
    """The text in lines of at most `width` pixels, cut off with dots after some lines.

    Args:
        text: words.
        font: measures them.
        width: pixels.
        lines: at most so many.
    """
    rows = [""]
    for word in text.split():
        longer = f"{rows[-1]} {word}".strip()
        if not rows[-1] or font.getlength(longer) <= width:
            rows[-1] = longer
        else:
            rows.append(word)
    if len(rows) > lines:
        rows = [*rows[: lines - 1], f"{rows[lines - 1]} ..."]
    for i in range(len(rows)):
        while len(rows[i]) > 4 and font.getlength(rows[i]) > width:
            rows[i] = f"{rows[i].removesuffix('...')[:-1].rstrip()}..."
    return "\n".join(rows)


def _unit(embeddings: torch.Tensor) -> torch.Tensor:
    from noisyml.models.heads import unit_norm

    return unit_norm(embeddings)
