"""Cells of a published table as runs: the words of each, or the reason that there are none.

``tables/PAPER.yaml`` has an entry for every table of the paper::

    metrics: {recall_at_1: test/recall_at_1}   # published name: name in metrics.json
    words: [...]                               # in every cell
    axes: {dataset: {CUB: [dataset=cub200]}}   # words by value of the setting, in this order
    when: [{match: {...}, words: [...]}]       # words of some cells, after the axes
    then: [...]                                # in every cell, last
    images: {CUB: 5864}                        # training images, for estimates
    asks: {ResNet-50: backbone.weights}        # what the user gives, by value of a setting
    desk: {...}                                # on embedded data: own words and number of training
                                               # images, and axes that go first

An axis that is a text with ``{}`` stands for one word with the value in it; null leaves the
setting without words; a text in the place of words says why such a cell is not run. ``not_a_run``
says it of a whole table.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from noisyml.command.words import Word, words_in
from noisyml.errors import UserError
from noisyml.reproduce.figures import Figure, PublishedTable
from noisyml.storage.reading import read_yaml

TABLES = Path(__file__).parent / "tables"
Scale = Literal["paper", "desk"]
#: Value of a setting that its source does not name.
UNKNOWN = "unknown"


@dataclass(frozen=True)
class Cell:
    """Figures of one setting, and the run that repeats them.

    Attributes:
        number: of the row, from 1.
        setting: what tells it from other cells.
        figures: published, one per metric.
        metrics: name in ``metrics.json`` of each figure, None where it is not measured.
        words: overrides of the run, without seeds; empty where there is none.
        lacking: why there is none, or empty.
        images: training images, 0 where that is not known.
    """

    number: int
    setting: Mapping[str, object]
    figures: tuple[Figure, ...]
    metrics: tuple[str | None, ...]
    words: tuple[str, ...]
    lacking: str
    images: int

    @property
    def label(self) -> str:
        """The setting in one line."""
        return self.figures[0].label


@functools.cache
def recipes(paper: str) -> Mapping[str, Any]:
    """The entries of a paper's tables by their identifiers."""
    return dict(read_yaml(TABLES / f"{paper}.yaml", "reinstall noisyml")["tables"])


def recipe_of(table: PublishedTable) -> Mapping[str, Any]:
    """The entry of a table."""
    entry: Mapping[str, Any] = recipes(table.paper)[table.name.removeprefix(f"{table.paper}_")]
    return entry


def cells(table: PublishedTable, scale: Scale = "paper") -> list[Cell]:
    """The cells of a table in its order, figures that differ in the metric alone together."""
    entry = recipe_of(table)
    grouped: dict[tuple[tuple[str, object], ...], list[Figure]] = {}
    for figure in table.figures:
        grouped.setdefault(tuple(figure.setting.items()), []).append(figure)
    found = []
    for number, (items, figures) in enumerate(grouped.items(), 1):
        setting = dict(items)
        words, lacking = _words(entry, setting, scale)
        metrics = {**entry.get("metrics", {})}
        if scale == "desk":
            metrics |= entry.get("desk", {}).get("metrics", {})
        named = tuple(metrics.get(figure.metric) for figure in figures)
        if not lacking and not any(named):
            lacking = f"{figures[0].metric} is not measured here"
        if scale == "desk":
            images = entry.get("desk", {}).get("images", 0)
        else:
            sizes = entry.get("images", {})
            images = next((sizes[v] for v in map(str, setting.values()) if v in sizes), 0)
        found.append(
            Cell(
                number=number,
                setting=setting,
                figures=tuple(figures),
                metrics=named,
                words=() if lacking else tuple(words),
                lacking=lacking,
                images=images,
            )
        )
    return found


def choose_rows(found: Sequence[Cell], rows: str | None) -> list[Cell]:
    """The cells named by numbers, ranges (``2-5``) or pieces of their settings, after commas.

    Raises:
        UserError: a number or piece that fits no cell.
    """
    if not rows:
        return list(found)
    chosen: set[int] = set()
    for piece in (part.strip() for part in rows.strip("[]").split(",")):
        low, _, high = piece.partition("-")
        if low.isdigit() and (not high or high.isdigit()):
            fits = {c.number for c in found if int(low) <= c.number <= int(high or low)}
        else:
            fits = {c.number for c in found if piece.lower() in c.label.lower()}
        if not fits:
            raise UserError(
                f"rows={piece} fits no row: give numbers from 1 to {len(found)}, or a piece of a "
                f"setting such as '{found[0].label}'."
            )
        chosen |= fits
    return [cell for cell in found if cell.number in chosen]


def _words(
    entry: Mapping[str, Any], setting: Mapping[str, object], scale: Scale
) -> tuple[list[str], str]:
    """The words of a cell, or why there are none."""
    if "not_a_run" in entry:
        return [], str(entry["not_a_run"])
    desk = entry.get("desk", {}) if scale == "desk" else {}
    source = {**entry, "then": [], **desk} if desk else entry
    axes = {**entry.get("axes", {}), **desk.get("axes", {})}
    words = list(source.get("words", []))
    for key in [*axes, *(key for key in setting if key not in axes)]:
        if key not in setting:
            continue
        if key not in axes:
            return [], f"{key} is no setting here"
        found = _of_axis(axes[key], setting[key], key)
        if isinstance(found, str):
            return [], found
        words += found
    words += source.get("then", [])
    # At desk scale the paper's special cases do not hold.
    for case in source.get("when", []) if not desk or "when" in desk else []:
        if _matches(case["match"], setting):
            words += [word.format(**setting) for word in case.get("words", [])]
            without = case.get("without", [])
            words = [word.text for word in words_in(words) if word.key not in without]
    if desk and "when" not in desk:
        # Those that only hand a value on hold everywhere.
        for case in entry.get("when", []):
            if _matches(case["match"], setting):
                words += [w.format(**setting) for w in case.get("words", []) if "{" in w]
    asked = [key for value, key in entry.get("asks", {}).items() if value in setting.values()]
    given = {word.key for word in words_in(words)}
    if scale == "paper" and (missing := [key for key in asked if key not in given]):
        return [*last_of_each(words), f"{missing[0]}=???"], ""
    return last_of_each(words), ""


def _of_axis(axis: Any, value: object, key: str) -> list[str] | str:
    """The words of a value, or why there are none."""
    if axis is None:
        return []
    if isinstance(axis, str):
        if "{}" in axis and value == UNKNOWN:
            return f"the source names no {key}"
        return [axis.format(value)] if "{}" in axis else axis
    by_name = {_name(known): words for known, words in axis.items()}
    if _name(value) not in by_name:
        return f"noisyml has no {key} '{value}'"
    found: list[str] | str = by_name[_name(value)]
    return found


def _name(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _matches(wanted: Mapping[str, Any], setting: Mapping[str, object]) -> bool:
    return all(
        setting.get(key) in (value if isinstance(value, list) else [value])
        for key, value in wanted.items()
    )


def last_of_each(words: Iterable[str]) -> list[str]:
    """The words, of those for the same key the last one alone.

    Choices of groups come first: what they bring does not undo settings that were given before.
    """
    found = {f"{word.key}@{word.package}": word for word in words_in(list(words))}
    return [word.text for word in sorted(found.values(), key=lambda word: not word.chooses)]


def asked_of_the_user(words: Iterable[str]) -> list[str]:
    """Keys of the words of a cell whose values only the user can give (``key=???``)."""
    return [word.key for word in map(Word.parse, words) if word.value == "???"]
