"""The verbs from Python: train a run, read runs, compare them.

import noisyml

run = noisyml.train(method="prism", dataset="digits", **{"noise": "symmetric", "noise.rate": 0.3})
run.metrics["test/map_at_r"]
noisyml.compare("outputs/train/a", "outputs/train/b", "test/map_at_r").difference
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from noisyml.errors import UserError
from noisyml.reports.settings import decides_data
from noisyml.reports.statistics import Difference, interval
from noisyml.reports.tables import FINISHED, default_test_metrics, load_runs, metric_names
from noisyml.runs.folder import RunFolder

if TYPE_CHECKING:
    import pandas as pd

#: What may be compared: a run, its folder, a folder of runs, or several of these.
Runs: TypeAlias = "Run | Path | str | Sequence[Run | Path | str]"


@dataclass(frozen=True)
class Run:
    """A training run by its folder.

    Attributes:
        path: of the folder.
    """

    path: Path

    @property
    def folder(self) -> RunFolder:
        """Paths and readers of the folder's files."""
        return RunFolder(self.path)

    @property
    def metrics(self) -> dict[str, float]:
        """Final metrics by name, fractions of 1."""
        return self.folder.metrics()

    @property
    def config(self) -> dict[str, Any]:
        """The resolved configuration."""
        return self.folder.config()

    @property
    def history(self) -> pd.DataFrame:
        """Metrics over steps."""
        return self.folder.history()

    @property
    def ledger(self) -> pd.DataFrame:
        """Every sample at every visit: ``index, p_clean, kept, epoch`` and what the method adds."""
        import pandas as pd

        return pd.read_parquet(self.folder.selection_file)


@dataclass(frozen=True)
class Comparison:
    """Two groups of runs, pair by pair.

    Attributes:
        metric: compared.
        difference: mean of first less second, with its interval.
        pairs: a row per pair: what both sides have in common, ``first``, ``second``.
    """

    metric: str
    difference: Difference
    pairs: pd.DataFrame


def train(overrides: Mapping[str, Any] | None = None, /, **settings: Any) -> Run:
    """Train one run, as ``noisyml train key=value ...`` does.

    Args:
        overrides: settings by dotted key, e.g. ``{"noise.rate": 0.3}``.
        **settings: the same by keyword: ``method="prism"``; groups come before what they bring.

    Raises:
        UserError: a setting does not fit, or nothing can be trained.
    """
    from noisyml.apps.train import Training
    from noisyml.command.words import as_typed
    from noisyml.runs.processes import Followers

    given = {**(overrides or {}), **settings}
    words = [f"{key}={word_of(value)}" for key, value in {"report": False, **given}.items()]
    with Followers() as followers:
        outcome = Training().start(as_typed(words), followers)
    return Run(outcome.folders[0])


def word_of(value: object) -> str:
    """A Python value as a value of the command line.

    Example:
        >>> word_of(True), word_of(None), word_of([1, "a"]), word_of({"lr": 0.1})
        ('true', 'null', '[1,a]', '{lr:0.1}')
    """
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{word_of(v)}" for key, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(word_of, value)) + "]"
    return str(value)


def compare(first: Runs, second: Runs, metric: str | None = None) -> Comparison:
    """Paired difference of two groups of runs that have data, noise and seeds in common.

    Args:
        first, second: runs or folders of runs.
        metric: name in ``metrics.json``; default: the first test metric of a report.

    Raises:
        UserError: no metric, or no pairs: no run of one side has the seeds of one of the other.
    """
    import pandas as pd

    sides = [_paths(first), _paths(second)]
    whole = load_runs([path for side in sides for path in side])
    chosen = metric or next(iter(default_test_metrics(metric_names(whole))), None)
    if chosen is None or chosen not in whole:
        raise UserError(f"The runs have no metric {chosen or 'of a test'}.")
    common = ["seed", *(key for key in whole.attrs["varied"] if decides_data(key))]
    parts = []
    for side in sides:
        inside = [any(Path(run).is_relative_to(path) for path in side) for run in whole["run"]]
        found = whole[pd.Series(inside) & (whole["state"] == FINISHED)]
        parts.append(found.groupby(common)[chosen].mean())
    pairs = pd.concat(parts, axis=1, keys=["first", "second"], join="inner").dropna().reset_index()
    if pairs.empty:
        raise UserError(
            "There are no pairs: no finished run of one side has the seed, data and noise of one "
            "of the other."
        )
    return Comparison(chosen, interval(pairs["first"] - pairs["second"]), pairs)


def _paths(runs: Runs) -> list[Path]:
    several = [runs] if isinstance(runs, Run | Path | str) else list(runs)
    return [run.path if isinstance(run, Run) else Path(run) for run in several]
