"""Trackio: runs in a database of this machine, without a server."""

from __future__ import annotations

import importlib.util
import os
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_only

from noisyml.callbacks.dashboards.base import Dashboard, FileKind, Suspects, needs, place_of

_KINDS = {"noise": "dataset", "checkpoint": "model"}


class TrackioDashboard(Dashboard):
    """A run of Trackio; one that was interrupted goes on under its name.

    Args:
        project: project the run belongs to.
        name: of the run, unique in its project.
        group: the sweep it is a job of; None of a run alone.
    """

    def __init__(self, project: str, name: str, group: str | None) -> None:
        super().__init__()
        self._project, self._name, self._group = project, name, group
        self._run: Any = None
        self._parameters: dict[str, Any] = {}

    @property
    def name(self) -> str:
        """The project."""
        return self._project

    @property
    def version(self) -> str:
        """The run."""
        return self._name

    @property
    def experiment(self) -> Any:
        """The run of Trackio, begun when it is first asked for."""
        if self._run is None:
            import trackio

            self._run = trackio.init(
                project=self._project,
                name=self._name,
                group=self._group,
                config=self._parameters,
                resume="allow",
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )
        return self._run

    @rank_zero_only
    def log_hyperparams(
        self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any
    ) -> None:
        """Keep the parameters, with which the run begins."""
        self._parameters = dict(vars(params) if isinstance(params, Namespace) else params)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Add a point to each metric's curve."""
        self.experiment.log(dict(metrics), step=step)

    def show_suspects(self, suspects: Suspects, step: int) -> None:
        """Show a table with a picture in each row."""
        import trackio

        table = suspects.table.copy()
        if suspects.images is not None:
            table.insert(0, "image", [trackio.Image(image) for image in suspects.images])
        self.experiment.log({"suspects": trackio.Table(dataframe=table)}, step=step)

    def keep_file(self, file: Path, kind: FileKind) -> None:
        """Keep an artifact."""
        import trackio

        artifact = trackio.Artifact(f"{kind}-{self._name.replace('/', '-')}", type=_KINDS[kind])
        artifact.add_file(str(file))
        self.experiment.log_artifact(artifact)

    def close(self) -> None:
        """End the run, with all that it was told written."""
        import trackio

        trackio.finish()
        self._run = None

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """End a run that has failed; after training, another has its test before it."""
        if status != "success" and self._run is not None:
            self.close()


def trackio_logger(save_dir: str, store: str, project: str) -> TrackioDashboard:
    """A Trackio logger. It writes to this machine; ``$TRACKIO_DIR`` says where else.

    A run is called as its folder; the jobs of a sweep are a group.

    Args:
        save_dir: the run folder.
        store: folder that receives the ``trackio`` folder.
        project: project the run belongs to.

    Raises:
        UserError: Trackio is not installed.
    """
    if importlib.util.find_spec("trackio") is None:
        raise needs("trackio", "trackio")
    os.environ.setdefault("TRACKIO_DIR", str(Path(store).absolute() / "trackio"))
    folder = Path(save_dir).resolve()
    group = place_of(folder, "").group
    name = "/".join(folder.parts[-2 if group is None else -3 :])
    return TrackioDashboard(project, name, group)
