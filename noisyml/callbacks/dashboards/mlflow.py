"""MLflow: runs in a database of this machine, or on a server."""

from __future__ import annotations

import importlib.util
import logging
import os
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch.loggers import MLFlowLogger
from lightning.pytorch.utilities import rank_zero_only

from noisyml.callbacks.dashboards.base import Dashboard, FileKind, Suspects, needs, place_of

if TYPE_CHECKING:
    from mlflow import MlflowClient

#: Tag of a run: the folder that it is made in.
FOLDER_TAG = "noisyml.run_dir"
#: Tag of the jobs of a sweep: their group.
GROUP_TAG = "noisyml.sweep"
#: Database and folder of artifacts, where no server is named.
DATABASE, ARTIFACTS = "mlflow.db", "mlflow"


class MlflowDashboard(MLFlowLogger, Dashboard):
    """A run of MLflow with a table of suspects, and artifacts."""

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace) -> None:
        """Add the parameters; MLflow changes none, so what was changed to go on is a tag."""
        given = {
            str(k): v for k, v in (params if isinstance(params, dict) else vars(params)).items()
        }
        known = self.experiment.get_run(self.run_id).data.params
        super().log_hyperparams({key: value for key, value in given.items() if key not in known})
        for key, value in given.items():
            if key in known and known[key] != str(value)[: len(known[key])]:
                self.experiment.set_tag(self.run_id, f"changed.{key}", str(value))

    def show_suspects(self, suspects: Suspects, step: int) -> None:
        """Keep a table, with a picture in each row where there are any."""
        import mlflow

        table = suspects.table.copy()
        if suspects.images is not None:
            table.insert(0, "image", [mlflow.Image(image) for image in suspects.images])
        self.experiment.log_table(self.run_id, data=table, artifact_file="suspects.json")

    def keep_file(self, file: Path, kind: FileKind) -> None:
        """Keep an artifact in a folder of its kind."""
        self.experiment.log_artifact(self.run_id, str(file), artifact_path=kind)

    def close(self) -> None:
        """End the run."""
        self.finalize("success")


def mlflow_logger(
    save_dir: str, store: str, tracking_uri: str | None, experiment: str, name: str
) -> MlflowDashboard:
    """An MLflow logger. A run that was interrupted goes on as the same run of MLflow.

    Args:
        save_dir: the run folder.
        store: folder of the database and the artifacts, made if need be.
        tracking_uri: a server or database; None: ``$MLFLOW_TRACKING_URI``, or the one in `store`.
        experiment: experiment the run belongs to.
        name: of the run; that of a sweep's job has its number behind it.

    Raises:
        UserError: MLflow is not installed.
    """
    if importlib.util.find_spec("mlflow") is None:
        raise needs("mlflow-skinny", "mlflow")
    # A run asks nobody and reports to nobody but the store that was named.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow import MlflowClient

    for chatty in ("mlflow", "alembic", "lightning.pytorch.loggers.mlflow"):
        logging.getLogger(chatty).setLevel(logging.ERROR)

    location = None
    uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        home = Path(store).absolute()
        home.mkdir(parents=True, exist_ok=True)
        uri, location = f"sqlite:///{home / DATABASE}", (home / ARTIFACTS).as_uri()
    folder = Path(save_dir).resolve()
    place = place_of(folder, name)
    tags = {FOLDER_TAG: str(folder)} | ({} if place.group is None else {GROUP_TAG: place.group})
    return MlflowDashboard(
        experiment_name=experiment,
        run_name=place.name,
        tracking_uri=uri,
        artifact_location=location,
        tags=tags,
        run_id=_interrupted(MlflowClient(uri), experiment, str(folder)),
    )


def _interrupted(client: MlflowClient, experiment: str, folder: str) -> str | None:
    """The run of MLflow that was begun in a folder and has not ended; None if there is none."""
    known = client.get_experiment_by_name(experiment)
    if known is None:
        return None
    quoted = folder.replace("'", "\\'")
    condition = f"tags.`{FOLDER_TAG}` = '{quoted}' and attributes.status != 'FINISHED'"
    found = client.search_runs([known.experiment_id], condition, max_results=1)
    return str(found[0].info.run_id) if found else None
