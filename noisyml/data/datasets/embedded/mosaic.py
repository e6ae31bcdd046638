"""Multi-label images without download: small pictures of another data set, set into a grid."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from noisyml.checks import Count, WholeNonNegative
from noisyml.data.base import DatasetSource, Split
from noisyml.data.readers.layout import array_split, require_files
from noisyml.errors import UserError


class Mosaic(DatasetSource):
    """Grids in which some cells hold a picture; the labels are the classes that occur.

    Each split is composed of the pictures of the same split of the source, so that no picture of
    the test has been seen in training. A mosaic draws how many cells are filled (uniform), which,
    and with which pictures; it does not depend on how many mosaics there are.

    Args:
        source: a data set with one label per image, all images of one size, closed set.
        grid: rows and columns of cells.
        items: least and greatest number of filled cells.
        num_train: mosaics of ``train``.
        num_val: mosaics of ``val``; 0 for none.
        num_test: mosaics of ``test``.
        seed: of the composition; unrelated to the seed of a run.

    Raises:
        UserError: a value out of range.
    """

    description: ClassVar[str] = "Mosaics of digits (or another data set), several labels per image"

    def __init__(
        self,
        source: DatasetSource,
        grid: tuple[Count, Count] = (1, 3),
        items: tuple[WholeNonNegative, Count] = (1, 3),
        num_train: Count = 2000,
        num_val: WholeNonNegative = 200,
        num_test: Count = 1000,
        seed: WholeNonNegative = 0,
    ) -> None:
        if not items[0] <= items[1] <= grid[0] * grid[1]:
            raise UserError(
                f"dataset.items={list(items)} must be the least and the greatest number of filled "
                f"cells, in 0 .. {grid[0] * grid[1]}."
            )
        self.source = source
        self.labels_are_true = source.labels_are_true
        self.grid = (grid[0], grid[1])
        self.items = (items[0], items[1])
        self.sizes = {"train": num_train, "val": num_val, "test": num_test}
        self.seed = seed

    def missing(self) -> str | None:
        """The first thing that the source lacks, or None."""
        return self.source.missing()

    def splits(self) -> dict[str, Split]:
        """``train``, ``val`` (if asked for) and ``test``.

        Raises:
            UserError: the source lacks files or a split, has other classes in one, several labels
                per image, or images of different sizes.
        """
        require_files(self.source, type(self.source).__name__)
        parts = self.source.splits()
        names = list(parts["train"].class_names)
        mosaics = {}
        for number, (name, size) in enumerate(self.sizes.items()):
            if not size:
                continue
            if name not in parts or list(parts[name].class_names) != names:
                raise UserError(
                    f"dataset.source gives no {name} split with the classes of training: choose "
                    f"another (split=closed_set), or set dataset.num_{name}=0."
                )
            if not parts[name].target.exclusive:
                raise UserError("dataset.source must give one label per image; choose another.")
            mosaics[name] = self._compose(parts[name], size, number)
        self.split_origin = f"composed of the splits of the source by seed={self.seed}"
        return mosaics

    def _compose(self, source: Split, size: int, number: int) -> Split:
        rows, columns = self.grid
        cells = rows * columns
        rng = np.random.default_rng([self.seed, number])
        # A fixed number of draws per mosaic: the first ones stay when there are more.
        draws = rng.random((size, 1 + 2 * cells))
        least, most = self.items
        filled = least + (draws[:, 0] * (most - least + 1)).astype(np.int64)
        rank = draws[:, 1 : 1 + cells].argsort(axis=1).argsort(axis=1)
        shown = rank < filled[:, None]
        picture = (draws[:, 1 + cells :] * len(source)).astype(np.int64)
        used, place = np.unique(picture[shown], return_inverse=True)
        pictures = _pictures(source, used)
        height, width = pictures.shape[1:3]
        canvas = np.zeros((size, cells, *pictures.shape[1:]), dtype=np.uint8)
        canvas[shown] = pictures[place]
        channels = pictures.shape[3:]
        canvas = canvas.reshape(size, rows, columns, height, width, *channels).swapaxes(2, 3)
        pixels = canvas.reshape(size, rows * height, columns * width, *channels)
        labels = np.zeros((size, len(source.class_names)), dtype=np.uint8)
        labels[np.nonzero(shown)[0], source.labels[picture[shown]]] = 1
        keys = [f"{source.name}/{i:05d}" for i in range(size)]
        return array_split(
            source.name, pixels, labels, list(source.class_names), keys, {"items": filled}
        )


def _pictures(source: Split, index: NDArray[np.int64]) -> NDArray[np.uint8]:
    """The pictures at `index`, uint8 [n, H, W] or [n, H, W, 3]."""
    pictures = [np.asarray(source.images.load(int(i))) for i in index]
    if len({picture.shape for picture in pictures}) > 1:
        raise UserError("The images of dataset.source differ in size; choose another source.")
    return np.stack(pictures)
