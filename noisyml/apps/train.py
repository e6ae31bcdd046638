"""Train a method on (noisy) labels and write a run folder.

The recipe, top to bottom, is `Training.recipe` below.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from noisyml.apps._common.adopted import adopted, save_stage_table
from noisyml.apps._common.resumable import ResumableVerb, first_difference
from noisyml.apps._common.stages import begin_stages, check_values, resolve, resumed_stages
from noisyml.assembly.saved import saved_config
from noisyml.assembly.trusted import check_places
from noisyml.command.sweeps import current_trial
from noisyml.errors import UserError
from noisyml.runs.artefacts import list_artefacts
from noisyml.runs.folder import CONFIG_FILE, STAGES_FOLDER, RunFolder, locate_checkpoint
from noisyml.runs.trials import TRIAL_FILE, Trial
from noisyml.stages.controller import possible_handovers
from noisyml.stages.plan import Handover
from noisyml.storage.reading import reason_of

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from noisyml.runs.processes import Followers

log = logging.getLogger(__name__)


def main(arguments: list[str]) -> int:
    """Run ``noisyml train [overrides]`` or ``noisyml train resume=RUN_DIR [overrides]``."""
    return Training().main(arguments)


class Training(ResumableVerb):
    """``noisyml train``: goes on from the last checkpoint."""

    verb = "train"
    holds = "a run"
    free = ("report", "logger", "callbacks.progress")

    def configure(
        self,
        config: DictConfig,
        folder: RunFolder,
        settings: Sequence[str],
        choices: dict[str, str],
    ) -> tuple[DictConfig, dict[str, str]]:
        """The configuration with every interpolation replaced by its value."""
        return resolve(config, folder, Handover()), choices

    def check(self, config: DictConfig) -> None:
        """Refuse values that no run can have."""
        check_values(config)

    def begin(
        self, config: DictConfig, folder: RunFolder, typed: list[str], choices: dict[str, str]
    ) -> None:
        """Write what the run and the stages before it are made from."""
        if config.get("stages"):
            begin_stages(config, folder, typed, choices)
        super().begin(config, folder, typed, choices)

    def go_on(self, config: DictConfig, folder: RunFolder, typed: Sequence[str]) -> None:
        """Write the configuration; a run that is changed is no trial of its search any more."""
        super().go_on(config, folder, typed)
        if typed:
            (folder.path / TRIAL_FILE).unlink(missing_ok=True)

    def changed(self, composed: DictConfig, config: DictConfig, folder: RunFolder) -> str | None:
        """The first setting that differs, whatever stages may have given the run."""
        found = [
            first_difference(resolve(composed, folder, given), folder, self.free)
            for given in possible_handovers(folder)
        ]
        return None if None in found else found[0]

    def check_places(self, config: DictConfig, folder: RunFolder, typed: Collection[str]) -> None:
        """Refuse callbacks and loggers of the run or its stages that write anywhere else."""
        check_places(config, folder.path, typed)
        for file in folder.path.glob(f"{STAGES_FOLDER}/*/{CONFIG_FILE}"):
            check_places(saved_config(RunFolder(file.parent), self.verb), folder.path)

    def work(
        self, config: DictConfig, folder: RunFolder, title: str, followers: Followers
    ) -> dict[str, float]:
        """Train what goes before the run, as far as it is not finished, and then the run itself."""
        from noisyml.runs.processes import is_main_process

        if is_main_process():
            _say_what_is_assumed(config, folder)
            if (trial := current_trial(folder.path)) is not None:
                trial.write(folder.path)
        # Ranks that rank 0 starts are told a stage's own folder, and the run's in its turn.
        if config.get("stages") and is_main_process():
            for stage in resumed_stages(config, folder).pending():
                self.run(
                    saved_config(stage, self.verb), stage, f"{title} · {stage.path.name}", followers
                )
            config = saved_config(folder, self.verb)
        return self.run(config, folder, title, followers)

    def recipe(self, config: DictConfig, folder: RunFolder, title: str) -> dict[str, float]:
        """Train, evaluate, and describe one run."""
        return recipe(config, folder, title)

    def conclude(self, home: Path, folders: Sequence[Path]) -> None:
        """Print table and page of a run or sweep, or at least where it lies."""
        runs = [RunFolder(path) for path in folders]
        report = bool(runs[0].config()["report"])
        if report:
            from noisyml.apps import report as report_verb

            report_verb.main([str(home)])
        for run in runs:
            if not report:
                state = run.status().get("state")
                shown = {k: v for k, v in run.metrics().items() if k.startswith("test/")}
                print(
                    f"run    {run.path}  "
                    + "  ".join(f"{k} {figure(v)}" for k, v in shown.items())
                    + (f"  {state}" if state != "finished" else "")
                )
            if run.suspects_file.is_file() and len(runs) == 1:
                print(f"labels to check, least trusted first: {run.suspects_file}")
                listed = {entry.file: entry.caption for entry in list_artefacts(run)}
                print(listed.get(run.suspects_file.name, ""))


def figure(value: float) -> str:
    """A metric as it is printed; a dash for one that is undefined."""
    return "–" if value != value else f"{value:.4f}"


def recipe(config: DictConfig, folder: RunFolder, title: str) -> dict[str, float]:
    """Train, evaluate, and describe one run; the same on every rank."""
    import lightning
    from lightning.pytorch.callbacks import LambdaCallback

    from noisyml.apps._common.quiet import quiet
    from noisyml.apps._common.trainer import leave_out_idle_hooks, make_trainer
    from noisyml.assembly.build import assemble
    from noisyml.assembly.nodes import build
    from noisyml.callbacks.checkpoint import AtomicCheckpointIO, RunCheckpoints
    from noisyml.callbacks.dashboards.base import announce_run
    from noisyml.callbacks.history import History
    from noisyml.callbacks.progress import LiveProgress
    from noisyml.callbacks.selection_log import SelectionLog
    from noisyml.callbacks.trial import TrialReports
    from noisyml.command.secrets import masked, resolved
    from noisyml.methods.self_training import SelfTraining
    from noisyml.runs.costs import Meter
    from noisyml.runs.processes import cluster_environment, handle_termination, is_main_process
    from noisyml.runs.progress import announce

    quiet()
    lightning.seed_everything(config.seed, workers=True, verbose=False)
    assembly = assemble(config, progress=announce if is_main_process() else None)
    data, method = assembly.data, assembly.method
    adopt = dict(config.get("adopt") or {})
    if config.init_from is not None and _last_checkpoint(folder) is None:
        method.load_encoder(locate_checkpoint(Path(config.init_from), "last"))
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
    restored = threading.Event()

    def begin(*hook: object) -> None:
        restored.set()
        handle_termination()

    signals = LambdaCallback(on_train_start=begin, on_test_start=handle_termination)
    trial = Trial.read(folder.path)
    reports = [] if trial is None else [TrialReports(folder.path, trial)]
    trainer = make_trainer(
        config.trainer,
        callbacks=[*callbacks, signals, *reports],
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
    leave_out_idle_hooks(method)

    settings: Any = masked(resolved(config))
    announce_run(trainer.loggers, settings)
    # A checkpoint is read before Lightning does this, and would be rounded to single precision.
    trainer.strategy.precision_plugin.convert_module(method)
    if adopt:
        tested = adopted(trainer, method, data, folder, adopt)
        return _concluded(trainer, method, data, folder, config, tested, 0, adopt)
    meter = Meter()
    last = _last_checkpoint(folder)
    with _restoring(last, restored):
        trainer.fit(method, data, ckpt_path=last, weights_only=True)
    costs = meter.read()
    steps = trainer.global_step  # a test of another checkpoint changes it
    if not trainer.fit_loop.epoch_loop.batch_progress.total.ready:
        raise UserError(
            "The run trained nothing: no batch was drawn; look at trainer.max_epochs, max_steps, "
            "max_time and limit_train_batches."
        )

    metrics: dict[str, float] = costs
    if History in by_type:
        metrics["time/step_seconds"] = by_type[History].step_seconds
        metrics["time/samples_per_second"] = by_type[History].samples_per_second
        metrics |= by_type[History].latest("val/")
    if SelectionLog in by_type:
        metrics |= by_type[SelectionLog].last_metrics
    metrics |= {f"noise/{name}": rate for name, rate in manifest.rates().items()}
    if reports and reports[0].pruned:
        return _recorded(trainer, method, folder, config, metrics, steps)
    checkpoints = by_type.get(RunCheckpoints)
    metrics |= _test_all(trainer, method, data, checkpoints, list(config.model_choice))
    if isinstance(method, SelfTraining):
        metrics |= method.stage_metrics
    return _concluded(trainer, method, data, folder, config, metrics, steps, adopt)


def _concluded(
    trainer: Any,
    method: Any,
    data: Any,
    folder: RunFolder,
    config: DictConfig,
    metrics: dict[str, float],
    steps: int,
    adopt: dict[str, str],
) -> dict[str, float]:
    """Describe a finished run in its folder; its metrics, with those of trust in labels.

    Args:
        trainer: of the run.
        method: trained.
        data: of the run.
        folder: of the run.
        config: of the run.
        metrics: so far.
        steps: of training.
        adopt: stages whose models it took over (`noisyml.apps._common.adopted`); none of most runs.
    """
    from noisyml.audit.trust import trust_metrics
    from noisyml.callbacks.artefacts import describe_run
    from noisyml.runs.processes import is_main_process

    if is_main_process():
        ranking = config.selection.get("ranking", "all_epochs")
        describe_run(method, data, folder, ranking)
        if adopt:
            save_stage_table(folder, adopt)
        if folder.selection_file.is_file():
            metrics |= trust_metrics(data, folder.selection_file, ranking)
    return _recorded(trainer, method, folder, config, metrics, steps)


def _recorded(
    trainer: Any,
    method: Any,
    folder: RunFolder,
    config: DictConfig,
    metrics: dict[str, float],
    steps: int,
) -> dict[str, float]:
    """Write a run's metrics and tell its loggers; the metrics.

    Args:
        trainer: of the run.
        method: trained.
        folder: of the run.
        config: of the run.
        metrics: of the run.
        steps: of training.
    """
    from noisyml.callbacks.dashboards.base import announce_results
    from noisyml.command.secrets import masked, resolved
    from noisyml.metrics.base import metric_names
    from noisyml.runs.processes import is_main_process

    if is_main_process():
        metric_names(method.evaluators).write(folder.metric_names_file)
        folder.write_metrics(metrics)
        settings: Any = masked(resolved(config))
        announce_results(trainer.loggers, folder, settings, metrics, steps)
    trainer.strategy.barrier()
    trainer.strategy.teardown()
    return metrics


def _last_checkpoint(folder: RunFolder) -> str | None:
    last = folder.checkpoints / "last.ckpt"
    return str(last) if last.is_file() else None


@contextlib.contextmanager
def _restoring(checkpoint: str | None, restored: threading.Event) -> Iterator[None]:
    """Context of training; an error before the first step means that a checkpoint does not fit.

    Raises:
        UserError: in place of such an error.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if checkpoint is None or restored.is_set():
            raise
        reason = reason_of(Path(checkpoint), error)
        raise UserError(
            f"The run cannot go on from {checkpoint} ({reason}): it is damaged or of another run; "
            f"put a copy of it there, or remove it to begin the run anew."
        ) from error


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
        if name not in choice or checkpoints is None:
            continue
        if stem not in checkpoints.reached:
            if name == "test" or "val" in data.splits:
                log.warning(
                    "model_choice has '%s', but there is no such model: %s.",
                    name,
                    checkpoints.why_missing(stem),
                )
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


def _say_what_is_assumed(config: DictConfig, folder: RunFolder) -> None:
    """Say which noise rates nobody has set: neither what was typed nor an experiment."""
    import yaml
    from omegaconf import OmegaConf

    from noisyml.command.config import conf_dir
    from noisyml.command.words import words_in

    typed = {word.key for word in words_in(folder.overrides())}
    choices = folder.choices()
    settings: Any = OmegaConf.to_container(config)
    consequences = {
        "selector": "about that share of each batch is left out",
        "method": "about that share of what is learnt is held back",
    }
    for part, consequence in consequences.items():
        rate = config[part].get("noise_rate")
        if rate is None or "rate" in config.noise or f"{part}.noise_rate" in typed:
            continue
        file = conf_dir() / part / f"{choices.get(part)}.yaml"
        default = yaml.safe_load(file.read_text(encoding="utf-8")) if file.is_file() else {}
        # An experiment, or a configuration of the user's own, may have set another one.
        written = (default.get(part) or {}).get("noise_rate", default.get("noise_rate"))
        own = OmegaConf.create({**settings, "rate": written})
        if own.rate != rate or _sets(choices.get("experiment"), part, "noise_rate"):
            continue
        log.warning(
            "%s.noise_rate=%s is a guess: %s; set it to the share of wrong labels you expect.",
            part,
            rate,
            consequence,
        )


def _sets(experiment: str | None, part: str, key: str) -> bool:
    """True if an experiment's own file sets a part's key."""
    import yaml

    from noisyml.command.config import conf_dir

    names = (experiment or "").strip("[]").split(",")
    files = [conf_dir() / "experiment" / f"{name.strip()}.yaml" for name in names]
    contents = [
        yaml.safe_load(file.read_text(encoding="utf-8")) for file in files if file.is_file()
    ]
    return any(key in (content.get(part) or {}) for content in contents)
