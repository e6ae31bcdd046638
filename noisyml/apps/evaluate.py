"""Evaluate a trained model on the test split of its data set, or of another one.

``noisyml evaluate checkpoint=RUN_DIR`` takes the run's configuration and its last weights;
``which=best`` takes others. Any setting of the run may be changed, and parts exchanged:
``dataset=csv dataset.path=labels.csv``, ``evaluators.retrieval.recall_at=[1,10]``.

``images=FOLDER classes=names.txt`` names the pictures of any folder by a model of images and texts.
"""

from __future__ import annotations

import json
import logging
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from noisyml.apps._common.settings import EvaluateSettings, read_settings
from noisyml.apps._common.stages import check_values
from noisyml.assembly.saved import saved_config
from noisyml.errors import UserError
from noisyml.runs.folder import RunFolder, locate_checkpoint, locate_run
from noisyml.storage.files import write_atomically

if TYPE_CHECKING:
    from omegaconf import DictConfig

log = logging.getLogger(__name__)

#: Settings of this verb; all others belong to the evaluated run.
NAMING = (
    "images",
    "classes",
    "templates",
    "template_set",
    "ensemble",
    "labels",
    "candidates",
    "k",
)
OWN = ("checkpoint", "which", "name", "paths", "hydra", *NAMING)


def main(arguments: list[str]) -> int:
    """Run ``noisyml evaluate checkpoint=RUN_DIR [which=last|best] [settings of the run]``."""
    from noisyml.command.hydra import run_hydra
    from noisyml.command.words import as_typed, overrides_in, words_in

    arguments = as_typed(arguments)
    settings = [w.text for w in words_in(overrides_in(arguments)) if not w.is_below(*OWN)]
    own = [argument for argument in arguments if argument not in settings]
    return run_hydra(partial(job, settings=settings), "evaluate", "evaluate", own)


def job(config: DictConfig, settings: list[str]) -> dict[str, float]:
    """Evaluate one checkpoint and write its metrics into the output folder."""
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf

    from noisyml.command.overrides import apply_overrides
    from noisyml.command.secrets import as_yaml, resolved

    own = read_settings(EvaluateSettings, config)
    path = Path(config.checkpoint)
    trained = saved_config(locate_run(path), "train")
    file = locate_checkpoint(path, config.which)
    check_spelling(settings, trained)
    # Groups bring interpolations of their own, which need the paths of today.
    trained.paths = config.paths
    changed = apply_overrides(trained, settings, groups=True)
    check_values(changed)
    output = RunFolder(Path(HydraConfig.get().runtime.output_dir))
    changed.run_dir = str(output.path)
    if own.images is None:
        metrics = evaluate(changed, file)
    else:
        from noisyml.apps._common.naming import name_images

        metrics = name_images(changed, file, own, output)
    write_atomically(output.config_file, as_yaml(OmegaConf.create(resolved(changed))))
    output.write_metrics(metrics)
    print(json.dumps(metrics, indent=2))
    if own.images is not None:
        print(f"names   {output.path / 'predictions.csv'}, {output.path / 'predictions.png'}")
    print(f"metrics {output.metrics_file}")
    return metrics


def check_spelling(settings: list[str], trained: DictConfig) -> None:
    """Look for settings of this verb that are misspelt, before they are looked for in the run.

    Raises:
        UserError: there is one.
    """
    from difflib import get_close_matches

    from noisyml.command.words import Word

    for word in map(Word.parse, settings):
        key = word.key
        known = "." in key or word.package is not None or key in trained
        close = [] if known else get_close_matches(key, OWN, n=1, cutoff=0.75)
        if close:
            raise UserError(f"There is no setting '{key}'. Did you mean '{close[0]}'?")


def evaluate(config: DictConfig, checkpoint: Path) -> dict[str, float]:
    """Test metrics of a checkpoint's model under a configuration.

    Memories, losses and selectors of the run do not matter and may be of another size.
    """
    import lightning

    from noisyml.apps._common.quiet import quiet
    from noisyml.apps._common.trainer import make_trainer
    from noisyml.assembly.build import assemble
    from noisyml.callbacks.broken_images import BrokenImages
    from noisyml.runs.progress import announce

    quiet()
    lightning.seed_everything(config.seed, workers=True, verbose=False)
    assembly = assemble(config, training=False, progress=announce)
    broken = BrokenImages(str(Path(config.run_dir) / "broken_images.csv"))
    trainer = make_trainer(
        config.trainer,
        callbacks=[broken],
        devices=1,
        strategy="auto",
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        use_distributed_sampler=False,
        default_root_dir=config.run_dir,
    )
    assembly.data.fixed_statistics = True
    assembly.method.load_trained(checkpoint)
    trainer.test(assembly.method, assembly.data, verbose=False)
    return {
        name: float(value)
        for name, value in trainer.callback_metrics.items()
        if name.startswith("test/")
    }
