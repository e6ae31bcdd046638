"""Flags beside wrong labels: near-duplicates, rows unlike any class, odd images, mixed classes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from noisyml.audit.rows import Rows
from noisyml.checks import Positive, checked
from noisyml.data.inputs import BrokenImage, as_rgb

#: Side to which images are reduced to be looked at, and what counts as odd there.
_SIDE = 64
_DARK, _LIGHT, _FLAT, _BLURRED, _LONG, _TINY = 20.0, 235.0, 4.0, 1.5, 4.0, 16


@checked
def near_duplicates(
    index: NDArray[Any],
    similarity: NDArray[Any],
    labels: NDArray[Any],
    split: NDArray[Any],
    threshold: float = 0.995,
) -> pd.DataFrame:
    """Pairs of rows whose features are nearly the same.

    Args:
        index: neighbours [N, k] int64.
        similarity: their cosine [N, k].
        labels: [N] int64, observed.
        split: name of the split of each row [N].
        threshold: cosine from which a pair counts.

    Returns:
        Columns ``first`` and ``second`` (row numbers, the smaller first), ``similarity``,
        ``labels_differ`` and ``splits_differ``; the most similar first.
    """
    row, place = np.nonzero((similarity >= threshold) & (index >= 0))
    other = index[row, place]
    first, second = np.minimum(row, other), np.maximum(row, other)
    table = pd.DataFrame({"first": first, "second": second, "similarity": similarity[row, place]})
    table = table.drop_duplicates(["first", "second"])
    one, two = table["first"].to_numpy(), table["second"].to_numpy()
    table["labels_differ"] = labels[one] != labels[two]
    table["splits_differ"] = np.asarray(split[one] != split[two], dtype=bool)
    return table.sort_values("similarity", ascending=False, kind="stable").reset_index(drop=True)


@checked
def unlike_any_class(
    similarity: NDArray[Any], neighbours: int = 10, deviations: Positive = 4.0
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Rows that lie far from all others.

    Args:
        similarity: cosine of the nearest rows [N, k], the nearest first.
        neighbours: of which the mean distance is taken.
        deviations: a row stands out if its distance exceeds the median of all by so many standard
            deviations, estimated from the median absolute deviation.

    Returns:
        The mean distance [N] and whether it stands out [N] bool.
    """
    distance = 1 - similarity[:, :neighbours].astype(np.float64).mean(axis=1)
    middle = float(np.median(distance))
    spread = 1.4826 * float(np.median(np.abs(distance - middle)))
    return distance, distance > middle + deviations * max(spread, 1e-6)


@dataclass(frozen=True)
class Odd:
    """A remark on an image."""

    row: int
    remark: str


def odd_images(rows: Rows, progress: Callable[[int, int], None] | None = None) -> list[Odd]:
    """Images that are nearly black, white, of one colour, blurred, tiny or very long.

    Args:
        rows: of images.
        progress: called with images done and in all.
    """
    found = []
    for row in range(len(rows)):
        try:
            picture = as_rgb(rows.load(row))
        except BrokenImage:
            found.append(Odd(row, "cannot be decoded"))
            continue
        found += [Odd(row, remark) for remark in remarks_on(picture)]
        if progress is not None and (row + 1) % 100 == 0:
            progress(row + 1, len(rows))
    return found


def remarks_on(picture: Image.Image) -> list[str]:
    """Oddities of a picture in words.

    Example:
        >>> remarks_on(Image.new("RGB", (400, 40)))
        ['10 times as long as wide', 'nearly black']
    """
    width, height = picture.size
    remarks = []
    ratio = max(width, height) / max(1, min(width, height))
    if ratio >= _LONG:
        remarks.append(f"{ratio:.0f} times as long as wide")
    if max(width, height) < _TINY:
        remarks.append(f"only {width} x {height} pixels")
    small = picture.convert("L")
    if max(width, height) > _SIDE:
        small = small.resize((_SIDE, _SIDE), Image.Resampling.BILINEAR)
    grey = np.asarray(small, dtype=np.float64)
    if grey.mean() < _DARK and grey.max() < 60:
        remarks.append("nearly black")
    elif grey.mean() > _LIGHT and grey.min() > 195:
        remarks.append("nearly white")
    elif grey.std() < _FLAT:
        remarks.append("nearly of one colour")
    elif min(grey.shape) > 2 and max(width, height) > _SIDE:
        steps = np.abs(np.diff(grey, axis=0)).mean() + np.abs(np.diff(grey, axis=1)).mean()
        if steps < _BLURRED:
            remarks.append("blurred")
    return remarks


@checked
def mixed_classes(
    confusion: NDArray[Any],
    low: NDArray[Any],
    class_names: Sequence[str],
    share: Positive = 0.05,
    rows: float = 3.0,
) -> pd.DataFrame:
    """Pairs of classes that are given for each other.

    Args:
        confusion: rows of each true class (first axis) with each label [C, C].
        low: lower ends of their intervals.
        class_names: C.
        share: of the rows of the true class, from which a pair counts.
        rows: that the lower end must reach.

    Returns:
        Columns ``true``, ``label``, ``rows``, ``share``; the most frequent first.
    """
    size = np.maximum(confusion.sum(axis=1, keepdims=True), 1e-9)
    marked = (confusion / size >= share) & (low >= rows)
    np.fill_diagonal(marked, False)
    true, label = np.nonzero(marked)
    names = np.asarray(class_names, dtype=object)
    table = pd.DataFrame(
        {
            "true": names[true],
            "label": names[label],
            "rows": confusion[true, label],
            "share": (confusion / size)[true, label],
        }
    )
    return table.sort_values("rows", ascending=False, kind="stable").reset_index(drop=True)
