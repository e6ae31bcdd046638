"""Revisited Oxford and Paris (Radenović, Iscen, Tolias, Avrithis, Chum, CVPR 2018)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from noisyml.checks import Count
from noisyml.data.datasets.instances.judged_images import Benchmark, JudgedImages, check_positions
from noisyml.data.readers.layout import check_count, first_missing
from noisyml.errors import UserError
from noisyml.storage.pickles import read_plain
from noisyml.storage.text import numbered_lines
from noisyml.targets.judgements import EASY, HARD, JUNK, Judgements

LISTS = {"easy": EASY, "hard": HARD, "junk": JUNK}
QUERIES = 70
#: List of the distractors in their folder, and the folder of their images.
DISTRACTOR_LIST, DISTRACTOR_IMAGES = "revisitop1m.txt", "jpg"


class Revisited(JudgedImages):
    """Base of both; see `ROxford5k` and `RParis6k` for the arguments."""

    images: ClassVar[int]

    def __init__(
        self,
        root: str,
        distractors: str | None = None,
        image_size: Count | None = 1024,
        crop_queries: bool = True,
        check_counts: bool = True,
    ) -> None:
        super().__init__(root, image_size, crop_queries, check_counts)
        self.distractors = None if distractors is None else Path(distractors)

    @property
    def file(self) -> str:
        """Name of the annotations."""
        return f"gnd_{self.name}.pkl"

    def missing(self) -> str | None:
        """None, or the first file or folder that is not there."""
        gone = first_missing(self.root, self.file, "jpg")
        if gone is None and self.distractors is not None:
            gone = first_missing(self.distractors, DISTRACTOR_LIST, DISTRACTOR_IMAGES)
        return gone

    def benchmark(self) -> Benchmark:
        """Queries, gallery and lists from the pickle of the benchmark, of which nothing is run.

        Raises:
            UserError: a damaged or foreign file, or other numbers than the published ones.
        """
        path = self.root / self.file
        found = read_plain(path, encoding="latin-1", advice="fetch it again from cmp.felk.cvut.cz")
        try:
            gallery, queries = _names(found["imlist"]), _names(found["qimlist"])
            lists = {name: [[int(i) for i in one[name]] for one in found["gnd"]] for name in LISTS}
            boxes = [_box(one["bbx"]) for one in found["gnd"]]
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{path} is no file of annotations (imlist, qimlist, and gnd with bbx, easy, hard "
                f"and junk): {error}."
            ) from error
        if self.check_counts:
            check_count(f"Images of {self.name}", len(gallery), self.images)
            check_count(f"Queries of {self.name}", len(queries), QUERIES)
        if len(boxes) != len(queries):
            raise UserError(f"{path} has {len(queries)} queries and annotations of {len(boxes)}.")
        check_positions(path, lists, len(gallery))
        graded = {LISTS[name]: of_queries for name, of_queries in lists.items()}
        judged = Judgements.of_lists(queries, gallery, graded, "revisited")
        return Benchmark(self.root / "jpg", _files(gallery), _files(queries), boxes, judged)

    def distractor_images(self) -> tuple[Path, Sequence[str]] | None:
        """The images of R1M."""
        if self.distractors is None:
            return None
        names = [line.strip() for _, line in numbered_lines(self.distractors / DISTRACTOR_LIST)]
        return self.distractors / DISTRACTOR_IMAGES, names


class ROxford5k(Revisited):
    """Buildings of Oxford: 4,993 images and 70 queries.

    Args:
        root: folder with ``gnd_roxford5k.pkl`` and ``jpg/``.
        distractors: folder of R1M with ``revisitop1m.txt`` and ``jpg/``; adds the test set
            ``distractors``; None: without.
        image_size: see `JudgedImages`.
        crop_queries: see `JudgedImages`.
        check_counts: see `JudgedImages`.
    """

    description: ClassVar[str] = "Revisited Oxford: 4,993 images, 70 queries, easy, medium and hard"
    how_to_get: ClassVar[str] = (
        "fetch oxbuild_images.tgz (1.8 GB) from robots.ox.ac.uk/~vgg/data/oxbuildings and unpack "
        "it into jpg/, put gnd_roxford5k.pkl from cmp.felk.cvut.cz/revisitop/data beside, and set "
        "dataset.root to that folder; distractors are revisitop1m (100 archives) from "
        "ptak.felk.cvut.cz/revisitop."
    )
    name = "roxford5k"
    images = 4993


class RParis6k(Revisited):
    """Buildings of Paris: 6,322 images and 70 queries.

    Args:
        root: folder with ``gnd_rparis6k.pkl`` and ``jpg/``.
        distractors: see `ROxford5k`.
        image_size: see `JudgedImages`.
        crop_queries: see `JudgedImages`.
        check_counts: see `JudgedImages`.
    """

    description: ClassVar[str] = "Revisited Paris: 6,322 images, 70 queries, easy, medium and hard"
    how_to_get: ClassVar[str] = (
        "fetch paris_1.tgz and paris_2.tgz (2.5 GB) from robots.ox.ac.uk/~vgg/data/parisbuildings "
        "and unpack all images into jpg/, put gnd_rparis6k.pkl from "
        "cmp.felk.cvut.cz/revisitop/data beside, and set dataset.root to that folder; distractors "
        "are revisitop1m (100 archives) from ptak.felk.cvut.cz/revisitop."
    )
    name = "rparis6k"
    images = 6322


def _names(listed: Any) -> list[str]:
    """Names of a list, texts all of them."""
    if not isinstance(listed, list) or not all(isinstance(name, str) for name in listed):
        raise TypeError("a list of names holds something else")
    return listed


def _files(names: Sequence[str]) -> list[str]:
    return [f"{name}.jpg" for name in names]


def _box(corners: Any) -> tuple[float, float, float, float]:
    """Left, top, right and bottom edge."""
    left, top, right, bottom = (float(edge) for edge in corners)
    return left, top, right, bottom
