"""The run folder: the only interface between a run and whatever reads it later.

Layout of ``outputs/<verb>/<name>/<timestamp or sweep number>/``:

=======================  =========================================================================
``config.yaml``          the resolved configuration
``overrides.yaml``       the list of overrides typed on the command line
``choices.yaml``         the option chosen in each config group
``environment.json``     versions, commit, device, host-independent
``metrics.json``         final metrics, flat (``test/precision_at_1``), fractions of 1
``history.csv``          one row per logged step: ``step, epoch`` and one column per metric
``noise.parquet``        the noise manifest of the training split
``selection.parquet``    the ledger of training: ``index, p_clean, kept, epoch`` of every sample at
                         every visit, with ``loss, margin, prediction`` where the method has them,
                         see `noisyml.callbacks.selection_log`
``suspects.csv``         judged samples with label and mean p_clean, the least trusted first
``selection_by_class.csv``  kept, precision and recall of each class in the last epoch
``not_finite.npz``       the batch at which the loss became infinite or no number, if it did
``broken_images.csv``    images that could not be decoded and were left out, if there were any
``embedding_map.parquet``  ``x, y, label, label_name``: two principal axes of the test embeddings
``thumbnails.npz``       images of the least trusted training samples, see `noisyml.audit.trust`
``class_maps.npz``       where a classifier looks in training samples, see
                         `noisyml.methods.classification.class_maps`
``artefacts.json``       title and caption of each of these pictures and tables, see
                         `noisyml.runs.artefacts`
``checkpoints/``         ``last.ckpt``, ``best.ckpt`` and perhaps ``epoch_NNNN.ckpt``
``embeddings/SPLIT/``    rows of ``noisyml embed``, see `noisyml.embeddings.store`
``knn/SPLIT/``           neighbours of ``noisyml knn``
``search.npz``           what is done of a search that is not done yet
``stages/NAME/``         runs that went before this one (a teacher), each with all of the above
``stages.json``          what was decided about them and what the run was given by them
``plots/*.png``          pictures
``report.html``          the page made of all this; ``report.md .tex .csv`` its table
``train.log``            messages; ``tensorboard/`` and ``wandb/`` if these loggers were asked for
``trial.json``           of a run that is a trial of a search, see `noisyml.runs.trials`
``status.json``          state: running, finished, pruned, interrupted or failed
=======================  =========================================================================
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from noisyml.errors import UserError
from noisyml.storage.files import DiskFull, write_atomically
from noisyml.storage.locks import Taken, locked
from noisyml.storage.reading import read_json, read_yaml, reading

if TYPE_CHECKING:
    import pandas as pd

#: What to do about a damaged file of a run.
ADVICE = "take it from a copy of the run, or make the run anew"
METRICS_FILE = "metrics.json"
CONFIG_FILE = "config.yaml"
#: Runs that went before a run, see `noisyml.stages`.
STAGES_FOLDER = "stages"


def _finite(value: Any) -> Any:
    """JSON has no NaN: None stands for it."""
    return None if isinstance(value, float) and value != value else value


@dataclass(frozen=True)
class RunFolder:
    """Paths and readers of one run folder."""

    path: Path

    @property
    def config_file(self) -> Path:
        """The resolved configuration (YAML)."""
        return self.path / CONFIG_FILE

    @property
    def overrides_file(self) -> Path:
        """The overrides that were typed (YAML list)."""
        return self.path / "overrides.yaml"

    @property
    def choices_file(self) -> Path:
        """The option chosen in each config group (YAML mapping)."""
        return self.path / "choices.yaml"

    @property
    def suspects_file(self) -> Path:
        """All judged training samples, the least trusted first (CSV)."""
        return self.path / "suspects.csv"

    @property
    def environment_file(self) -> Path:
        """Versions, commit, device (JSON)."""
        return self.path / "environment.json"

    @property
    def metrics_file(self) -> Path:
        """Final metrics (flat JSON)."""
        return self.path / METRICS_FILE

    @property
    def metric_names_file(self) -> Path:
        """Short names of the metrics and which of them are errors (JSON), see `MetricNames`."""
        return self.path / "metric_names.json"

    @property
    def history_file(self) -> Path:
        """Metrics over steps (CSV)."""
        return self.path / "history.csv"

    @property
    def noise_file(self) -> Path:
        """The noise manifest (Parquet)."""
        return self.path / "noise.parquet"

    @property
    def selection_file(self) -> Path:
        """The selector's judgements (Parquet)."""
        return self.path / "selection.parquet"

    @property
    def artefacts_file(self) -> Path:
        """Titles and captions of artefacts (JSON), see `noisyml.runs.artefacts`."""
        return self.path / "artefacts.json"

    @property
    def status_file(self) -> Path:
        """State of the run: running, finished, pruned, interrupted or failed (JSON)."""
        return self.path / "status.json"

    @property
    def stages_file(self) -> Path:
        """Decisions about the runs that went before this one (JSON)."""
        return self.path / "stages.json"

    @property
    def checkpoints(self) -> Path:
        """Folder of ``last.ckpt`` and ``best.ckpt``."""
        return self.path / "checkpoints"

    @property
    def plots(self) -> Path:
        """Folder of pictures."""
        return self.path / "plots"

    @property
    def report_file(self) -> Path:
        """The HTML page."""
        return self.path / "report.html"

    def is_run(self) -> bool:
        """True if the folder was made by a run."""
        return self.config_file.is_file()

    def config(self) -> dict[str, Any]:
        """The resolved configuration as plain dictionaries."""
        loaded = read_yaml(self._there(self.config_file), ADVICE)
        with reading(self.config_file, ADVICE):
            if not isinstance(loaded, dict):
                raise ValueError("it holds no settings")
        return loaded

    def overrides(self) -> list[str]:
        """The overrides typed on the command line."""
        if not self.overrides_file.is_file():
            return []
        loaded = read_yaml(self.overrides_file, ADVICE) or []
        with reading(self.overrides_file, ADVICE):
            if not isinstance(loaded, list):
                raise ValueError("it is no list of settings")
        return [str(item) for item in loaded]

    def choices(self) -> dict[str, str]:
        """The option chosen in each config group."""
        if not self.choices_file.is_file():
            return {}
        loaded = read_yaml(self.choices_file, ADVICE) or {}
        with reading(self.choices_file, ADVICE):
            if not isinstance(loaded, dict):
                raise ValueError("it holds no choices")
        return loaded

    def metrics(self) -> dict[str, float]:
        """Final metrics; an undefined one is NaN."""
        raw = read_json(self._there(self.metrics_file), ADVICE)
        with reading(self.metrics_file, ADVICE):
            return {k: float("nan") if v is None else float(v) for k, v in raw.items()}

    def history(self) -> pd.DataFrame:
        """Metrics over steps; columns ``step``, ``epoch`` and one per metric, NaN where unset."""
        import pandas as pd

        if not self.history_file.is_file():
            return pd.DataFrame()
        with reading(self.history_file, ADVICE):
            return pd.read_csv(self.history_file)

    def status(self) -> dict[str, Any]:
        """The content of ``status.json``, ``{}`` if there is none."""
        if not self.status_file.is_file():
            return {}
        return read_json(self.status_file, "remove it; a run that goes on writes it anew")

    @contextlib.contextmanager
    def claimed(self) -> Iterator[None]:
        """Hold the folder for this process; another one that wants it is refused.

        Temporary files that a killed process left in it are removed.

        Raises:
            UserError: another process works in the folder.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as held:
            try:
                held.enter_context(locked(self.path / ".lock", wait=False))
            except Taken:
                raise UserError(
                    f"Another process is working in {self.path}; wait for it or choose another "
                    f"folder."
                ) from None
            # What a kill left half written, under names that nobody writes again.
            for leftover in self.path.rglob(".*.tmp"):
                leftover.unlink(missing_ok=True)
            yield

    def write_metrics(self, metrics: dict[str, float]) -> None:
        """Write the final metrics, sorted by name."""
        clean = {key: _finite(float(metrics[key])) for key in sorted(metrics)}
        write_atomically(self.metrics_file, json.dumps(clean, indent=2) + "\n")

    def write_status(self, state: str, **facts: Any) -> None:
        """Write ``status.json``."""
        text = json.dumps({"state": state, **facts}, indent=2) + "\n"
        try:
            write_atomically(self.status_file, text)
        except DiskFull:
            if not self.status_file.is_file():
                raise
            # The file that is there has its space: a full disk must not leave it untrue.
            with self.status_file.open("r+") as file:
                file.write(text)
                file.truncate()

    def _there(self, path: Path) -> Path:
        if not path.is_file():
            raise UserError(f"{self.path} holds no {path.name}: it is not a finished run folder.")
        return path


def locate_run(path: Path) -> RunFolder:
    """The run folder behind a path to it or to a checkpoint in it.

    Raises:
        UserError: there is no such run.
    """
    run = RunFolder(path.resolve().parent.parent if path.is_file() else path)
    if not run.is_run():
        raise UserError(f"{path} belongs to no run folder (no {run.config_file.name} beside it).")
    return run


def locate_checkpoint(path: Path, which: str) -> Path:
    """The checkpoint file behind a path to it or to a run folder.

    Raises:
        UserError: there is no such run or checkpoint.
    """
    run = locate_run(path)
    file = path if path.is_file() else run.checkpoints / f"{which}.ckpt"
    if not file.is_file():
        there = ", ".join(sorted(p.stem for p in run.checkpoints.glob("*.ckpt"))) or "none"
        raise UserError(f"There is no checkpoint {file}; which=... may be one of: {there}.")
    return file


def find_runs(paths: list[Path]) -> list[RunFolder]:
    """All run folders at or below the given paths, in natural order of their names.

    Raises:
        UserError: a path does not exist or holds no run.
    """
    found: dict[Path, RunFolder] = {}
    for path in paths:
        if not path.is_dir():
            raise UserError(f"There is no folder {path}; give the folder of a run or of a sweep.")
        inside = [
            RunFolder(p.parent)
            for p in path.rglob(CONFIG_FILE)
            # The stages of a run below `path` are part of it, not its rivals.
            if not {".hydra", STAGES_FOLDER} & set(p.relative_to(path).parts)
        ]
        if not inside:
            raise UserError(f"{path} holds no run: no {CONFIG_FILE} in it or below it.")
        found.update({run.path.resolve(): run for run in inside})
    return sorted(found.values(), key=lambda run: [_natural(part) for part in run.path.parts])


def _natural(name: str) -> tuple[int, str]:
    return (int(name), "") if name.isdigit() else (-1, name)
