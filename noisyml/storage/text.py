"""Text files of users: UTF-8, or whatever their byte-order mark says."""

from __future__ import annotations

import codecs
from pathlib import Path

#: Encodings by the byte-order mark that spreadsheets and editors write, the longest first.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def read_text(path: Path) -> str:
    """The text of a file without its byte-order mark; line ends stay as they are.

    Args:
        path: a file in UTF-8, or in UTF-16 or UTF-32 with a byte-order mark.

    Raises:
        OSError: it cannot be read.
        UnicodeDecodeError: it is in another encoding.
    """
    content = path.read_bytes()
    encoding = next((name for mark, name in _MARKS if content.startswith(mark)), "utf-8")
    return content.decode(encoding)
