"""Google Landmarks v2 (Weyand, Araujo, Cao, Sim, CVPR 2020): the clean training set, retrieval."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from noisyml.checks import Count
from noisyml.data.base import DatasetSource, Split
from noisyml.data.datasets.instances.judged_images import shown, unlabelled_split
from noisyml.data.readers.layout import check_count, file_split, first_missing, require_files
from noisyml.data.readers.partition import last_classes
from noisyml.errors import UserError
from noisyml.storage.reading import reading
from noisyml.targets.judgements import HARD, Judgements

TRAIN, SOLUTION, INDEX = (
    "train_clean.csv",
    "test/retrieval_solution_v2.1.csv",
    "index/index_image_to_landmark.csv",
)
#: Images of the clean set once landmarks with fewer than 15 images are gone.
TRAINING_IMAGES = 1_223_195
USAGES = ("public", "private")


class GoogleLandmarksClean(DatasetSource):
    """Photographs of landmarks; labels are landmarks, which InsCLR does not read.

    Args:
        root: folder with ``train_clean.csv`` (or in ``train/``) and ``train/a/b/c/abc....jpg``; for
            the retrieval test ``test/`` and ``index/`` with their tables too.
        test: ``retrieval``: the benchmark's queries search its index, scored by mAP@100
            (``evaluator=instances``); ``held_out``: training landmarks are set aside, and their
            images search each other (``evaluator=retrieval``).
        test_classes: so many landmarks, the last ones, are ``held_out``.
        min_images: landmarks with fewer images are left out (InsCLR: 15).
        image_size: longer side of query and index images in pixels, which are only ever shrunk;
            None: as they are.
        check_counts: compare the number of training images with the published one.
    """

    description: ClassVar[str] = "Google Landmarks v2 clean: 1,223,195 images; 761,757 to search"
    how_to_get: ClassVar[str] = (
        "fetch the training images (500 archives, about 500 GB) and train_clean.csv by the script "
        "of github.com/cvdfoundation/google-landmark, for the retrieval test also test/ and "
        "index/, and set dataset.root to the folder with train/."
    )

    def __init__(
        self,
        root: str,
        test: Literal["retrieval", "held_out"] = "held_out",
        test_classes: Count = 1000,
        min_images: Count = 15,
        image_size: Count | None = 1024,
        check_counts: bool = True,
    ) -> None:
        self.root = Path(root)
        self.test = test
        self.test_classes = test_classes
        self.min_images = min_images
        self.image_size = image_size
        self.check_counts = check_counts
        self.has_labels = test == "held_out"

    @property
    def _table(self) -> Path:
        inside = self.root / "train" / TRAIN
        return inside if inside.is_file() else self.root / TRAIN

    def missing(self) -> str | None:
        """None, or the first table or folder that is not there."""
        gone = None if self._table.is_file() else str(self._table)
        wanted = ["train", *((SOLUTION, INDEX) if self.test == "retrieval" else ())]
        return gone or first_missing(self.root, *wanted)

    def splits(self) -> dict[str, Split]:
        """``train``, and ``query`` and ``gallery``, or ``test``.

        Raises:
            UserError: files missing, or contents that contradict the layout.
        """
        require_files(self, "gldv2_clean")
        names, images, labels = self._training()
        if self.test == "retrieval":
            train = file_split("train", self.root / "train", images, labels, names)
            return {"train": train, **self._retrieval()}
        held_out = last_classes(labels, self.test_classes, "gldv2_clean")
        splits = {}
        for part, mask in (("train", ~held_out), ("test", held_out)):
            present, own = np.unique(labels[mask], return_inverse=True)
            paths = [images[row] for row in np.flatnonzero(mask).tolist()]
            classes = [names[number] for number in present.tolist()]
            splits[part] = file_split(
                part, self.root / "train", paths, own.astype(np.int64), classes
            )
        return splits

    def _training(self) -> tuple[list[str], list[str], np.ndarray]:
        """Names of the landmarks, paths of images and their landmarks."""
        names, images, counts = [], [], []
        for number, (landmark, listed) in _rows(self._table, 2):
            own = listed.split()
            if not own:
                raise UserError(f"{self._table}, line {number}: landmark {landmark} has no images.")
            if len(own) >= self.min_images:
                names.append(landmark)
                images += [image_path(image) for image in own]
                counts.append(len(own))
        if self.check_counts:
            check_count("Training images of gldv2_clean", len(images), TRAINING_IMAGES)
        return names, images, np.repeat(np.arange(len(counts), dtype=np.int64), counts)

    def _retrieval(self) -> dict[str, Split]:
        """Judged queries and the index."""
        gallery = [image for _, (image, _) in _rows(self.root / INDEX, 2)]
        place = {image: row for row, image in enumerate(gallery)}
        queries, lists, usages = [], [], []
        for number, (query, images, usage) in _rows(self.root / SOLUTION, 3):
            used, wanted = usage.strip().lower(), images.split()
            if used == "ignored" or images.strip() in ("", "None"):
                continue
            if used not in USAGES:
                raise UserError(
                    f"{self.root / SOLUTION}, line {number}: '{usage}' stands where Public, "
                    f"Private or Ignored is expected."
                )
            queries.append(query)
            usages.append(used)
            # An image counts once, however often it is named.
            lists.append([place.get(image, -1) for image in dict.fromkeys(wanted)])
        parts = {name: np.array([used == name for used in usages], dtype=bool) for name in USAGES}
        parts = {name: mask for name, mask in parts.items() if mask.any()}
        self.judgements = Judgements.of_lists(queries, gallery, {HARD: lists}, "landmarks", parts)
        named = {"query": ("test", queries), "gallery": ("index", gallery)}
        return {
            part: shown(
                unlabelled_split(part, self.root / folder, [image_path(name) for name in names]),
                self.image_size,
            )
            for part, (folder, names) in named.items()
        }


def image_path(image: str) -> str:
    """Path of an image below its folder: three folders named after its first letters.

    Raises:
        UserError: a name without three letters.
    """
    if len(image) < 3:
        raise UserError(f"'{image}' stands where the name of a landmark image is expected.")
    return f"{image[0]}/{image[1]}/{image[2]}/{image}.jpg"


def _rows(path: Path, columns: int) -> Iterator[tuple[int, list[str]]]:
    """Line numbers and cells of a table with a header.

    Raises:
        UserError: a line with another number of columns; the sentence names it.
    """
    with reading(path, "fetch it again"), path.open(encoding="utf-8", newline="") as file:
        for number, cells in enumerate(csv.reader(file), start=1):
            if number == 1 or not cells:
                continue
            if len(cells) < columns:
                raise UserError(
                    f"{path}, line {number}: expected {columns} columns, found {len(cells)}."
                )
            yield number, cells[:columns]
