"""The end of self-training: a run takes over the models of its last and best stage."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from noisyml.runs.artefacts import Artefact, save_artefacts
from noisyml.runs.folder import STAGES_FOLDER, RunFolder, locate_checkpoint
from noisyml.storage.files import atomic

if TYPE_CHECKING:
    import pandas as pd
    from lightning import Trainer

    from noisyml.data.datamodule import DataModule
    from noisyml.methods.base import Method

TABLE = "self_training.csv"


def adopted(
    trainer: Trainer, method: Method, data: DataModule, folder: RunFolder, adopt: dict[str, str]
) -> dict[str, float]:
    """Test metrics of the last stage's model and, under ``best/``, of the best one's.

    Their checkpoints become those of the run: ``last.ckpt`` and ``best.ckpt``.

    Args:
        trainer: tests.
        method: of the architecture of the stages.
        data: of the run.
        folder: of the run.
        adopt: run folders of the stages ``last`` and ``best``.
    """
    from noisyml.runs.processes import is_main_process

    metrics: dict[str, float] = {}
    for which, prefix in (("best", "best/"), ("last", "")):
        stage = Path(adopt[which])
        file = locate_checkpoint(stage, "last")
        if is_main_process():
            with atomic(folder.checkpoints / f"{which}.ckpt") as temporary:
                shutil.copyfile(file, temporary)
        method.load_trained(file)
        # The last one's artefacts are the run's.
        method.evaluation_artefacts = []
        trainer.test(method, data, verbose=False)
        found = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("test/")}
        metrics |= {prefix + name: value for name, value in found.items()}
        metrics[f"{prefix}stage"] = float(_number(stage))
        kept = RunFolder(stage).metrics()
        metrics |= {prefix + name: value for name, value in kept.items() if name.startswith("val/")}
    metrics["stages"] = float(len(stage_table(folder)))
    return metrics


def save_stage_table(folder: RunFolder, adopt: dict[str, str]) -> None:
    """Write the table of the stages among the run's artefacts."""
    table = stage_table(folder)
    names = {which: Path(path).name for which, path in adopt.items()}
    table["adopted"] = [
        " and ".join(which for which in ("last", "best") if names[which] == name)
        for name in table["stage"]
    ]
    caption = (
        "Models in the order in which they were trained. Choices: what each stage up to this one "
        "learns from (h human labels, p pseudo-labels, m a mixture). val: what models are compared "
        "by; pseudo: share of the pseudo-labels that are right."
    )
    save_artefacts(folder, [Artefact(TABLE, table, "Stages of self-training", caption)])


def stage_table(folder: RunFolder) -> pd.DataFrame:
    """One row per finished stage: its name, number, choices, scores and facts on pseudo-labels."""
    import json

    import pandas as pd

    planned = [plan["name"] for plan in json.loads(folder.stages_file.read_bytes())["stages"]]
    rows: list[dict[str, Any]] = []
    for name in planned:
        stage = RunFolder(folder.path / STAGES_FOLDER / name)
        found = stage.metrics()
        scores = {
            key: value
            for key, value in found.items()
            if key.startswith(("val/", "test/", "pseudo/")) and key.count("/") == 1
        }
        choices = name.partition("-")[2]
        rows.append({"stage": name, "number": _number(stage.path), "choices": choices, **scores})
    return pd.DataFrame(rows)


def _number(stage: Path) -> int:
    """Number of a stage, by its name ``stage_N-...``."""
    return int(stage.name.partition("-")[0].removeprefix("stage_"))
