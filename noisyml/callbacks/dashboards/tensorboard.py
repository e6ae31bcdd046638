"""TensorBoard: event files in the run folder."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.loggers import TensorBoardLogger

from noisyml.callbacks.dashboards.base import Dashboard, FileKind, Suspects, needs


class TensorBoardDashboard(TensorBoardLogger, Dashboard):
    """Event files with a table of parameters and metrics, and pictures of suspects."""

    def show_results(
        self, parameters: Mapping[str, Any], metrics: Mapping[str, float], step: int
    ) -> None:
        """Show final metrics as points, and beside the parameters: its table wants both at once."""
        self.log_hyperparams(dict(parameters), dict(metrics), step=step)

    def show_suspects(self, suspects: Suspects, step: int) -> None:
        """Show a table as text, and the pictures in its order, eight in a row."""
        columns = [str(name) for name in suspects.table]
        rows = [columns, ["---"] * len(columns), *suspects.table.astype(str).to_numpy().tolist()]
        text = "\n".join(f"| {' | '.join(row)} |" for row in rows)
        self.experiment.add_text("suspects", text, step)
        if suspects.images is not None:
            pictures = suspects.images[: len(suspects.images) // 8 * 8 or len(suspects.images)]
            across = min(8, len(pictures))
            sheet = np.concatenate(
                [
                    np.concatenate(list(pictures[at : at + across]), axis=1)
                    for at in range(0, len(pictures), across)
                ]
            )
            self.experiment.add_image("suspects", sheet, step, dataformats="HWC")

    def keep_file(self, file: Path, kind: FileKind) -> None:
        """Keep nothing: event files hold none, and the run folder has it."""


def tensorboard_logger(
    save_dir: str, name: str, version: str, default_hp_metric: bool
) -> TensorBoardDashboard:
    """A TensorBoard logger.

    Args:
        save_dir: folder that receives the files.
        name: sub-folder of it.
        version: further sub-folder; may be empty.
        default_hp_metric: True for a metric of a constant beside the real ones.

    Raises:
        UserError: TensorBoard is not installed.
    """
    if importlib.util.find_spec("tensorboard") is None:
        raise needs("tensorboard", "tensorboard")
    return TensorBoardDashboard(
        save_dir=save_dir, name=name, version=version, default_hp_metric=default_hp_metric
    )
