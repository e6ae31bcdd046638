"""INSTRE (Wang, Jiang, TOMM 2015) with the queries of Iscen et al. (CVPR 2017)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

from noisyml.checks import Count
from noisyml.data.datasets.instances.judged_images import Benchmark, JudgedImages, check_positions
from noisyml.data.readers.layout import check_count, first_missing
from noisyml.data.transforms.query import Box
from noisyml.errors import UserError
from noisyml.storage.reading import reading
from noisyml.targets.judgements import HARD, Judgements

FILE = "gnd_instre.mat"
IMAGES, QUERIES = 27_293, 1_250
#: Folders below the root where the images lie: as evaluations read them, as archives unpack.
FOLDERS = ("jpg", "images", "")
PART = "INSTRE-S1"


class Instre(JudgedImages):
    """Objects on changing backgrounds: 27,293 images and 1,250 queries.

    Args:
        root: folder with ``gnd_instre.mat``, and ``INSTRE-S1``, ``INSTRE-S2``, ``INSTRE-M``
            there, in ``jpg/`` or in ``images/``.
        ground_truth: ``corrected``: positions count from 1 and boxes are corners, as the file has
            them; ``released``: InsCLR's reading, from 0 and with width and height.
        image_size: see `JudgedImages`.
        crop_queries: see `JudgedImages`.
        check_counts: see `JudgedImages`.
    """

    description: ClassVar[str] = "INSTRE: 27,293 images of 250 objects, 1,250 queries"
    how_to_get: ClassVar[str] = (
        "fetch INSTRE (27,293 images in INSTRE-S1, INSTRE-S2 and INSTRE-M) from "
        "vision.ia.ac.cn/instre or the page of the diffusion code of Iscen et al., and its "
        "gnd_instre.mat, and set dataset.root to their folder."
    )
    name = "instre"

    def __init__(
        self,
        root: str,
        ground_truth: Literal["corrected", "released"] = "corrected",
        image_size: Count | None = 256,
        crop_queries: bool = True,
        check_counts: bool = True,
    ) -> None:
        super().__init__(root, image_size, crop_queries, check_counts)
        self.ground_truth = ground_truth

    @property
    def _folder(self) -> Path | None:
        folders = [self.root / folder for folder in FOLDERS]
        return next((folder for folder in folders if (folder / PART).is_dir()), None)

    def missing(self) -> str | None:
        """None, or the first file or folder that is not there."""
        gone = first_missing(self.root, FILE)
        return gone or (None if self._folder else str(self.root / PART))

    def benchmark(self) -> Benchmark:
        """Queries, gallery and lists from the file of Iscen et al.

        Raises:
            UserError: another file, or other numbers than the published ones.
        """
        path, folder = self.root / FILE, self._folder
        assert folder is not None
        content = _read(path)
        released = self.ground_truth == "released"
        first = 0 if released else 1
        gallery, queries = content["imlist"], content["qimlist"]
        lists = [[position - first for position in one] for one in content["ok"]]
        boxes: list[Box] = content["boxes"]
        if released:
            boxes = [(x, y, x + width, y + height) for x, y, width, height in boxes]
            # A position that does not exist is one that nobody finds.
            lists = [[p if p < len(gallery) else -1 for p in one] for one in lists]
        else:
            check_positions(path, {"ok": lists}, len(gallery))
        if self.check_counts:
            check_count("Images of instre", len(gallery), IMAGES)
            check_count("Queries of instre", len(queries), QUERIES)
        judged = Judgements.of_lists(queries, gallery, {HARD: lists}, "instances")
        return Benchmark(folder, gallery, queries, boxes, judged)


def _read(path: Path) -> dict[str, Any]:
    """Lists of the file: ``imlist``, ``qimlist``, ``ok`` and ``boxes`` as they stand there."""
    from scipy.io import loadmat

    with reading(path, "fetch it again"):
        content = loadmat(path)
        found: dict[str, Any] = {
            name: [str(cell[0]) for cell in content[name].ravel()] for name in ("imlist", "qimlist")
        }
        queries = content["gnd"].ravel()
        found["ok"] = [[int(position) for position in one["ok"].ravel()] for one in queries]
        found["boxes"] = [tuple(float(edge) for edge in one["bbx"].ravel()) for one in queries]
    if len(found["ok"]) != len(found["qimlist"]) or any(len(box) != 4 for box in found["boxes"]):
        raise UserError(f"{path} does not hold a box and a list for each query; fetch it again.")
    return found
