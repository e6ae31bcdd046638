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
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from noisyml.apps._common.folder import refuse_foreign
from noisyml.apps._common.resumable import ResumableVerb, write_changes
from noisyml.apps._common.settings import EmbedSettings, read_settings
from noisyml.assembly.saved import saved_config
from noisyml.errors import UserError, did_you_mean
from noisyml.runs.folder import RunFolder, locate_checkpoint, locate_run
from noisyml.storage.files import write_atomically
from noisyml.storage.tables import for_spreadsheet

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from noisyml.command.words import Word
    from noisyml.data.datamodule import DataModule
    from noisyml.embeddings.extraction import BackboneOnly
    from noisyml.embeddings.store import SplitWriter
    from noisyml.models.encoder import Encoder

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
    return Embedding().main(arguments)


class Embedding(ResumableVerb):
    """``noisyml embed``: goes on with the first shard that is missing."""

    verb = "embed"
    holds = "embeddings made"
    free = FREE
    keeps_the_rest = True

    def foreign(self, words: Sequence[Word]) -> list[str]:
        """With a checkpoint, settings of the run that trained it."""
        from noisyml.command.words import last_given

        if last_given(words, "checkpoint") is None:
            return []
        return [word.text for word in words if not word.is_below(*OWN, "hydra")]

    def configure(
        self,
        config: DictConfig,
        folder: RunFolder,
        settings: Sequence[str],
        choices: dict[str, str],
    ) -> tuple[DictConfig, dict[str, str]]:
        """The configuration of the embedding, with a checkpoint mostly that of the trained run."""
        return configuration(config, folder, settings, choices)

    def check(self, config: DictConfig) -> None:
        """Refuse values that no embedding can have."""
        read_settings(EmbedSettings, config)
        if isinstance(config.splits, str):
            config.splits = [config.splits]

    def is_begun(self, folder: RunFolder) -> bool:
        """True once a row may have been written."""
        from noisyml.embeddings.store import EMBEDDINGS_FOLDER, PLAN_FILE

        return any(folder.path.glob(f"{EMBEDDINGS_FOLDER}/*/{PLAN_FILE}"))

    def is_finished(self, folder: RunFolder) -> bool:
        """Never: rows that are there are not computed again, and graphs may be asked for."""
        return False

    def begin(
        self, config: DictConfig, folder: RunFolder, typed: list[str], choices: dict[str, str]
    ) -> None:
        """Write what the embeddings are made from."""
        if not folder.is_run():
            refuse_foreign(folder)
        super().begin(config, folder, typed, choices)

    def go_on(self, config: DictConfig, folder: RunFolder, typed: Sequence[str]) -> None:
        """Write the configuration, of which some settings are free."""
        write_changes(config, folder, typed)

    def recipe(self, config: DictConfig, folder: RunFolder, title: str) -> dict[str, float]:
        """Compute and write the missing rows."""
        return extract(config, folder)

    def finish(
        self, config: DictConfig, folder: RunFolder, metrics: Mapping[str, float]
    ) -> dict[str, float]:
        """Write the graphs of neighbours, if any."""
        found = graphs(config, folder)
        folder.write_metrics({**metrics, **found})
        return found

    def conclude(self, home: Path, folders: Sequence[Path]) -> None:
        """Print which splits there are."""
        from noisyml.embeddings.store import EmbeddingStore

        for store in map(EmbeddingStore, folders):
            for name in store.splits:
                split = store.split(name)
                print(f"{name}: {len(split):,} x {split.shape[1]} {split.dtype}  {split.folder}")


def configuration(
    config: DictConfig, folder: RunFolder, settings: Sequence[str], choices: dict[str, str]
) -> tuple[DictConfig, dict[str, str]]:
    """The resolved configuration of the embedding, and the option chosen in each group.

    Args:
        config: of this verb.
        folder: where the results go.
        settings: overrides of the trained run's configuration.
        choices: of this verb's groups.
    """
    import yaml
    from omegaconf import OmegaConf, open_dict

    from noisyml.command.overrides import apply_overrides
    from noisyml.command.secrets import resolved
    from noisyml.command.words import words_in

    if config.checkpoint is not None:
        path = Path(config.checkpoint)
        run = locate_run(path)
        trained = saved_config(run, "train")
        file = locate_checkpoint(path, config.which)
        # Groups bring interpolations of their own, which need the paths of today.
        trained.paths = config.paths
        words = words_in(settings)
        chosen_data = any(word.key == "dataset" for word in words)
        if chosen_data and not any(word.is_below("noise") for word in words):
            # The noise was injected into the labels of the run's own data.
            settings = ["noise=none", *settings]
        trained = apply_overrides(trained, list(settings), groups=True)
        own = {key: config[key] for key in OWN}
        config = OmegaConf.merge(trained, own)  # type: ignore[assignment]
        config.trainer = own["trainer"]
        config.checkpoint = str(file.resolve())
        chosen = {"trainer": choices["trainer"], "paths": choices["paths"]}
        if run.choices_file.is_file():
            before = yaml.safe_load(run.choices_file.read_text(encoding="utf-8"))
            chosen = {**before, **chosen}
        typed = {word.key: str(word.value) for word in words if word.chooses}
        choices = {**chosen, **typed}
    with open_dict(config):
        config.run_dir = str(folder.path)
    return OmegaConf.create(resolved(config)), choices


def graphs(config: DictConfig, folder: RunFolder) -> dict[str, float]:
    """Write a graph of the nearest neighbours of each split, if any are asked for; its metrics."""
    from noisyml.embeddings.neighbours import Device, write_neighbours
    from noisyml.embeddings.store import EmbeddingStore

    if config.knn is None:
        return {}
    metrics: dict[str, float] = {}
    device: Device = "cuda" if config.trainer.accelerator == "gpu" else "cpu"
    store = EmbeddingStore(folder.path)
    for name in store.splits:
        out = folder.path / "knn" / name
        found = write_neighbours(store.split(name), out, k=config.knn, device=device)
        metrics |= {f"knn/{name}/{key}": value for key, value in found.items()}
    return metrics


def extract(config: DictConfig, folder: RunFolder) -> dict[str, float]:
    """Compute and write the missing rows; every process calls it."""
    import lightning
    from lightning.pytorch.callbacks import LambdaCallback

    from noisyml.apps._common.quiet import quiet
    from noisyml.apps._common.trainer import make_trainer
    from noisyml.embeddings.extraction import Extractor, ShardLoaders, ShardWriting, observed_labels
    from noisyml.runs.processes import cluster_environment, handle_termination, is_main_process

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
    trainer = make_trainer(
        config.trainer,
        callbacks=[writing, LambdaCallback(on_predict_start=handle_termination)],
        plugins=[cluster_environment()],
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        use_distributed_sampler=False,
        default_root_dir=str(folder.path),
    )
    extractor = Extractor(encoder, writing.advance)
    trainer.predict(extractor, datamodule=loaders, return_predictions=False)
    trainer.strategy.barrier()
    if is_main_process():
        for name, writer in writers.items():
            split = data.splits[name]
            writer.finish(observed_labels(data, name), split.keys, split.class_names)
        _list_broken(data, writers, folder)
    trainer.strategy.barrier()
    trainer.strategy.teardown()
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
        labels = data.target.content(observed_labels(data, name))
        plan = EmbeddingPlan(
            split=name,
            samples=len(split),
            dim=encoder.out_features,
            dtype=config.dtype,
            rows_per_shard=config.rows_per_shard,
            batch_size=config.data.eval_batch_size,
            precision=str(config.trainer.precision),
            data=split.fingerprint + basis,
            labels=hashlib.sha256(labels).hexdigest(),
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
    table.writerow(("split", "index", "key"))
    table.writerows([(name, position, for_spreadsheet(key)) for name, position, key in rows])
    file = folder.path / "broken_images.csv"
    write_atomically(file, text.getvalue())
    log.warning("%d images could not be decoded; they are listed in %s", len(rows), file)
