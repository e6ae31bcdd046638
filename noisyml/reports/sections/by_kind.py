"""Artefacts that no section knows, shown by their kind."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from noisyml.reports.artefacts import Unreadable, png_data_uri, read_arrays, reading
from noisyml.reports.sections.base import Element, Gallery, TextTable, share_text
from noisyml.reports.settings import ABSENT
from noisyml.runs.artefacts import ArtefactEntry
from noisyml.runs.folder import RunFolder
from noisyml.storage.tables import table_from_spreadsheet

ROWS_SHOWN = 20
PICTURES_OF_ONE, PICTURES_OF_MANY = 40, 12
PICTURE_PIXELS = 192


def show_by_kind(entry: ArtefactEntry, run: RunFolder, alone: bool) -> Iterator[Element]:
    """An artefact: pictures, the first rows of a table or text, or the size of each array.

    Args:
        entry: lists it.
        run: has it.
        alone: True for a report on that run alone, which shows more.

    Raises:
        Unreadable: its file is broken.
    """
    path = run.path / entry.file
    if not path.is_file():
        return
    if entry.kind == "table":
        with reading(path):
            table = (
                table_from_spreadsheet(pd.read_csv(path))
                if path.suffix == ".csv"
                else pd.read_parquet(path)
            )
        rows = table.head(ROWS_SHOWN).itertuples(index=False, name=None)
        caption = _first(entry.caption, ROWS_SHOWN, len(table), "rows")
        texts = tuple(tuple(map(_text, table.columns, row)) for row in rows)
        yield TextTable(entry.title, caption, tuple(map(str, table.columns)), texts)
        return
    if entry.kind == "text":
        lines = path.read_text(encoding="utf-8").splitlines()
        caption = _first(entry.caption, ROWS_SHOWN, len(lines), "lines")
        yield TextTable(
            entry.title, caption, (entry.file,), tuple((x,) for x in lines[:ROWS_SHOWN])
        )
        return
    arrays = read_arrays(path) or {}
    if entry.kind == "pictures":
        limit = PICTURES_OF_ONE if alone else PICTURES_OF_MANY
        images, texts_of = _pictures(entry.file, arrays)
        caption = _first(entry.caption, limit, len(images), "pictures")
        pairs = zip(images[:limit], texts_of[:limit], strict=True)
        pictures = tuple((png_data_uri(image, PICTURE_PIXELS), str(text)) for image, text in pairs)
        yield Gallery(entry.title, caption, pictures)
        return
    sizes = tuple(
        (name, " × ".join(map(str, array.shape)) or "1", str(array.dtype))
        for name, array in arrays.items()
    )
    yield TextTable(entry.title, entry.caption, (entry.file, "size", "type"), sizes)


def _pictures(file: str, arrays: dict[str, NDArray]) -> tuple[NDArray[np.uint8], NDArray]:
    """Images and texts of an artefact of pictures."""
    images, texts = arrays.get("images"), arrays.get("text")
    if images is None or texts is None or len(images) != len(texts):
        raise Unreadable(f"{file} holds no pictures with a text each.")
    if images.dtype != np.uint8 or not (images.ndim == 3 or images.shape[3:] == (3,)):
        raise Unreadable(f"{file} holds no images: {images.dtype} {list(images.shape)}.")
    return images, texts


def _text(column: object, value: object) -> str:
    if not isinstance(value, float):
        return str(value)
    if not math.isfinite(value):
        return ABSENT if math.isnan(value) else str(value)
    return share_text(value) if column == "p_clean" else f"{value:.4g}"


def _first(caption: str, shown: int, total: int, what: str) -> str:
    """A caption that says how much is left out."""
    return caption if total <= shown else f"{caption} First {shown} of {total:,} {what}.".strip()
