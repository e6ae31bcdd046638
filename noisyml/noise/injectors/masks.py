"""Mask noise: objects whose border is shifted, whose class is exchanged, that are missing.

An object is a connected region of one class other than the background. What is drawn depends on the
name of the sample and the number of the object in it. Scribbles weaken masks instead: a line inside
each region keeps its class, and all other pixels have none.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import dijkstra

from noisyml.checks import Count, Share, WholeNonNegative
from noisyml.errors import UserError
from noisyml.noise.base import Outcome, Samples, SeededInjector
from noisyml.noise.random import Draws
from noisyml.targets import TargetKind
from noisyml.targets.masks import IGNORE, as_labels, decode_mask, encode_mask

MASK: frozenset[TargetKind] = frozenset({"masks"})

Pixels = NDArray[np.uint8]
Region = NDArray[np.bool_]
#: A class without meaning of its own, if there is one.
Background = WholeNonNegative | None


def objects(mask: Pixels, background: int | None) -> Iterator[tuple[int, Region]]:
    """The class and the pixels [H, W] of each object, class by class, in reading order.

    Args:
        mask: [H, W].
        background: class that has no objects; None: every class has.
    """
    for number in np.unique(mask).tolist():
        if number in (IGNORE, background):
            continue
        regions, count = ndimage.label(mask == number, structure=np.ones((3, 3)))
        for region in range(1, count + 1):
            yield number, regions == region


class ObjectDraws:
    """The random numbers of one object of one sample.

    Args:
        draws: of the injector.
        sample: id of the sample.
        number: of the object in it.
    """

    def __init__(self, draws: Draws, sample: np.uint64, number: int) -> None:
        self._draws, self._number = draws, number
        self._ids = np.array([sample], dtype=np.uint64)

    def uniform(self, stream: str) -> float:
        """A number in [0, 1)."""
        return float(self._draws.uniform(self._ids, f"{stream}{self._number}")[0])

    def below(self, n: int, stream: str) -> int:
        """A whole number in ``0 .. n - 1``."""
        return int(self._draws.below(n, self._ids, f"{stream}{self._number}")[0])


@dataclass(frozen=True, kw_only=True)
class _ObjectNoise(SeededInjector):
    """Base of noise that changes a share of the objects.

    Args:
        rate: P(an object is chosen).
        background: class number that has no objects; null: every class has.
        seed: the noise seed.
    """

    target_kinds: ClassVar[frozenset[TargetKind]] = MASK

    rate: Share
    background: Background = 0

    def corrupt(self, samples: Samples) -> Outcome:
        """Choose objects of every mask and change them; untouched masks keep their bytes."""
        observed, seen, changed = [], 0, 0
        for content, sample in zip(samples.labels, samples.ids, strict=True):
            clean = decode_mask(content)
            mask = clean.copy()
            for number, (label, region) in enumerate(objects(clean, self.background)):
                seen += 1
                draws = ObjectDraws(self.draws, sample, number)
                if draws.uniform("choose") < self.rate:
                    self.change(mask, label, region, draws, samples.num_classes)
                    changed += bool(
                        (mask[region] != label).any() or ((mask != clean)[~region]).any()
                    )
            observed.append(content if np.array_equal(mask, clean) else encode_mask(mask))
        details = {"objects": seen, "changed_objects": changed}
        return Outcome(observed=as_labels(observed), nominal_rate=None, details=details)

    @abstractmethod
    def change(
        self, mask: Pixels, label: int, region: Region, draws: ObjectDraws, num_classes: int
    ) -> None:
        """Change one object of a mask [H, W], in place."""


@dataclass(frozen=True, kw_only=True)
class MaskBoundary(_ObjectNoise):
    """A share of the objects grow or shrink by up to so many pixels.

    A growing object covers what lies around it; a shrinking one leaves its rim to the nearest other
    class, and never goes away.

    Args:
        rate: P(an object is chosen).
        pixels: greatest shift; each from 1 to this is as likely.
        background: class number that has no objects; null: every class has.
        seed: the noise seed.

    Example:
        >>> import numpy as np
        >>> from noisyml.noise import MaskBoundary
        >>> mask = np.zeros((9, 9), dtype=np.uint8)
        >>> mask[3:6, 3:6] = 1
        >>> noise = MaskBoundary(rate=1.0, pixels=1).inject([encode_mask(mask)], 2, keys=["a"])
        >>> int(decode_mask(noise.observed[0]).sum()), noise.details["changed_objects"]
        (1, 1)
    """

    name: ClassVar[str] = "mask_boundary"

    pixels: Count = 3

    def change(
        self, mask: Pixels, label: int, region: Region, draws: ObjectDraws, num_classes: int
    ) -> None:
        """Grow or shrink the region."""
        shift = 1 + draws.below(self.pixels, "pixels")
        if draws.uniform("grow") < 0.5:
            reached = ndimage.distance_transform_edt(~region) <= shift
            mask[reached & (mask != IGNORE)] = label
            return
        inside = ndimage.distance_transform_edt(np.pad(region, 1, mode="edge"))[1:-1, 1:-1]
        rim = region & (inside <= min(shift, inside.max() - 0.5))
        rim &= inside < inside.max()
        others = region | (mask == IGNORE)
        if others.all():
            return
        nearest = ndimage.distance_transform_edt(
            others, return_distances=False, return_indices=True
        )
        mask[rim] = mask[tuple(nearest)][rim]


@dataclass(frozen=True, kw_only=True)
class MaskClassSwap(_ObjectNoise):
    """A share of the objects are given another class, each as likely.

    Args:
        rate: P(an object is chosen).
        background: class number that has no objects and is given to none; null: every class has.
        seed: the noise seed.

    Example:
        >>> import numpy as np
        >>> from noisyml.noise import MaskClassSwap
        >>> mask = encode_mask(np.array([[0, 1, 1]], dtype=np.uint8))
        >>> decode_mask(MaskClassSwap(rate=1.0).inject([mask], 3).observed[0]).tolist()
        [[0, 2, 2]]
    """

    name: ClassVar[str] = "mask_class_swap"

    def change(
        self, mask: Pixels, label: int, region: Region, draws: ObjectDraws, num_classes: int
    ) -> None:
        """Another class for the region."""
        others = [c for c in range(num_classes) if c not in (label, self.background)]
        if others:
            mask[region] = others[draws.below(len(others), "class")]


@dataclass(frozen=True, kw_only=True)
class MaskMissing(_ObjectNoise):
    """A share of the objects are not in the mask.

    Args:
        rate: P(an object is chosen).
        fill: what stands in its place: the ``background``, or no class (``ignore``).
        background: class number that has no objects; null: every class has.
        seed: the noise seed.

    Raises:
        UserError: the background is asked for where there is none.

    Example:
        >>> import numpy as np
        >>> from noisyml.noise import MaskMissing
        >>> mask = encode_mask(np.array([[0, 1, 1]], dtype=np.uint8))
        >>> decode_mask(MaskMissing(rate=1.0).inject([mask], 3).observed[0]).tolist()
        [[0, 0, 0]]
    """

    name: ClassVar[str] = "mask_missing"

    fill: Literal["background", "ignore"] = "background"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.fill == "background" and self.background is None:
            raise UserError(
                "noise=mask_missing puts the background in the place of an object, and "
                "noise.background=null says that there is none: set noise.fill=ignore."
            )

    def change(
        self, mask: Pixels, label: int, region: Region, draws: ObjectDraws, num_classes: int
    ) -> None:
        """Nothing where the object was."""
        background = IGNORE if self.background is None else self.background
        mask[region] = IGNORE if self.fill == "ignore" else background


@dataclass(frozen=True, kw_only=True)
class MaskScribbles(SeededInjector):
    """Masks are reduced to scribbles: the middle line of every region, all other pixels without.

    Of each connected region of a class, the background included, the longest path of its skeleton
    is kept and widened (after the simulated scribbles for "Learning with Less Labels in Digital
    Pathology via Scribble Supervision from Natural Images", arXiv 2201.02627).

    Args:
        width: pixels by which the path is widened on each side.
        min_pixels: regions of fewer pixels have no scribble.
        seed: nothing is drawn.

    Example:
        >>> import numpy as np
        >>> from noisyml.noise import MaskScribbles
        >>> mask = encode_mask(np.ones((5, 9), dtype=np.uint8))
        >>> scribble = decode_mask(MaskScribbles(width=0).inject([mask], 2).observed[0])
        >>> sorted(set(scribble.ravel().tolist())), int((scribble == 1).sum()) < 15
        ([1, 255], True)
    """

    name: ClassVar[str] = "mask_scribbles"
    target_kinds: ClassVar[frozenset[TargetKind]] = MASK

    width: WholeNonNegative = 1
    min_pixels: Count = 4

    def corrupt(self, samples: Samples) -> Outcome:
        """Scribbles of every mask."""
        observed = [
            encode_mask(scribbles(decode_mask(content), self.width, self.min_pixels))
            for content in samples.labels
        ]
        return Outcome(observed=as_labels(observed))


def scribbles(mask: Pixels, width: int = 1, min_pixels: int = 4) -> Pixels:
    """A line of each region's class along its middle, ``IGNORE`` elsewhere; uint8 [H, W].

    Args:
        mask: [H, W].
        width: pixels by which a line is widened on each side, inside its region.
        min_pixels: smaller regions have none.
    """
    drawn = np.full_like(mask, IGNORE)
    for label, region in objects(mask, None):
        if region.sum() < min_pixels:
            continue
        path = longest_path(skeleton(region))
        if width:
            path = ndimage.binary_dilation(path, np.ones((3, 3)), iterations=width) & region
        drawn[path] = label
    return drawn


def skeleton(region: Region) -> Region:
    """A region thinned to lines of one pixel (Zhang and Suen, CACM 1984), bool [H, W]."""
    thin = np.pad(region, 1)
    while True:
        before = thin.copy()
        for odd in (True, False):
            n = [
                np.roll(thin, shift, (0, 1))[1:-1, 1:-1]
                # North, then clockwise.
                for shift in ((1, 0), (1, -1), (0, -1), (-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1))
            ]
            neighbours = sum(part.astype(np.int8) for part in n)
            rises = sum((~a & b).astype(np.int8) for a, b in zip(n, [*n[1:], n[0]], strict=True))
            north, east, south, west = n[0], n[2], n[4], n[6]
            sides = (
                ~(north & east & south) & ~(east & south & west)
                if odd
                else ~(north & east & west) & ~(north & south & west)
            )
            gone = (neighbours >= 2) & (neighbours <= 6) & (rises == 1) & sides
            thin[1:-1, 1:-1] &= ~gone
        if not thin.any():
            # Squares of two pixels vanish as a whole: their middle is what is left.
            distance = ndimage.distance_transform_edt(region)
            return np.arange(region.size).reshape(region.shape) == distance.argmax()
        if np.array_equal(before, thin):
            return thin[1:-1, 1:-1]


def longest_path(lines: Region) -> Region:
    """The longest of the shortest paths between two pixels of connected lines, bool [H, W]."""
    rows, columns = np.nonzero(lines)
    number = np.full(lines.shape, -1)
    number[rows, columns] = np.arange(len(rows))
    padded = np.pad(number, 1, constant_values=-1)
    ends = []
    for down, right in ((0, 1), (1, -1), (1, 0), (1, 1)):
        other = padded[rows + 1 + down, columns + 1 + right]
        here = np.flatnonzero(other >= 0)
        ends.append((here, other[here], np.full(len(here), np.hypot(down, right))))
    first, second, length = (np.concatenate(part) for part in zip(*ends, strict=True))
    graph = coo_array((length, (first, second)), shape=(len(rows), len(rows))).tocsr()

    def farthest(start: int) -> tuple[int, NDArray[np.int64]]:
        distance, before = dijkstra(graph, directed=False, indices=start, return_predecessors=True)
        distance[np.isinf(distance)] = -1
        return int(distance.argmax()), before

    start, _ = farthest(0)
    end, before = farthest(start)
    path = np.zeros_like(lines)
    while end >= 0:
        path[rows[end], columns[end]] = True
        end = int(before[end])
    return path
