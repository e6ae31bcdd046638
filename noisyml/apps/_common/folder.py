"""Run folders as verbs find and leave them: the input of a run, how it ended, and whose it is."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from noisyml.errors import UserError
from noisyml.runs.folder import RunFolder
from noisyml.runs.trials import PRUNED_STATE, Trial
from noisyml.storage.files import write_atomically

if TYPE_CHECKING:
    from omegaconf import DictConfig


def refuse_foreign(folder: RunFolder) -> None:
    """Refuse a folder that somebody else filled.

    Logs do not count, nor do the files that a command writes before the folder is a run.

    Raises:
        UserError: it holds other things.
    """
    if not folder.path.is_dir():
        return
    begun = {folder.overrides_file, folder.choices_file, folder.environment_file}
    others = sorted(
        p.name
        for p in folder.path.iterdir()
        if p.name[0] != "." and p.suffix != ".log" and p not in begun
    )
    if others:
        raise UserError(
            f"{folder.path} holds something else already ({others[0]}); choose another "
            f"hydra.run.dir, or remove that folder."
        )


def is_made_by(folder: RunFolder, verb: str) -> bool:
    """True for a run folder of this verb; one that embeds a trained network says so."""
    config = folder.config()
    kinds = {
        "embed": "rows_per_shard",
        "knn": "recall_queries",
        "train": "model_choice",
        "clean": "relabel_above",
    }
    made_by = [kind for kind, key in kinds.items() if key in config]
    return bool(made_by) and made_by[0] == verb


def write_inputs(
    folder: RunFolder, config: DictConfig, overrides: Sequence[str], choices: Mapping[str, str]
) -> None:
    """Write what a run is made from; ``config.yaml`` last, for it makes the folder a run."""
    from omegaconf import OmegaConf

    from noisyml.command.secrets import as_yaml, words_as_yaml
    from noisyml.runs.environment import describe_environment

    folder.path.mkdir(parents=True, exist_ok=True)
    write_atomically(folder.overrides_file, words_as_yaml(overrides))
    options = {group: name for group, name in choices.items() if not group.startswith("hydra")}
    write_atomically(folder.choices_file, OmegaConf.to_yaml(OmegaConf.create(options)))
    write_atomically(
        folder.environment_file, json.dumps(describe_environment(), indent=2, sort_keys=True) + "\n"
    )
    write_atomically(folder.config_file, as_yaml(config))


@contextlib.contextmanager
def recorded(folder: RunFolder, go_on: str) -> Iterator[None]:
    """Keep ``status.json`` true while the context is open.

    Args:
        folder: of the run.
        go_on: the command that continues it, told after Ctrl-C.
    """
    from noisyml.data.inputs import BrokenImage

    began = time.time()
    folder.write_status("running", began=began)
    try:
        yield
    except KeyboardInterrupt:
        folder.write_status("interrupted", began=began, ended=time.time())
        print(f"Go on with: {go_on}", file=sys.stderr)
        raise
    except BaseException as error:
        sentence = str(error).splitlines()[0] if str(error) else type(error).__name__
        folder.write_status("failed", began=began, ended=time.time(), error=sentence)
        if isinstance(error, BrokenImage):
            raise UserError(
                f"An image cannot be decoded: {error}. `noisyml data check` lists all such; "
                f"data.on_broken=skip leaves them out."
            ) from error
        raise
    trial = Trial.read(folder.path)
    if trial is None or trial.pruned is None:
        folder.write_status("finished", began=began, ended=time.time())
    else:
        folder.write_status(PRUNED_STATE, began=began, ended=time.time(), reason=trial.why)


def record_death(folder: RunFolder, sentence: str) -> None:
    """Note that another rank died; the one that should write this may be the dead one."""
    known = folder.status()
    if known.get("state") == "running":
        known |= {"state": "failed", "ended": time.time(), "error": sentence}
        folder.write_status(**known)
