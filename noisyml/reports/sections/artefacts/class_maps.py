"""Class activation maps of a few training samples."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from noisyml.reports.artefacts import Unreadable, read_arrays, reading
from noisyml.reports.plots import NARROW, PALETTE, TEXT, WIDTH, new_figure, plain, shorten
from noisyml.reports.sections.base import Picture, RunSection
from noisyml.runs.folder import RunFolder

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FILE = "class_maps.npz"
FOR_COLOUR, AGAINST_COLOUR = PALETTE[1], PALETTE[0]
MAP_PIXELS = 160  # side up to which a small image is enlarged under a class activation map

CAPTION = (
    "Where the classifier looks in some training samples: class activation maps of the label given "
    "in the data and of the network's answer. Orange speaks for the class, blue against it, "
    "compared with the average of all classes; colours are as strong as the strongest of both maps."
)


def show(run: RunFolder, alone: bool) -> Iterator[Picture]:
    """A figure of the maps, if the run has some."""
    maps = read_class_maps(run)
    if maps is not None and len(maps):
        yield Picture("class_maps", partial(class_maps_figure, maps), CAPTION)


@dataclass(frozen=True)
class ClassMaps:
    """Places a classifier looked at in a few training samples, grouped by kind.

    Attributes:
        images: uint8 [n, h, w] or [n, h, w, 3].
        given: [n, H, W] class activation map of the label in the data, less the mean class's.
        answer: [n, H, W] of the class the network answers, likewise.
        given_name: [n] name of the label in the data.
        answer_name: [n] name of the answer.
        true_name: [n] name of the true label, ``""`` where unknown.
        kind: [n] what they stand for, e.g. ``label wrong``; ``""`` for no kind.
    """

    images: NDArray[np.uint8]
    given: NDArray[np.floating]
    answer: NDArray[np.floating]
    given_name: NDArray[np.str_]
    answer_name: NDArray[np.str_]
    true_name: NDArray[np.str_]
    kind: NDArray[np.str_]

    def __len__(self) -> int:
        return len(self.images)


def read_class_maps(run: RunFolder) -> ClassMaps | None:
    """Class activation maps of training samples; plain arrays only, nothing is unpickled."""
    path = run.path / FILE
    found = read_arrays(path)
    if found is None:
        return None
    with reading(path):
        images = found["images"]
        maps = [found[key].astype(float) for key in ("given_maps", "answer_maps")]
        keys = ("given_name", "answer_name", "true_name", "kind")
        names = [found[key].astype(str) for key in keys]
    grey_or_rgb = images.ndim == 3 or (images.ndim == 4 and images.shape[3] == 3)
    same_number = all(len(array) == len(images) for array in (*maps, *names))
    if images.dtype != np.uint8 or not grey_or_rgb or not same_number:
        raise Unreadable("class_maps.npz holds no images with a map each.")
    if any(array.ndim != 3 or not np.isfinite(array).all() for array in maps):
        raise Unreadable("class_maps.npz holds maps that are no numbers.")
    return ClassMaps(images, *maps, *names)


def class_maps_figure(maps: ClassMaps, *, narrow: bool = False) -> Figure:
    """Training samples, two in a row: the image, the map of its label, the map of the answer.

    Each kind has a column of its own; a single kind has two. A narrow figure has one column.
    """
    kinds = list(dict.fromkeys(maps.kind.tolist()))
    columns = [np.flatnonzero(maps.kind == kind) for kind in kinds]
    if len(kinds) == 1 and not narrow:
        columns, kinds = [columns[0][0::2], columns[0][1::2]], [*kinds, ""]
    deepest = max(len(column) for column in columns)
    if narrow:
        heights = [len(column) + 0.2 for column in columns]
        figure = new_figure(NARROW, 1.5 * sum(heights))
        parts = figure.subfigures(len(columns), 1, squeeze=False, height_ratios=heights)
    else:
        figure = new_figure(WIDTH, 0.3 + 1.92 * deepest)
        parts = figure.subfigures(1, len(columns), wspace=0.04, squeeze=False)
    for half, column, kind in zip(parts.flat, columns, kinds, strict=True):
        rows = len(column) if narrow else deepest
        if kind:
            half.suptitle(plain(kind), fontsize=9.5, fontweight="bold", color=TEXT)
        grid = half.subplots(rows, 3, squeeze=False)
        for axes in grid.flat:
            axes.set_axis_off()
        for row, sample in enumerate(column):
            given, answer = maps.given[sample], maps.answer[sample]
            strongest = float(max(np.abs(given).max(), np.abs(answer).max())) or 1.0
            truth = maps.true_name[sample]
            titles = (
                f"true: {truth}" if truth else "",
                f"given: {maps.given_name[sample]}",
                f"answer: {maps.answer_name[sample]}",
            )
            picture = _enlarged(maps.images[sample])
            shown = (
                picture,
                _overlaid(picture, given / strongest),
                _overlaid(picture, answer / strongest),
            )
            for axes, pixels, title in zip(grid[row], shown, titles, strict=True):
                axes.imshow(pixels, interpolation="antialiased")
                axes.set_title(
                    plain(shorten(title, 16 if narrow else 22)), fontsize=8, color=TEXT, pad=2.5
                )
    return figure


def _enlarged(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """An image as RGB [h, w, 3], small ones enlarged by whole pixels."""
    rgb = image if image.ndim == 3 else np.repeat(image[..., None], 3, axis=2)
    times = max(1, MAP_PIXELS // max(rgb.shape[:2]))
    return rgb.repeat(times, axis=0).repeat(times, axis=1)


def _overlaid(image: NDArray[np.uint8], evidence: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Evidence in [-1, 1] [H, W] over a faded grey version of an image [h, w, 3]."""
    from PIL import Image

    height, width = image.shape[:2]
    smooth = Image.fromarray(evidence.astype(np.float32)).resize(
        (width, height), Image.Resampling.BILINEAR
    )
    strength = np.clip(np.asarray(smooth), -1, 1)[..., None]
    # Faded to the middle, so that colour shows on black and on white alike.
    grey = 0.55 * image.mean(axis=2, keepdims=True) + 0.3 * 255
    towards = np.where(strength > 0, _rgb(FOR_COLOUR), _rgb(AGAINST_COLOUR))
    share = 0.85 * np.abs(strength)
    return np.rint((1 - share) * grey + share * towards).astype(np.uint8)


def _rgb(colour: str) -> NDArray[np.float64]:
    return np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)], dtype=np.float64)


SECTION = RunSection(30, show, frozenset({FILE}))
