"""Embed a data set with a trained model or a pretrained backbone, and keep the rows on disk.

``noisyml embed checkpoint=RUN_DIR`` takes the run's data, transform and network; any setting of the
run may be changed, as with ``noisyml evaluate``. Without a checkpoint the configured backbone
embeds alone. Killed at any moment, ``noisyml embed resume=DIR`` (or the same command with the same
``hydra.run.dir``) computes what is missing. Several processes share the work; on several machines
they need a common file system.
"""

from __future__ import annotations

import csv
import hashlib
import io
import logging
import shlex
import warnings
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from noisyml.apps._folder import record_death, recorded, refuse_foreign, write_inputs
from noisyml.errors import UserError, did_you_mean
from noisyml.runs.folder import RunFolder, locate_checkpoint
from noisyml.storage.files import write_atomically

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from noisyml.data.datamodule import DataModule
    from noisyml.embeddings.extraction import BackboneOnly
    from noisyml.embeddings.store import SplitWriter
    from noisyml.models.encoder import Encoder
    from noisyml.runs.processes import Followers

log = logging.getLogger(__name__)

#: Settings of this verb; with a checkpoint, all others belong to the run that trained it.
OWN = (
    "checkpoint",
    "which",
    "splits",
    "dtype",
    "rows_per_shard",
    "feature_cache",
    "knn",
    "name",
    "trainer",
    "paths",
)
#: Settings that change no row: a folder may be continued with other values.
FREE = ("knn", "name", "paths", "run_dir", "resume", "trainer", "data.num_workers")


def main(arguments: list[str]) -> int:
    """Run ``noisyml embed [checkpoint=RUN_DIR] [overrides]`` or ``noisyml embed resume=DIR``."""
    from noisyml.command.hydra import run_hydra
    from noisyml.command.words import last_given, overrides_in, words_in
    from noisyml.runs.processes import Followers, follow, is_main_process, started_elsewhere

    if started_elsewhere() and not is_main_process():
        return follow(join)
    typed = overrides_in(arguments)
    words = words_in(typed)
    with Followers() as followers:
        if (resume := last_given(words, "resume")) is not None:
            others = [word.text for word in words if word.key != "resume"]
            return continue_run(Path(resume), others, followers)
        settings: list[str] = []
        if last_given(words, "checkpoint") is not None:
            settings = [word.text for word in words if not word.is_below(*OWN, "hydra")]
        own = [argument for argument in arguments if argument not in settings]
        task = partial(job, typed=typed, settings=settings, followers=followers)
        return run_hydra(task, "embed", "embed", own)


def job(
    config: DictConfig, typed: list[str], settings: list[str], followers: Followers
) -> dict[str, float]:
    """One job of Hydra: a new folder, or one that an interrupted command left behind.

    Args:
        config: the composed configuration.
        typed: all settings typed.
        settings: those that belong to the run whose checkpoint embeds.
        followers: the ranks that wait for a folder to work on.
    """
    from noisyml.runs.processes import follow, is_main_process

    if not is_main_process():
        # A launcher that starts several tasks for a job, as submitit can.
        follow(join)
        return {}
    with followers:
        return lead(config, typed, settings, followers)


def lead(
    config: DictConfig, typed: list[str], settings: list[str], followers: Followers
) -> dict[str, float]:
    """A job on rank 0, which alone writes configurations."""
    from hydra.core.hydra_config import HydraConfig

    from noisyml.embeddings.store import EMBEDDINGS_FOLDER, PLAN_FILE
    from noisyml.runs.processes import check_ranks

    hydra = HydraConfig.get()
    folder = RunFolder(Path(hydra.runtime.output_dir))
    config, choices = configuration(config, folder, settings, dict(hydra.runtime.choices))
    check_values(config)
    check_ranks(config)
    if not folder.is_run():
        refuse_foreign(folder)
    elif "rows_per_shard" not in folder.config():
        raise UserError(f"{folder.path} holds another kind of run; choose another hydra.run.dir.")
    if not list(folder.path.glob(f"{EMBEDDINGS_FOLDER}/*/{PLAN_FILE}")):
        write_inputs(folder, config, typed, choices)
    elif changed := _changed(config, folder):
        raise UserError(
            f"{folder.path} holds embeddings made with another {changed}; choose another "
            f"hydra.run.dir, or remove that folder."
        )
    else:
        _write_config(config, folder)
    return run(config, folder, followers)


def join(path: Path) -> None:
    """Work as a further rank on the embeddings in the folder `path`."""
    from noisyml.runs.processes import Followers

    folder = RunFolder(path)
    run(_read_config(folder), folder, Followers())


def continue_run(path: Path, overrides: list[str], followers: Followers) -> int:
    """``noisyml embed resume=DIR [trainer.devices=...] [knn=...]``: compute what is missing."""
    from noisyml.command.overrides import apply_overrides
    from noisyml.command.words import words_in
    from noisyml.runs.processes import check_ranks, is_main_process

    folder = RunFolder(path)
    if not folder.is_run():
        raise UserError(f"{path} holds no run (no {folder.config_file.name}); nothing to resume.")
    logging.basicConfig(level=logging.INFO, format="[%(levelname)s] %(message)s")
    config = _read_config(folder)
    if "rows_per_shard" not in config:
        raise UserError(f"{path} was not made by `noisyml embed`; nothing to resume.")
    for word in words_in(overrides):
        if not word.is_below(*FREE):
            raise UserError(
                f"Embeddings that go on keep their {word.key}: start new ones with {word.text} "
                f"instead."
            )
    config = apply_overrides(config, overrides, groups=False)
    config.run_dir = str(folder.path)
    check_values(config)
    check_ranks(config)
    if overrides and is_main_process():
        _write_config(config, folder)
    run(config, folder, followers)
    return 0


def configuration(
    config: DictConfig, folder: RunFolder, settings: list[str], choices: dict[str, str]
) -> tuple[DictConfig, dict[str, str]]:
    """The resolved configuration of the embedding, and the option chosen in each group.

    Args:
        config: of this verb.
        folder: where the results go.
        settings: overrides of the trained run's configuration.
        choices: of this verb's groups.
    """
    import yaml
    from omegaconf import DictConfig, OmegaConf, open_dict

    from noisyml.command.overrides import apply_overrides
    from noisyml.command.words import words_in

    if config.checkpoint is not None:
        run, file = locate_checkpoint(Path(config.checkpoint), config.which)
        trained = OmegaConf.load(run.config_file)
        assert isinstance(trained, DictConfig)
        # Groups bring interpolations of their own, which need the paths of today.
        trained.paths = config.paths
        words = words_in(settings)
        chosen_data = any(word.key == "dataset" for word in words)
        if chosen_data and not any(word.is_below("noise") for word in words):
            # The noise was injected into the labels of the run's own data.
            settings = ["noise=none", *settings]
        trained = apply_overrides(trained, settings, groups=True)
        own = {key: config[key] for key in OWN}
        config = OmegaConf.merge(trained, own)  # type: ignore[assignment]
        config.trainer = own["trainer"]
        config.checkpoint = str(file.resolve())
        chosen = {"trainer": choices["trainer"], "paths": choices["paths"]}
        if run.choices_file.is_file():
            before = yaml.safe_load(run.choices_file.read_text())
            chosen = {**before, **chosen}
        typed = {word.key: str(word.value) for word in words if word.chooses}
        choices = {**chosen, **typed}
    with open_dict(config):
        config.run_dir = str(folder.path)
    resolved = OmegaConf.create(OmegaConf.to_container(config, resolve=True))
    assert isinstance(resolved, DictConfig)
    return resolved, choices


def check_values(config: DictConfig) -> None:
    """Refuse values that no embedding can have, before anything is read or written.

    Raises:
        UserError: such a value.
    """
    if config.dtype not in ("float32", "float16"):
        raise UserError(f"dtype={config.dtype} is not known: use float32 or float16.")
    whole = {
        "rows_per_shard": config.rows_per_shard,
        "knn": config.knn,
        "data.eval_batch_size": config.data.eval_batch_size,
    }
    for key, value in whole.items():
        if not isinstance(value, int) and not (key == "knn" and value is None):
            raise UserError(f"{key}={value} must be a whole number.")
        if value is not None and value < 1:
            raise UserError(f"{key}={value} must be at least 1.")
    if isinstance(config.splits, str):
        config.splits = [config.splits]
    if config.splits is not None and not len(config.splits):
        raise UserError("splits=[] embeds nothing: name splits, or say splits=null for all.")


def _is_free(key: str) -> bool:
    return any(key == free or key.startswith(f"{free}.") for free in FREE)


def _changed(config: DictConfig, folder: RunFolder) -> str | None:
    """The first setting in which the folder's configuration differs, if it changes rows."""
    from noisyml.command.config import flatten

    wanted = dict(flatten(config))
    there = dict(flatten(folder.config()))
    keys = [key for key in {**wanted, **there} if not _is_free(key)]
    return next((key for key in keys if wanted.get(key) != there.get(key)), None)


def _read_config(folder: RunFolder) -> DictConfig:
    from omegaconf import DictConfig, OmegaConf

    config = OmegaConf.load(folder.config_file)
    assert isinstance(config, DictConfig)
    return config


def _write_config(config: DictConfig, folder: RunFolder) -> None:
    from omegaconf import OmegaConf

    write_atomically(folder.config_file, OmegaConf.to_yaml(config))


def run(config: DictConfig, folder: RunFolder, followers: Followers) -> dict[str, float]:
    """Embed with all processes, then (if asked for) write the graph of neighbours."""
    from noisyml.runs.processes import is_main_process, other_ranks, processes_here

    command = ["embed", f"resume={folder.path}"]
    here = other_ranks(processes_here(config), command, partial(record_death, folder))
    if not is_main_process():
        with here:
            return extract(config, folder)
    with folder.claimed(), recorded(folder, shlex.join(["noisyml", *command])):
        with followers.lead(folder.path), here:
            metrics = extract(config, folder)
        metrics |= _conclude(config, folder)
        folder.write_metrics(metrics)
    return metrics


def _conclude(config: DictConfig, folder: RunFolder) -> dict[str, float]:
    """Say what there is, and write the graphs; metrics of these."""
    from noisyml.embeddings.neighbours import Device, write_neighbours
    from noisyml.embeddings.store import EmbeddingStore

    metrics: dict[str, float] = {}
    store = EmbeddingStore(folder.path)
    for name in store.splits:
        split = store.split(name)
        print(f"{name}: {len(split):,} x {split.shape[1]} {split.dtype}  {split.folder}")
    if config.knn is not None:
        device: Device = "cuda" if config.trainer.accelerator == "gpu" else "cpu"
        for name in store.splits:
            out = folder.path / "knn" / name
            found = write_neighbours(store.split(name), out, k=config.knn, device=device)
            metrics |= {f"knn/{name}/{key}": value for key, value in found.items()}
    return metrics


def extract(config: DictConfig, folder: RunFolder) -> dict[str, float]:
    """Compute and write the missing rows; every process calls it."""
    import lightning
    import torch.distributed as dist

    from noisyml.apps._quiet import quiet
    from noisyml.assembly.nodes import build
    from noisyml.embeddings.extraction import Extractor, ShardLoaders, ShardWriting, observed_labels
    from noisyml.runs.processes import cluster_environment, is_main_process

    quiet()
    # Everything may be there already; the other processes must meet all the same.
    warnings.filterwarnings("ignore", message=".*across ranks is zero.*")
    lightning.seed_everything(config.seed, workers=True, verbose=False)
    data, encoder = network(config)
    writers = split_writers(config, folder, data, encoder)
    if is_main_process():
        for writer in writers.values():
            writer.begin()
    loaders = ShardLoaders(data, writers)
    writing = ShardWriting(loaders, progress=is_main_process())
    trainer = build(
        config.trainer,
        callbacks=[writing],
        plugins=[cluster_environment()],
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        use_distributed_sampler=False,
        default_root_dir=str(folder.path),
    )
    try:
        extractor = Extractor(encoder, writing.advance)
        trainer.predict(extractor, datamodule=loaders, return_predictions=False)
    except SystemExit:
        # Lightning turns Ctrl-C into an exit of its own.
        raise KeyboardInterrupt from None
    trainer.strategy.barrier()
    if is_main_process():
        for name, writer in writers.items():
            split = data.splits[name]
            writer.finish(observed_labels(data, name), split.keys, split.class_names)
        _list_broken(data, writers, folder)
    trainer.strategy.barrier()
    trainer.strategy.teardown()
    if dist.is_available() and dist.is_initialized():
        # The next job of a sweep has its own.
        dist.destroy_process_group()
    if not writing.samples:
        return {}
    rate = trainer.world_size * writing.samples / writing.seconds
    if is_main_process():
        log.info("%.0f images/s with %d process(es)", rate, trainer.world_size)
    return {"time/embed_seconds": writing.seconds, "time/images_per_second": rate}


def network(config: DictConfig) -> tuple[DataModule, Encoder | BackboneOnly]:
    """The data, labels prepared, and the encoder, weights loaded.

    Raises:
        UserError: data or weights missing, or parts that do not go together.
    """
    from noisyml.assembly.build import assemble
    from noisyml.assembly.nodes import build
    from noisyml.data.datamodule import DataModule
    from noisyml.data.samplers.plans import Shuffle
    from noisyml.embeddings.extraction import BackboneOnly
    from noisyml.noise import NoNoise
    from noisyml.runs.processes import is_main_process
    from noisyml.runs.progress import announce

    progress = announce if is_main_process() else None
    encoder: Encoder | BackboneOnly
    if config.checkpoint is not None:
        assembly = assemble(config, training=False, progress=progress)
        assembly.data.fixed_statistics = True
        assembly.method.load_encoder(Path(config.checkpoint))
        data, encoder = assembly.data, assembly.method.encoder
    else:
        data = DataModule(
            dataset=build(config.dataset),
            noise=NoNoise(),
            transform=build(config.transform),
            sampler=partial(Shuffle, batch_size=1),
            seed=config.seed,
            cache_dir=config.paths.cache,
            eval_batch_size=config.data.eval_batch_size,
            num_workers=config.data.num_workers,
            on_broken=config.data.on_broken,
            pin_memory=config.trainer.accelerator == "gpu",
            progress=progress,
        )
        data.prepare_labels()
        backbone = build(config.backbone)
        if backbone.frozen:
            data.use_features_of(backbone)
        encoder = BackboneOnly(backbone)
        if backbone.standardise and not config.feature_cache:
            raise UserError(
                "backbone.standardise=true needs the features of the training split: say "
                "feature_cache=true."
            )
    if not config.feature_cache:
        data.backbone = None
    return data, encoder


def split_writers(
    config: DictConfig, folder: RunFolder, data: DataModule, encoder: Encoder | BackboneOnly
) -> dict[str, SplitWriter]:
    """A writer for each split asked for, in the order of the data set.

    Raises:
        UserError: a split that the data set lacks, or fewer samples than neighbours.
    """
    from noisyml.embeddings.extraction import fingerprint, observed_labels
    from noisyml.embeddings.store import EMBEDDINGS_FOLDER, EmbeddingPlan, SplitWriter

    for name in config.splits or ():
        if name not in data.splits:
            raise UserError(
                f"The data set has no split '{name}'.{did_you_mean(name, data.splits)} It has: "
                f"{', '.join(data.splits)}."
            )
    wanted = [name for name in data.splits if config.splits is None or name in config.splits]
    writers = {}
    network = fingerprint(encoder)
    # Without a checkpoint the statistics are computed from the training split.
    standardised = config.checkpoint is None and encoder.backbone.standardise
    basis = data.splits["train"].fingerprint if standardised else ""
    for name in wanted:
        split = data.splits[name]
        if config.knn is not None and config.knn >= len(split):
            raise UserError(
                f"knn={config.knn} asks for more neighbours than the {len(split)} samples of the "
                f"{name} split have: lower it."
            )
        labels = observed_labels(data, name).astype("<i8")
        plan = EmbeddingPlan(
            split=name,
            samples=len(split),
            dim=encoder.out_features,
            dtype=config.dtype,
            rows_per_shard=config.rows_per_shard,
            batch_size=config.data.eval_batch_size,
            precision=str(config.trainer.precision),
            data=split.fingerprint + basis,
            labels=hashlib.sha256(labels.tobytes()).hexdigest(),
            transform=data.transform.fingerprint(),
            encoder=network,
        )
        writers[name] = SplitWriter(folder.path / EMBEDDINGS_FOLDER / name, plan)
    # Nobody computes features of splits that are not asked for.
    needed = {*wanted, "train"} if standardised else set(wanted)
    data.splits = {name: split for name, split in data.splits.items() if name in needed}
    return writers


def _list_broken(data: DataModule, writers: dict[str, SplitWriter], folder: RunFolder) -> None:
    """Write ``broken_images.csv`` if any image was left out."""
    from noisyml.embeddings.store import EmbeddedSplit

    rows = [
        (name, position, data.splits[name].keys[position])
        for name, writer in writers.items()
        for position in EmbeddedSplit(writer.folder).facts["broken"]
    ]
    if not rows:
        return
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerows([("split", "index", "key"), *rows])
    file = folder.path / "broken_images.csv"
    write_atomically(file, text.getvalue())
    log.warning("%d images could not be decoded; they are listed in %s", len(rows), file)
