"""Texts in tables that people open in a spreadsheet: none is taken for a formula there."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

#: What spreadsheets calculate, perhaps behind apostrophes; and the same as it is written.
_FORMULA = re.compile(r"'*[=+\-@\t\r]")


def for_spreadsheet(value: Any) -> Any:
    """A value as it is written: a text that begins like a formula gets an apostrophe.

    Example:
        >>> [for_spreadsheet(v) for v in ("=1+1", "-3.5", "cat", "'@x", 2)]
        ["'=1+1", '-3.5', 'cat', "''@x", 2]
    """
    if isinstance(value, str) and _FORMULA.match(value) and not _is_number(value):
        return f"'{value}"
    return value


def from_spreadsheet(value: Any) -> Any:
    """The text that `for_spreadsheet` was given.

    Example:
        >>> [from_spreadsheet(for_spreadsheet(v)) for v in ("=1+1", "''-a", "'cat'", "+")]
        ['=1+1', "''-a", "'cat'", '+']
    """
    if isinstance(value, str) and value.startswith("'") and _FORMULA.match(value):
        return value[1:]
    return value


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def table_for_spreadsheet(table: pd.DataFrame) -> pd.DataFrame:
    """A table whose texts are written as `for_spreadsheet` says; numbers stay."""
    return _each_text(table, for_spreadsheet)


def table_from_spreadsheet(table: pd.DataFrame) -> pd.DataFrame:
    """The table that `table_for_spreadsheet` was given."""
    return _each_text(table, from_spreadsheet)


def _each_text(table: pd.DataFrame, change: Any) -> pd.DataFrame:
    changed = {
        name: table[name].map(change)
        for name in table.columns
        if table[name].dtype.kind == "O" or str(table[name].dtype) in ("str", "string")
    }
    return table.assign(**changed)
