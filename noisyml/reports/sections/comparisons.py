"""Fair comparisons: the same data, noise and seed for both sides of every difference."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from noisyml.reports.sections.base import ReportedRuns, TextTable
from noisyml.reports.statistics import (
    CONFIDENCE,
    FEWEST,
    average_ranks,
    interval,
    wins,
)
from noisyml.reports.tables import Column

#: Methods at most in a matrix of wins.
MOST = 12


def comparisons(runs: ReportedRuns) -> list[TextTable]:
    """Paired differences from the best, wins and average ranks by the first test metric.

    A block is what all methods have in common: data, noise and seeds. Only blocks with all methods
    count; with fewer than two blocks or methods nothing is shown.
    """
    column = next((c for c in runs.table.columns if "test/" in c.metric), None)
    if column is None:
        return []
    names, values = paired_values(runs, column)
    if len(names) < 2 or len(values) < 2:
        return []
    lower = column.lower_is_better
    ranks = average_ranks(values, names, lower_is_better=lower)
    best = names.index(ranks[0].name)
    means = values.mean(axis=0)
    rows = []
    for rank in ranks:
        method = names.index(rank.name)
        row = [rank.name, f"{rank.mean:.2f} {rank.letters}", column.text(float(means[method]))]
        if method == best:
            rows.append((*row, "", "", ""))
            continue
        gap = values[:, method] - values[:, best]
        found = interval(gap)
        behind = int(((gap < 0) if not lower else (gap > 0)).sum())
        rows.append(
            (
                *row,
                f"{found.mean:+.4f}",
                f"{found.low:+.4f} to {found.high:+.4f}",
                f"{behind} of {len(gap)}",
            )
        )
    kind = "bootstrap (BCa)" if len(values) >= FEWEST else "Student's t"
    tables = [
        TextTable(
            title=f"Paired comparison by {column.heading}",
            caption=(
                f"Over {len(values)} blocks of equal data, noise and seeds. Ranks that share a "
                f"letter are not told apart (Nemenyi, {1 - CONFIDENCE:.0%}). Differences are from "
                f"the first row, with {CONFIDENCE:.0%} intervals ({kind})."
            ),
            headings=("method", "mean rank", "mean", "difference", "interval", "behind in"),
            rows=tuple(rows),
        )
    ]
    if 2 < len(names) <= MOST:
        order = [names.index(rank.name) for rank in ranks]
        share = wins(values, lower_is_better=lower)
        tables.append(
            TextTable(
                title="Wins",
                caption="Share of blocks in which the row is ahead of the column.",
                headings=("", *(names[m] for m in order)),
                rows=tuple(
                    (names[m], *("" if m == k else f"{share[m, k]:.2f}" for k in order))
                    for m in order
                ),
            )
        )
    return tables


def paired_values(runs: ReportedRuns, column: Column) -> tuple[list[str], NDArray[np.float64]]:
    """Names of the methods and their values, [blocks, methods], of blocks that have them all."""
    names: Sequence[str] = runs.order
    blocks: dict[tuple[object, ...], dict[str, list[float]]] = {}
    data_keys = [key for key in runs.keys if key not in runs.lines_by]
    for position, group in enumerate(runs.group_of):
        if not runs.finished[position]:
            continue
        value = float(runs.frame[column.metric].iloc[position])
        if not np.isfinite(value):
            continue
        data = tuple(group[runs.keys.index(key)] for key in data_keys)
        block = (*data, runs.frame["seed"].iloc[position])
        name = runs.name(group, runs.lines_by)
        blocks.setdefault(block, {}).setdefault(name, []).append(value)
    whole = [block for block in blocks.values() if all(name in block for name in names)]
    values = [[float(np.mean(block[name])) for name in names] for block in whole]
    return list(names), np.array(values, dtype=np.float64).reshape(len(values), len(names))
