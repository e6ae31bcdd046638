"""Queries with boxes, a gallery and distractors, as benchmarks of instance retrieval show them."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
from PIL import Image

from noisyml.data.base import DatasetSource, Split, TestSet
from noisyml.data.inputs import FileImages, InputKind
from noisyml.data.readers.layout import file_split, require_files
from noisyml.data.transforms.query import Box, benchmark_picture
from noisyml.errors import UserError
from noisyml.targets.judgements import Judgements

#: The one class of images without labels.
UNLABELLED = "unlabelled"


@dataclass(frozen=True)
class BenchmarkImages:
    """Images from files, cut out and shrunk as `benchmark_picture` does it."""

    kind: ClassVar[InputKind] = "images"

    files: FileImages
    size: int | None
    boxes: Sequence[Box] | None = None

    def __len__(self) -> int:
        return len(self.files)

    @property
    def paths(self) -> Sequence[str]:
        """Paths of the files, relative to `root`."""
        return self.files.paths

    @property
    def root(self) -> str:
        """Folder of the files."""
        return self.files.root

    def load(self, index: int) -> Image.Image:
        """The image at `index`, RGB; raises `BrokenImage` naming the file."""
        picture = self.files.load(index)
        box = None if self.boxes is None else self.boxes[index]
        size = max(picture.size) if self.size is None else self.size
        return benchmark_picture(picture, size, box)


@dataclass(frozen=True)
class Benchmark:
    """Images, queries and judgements of a benchmark.

    Attributes:
        folder: of the images.
        gallery: paths of the images that are searched.
        queries: paths of the queries.
        boxes: of the objects asked for; None: whole images.
        judgements: of the gallery for the queries.
    """

    folder: Path
    gallery: Sequence[str]
    queries: Sequence[str]
    boxes: Sequence[Box] | None
    judgements: Judgements


class JudgedImages(DatasetSource):
    """Base of benchmarks whose queries come with lists of judged images.

    ``train`` and ``gallery`` are the images that are searched, without labels; ``query`` has the
    objects asked for. Pictures differ in size: embed them one at a time (``transform=plain
    data.eval_batch_size=1``), or let a transform bring them to one size.

    Args:
        root: folder of the data set.
        image_size: longer side of gallery images in pixels, which are only ever shrunk; None: as
            they are.
        crop_queries: cut the object asked for out of its image.
        check_counts: compare numbers with the published ones.
    """

    name: ClassVar[str]
    has_labels = False

    def __init__(
        self, root: str, image_size: int | None, crop_queries: bool, check_counts: bool
    ) -> None:
        self.root = Path(root)
        self.image_size = image_size
        self.crop_queries = crop_queries
        self.check_counts = check_counts

    @abstractmethod
    def benchmark(self) -> Benchmark:
        """Queries, gallery and judgements, from the files of the data set."""

    def distractor_images(self) -> tuple[Path, Sequence[str]] | None:
        """Folder and paths of images that no query asks for; None: there are none."""
        return None

    def splits(self) -> dict[str, Split]:
        """``train`` and ``gallery`` (the same images), ``query``, and ``distractors`` if any.

        Raises:
            UserError: files missing, or contents that contradict each other.
        """
        require_files(self, self.name)
        found = self.benchmark()
        self.judgements = found.judgements
        train = unlabelled_split("train", found.folder, found.gallery)
        query = unlabelled_split("query", found.folder, found.queries)
        boxes = found.boxes if self.crop_queries else None
        splits = {
            "train": train,
            "query": shown(query, self.image_size, boxes),
            "gallery": shown(replace(train, name="gallery"), self.image_size),
        }
        more = self.distractor_images()
        if more is not None:
            split = unlabelled_split("distractors", *more, label=-1)
            splits["distractors"] = shown(split, self.image_size)
        return splits

    def test_sets(self, names: Sequence[str]) -> dict[str, TestSet]:  # type: ignore[override]
        """``test``, and with distractors ``distractors``."""
        test: TestSet = {"query": "query", "gallery": "gallery"}
        if "distractors" not in names:
            return {"test": test}
        return {"test": test, "distractors": {**test, "distractors": "distractors"}}


def shown(split: Split, size: int | None, boxes: Sequence[Box] | None = None) -> Split:
    """A split of files with its pictures as a benchmark shows them.

    Args:
        split: of image files.
        size: see `benchmark_picture`; None: nothing is shrunk.
        boxes: of the objects asked for.
    """
    facts = (split.fingerprint, split.name, size, boxes)
    assert isinstance(split.inputs, FileImages)
    return replace(
        split,
        inputs=BenchmarkImages(split.inputs, size, boxes),
        fingerprint=hashlib.sha256(repr(facts).encode()).hexdigest(),
    )


def unlabelled_split(name: str, folder: Path, paths: Sequence[str], label: int = 0) -> Split:
    """A split of image files without labels.

    Args:
        name: of the split.
        folder: of the images.
        paths: N paths.
        label: of all of them; -1 for distractors.
    """
    labels = np.full(len(paths), label, dtype=np.int64)
    return file_split(name, folder, paths, labels, [UNLABELLED])


def check_positions(path: Path, lists: Mapping[str, Sequence[Sequence[int]]], images: int) -> None:
    """Refuse judgements of images that are not in the list.

    Raises:
        UserError: such a position.
    """
    for name, of_queries in lists.items():
        for query, positions in enumerate(of_queries):
            if any(not 0 <= position < images for position in positions):
                raise UserError(
                    f"{path}: the list '{name}' of query {query} names an image beyond the "
                    f"{images} of the gallery; fetch the file again."
                )
