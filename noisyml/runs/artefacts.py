"""Artefacts: pictures and tables that a run leaves beside its metrics.

A method, an evaluator or a stage offers an `Artefact`; `save_artefacts` puts its file into the run
folder and its title and caption into ``artefacts.json``. The report shows it by the section that
names it, see `noisyml.reports.sections.artefacts`, or else by its kind.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from noisyml.runs.folder import RunFolder
from noisyml.storage.files import atomic, write_atomically
from noisyml.storage.tables import table_for_spreadsheet

if TYPE_CHECKING:
    import pandas as pd

Kind = Literal["table", "arrays", "pictures", "text"]
_SUFFIXES: Mapping[Kind, tuple[str, ...]] = {
    "table": (".parquet", ".csv"),
    "arrays": (".npz",),
    "pictures": (".npz",),
    "text": (".txt",),
}
Arrays: TypeAlias = Mapping[str, NDArray]


@dataclass(frozen=True)
class Artefact:
    """A file for a run folder, and what to say about it.

    Attributes:
        file: its name in the run folder, unique there; ``.parquet`` or ``.csv`` for a table,
            ``.npz`` for arrays; ``.txt`` for text.
        content: a table, text, or arrays by name (none of them of objects). Arrays ``images``
            (uint8 [n, H, W] or [n, H, W, 3]) and ``text`` [n] make it pictures with a line each.
        title: heading on the report's page; empty: the file is for its own sake and not shown.
        caption: a sentence under it.
    """

    file: str
    content: pd.DataFrame | Arrays | str
    title: str = ""
    caption: str = ""

    def __post_init__(self) -> None:
        suffixes = _SUFFIXES[self.kind]
        if PurePath(self.file).name != self.file or PurePath(self.file).suffix not in suffixes:
            raise ValueError(
                f"artefact {self.file!r}: a {self.kind} artefact is a file called NAME"
                f"{' or NAME'.join(suffixes)}"
            )

    @property
    def kind(self) -> Kind:
        """``table``, ``text``, ``pictures``, or ``arrays`` of any other meaning."""
        if isinstance(self.content, str):
            return "text"
        if not isinstance(self.content, Mapping):
            return "table"
        return "pictures" if {"images", "text"} <= set(self.content) else "arrays"

    @property
    def entry(self) -> ArtefactEntry:
        """Its line in ``artefacts.json``."""
        return ArtefactEntry(self.file, self.kind, self.title, self.caption)


@dataclass(frozen=True)
class ArtefactEntry:
    """An artefact as ``artefacts.json`` lists it; attributes as those of `Artefact`."""

    file: str
    kind: Kind
    title: str
    caption: str


def save_artefacts(run: RunFolder, artefacts: Iterable[Artefact]) -> None:
    """Write artefacts into a run folder; one that is there under the same file name is replaced.

    Args:
        run: the folder, made if need be.
        artefacts: written one after the other, as they come.

    Raises:
        OSError: the folder cannot be written.
    """
    listed = {entry.file: entry for entry in list_artefacts(run)}
    before = dict(listed)
    for artefact in artefacts:
        _write(run, artefact)
        listed[artefact.file] = artefact.entry
    if listed != before:
        entries = [vars(entry) for entry in listed.values()]
        write_atomically(run.artefacts_file, json.dumps(entries, indent=2) + "\n")


def list_artefacts(run: RunFolder) -> list[ArtefactEntry]:
    """The artefacts of a run folder in the order they were offered; [] without a list.

    Raises:
        ValueError: ``artefacts.json`` is no such list.
    """
    if not run.artefacts_file.is_file():
        return []
    try:
        listed = [ArtefactEntry(**entry) for entry in json.loads(run.artefacts_file.read_bytes())]
    except TypeError as error:
        raise ValueError(f"it is no list of artefacts: {error}") from error
    for entry in listed:
        if PurePath(entry.file).name != entry.file:
            raise ValueError(f"it lists a file outside the run folder: {entry.file}")
    return listed


def _write(run: RunFolder, artefact: Artefact) -> None:
    content = artefact.content
    if isinstance(content, str):
        write_atomically(run.path / artefact.file, content)
        return
    with atomic(run.path / artefact.file) as temporary:
        if isinstance(content, Mapping):
            with temporary.open("wb") as file:
                np.savez_compressed(file, allow_pickle=False, **content)
        elif artefact.file.endswith(".csv"):
            table = table_for_spreadsheet(content)
            table.to_csv(temporary, index=False, float_format="%.6g")
        else:
            content.to_parquet(temporary, index=False)
