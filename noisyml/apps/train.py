"""Train a method on (noisy) labels and write a run folder.

The recipe, top to bottom, is `recipe` below.
"""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from noisyml.errors import UserError
from noisyml.runs import RunFolder

if TYPE_CHECKING:
    from omegaconf import DictConfig

log = logging.getLogger(__name__)


@dataclass
class Sweep:
    """What `main` must know of the jobs that ran in this process."""

    arguments: list[str]
    folders: list[Path] = field(default_factory=list)
    report: bool = True


def main(arguments: list[str]) -> int:
    """Run ``noisyml train [overrides]``."""
    from noisyml.command import run_hydra

    resume = [a.partition("=")[2] for a in arguments if a.partition("=")[0] == "resume"]
    if resume and resume[-1] not in ("", "null"):
        others = [a for a in arguments if not a.startswith("resume=")]
        return continue_run(Path(resume[-1]), others)
    sweep = Sweep(arguments)
    status = run_hydra(partial(job, sweep=sweep), "train", "train", arguments)
    if sweep.folders and sweep.report:
        _report(sweep.folders)
    return status


def _report(folders: list[Path]) -> None:
    """Table and page of one run, or of the sweep that several runs make up."""
    from noisyml.apps import report

    target = folders[0] if len(folders) == 1 else folders[0].parent
    report.main([str(target)])


def job(config: DictConfig, sweep: Sweep) -> dict[str, float]:
    """One job of Hydra: a new run folder, or one that an interrupted sweep left behind."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    from noisyml.command import count_jobs

    hydra = HydraConfig.get()
    folder = RunFolder(Path(hydra.runtime.output_dir))
    config = resolve(config, folder)
    sweep.report = config.report
    overrides = list(hydra.overrides.task)
    title = config.name
    if hydra.mode == RunMode.MULTIRUN:
        jobs = count_jobs(sweep.arguments, hydra.sweeper.get("params") or {})
        title = f"[{hydra.job.num + 1}/{jobs}] {' '.join(swept(overrides))}"
    if not folder.is_run():
        _write_inputs(config, folder, overrides)
    elif _differs(config, folder):
        raise UserError(
            f"{folder.path} holds a run with another configuration; choose another "
            f"hydra.sweep.dir, or remove that folder."
        )
    elif folder.status().get("state") == "finished":
        log.info("%s is finished already; left as it is.", folder.path)
        sweep.folders.append(folder.path)
        return folder.metrics()
    metrics = train(config, folder, title)
    sweep.folders.append(folder.path)
    return metrics


def swept(overrides: list[str]) -> list[str]:
    """What tells a job from its neighbours: its overrides without experiment and folders."""
    uninteresting = ("experiment=", "hydra", "name=", "report=", "callbacks.", "paths.")
    return [o for o in overrides if not o.startswith(uninteresting)]


def continue_run(path: Path, overrides: list[str]) -> int:
    """``noisyml train resume=RUN_DIR [overrides]``: go on where the last checkpoint was written."""
    from omegaconf import OmegaConf

    from noisyml.launch import is_main_process

    folder = RunFolder(path)
    if not folder.is_run():
        raise UserError(f"{path} holds no run (no {folder.config_file.name}); nothing to resume.")
    logging.basicConfig(level=logging.INFO, format="[%(levelname)s] %(message)s")
    config = OmegaConf.load(folder.config_file)
    for override in overrides:
        key, equals, value = override.lstrip("+").partition("=")
        if not equals or OmegaConf.select(config, key, default=overrides) is overrides:
            raise UserError(f"There is no setting '{key}' in {folder.config_file}.")
        OmegaConf.update(config, key, OmegaConf.create(f"x: {value}").x)
    config.run_dir = str(folder.path)
    if folder.status().get("state") == "finished" and not overrides and is_main_process():
        print(f"{path} is finished already; its report is {folder.report_file}.")
        return 0
    if overrides and is_main_process():
        OmegaConf.save(config, folder.config_file)
    train(config, folder, str(config.name))  # type: ignore[arg-type]
    if config.report and is_main_process():
        _report([folder.path])
    return 0


def resolve(config: DictConfig, folder: RunFolder) -> DictConfig:
    """The configuration with every interpolation replaced by its value."""
    from omegaconf import OmegaConf, open_dict

    with open_dict(config):
        config.run_dir = str(folder.path)
        config.paths.cache = str(Path(config.paths.cache).expanduser())
    return OmegaConf.create(OmegaConf.to_container(config, resolve=True))  # type: ignore[return-value]


def _differs(config: DictConfig, folder: RunFolder) -> bool:
    from omegaconf import OmegaConf

    return OmegaConf.to_container(config) != folder.config()


def _write_inputs(config: DictConfig, folder: RunFolder, overrides: list[str]) -> None:
    from omegaconf import OmegaConf

    from noisyml.environment import describe_environment
    from noisyml.runs import write_atomically

    folder.path.mkdir(parents=True, exist_ok=True)
    write_atomically(folder.overrides_file, OmegaConf.to_yaml(OmegaConf.create(overrides)))
    write_atomically(
        folder.environment_file, json.dumps(describe_environment(), indent=2, sort_keys=True) + "\n"
    )
    # Last: its presence makes the folder a run.
    write_atomically(folder.config_file, OmegaConf.to_yaml(config))


def train(config: DictConfig, folder: RunFolder, title: str) -> dict[str, float]:
    """Run the recipe with its other processes, and keep the folder's status true."""
    from noisyml.launch import is_main_process, other_ranks

    status = _status(folder) if is_main_process() else contextlib.nullcontext()
    with status, other_ranks(_processes(config), folder.path):
        return recipe(config, folder, title)


def _processes(config: DictConfig) -> int:
    """Processes of the run on this machine."""
    devices = config.trainer.devices
    if isinstance(devices, int):
        return devices
    if isinstance(devices, str) and devices.isdigit():
        return int(devices)
    if devices in ("auto", "-1") and config.trainer.accelerator == "gpu":
        import torch

        return max(1, torch.cuda.device_count())
    return 1 if devices == "auto" else len(devices)


@contextlib.contextmanager
def _status(folder: RunFolder) -> Iterator[None]:
    from noisyml.data.base import BrokenImage

    began = time.time()
    folder.write_status("running", began=began)
    try:
        yield
    except BaseException as error:
        sentence = str(error).splitlines()[0] if str(error) else type(error).__name__
        folder.write_status("failed", began=began, ended=time.time(), error=sentence)
        if isinstance(error, BrokenImage):
            raise UserError(
                f"An image cannot be decoded: {error}. `noisyml data check` lists all such; "
                f"data.on_broken=skip leaves them out."
            ) from error
        raise
    folder.write_status("finished", began=began, ended=time.time())


def recipe(config: DictConfig, folder: RunFolder, title: str) -> dict[str, float]:
    """Train, evaluate, and describe one run; the same on every rank."""
    import lightning
    import torch

    from noisyml.apps._quiet import quiet
    from noisyml.assemble import assemble, build
    from noisyml.callbacks.artefacts import describe_run
    from noisyml.callbacks.checkpoint import AtomicCheckpointIO, RunCheckpoints
    from noisyml.callbacks.history import History
    from noisyml.callbacks.progress import LiveProgress, announce
    from noisyml.callbacks.selection_log import SelectionLog
    from noisyml.launch import is_main_process

    quiet()
    lightning.seed_everything(config.seed, workers=True, verbose=False)
    data, method = _parts(assemble(config, progress=announce if is_main_process() else None))
    manifest = data.manifest
    if is_main_process():
        manifest.save(folder.noise_file)

    callbacks = [build(node) for node in config.callbacks.values() if node is not None]
    by_type: dict[type, Any] = {type(callback): callback for callback in callbacks}
    if SelectionLog in by_type:
        by_type[SelectionLog].manifest = manifest
    if LiveProgress in by_type:
        by_type[LiveProgress].title = title
    loggers = [build(node) for node in (config.logger or {}).values() if node is not None]
    trainer = build(
        config.trainer,
        callbacks=callbacks,
        logger=loggers if is_main_process() else False,
        plugins=[AtomicCheckpointIO()],
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
    if trainer.interrupted:
        raise KeyboardInterrupt

    metrics: dict[str, float] = {"time/train_seconds": seconds}
    if History in by_type:
        metrics["time/step_seconds"] = by_type[History].step_seconds
        metrics |= by_type[History].latest("val/")
    if SelectionLog in by_type:
        metrics |= by_type[SelectionLog].last_metrics
    if manifest.truth_known:
        metrics["noise/actual_rate"] = manifest.actual_rate
        if manifest.nominal_rate is not None:
            metrics["noise/nominal_rate"] = manifest.nominal_rate
    checkpoints = by_type.get(RunCheckpoints)
    metrics |= _test_all(trainer, method, data, checkpoints, list(config.model_choice))
    if is_main_process():
        describe_run(method, data, folder)
        folder.write_metrics(metrics)
    trainer.strategy.barrier()
    trainer.strategy.teardown()
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    return metrics


def _parts(assembly: Any) -> tuple[Any, Any]:
    return assembly.data, assembly.method


def _last_checkpoint(folder: RunFolder) -> str | None:
    last = folder.checkpoints / "last.ckpt"
    return str(last) if last.is_file() else None


def _values(trainer: Any, prefix: str) -> dict[str, float]:
    return {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith(prefix)}


def _test_all(
    trainer: Any, method: Any, data: Any, checkpoints: Any, choice: list[str]
) -> dict[str, float]:
    """Test metrics of the models asked for: ``test/`` last, ``best/``, ``chosen_on_test/``."""
    metrics: dict[str, float] = {}
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
    return metrics
