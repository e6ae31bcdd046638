"""A page to review the most suspicious rows by keyboard, in one file that needs no network."""

from __future__ import annotations

import base64
import hashlib
import io
import json
from pathlib import Path
from typing import Any

from PIL import Image

from noisyml.audit.report import KINDS, Audit
from noisyml.audit.rows import Rows
from noisyml.data.inputs import BrokenImage, as_rgb
from noisyml.storage.files import write_atomically

#: Longer side of a picture in the page, and of the pictures beside it.
SIDE, SMALL = 224, 88
#: Trusted neighbours beside a row.
NEIGHBOURS = 6
_TEMPLATE = Path(__file__).with_name("gallery.html")


def write_gallery(found: Audit, file: Path, rows: int = 500) -> None:
    """Write a page of the most suspicious rows.

    Each with its picture, given and suggested label, reasons and the nearest rows whose labels are
    trusted. Decisions are made by keyboard, kept by the browser, and saved as ``decisions.csv``.

    Args:
        found: an audit of images.
        file: of the page.
        rows: how many, at most.
    """
    page = _TEMPLATE.read_text(encoding="utf-8")
    # Inside a script nothing but these ends it; the rest is read as data.
    data = json.dumps(content(found, rows)).replace("<", "\\u003c").replace("&", "\\u0026")
    write_atomically(file, page.replace("__DATA__", data))


def content(found: Audit, rows: int) -> dict[str, Any]:
    """Content of the page, as JSON."""
    table = found.issues.iloc[:rows]
    judged, data = found.judged, found.rows
    paths = data.paths
    chosen = table["row"].to_numpy()
    beside: dict[int, list[int]] = {}
    for row in chosen.tolist():
        index = judged.index[row]
        trusted = index[judged.p_wrong[index] < 0.5][:NEIGHBOURS]
        beside[row] = trusted.tolist()
    pictures = {
        str(row): thumbnail(data, row, SMALL)
        for row in sorted({twin for twins in beside.values() for twin in twins})
    }
    items = []
    for place, row in enumerate(chosen.tolist()):
        line = table.iloc[place]
        items.append(
            {
                "path": paths[row],
                "split": str(line["split"]),
                "given": str(line["given"]),
                "suggested": str(line["suggested"]),
                "p_wrong": round(float(line["p_wrong"]), 4),
                "p_suggested": round(float(line["p_suggested"]), 4),
                "reasons": str(line["reasons"]).split("; ") if line["reasons"] else [],
                "picture": thumbnail(data, row, SIDE),
                "beside": [
                    {"picture": str(twin), "label": str(data.given[twin])} for twin in beside[row]
                ],
            }
        )
    low, high = found.judged.noise_rate.low, found.judged.noise_rate.high
    told = [
        f"{len(data):,} rows judged; {found.judged.noise_rate.value:.1%} of the labels are wrong "
        f"by estimate ({low:.1%} to {high:.1%}). {judged.told} Here are the {len(items):,} most "
        f"suspicious rows."
    ]
    if found.check is not None:
        told.append(found.check.sentence)
    return {
        "key": hashlib.sha256("\0".join(paths).encode("utf-8", "replace")).hexdigest()[:16],
        "classes": judged.classes,
        "several": KINDS[data.target.name].several,
        "told": told,
        "warn": found.check is not None and found.check.near_chance,
        "items": items,
        "pictures": pictures,
    }


def thumbnail(rows: Rows, row: int, side: int) -> str:
    """A picture of a row as a data URI; empty where it cannot be decoded."""
    try:
        picture = as_rgb(rows.load(row))
    except BrokenImage:
        return ""
    scale = side / max(picture.size)
    size = [max(1, round(length * scale)) for length in picture.size]
    way = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
    picture = picture.resize((size[0], size[1]), way)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
