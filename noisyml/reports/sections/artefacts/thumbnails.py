"""Thumbnails of the training samples trusted least."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from noisyml.reports.artefacts import (
    Unreadable,
    png_data_uri,
    read_arrays,
    read_list,
    read_manifest,
    reading,
)
from noisyml.reports.sections.base import RunSection, Thumb, Thumbs, share_text
from noisyml.runs.folder import RunFolder

FILE = "thumbnails.npz"
THUMBNAILS_OF_ONE, THUMBNAILS_OF_MANY = 60, 20
THUMBNAIL_PIXELS = 96


def show(run: RunFolder, alone: bool) -> Iterator[Thumbs]:
    """The first thumbnails, more for a report on this run alone."""
    found = read_thumbnails(run)
    if found is None or len(found) == 0:
        return
    shown = min(THUMBNAILS_OF_ONE if alone else THUMBNAILS_OF_MANY, len(found))
    thumbs = tuple(
        Thumb(
            source=png_data_uri(found.images[i], THUMBNAIL_PIXELS),
            observed=str(found.observed_name[i]),
            truth=str(found.clean_name[i]) or "none of the classes",
            right=found.right[i],
            p_clean=share_text(float(found.p_clean[i])),
            key=str(found.key[i]),
        )
        for i in range(shown)
    )
    known = [thumb for thumb in thumbs if thumb.right is not None]
    caption = f"The {shown} training samples trusted least"
    if known:
        caption += f"; {sum(not t.right for t in known)} of them are indeed wrongly labelled"
    told = {entry.file: entry.caption for entry in read_list(run)}.get("suspects.csv", "")
    yield Thumbs(thumbs, f"{caption}. {told}".rstrip())


@dataclass(frozen=True)
class Thumbnails:
    """Pictures of the training samples trusted least, the least trusted first.

    Attributes:
        images: uint8 [n, H, W] or [n, H, W, 3].
        p_clean: [n] float.
        observed_name: [n] name of the label in the data.
        clean_name: [n] name of the true label, ``""`` where unknown.
        key: [n] what names the sample (a path or an id).
        right: [n] True or False where it is known whether the label is right, else None.
    """

    images: NDArray[np.uint8]
    p_clean: NDArray[np.floating]
    observed_name: NDArray[np.str_]
    clean_name: NDArray[np.str_]
    key: NDArray[np.str_]
    right: tuple[bool | None, ...]

    def __len__(self) -> int:
        return len(self.images)


def read_thumbnails(run: RunFolder) -> Thumbnails | None:
    """The least trusted training samples; plain arrays only, nothing is unpickled."""
    path = run.path / FILE
    found = read_arrays(path)
    if found is None:
        return None
    with reading(path):
        images, p_clean = found["images"], found["p_clean"].astype(float)
        index = found["index"].astype(np.int64)
        names = [found[key].astype(str) for key in ("observed_name", "clean_name", "key")]
    grey_or_rgb = images.ndim == 3 or (images.ndim == 4 and images.shape[3] == 3)
    if images.dtype != np.uint8 or not grey_or_rgb:
        raise Unreadable(f"thumbnails.npz holds no images: {images.dtype} {list(images.shape)}.")
    if any(array.shape != (len(images),) for array in (p_clean, index, *names)):
        raise Unreadable("thumbnails.npz holds names or scores for another number of images.")
    order = np.argsort(p_clean, kind="stable")
    observed, clean, key = (array[order] for array in names)
    right = _rightness(read_manifest(run), index[order], observed, clean)
    return Thumbnails(images[order], p_clean[order], observed, clean, key, right)


def _rightness(
    manifest: pd.DataFrame | None,
    index: NDArray[np.int64],
    observed: NDArray[np.str_],
    clean: NDArray[np.str_],
) -> tuple[bool | None, ...]:
    """True for labels that are right, as the manifest says, or else as their names say."""
    # Several labels or a single entry of them are told in full by their names.
    if manifest is None or isinstance(manifest["observed"].iloc[0], list):
        return tuple(
            bool(seen == true) if true else None for seen, true in zip(observed, clean, strict=True)
        )
    rows = manifest.set_index("index").reindex(index)
    if rows["changed"].isna().any():
        raise Unreadable("thumbnails.npz shows samples that noise.parquet does not list.")
    return tuple(
        None if nobody_knows else not changed
        for nobody_knows, changed in zip(rows["unknown"], rows["changed"], strict=True)
    )


SECTION = RunSection(40, show, frozenset({FILE}))
