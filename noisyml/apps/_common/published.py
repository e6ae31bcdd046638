"""Published tables and claims as `noisyml list` shows them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from noisyml.command.words import Word
from noisyml.reproduce.cells import Cell, asked_of_the_user, cells
from noisyml.reproduce.claims import load_claims
from noisyml.reproduce.figures import published_tables
from noisyml.reproduce.verdicts import stored_results

#: So many reasons are named for each table.
REASONS = 2


def tables() -> list[dict[str, Any]]:
    """Every published table: its figures, its cells, how many can run here, what the rest lacks."""
    known: dict[tuple[str, ...], str | None] = {}
    rows = []
    for table in published_tables().values():
        found, desk = cells(table), cells(table, "desk")
        here = [cell.lacking or _missing(cell, known) for cell in found]
        able = sum(reason is None for reason in here)
        rows.append(
            {
                "name": table.name,
                "description": table.caption,
                "figures": len(table.figures),
                "cells": len(found),
                "runnable": able,
                "desk": sum(not cell.lacking for cell in desk),
                "lacking": dict(Counter(reason for reason in here if reason is not None)),
                "files": _said(able, len(found), [r for r in here if r], desk),
            }
        )
    return rows


def _said(able: int, total: int, reasons: Sequence[str], desk: Sequence[Cell]) -> str:
    small = sum(not cell.lacking for cell in desk)
    text = f"{able} of {total} cells here, {small} at desk scale"
    common = Counter(reasons).most_common(REASONS)
    return "; ".join([text, *(f"{n}: {reason}" for reason, n in common)])


def _missing(cell: Cell, known: dict[tuple[str, ...], str | None]) -> str | None:
    """Reason why a cell cannot run here; asked once for each data set with its network."""
    from noisyml.apps._common.presence import missing
    from noisyml.reproduce.jobs import composing

    if asked := asked_of_the_user(cell.words):
        return f"give {asked[0]}=..."
    of_data = ("dataset", "backbone", "experiment")
    key = tuple(word.text for word in map(Word.parse, cell.words) if word.is_below(*of_data))
    if key not in known:
        with composing() as composed:
            known[key] = missing(composed(cell.words))
    return known[key]


def claims() -> list[dict[str, Any]]:
    """Every claim with the verdict that the package keeps."""
    results = stored_results()
    return [
        {
            "name": claim.name,
            "description": f"{claim.statement} ({claim.paper}; {claim.source})",
            "files": results[claim.name].verdict if claim.name in results else "not tried yet",
        }
        for claim in load_claims()
    ]
