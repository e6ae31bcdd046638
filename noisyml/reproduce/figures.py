"""Published figures: one YAML file a paper in ``published/``, written by a script."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from noisyml.errors import UserError, did_you_mean
from noisyml.storage.reading import read_yaml

HERE = Path(__file__).parent
PUBLISHED = HERE / "published"

#: Units of published values, and what they are as fractions of 1.
UNITS: Mapping[str, float] = {"percent": 0.01, "percentage_points": 0.01, "fraction": 1.0}


@dataclass(frozen=True)
class Figure:
    """One published number.

    Attributes:
        setting: all that tells it from the other figures of its table, with their values.
        metric: its name.
        value: as published, in `unit`.
        unit: ``percent``, ``fraction``, ``seconds`` or another.
        std: deviation as published, None where there is none.
    """

    setting: Mapping[str, object]
    metric: str
    value: float
    unit: str
    std: float | None = None

    @property
    def label(self) -> str:
        """The setting in one line."""
        return ", ".join(f"{key} {value}" for key, value in self.setting.items())


@dataclass(frozen=True)
class PublishedTable:
    """A published table.

    Attributes:
        name: PAPER_ID, unique.
        paper: identifier of the paper.
        caption: in a sentence.
        source: where its figures were read.
        secondary: True if that was not a source of the authors.
        approximate: True if they were read off a picture.
        note: on the source, or empty.
        figures: its cells.
    """

    name: str
    paper: str
    caption: str
    source: str
    secondary: bool
    approximate: bool
    note: str
    figures: tuple[Figure, ...]


@functools.cache
def published_tables() -> dict[str, PublishedTable]:
    """All tables by name."""
    found = {}
    for file in sorted(PUBLISHED.glob("*.yaml")):
        content = read_yaml(file, "reinstall noisyml")
        paper = content["paper"]["id"]
        for table in content["tables"]:
            figures = tuple(Figure(**figure) for figure in table["figures"])
            facts = {key: value for key, value in table.items() if key not in ("id", "figures")}
            name = f"{paper}_{table['id']}"
            found[name] = PublishedTable(name=name, paper=paper, figures=figures, **facts)
    return found


def find_table(name: str) -> PublishedTable:
    """The table of a name, or of the beginning of one that no other has.

    Raises:
        UserError: there is none, or several.
    """
    tables = published_tables()
    if name in tables:
        return tables[name]
    begun = [known for known in tables if known.startswith(name)]
    if len(begun) == 1:
        return tables[begun[0]]
    if begun:
        raise UserError(f"'{name}' is the beginning of several tables: {', '.join(begun)}.")
    raise UserError(
        f"There is no table '{name}'.{did_you_mean(name, list(tables))} "
        f"`noisyml list tables` names them."
    )
