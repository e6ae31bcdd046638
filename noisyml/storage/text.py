"""Text files of users: UTF-8, or whatever their byte-order mark says, as text, lines or a table."""

from __future__ import annotations

import codecs
import csv
import errno
import io
import itertools
import logging
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from noisyml.errors import UserError

log = logging.getLogger(__name__)

#: Encodings by the byte-order mark that spreadsheets and editors write, the longest first.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)

#: First line by which a spreadsheet says what separates the columns.
_TOLD = re.compile(r"sep=(.)\r?\n")


def read_text(path: Path) -> str:
    """The text of a file without its byte-order mark; line ends stay as they are.

    Args:
        path: a file in UTF-8, or in UTF-16 or UTF-32 with a byte-order mark.

    Raises:
        OSError: it cannot be read.
        UnicodeDecodeError: it is in another encoding.
    """
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "it is no file")
    content = path.read_bytes()
    encoding = next((name for mark, name in _MARKS if content.startswith(mark)), "utf-8")
    if encoding == "utf-8" and b"\0" in content:
        at = content.index(b"\0")
        raise UnicodeDecodeError(encoding, content, at, at + 1, "a zero byte")
    return content.decode(encoding)


def numbered_lines(path: Path) -> list[tuple[int, str]]:
    """The lines of a text file that are not blank, without line ends, and their numbers from 1.

    Lines end in a line feed, a carriage return or both; other characters that Unicode counts among
    line ends are part of a name.

    Raises:
        UserError: it cannot be read as text.
    """
    try:
        text = read_text(path)
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} cannot be read as UTF-8 text: {error.reason} at byte {error.start}; save it "
            "as UTF-8."
        ) from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}.") from error
    lines = io.StringIO(text, newline=None).read().split("\n")
    return [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]


def read_lines(path: Path) -> list[str]:
    """The lines of a text file that are not blank, see `numbered_lines`."""
    return [line for _, line in numbered_lines(path)]


@dataclass(frozen=True)
class TextTable:
    """A table of text cells.

    Attributes:
        header: names of the C columns; empty if the file has none.
        rows: N rows of cells, C each where there is a header.
        lines: number of the line on which each row ends, counted from 1.
        blank: numbers of the lines that were left out because nothing stands in them.
    """

    header: list[str]
    rows: list[list[str]]
    lines: list[int]
    blank: list[int]

    def column(self, name: str) -> list[str]:
        """The N cells of a column.

        Raises:
            ValueError: there is no such column.
        """
        at = self.header.index(name)
        return [row[at] for row in self.rows]


def read_table(
    path: Path,
    separators: Sequence[str] = (",",),
    wanted: Collection[str] = (),
    header: bool = True,
) -> TextTable:
    """The rows of a table as text, so that labels like NA, 007 and 1.0 stay what they are.

    Empty cells beyond the last column (commas at the end of lines) are left out.

    Args:
        path: a text file, see `read_text`.
        separators: of columns; of several, the first line tells which it is, and the first wins
            ties.
        wanted: names of columns by which the first line tells.
        header: whether the first row names the columns; without, every row is data.

    Raises:
        UserError: it cannot be read, is in another encoding, is empty, names a column twice, or a
            row has more cells than the header.
    """
    try:
        return _rows(path, read_text(path), separators, wanted, header)
    except UnicodeDecodeError as error:
        what = "a spreadsheet or an archive, no" if _is_packed(error.object) else "not UTF-8"
        raise UserError(
            f"The table {path} is {what} text; save it as UTF-8 (spreadsheets call it "
            f"'CSV UTF-8'): {_line_of(error)}."
        ) from error
    except OSError as error:
        raise UserError(f"The table {path} cannot be read: {error.strerror or error}.") from error
    except (ValueError, csv.Error) as error:
        raise UserError(f"The table {path} cannot be read: {error}.") from error


def _line_of(error: UnicodeDecodeError) -> str:
    """The line that cannot be decoded, as far as it can be read."""
    lines = error.object[: error.start].split(b"\n")
    line = error.object[error.start - len(lines[-1]) :].split(b"\n")[0].decode("utf-8", "replace")
    return f"line {len(lines)} is {line[:80]!r}"


def _is_packed(content: bytes) -> bool:
    """True of the first bytes of zip files (spreadsheets are some) and gzip files."""
    return content.startswith((b"PK\x03\x04", b"\x1f\x8b"))


def _rows(
    path: Path, text: str, separators: Sequence[str], wanted: Collection[str], header: bool
) -> TextTable:
    lines = io.StringIO(text, newline="")
    told = _TOLD.match(text)
    if told:
        lines.readline()
        separator = told[1]
    else:
        separator = _separator(text, separators, wanted) if len(separators) > 1 else separators[0]
    if separator != separators[0]:
        log.info("%s: the columns are separated by %r", path, separator)
    reader = csv.reader(lines, delimiter=separator)
    first = next((row for row in reader if any(cell.strip() for cell in row)), [])
    if not first:
        raise ValueError("it is empty")
    names = [name.strip() for name in first] if header else []
    twice = {name for name in names if name and names.count(name) > 1}
    if twice:
        raise ValueError(f"the column '{min(twice)}' occurs twice")
    rows: list[list[str]] = []
    numbers: list[int] = []
    blank: list[int] = []
    shift = 1 if told else 0
    begun, ended = 0, reader.line_num + shift if header else shift
    for row in reader if header else itertools.chain([first], reader):
        begun, ended = ended, reader.line_num + shift
        if not any(cell.strip() for cell in row):
            blank.append(reader.line_num + shift)
            continue
        if header:
            if any(cell.strip() for cell in row[len(names) :]):
                raise ValueError(
                    f"line {reader.line_num + shift} has {len(row)} cells where the header has "
                    f"{len(names)}; put quotation marks around text that holds a separator"
                )
            row = row[: len(names)] + [""] * (len(names) - len(row))
        rows.append(row)
        numbers.append(reader.line_num + shift)
    if _ends_in_quotation(text, begun, separator):
        raise ValueError(f"a quotation mark of line {begun + 1} is never closed")
    return TextTable(names, rows, numbers, blank)


def _ends_in_quotation(text: str, begun: int, separator: str) -> bool:
    """True if the row that begins after so many lines, the last one, lacks a quotation mark."""
    last = itertools.islice(io.StringIO(text, newline=""), begun, None)
    try:
        for _ in csv.reader(last, delimiter=separator, strict=True):
            pass
    except csv.Error as error:
        return "unexpected end" in str(error)
    return False


def _separator(text: str, separators: Sequence[str], wanted: Collection[str]) -> str:
    """The separator that fits the first line best: most wanted columns, then most columns."""
    first = io.StringIO(text.lstrip("\r\n"), newline="").readline()

    def fit(separator: str) -> tuple[int, int]:
        columns = next(csv.reader([first], delimiter=separator), [])
        return len(set(wanted) & set(columns)), len(columns)

    return max(separators, key=fit)
