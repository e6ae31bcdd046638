"""Train a method on (noisy) labels and write a run folder.

The recipe, top to bottom, is `recipe` below.
"""

from __future__ import annotations

import contextlib
import logging
import math
import shlex
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from noisyml.apps._folder import record_death, recorded, write_inputs
from noisyml.apps._stages import (
    begin_stages,
    check_values,
    load_config,
    resolve,
    resumed_stages,
)
from noisyml.errors import SweepError, UserError
from noisyml.runs.folder import RunFolder, locate_checkpoint
from noisyml.stages.controller import possible_handovers
from noisyml.stages.plan import Handover

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from noisyml.runs.processes import Followers

log = logging.getLogger(__name__)


def main(arguments: list[str]) -> int:
    """Run ``noisyml train [overrides]``."""
    from noisyml.command.hydra import run_jobs
    from noisyml.command.words import last_given, overrides_in, words_in
    from noisyml.runs.processes import Followers, follow, is_main_process, started_elsewhere

    if started_elsewhere() and not is_main_process():
        return follow(join)
    with Followers() as followers:
        words = words_in(overrides_in(arguments))
        if (resume := last_given(words, "resume")) is not None:
            others = [word.text for word in words if word.key != "resume"]
            return continue_run(Path(resume), others, followers)
        task = partial(job, arguments=arguments, followers=followers)
        outcome = run_jobs(task, "train", "train", arguments)
        if outcome.home is not None:
            _conclude(outcome.home, outcome.folders)
        return outcome.status


def _conclude(home: Path, folders: list[Path]) -> None:
    """What a user sees last: table and page of a run or sweep, or at least where it lies."""
    from noisyml.runs.processes import is_main_process

    if not folders or not is_main_process():
        return
    runs = [RunFolder(path) for path in folders]
    report = bool(runs[0].config()["report"])
    if report:
        from noisyml.apps import report as report_verb

        report_verb.main([str(home)])
    for run in runs:
        if not report:
            shown = {k: v for k, v in run.metrics().items() if k.startswith("test/")}
            print(f"run    {run.path}  " + "  ".join(f"{k} {v:.4f}" for k, v in shown.items()))
        if run.suspects_file.is_file() and len(runs) == 1:
            print(f"labels to check, least trusted first: {run.suspects_file}")


def job(config: DictConfig, arguments: list[str], followers: Followers) -> dict[str, float]:
    """One job of Hydra: a new run folder, or one that an interrupted run left behind.

    Args:
        config: the composed configuration.
        arguments: what was typed after the verb.
        followers: the ranks that wait for a run.
    """
    from noisyml.runs.processes import follow, is_main_process

    if not is_main_process():
        # A launcher that starts several tasks for a job, as submitit can.
        follow(join)
        return {}
    with followers:
        return lead(config, arguments, followers)


def lead(config: DictConfig, arguments: list[str], followers: Followers) -> dict[str, float]:
    """A job on rank 0, which alone writes into the run folder."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    from noisyml.command.sweeps import swept_keys
    from noisyml.command.words import words_in
    from noisyml.runs.processes import check_ranks

    hydra = HydraConfig.get()
    folder = RunFolder(Path(hydra.runtime.output_dir))
    composed, config = config, resolve(config, folder, Handover())
    check_values(config)
    check_ranks(config)
    overrides = list(hydra.overrides.task)
    title = str(config.name)
    swept = hydra.mode == RunMode.MULTIRUN
    if swept:
        varied = swept_keys(arguments, hydra.sweeper.get("params") or {})
        here = [word.text for word in words_in(overrides) if word.key in varied]
        title = f"[{hydra.job.num + 1}/{math.prod(varied.values())}] {' '.join(here)}"
    if not folder.is_run():
        choices = dict(hydra.runtime.choices)
        if config.get("stages"):
            begin_stages(config, folder, overrides, choices)
        write_inputs(folder, config, overrides, choices)
    elif all(_differs(resolve(composed, folder, g), folder) for g in possible_handovers(folder)):
        raise SweepError(
            f"{folder.path} holds a run with another configuration; choose another "
            f"hydra.{'sweep' if swept else 'run'}.dir, or remove that folder."
        )
    elif folder.status().get("state") == "finished":
        log.info("%s is finished already; left as it is.", folder.path)
        return folder.metrics()
    _say_what_is_assumed(config, overrides)
    return train_stages(config, folder, title, followers)


def join(path: Path) -> None:
    """Work as a further rank on the run in the folder `path`."""
    from omegaconf import DictConfig, OmegaConf

    from noisyml.runs.processes import Followers

    folder = RunFolder(path)
    config = OmegaConf.load(folder.config_file)
    assert isinstance(config, DictConfig)
    train(config, folder, str(config.name), Followers())


def _say_what_is_assumed(config: DictConfig, overrides: list[str]) -> None:
    from noisyml.command.words import words_in

    typed = {word.key for word in words_in(overrides)}
    consequences = {
        "selector": "about that share of each batch is left out",
        "method": "about that share of what is learnt is held back",
    }
    for part, consequence in consequences.items():
        rate = config[part].get("noise_rate")
        if rate is not None and "rate" not in config.noise and f"{part}.noise_rate" not in typed:
            log.warning(
                "%s.noise_rate=%s is a guess: %s; set it to the share of wrong labels you expect.",
                part,
                rate,
                consequence,
            )


def continue_run(path: Path, overrides: list[str], followers: Followers) -> int:
    """``noisyml train resume=RUN_DIR [overrides]``: go on where the last checkpoint was written."""
    from omegaconf import DictConfig, OmegaConf

    from noisyml.command.overrides import apply_overrides
    from noisyml.runs.processes import check_ranks, is_main_process
    from noisyml.storage.files import write_atomically

    folder = RunFolder(path)
    if not folder.is_run():
        raise UserError(f"{path} holds no run (no {folder.config_file.name}); nothing to resume.")
    folder.check_buildable()
    logging.basicConfig(level=logging.INFO, format="[%(levelname)s] %(message)s")
    config = OmegaConf.load(folder.config_file)
    assert isinstance(config, DictConfig)
    config = apply_overrides(config, overrides, groups=False)
    config.run_dir = str(folder.path)
    check_values(config)
    check_ranks(config)
    if is_main_process():
        if folder.status().get("state") == "finished" and not overrides:
            page = f"; its report is {folder.report_file}" if folder.report_file.is_file() else ""
            print(f"{path} is finished already{page}.")
            return 0
        if overrides:
            typed = [*folder.overrides(), *overrides]
            write_atomically(folder.overrides_file, OmegaConf.to_yaml(OmegaConf.create(typed)))
            write_atomically(folder.config_file, OmegaConf.to_yaml(config))
    train_stages(config, folder, str(config.name), followers)
    _conclude(folder.path, [folder.path])
    return 0


def _differs(config: DictConfig, folder: RunFolder) -> bool:
    """True unless the folder's run has the same configuration, apart from what is only shown."""
    from omegaconf import OmegaConf

    def essence(values: dict[Any, Any]) -> dict[Any, Any]:
        kept = {key: value for key, value in values.items() if key not in ("report", "logger")}
        kept["callbacks"] = {k: v for k, v in values["callbacks"].items() if k != "progress"}
        return kept

    wanted = OmegaConf.to_container(config)
    assert isinstance(wanted, dict)
    return essence(wanted) != essence(folder.config())


def train_stages(
    config: DictConfig, folder: RunFolder, title: str, followers: Followers
) -> dict[str, float]:
    """Train what goes before the run, as far as it is not finished, and then the run itself."""
    from noisyml.runs.processes import is_main_process

    # Ranks that rank 0 starts are told a stage's own folder, and the run's when its turn has come.
    if config.get("stages") and is_main_process():
        for stage in resumed_stages(config, folder).pending():
            train(load_config(stage), stage, f"{title} · {stage.path.name}", followers)
        config = load_config(folder)
    return train(config, folder, title, followers)


def train(
    config: DictConfig, folder: RunFolder, title: str, followers: Followers
) -> dict[str, float]:
    """Run the recipe with its other processes, and keep the folder's status true."""
    from noisyml.runs.processes import interruptible, is_main_process, other_ranks, processes_here

    command = ["train", f"resume={folder.path}"]
    here = other_ranks(processes_here(config), command, partial(record_death, folder))
    if not is_main_process():
        with here, _process_group(), interruptible():
            return recipe(config, folder, title)
    with (
        folder.claimed(),
        recorded(folder, shlex.join(["noisyml", *command])),
        followers.lead(folder.path),
        here,
        _process_group(),
        interruptible(),
    ):
        return recipe(config, folder, title)


@contextlib.contextmanager
def _process_group() -> Iterator[None]:
    """Leave no process group behind: the next run of this process has its own."""
    import torch.distributed as dist

    try:
        yield
    finally:
        if dist.is_available() and dist.is_initialized():
            dist.destroy_process_group()


def recipe(config: DictConfig, folder: RunFolder, title: str) -> dict[str, float]:
    """Train, evaluate, and describe one run; the same on every rank."""
    import lightning
    from lightning.pytorch.callbacks import LambdaCallback

    from noisyml.apps._quiet import quiet
    from noisyml.assembly.build import assemble
    from noisyml.assembly.nodes import build
    from noisyml.callbacks.artefacts import describe_run
    from noisyml.callbacks.checkpoint import AtomicCheckpointIO, RunCheckpoints
    from noisyml.callbacks.history import History
    from noisyml.callbacks.progress import LiveProgress
    from noisyml.callbacks.selection_log import SelectionLog
    from noisyml.runs.processes import cluster_environment, handle_termination, is_main_process
    from noisyml.runs.progress import announce

    quiet()
    lightning.seed_everything(config.seed, workers=True, verbose=False)
    assembly = assemble(config, progress=announce if is_main_process() else None)
    data, method = assembly.data, assembly.method
    if config.init_from is not None and _last_checkpoint(folder) is None:
        method.load_encoder(locate_checkpoint(Path(config.init_from), "last")[1])
    manifest = data.manifest
    if is_main_process():
        manifest.save(folder.noise_file)
        for remark in data.remarks():
            log.info(remark)

    callbacks = [build(node) for node in config.callbacks.values() if node is not None]
    by_type: dict[type, Any] = {type(callback): callback for callback in callbacks}
    if SelectionLog in by_type:
        by_type[SelectionLog].manifest = manifest
    if LiveProgress in by_type:
        by_type[LiveProgress].title = title
    needs_files = "mean_last" in config.model_choice
    needs_files |= "best" in config.model_choice and "val" in data.splits
    if needs_files and RunCheckpoints not in by_type:
        raise UserError(
            f"model_choice={list(config.model_choice)} needs callbacks.checkpoint: say "
            f"model_choice=[last]."
        )
    if "mean_last" in config.model_choice:
        by_type[RunCheckpoints].last_epochs = config.mean_last_epochs
    loggers = [build(node) for node in (config.logger or {}).values() if node is not None]
    signals = LambdaCallback(on_train_start=handle_termination, on_test_start=handle_termination)
    trainer = build(
        config.trainer,
        callbacks=[*callbacks, signals],
        logger=loggers if is_main_process() else False,
        plugins=[AtomicCheckpointIO(), cluster_environment()],
        default_root_dir=str(folder.path),
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        enable_model_summary=False,
        enable_progress_bar=LiveProgress in by_type,
        enable_checkpointing=RunCheckpoints in by_type,
    )

    began = time.perf_counter()
    trainer.fit(method, data, ckpt_path=_last_checkpoint(folder), weights_only=True)
    seconds = time.perf_counter() - began

    metrics: dict[str, float] = {"time/train_seconds": seconds}
    if History in by_type:
        metrics["time/step_seconds"] = by_type[History].step_seconds
        metrics |= by_type[History].latest("val/")
    if SelectionLog in by_type:
        metrics |= by_type[SelectionLog].last_metrics
    metrics |= {f"noise/{name}": rate for name, rate in manifest.rates().items()}
    checkpoints = by_type.get(RunCheckpoints)
    metrics |= _test_all(trainer, method, data, checkpoints, list(config.model_choice))
    if is_main_process():
        describe_run(method, data, folder)
        folder.write_metrics(metrics)
    trainer.strategy.barrier()
    trainer.strategy.teardown()
    return metrics


def _last_checkpoint(folder: RunFolder) -> str | None:
    last = folder.checkpoints / "last.ckpt"
    return str(last) if last.is_file() else None


def _values(trainer: Any, prefix: str) -> dict[str, float]:
    return {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith(prefix)}


def _test_all(
    trainer: Any, method: Any, data: Any, checkpoints: Any, choice: list[str]
) -> dict[str, float]:
    """Test metrics of the models asked for.

    ``test/`` of the last, ``best/`` on validation, ``mean_last/`` the mean over the models of the
    last epochs, ``chosen_on_test/``.
    """
    metrics: dict[str, float] = {}
    # A test with a checkpoint puts the trainer back to where that was written.
    epochs_done = trainer.current_epoch
    if "last" in choice:
        trainer.test(method, data, verbose=False)
        metrics |= _values(trainer, "test/")
    stems = {"best": ("best", "best/"), "test": ("best_on_test", "chosen_on_test/")}
    for name, (stem, prefix) in stems.items():
        if name not in choice or checkpoints is None or stem not in checkpoints.reached:
            continue
        path = str(checkpoints.path(stem))
        trainer.test(method, data, ckpt_path=path, verbose=False, weights_only=True)
        metrics |= {prefix + key: value for key, value in _values(trainer, "test/").items()}
        metrics[f"{prefix}epoch"] = float(checkpoints.reached[stem][1])
    if "mean_last" in choice:
        found = []
        first = max(1, epochs_done - checkpoints.last_epochs + 1)
        files = [checkpoints.epoch_path(epoch) for epoch in range(first, epochs_done + 1)]
        if missing := [file.stem for file in files if not file.is_file()]:
            raise UserError(
                f"model_choice=mean_last needs the weights {', '.join(missing)}, which this run "
                f"did not keep: lower mean_last_epochs (they are kept from its start on)."
            )
        for file in files:
            trainer.test(method, data, ckpt_path=str(file), verbose=False, weights_only=True)
            found.append(_values(trainer, "test/"))
        for key in found[0]:
            metrics[f"mean_last/{key}"] = sum(values[key] for values in found) / len(found)
        metrics["mean_last/epochs"] = float(len(found))
    return metrics
