"""Pages composed of letters and signs, with masks: segmentation without download."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from noisyml.checks import Count, Interval, NonNegative, WholeNonNegative
from noisyml.data.base import DatasetSource, Split
from noisyml.data.readers.layout import array_split, require_files
from noisyml.errors import UserError
from noisyml.storage import caches
from noisyml.targets.masks import as_labels, encode_mask

#: Grey levels from which a pixel of a letter is ink.
_INK = 96
#: Part of the name of cached pages; changes whenever a page changes.
COMPOSITION = 1
#: Salt of the pages of each split.
_PARTS = {"train": 0, "val": 1, "test": 2}


class GlyphPages(DatasetSource):
    """Grey pages on which letters lie on an uneven ground; the mask gives each its class.

    Class 0 is the ground, class c the c-th character of the source. The letters of each split come
    from the same split of the source, so that no picture of a letter in the test has been seen in
    training. Every page is a function of seed, split and number: it does not depend on how many
    there are.

    Args:
        source: a data set of square grey pictures, one label each, closed set.
        side: of the pages, in pixels.
        letters: least and greatest number of letters on a page.
        letter_side: least and greatest side of a letter, in pixels.
        spread: pixels by which a letter's region is wider than its ink.
        clutter: strokes on a page that belong to the ground.
        grain: standard deviation of the noise, in grey levels.
        num_train: pages of ``train``.
        num_val: pages of ``val``; 0 for none.
        num_test: pages of ``test``.
        seed: of the composition; unrelated to the seed of a run.
        cache_dir: folder for the composed pages; None to compose them each time.

    Raises:
        UserError: ranges that contradict each other.
    """

    #: Composed: its own validation pages are labelled as truly as the test pages.
    clean_val = True
    description: ClassVar[str] = "Pages of letters with masks, 64x64 grey, 7 classes; no download"
    how_to_get: ClassVar[str] = "install matplotlib 3.9 or later, which brings the typefaces."

    def __init__(
        self,
        source: DatasetSource,
        side: Annotated[int, Interval(ge=16, le=1024)] = 64,
        letters: tuple[Count, Count] = (1, 3),
        letter_side: tuple[Count, Count] = (28, 44),
        spread: Count = 1,
        clutter: WholeNonNegative = 3,
        grain: NonNegative = 18.0,
        num_train: Count = 400,
        num_val: WholeNonNegative = 60,
        num_test: Count = 200,
        seed: WholeNonNegative = 0,
        cache_dir: str | None = None,
    ) -> None:
        if letters[0] > letters[1] or not letter_side[0] <= letter_side[1] <= side:
            raise UserError(
                f"dataset.letters={list(letters)} and dataset.letter_side={list(letter_side)} must "
                f"each be least and greatest, and letters must fit a page of {side} pixels."
            )
        self.source = source
        self.side = side
        self.letters = (letters[0], letters[1])
        self.letter_side = (letter_side[0], letter_side[1])
        self.spread = spread
        self.clutter = clutter
        self.grain = grain
        self.sizes = {"train": num_train, "val": num_val, "test": num_test}
        self.seed = seed
        self.cache_dir = None if cache_dir is None else Path(cache_dir) / "glyph_pages"

    def missing(self) -> str | None:
        """The first thing that the source lacks, or None."""
        return self.source.missing()

    def splits(self) -> dict[str, Split]:
        """``train``, ``val`` (if asked for) and ``test``.

        Raises:
            UserError: the source lacks files or a split, or has other classes in one.
        """
        require_files(self.source, type(self.source).__name__)
        parts = self.source.splits()
        names = list(parts["train"].class_names)
        pages = {}
        for name, size in self.sizes.items():
            if not size:
                continue
            if name not in parts or list(parts[name].class_names) != names:
                raise UserError(
                    f"dataset.source gives no {name} split with the classes of training: choose "
                    f"another (split=closed_set), or set dataset.num_{name}=0."
                )
            pages[name] = self._compose(parts[name], size)
        self.split_origin = f"composed of the splits of the source by seed={self.seed}"
        return pages

    def _compose(self, source: Split, size: int) -> Split:
        pages = self._cached(source, size)
        masks = as_labels([encode_mask(mask) for mask in pages[1]])
        keys = [f"{source.name}/{number:05d}" for number in range(size)]
        return array_split(source.name, pages[0], masks, ["ground", *source.class_names], keys)

    def _cached(self, source: Split, size: int) -> NDArray[np.uint8]:
        """Pages and masks, uint8 [2, n, side, side], from the cache or composed."""
        if self.cache_dir is None:
            return self._pages(source, size)
        settings = (source.fingerprint, size, self.side, self.letters, self.letter_side)
        settings += (self.spread, self.clutter, self.grain, self.seed, COMPOSITION)  # type: ignore[assignment]
        digest = hashlib.sha256(repr(settings).encode()).hexdigest()[:20]
        file = self.cache_dir / f"{source.name}-{digest}.npy"
        kept = caches.read_array(file)
        if kept is not None and kept.shape == (2, size, self.side, self.side):
            return kept
        pages = self._pages(source, size)
        caches.write(file, pages)
        return pages

    def _pages(self, source: Split, size: int) -> NDArray[np.uint8]:
        pictures = np.stack([np.asarray(source.images.load(i)) for i in range(len(source))])
        pages = np.empty((2, size, self.side, self.side), dtype=np.uint8)
        for number in range(size):
            rng = np.random.default_rng([self.seed, _PARTS[source.name], number])
            pages[:, number] = self._page(pictures, source.labels, rng)
        return pages

    def _page(
        self,
        pictures: NDArray[np.uint8],
        labels: NDArray[np.int64],
        rng: np.random.Generator,
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """A page and its mask, both uint8 [side, side]."""
        from scipy import ndimage

        side = self.side
        page = _ground(side, rng)
        for _ in range(self.clutter):
            page = _stroke(page, rng)
        mask = np.zeros((side, side), dtype=np.uint8)
        for _ in range(int(rng.integers(self.letters[0], self.letters[1] + 1))):
            which = int(rng.integers(len(pictures)))
            width = int(rng.integers(self.letter_side[0], self.letter_side[1] + 1))
            turned = ndimage.rotate(
                pictures[which], rng.uniform(-25, 25), reshape=False, order=1, mode="nearest"
            )
            letter = np.asarray(Image.fromarray(turned).resize((width, width)), dtype=np.float64)
            top, left = (int(rng.integers(0, side - width + 1)) for _ in range(2))
            window = slice(top, top + width), slice(left, left + width)
            strength = letter / 255 * rng.uniform(0.7, 1.0)
            tone = rng.uniform(150, 240)
            page[window] = page[window] * (1 - strength) + tone * strength
            ink = ndimage.binary_dilation(letter >= _INK, iterations=self.spread)
            mask[window][ink] = labels[which] + 1
        page += rng.normal(0.0, self.grain, page.shape)
        return np.clip(page.round(), 0, 255).astype(np.uint8), mask


def _ground(side: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """An uneven ground, float64 [side, side]."""
    from scipy import ndimage

    coarse = rng.uniform(10, 90, (5, 5))
    return ndimage.zoom(coarse, side / 5, order=1, grid_mode=True, mode="nearest")


def _stroke(page: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """The page with a bright line that belongs to no letter."""
    side = len(page)
    (y0, x0), (y1, x1) = rng.uniform(0, side, (2, 2))
    rows, columns = np.mgrid[:side, :side]
    length = max(np.hypot(y1 - y0, x1 - x0), 1.0)
    along = np.clip(((rows - y0) * (y1 - y0) + (columns - x0) * (x1 - x0)) / length**2, 0, 1)
    away = np.hypot(rows - y0 - along * (y1 - y0), columns - x0 - along * (x1 - x0))
    strength = np.clip(1.6 - away, 0, 1) * rng.uniform(0.4, 0.9)
    return page * (1 - strength) + rng.uniform(140, 230) * strength
