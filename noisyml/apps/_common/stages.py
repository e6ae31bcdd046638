"""The configurations of a training run and of its stages: composed, resolved, checked, written."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from noisyml.apps._common.folder import write_inputs
from noisyml.apps._common.settings import PlacesOnly, TrainSettings, read_settings
from noisyml.assembly.trusted import admit, check_composed
from noisyml.command.secrets import as_yaml, resolved
from noisyml.errors import UserError
from noisyml.runs.folder import RunFolder
from noisyml.stages.composition import Compose, compose_stage
from noisyml.stages.controller import StageController, origin_of
from noisyml.stages.plan import Handover, Policy, StagePlan
from noisyml.storage.files import write_atomically

if TYPE_CHECKING:
    from omegaconf import DictConfig


def resolve(config: DictConfig, folder: RunFolder, given: Handover) -> DictConfig:
    """The configuration with every interpolation replaced by its value.

    Args:
        config: composed; Hydra's own part of it is left out of the result.
        folder: of the run.
        given: by the stages before it.
    """
    from omegaconf import OmegaConf, open_dict

    with open_dict(config):
        config.run_dir = str(folder.path)
        if given.previous is not None:
            config.previous_run = str(given.previous)
        if given.init_from is not None:
            config.init_from = str(given.init_from)
        read_settings(PlacesOnly, config)
        config.paths.cache = str(Path(config.paths.cache).expanduser())
        for key, value in given.settings.items():
            OmegaConf.update(config, key, value, merge=False, force_add=True)
    return OmegaConf.create(resolved(config))


def check_values(config: DictConfig) -> None:
    """Refuse values that no run can have, before anything is read or written.

    Raises:
        UserError: such a value.
    """
    config.model_choice = read_settings(TrainSettings, config).choices
    nothing = [g for g in ("dataset", "noise", "selector", "method") if config.get(g) is None]
    if nothing:
        raise UserError(f"{nothing[0]}=null leaves a part out; see `noisyml list`.")


def begin_stages(
    config: DictConfig, folder: RunFolder, typed: Sequence[str], choices: Mapping[str, str]
) -> None:
    """Plan the stages of a new run, as far as they need no results, and write their inputs.

    Args:
        config: of the run itself, resolved.
        folder: of the run.
        typed: the overrides it was composed from.
        choices: the option it has in each group.
    """
    from hydra.core.hydra_config import HydraConfig

    hydra = HydraConfig.get()
    origin = {
        "config_name": hydra.job.config_name,
        "search_path": [
            f"{source.schema}://{source.path}"
            for source in hydra.runtime.config_sources
            if source.provider not in ("hydra", "main", "schema")
        ],
    }
    compose = _compose_from(origin, folder)
    _controller(config, folder, compose, typed, choices).begin(origin)


def resumed_stages(config: DictConfig, folder: RunFolder) -> StageController:
    """The stages of a run whose folder tells how far they are.

    Args:
        config: of the run itself, resolved.
        folder: of the run.
    """
    compose = _compose_from(origin_of(folder), folder)
    return _controller(config, folder, compose, folder.overrides(), folder.choices())


def _controller(
    config: DictConfig,
    folder: RunFolder,
    compose: Compose,
    typed: Sequence[str],
    choices: Mapping[str, str],
) -> StageController:
    from omegaconf import open_dict

    from noisyml.runs.processes import check_ranks

    def checked(settings: DictConfig) -> DictConfig:
        check_values(settings)
        check_ranks(settings)
        return settings

    def prepare(stage: RunFolder, plan: StagePlan) -> None:
        made = compose_stage(plan, compose, typed, choices)
        with open_dict(made.config):
            made.config.name = f"{config.name}/{stage.path.name}"
            made.config.previous_run = None
        settings = checked(resolve(made.config, stage, plan))
        admit(settings)
        write_inputs(stage, settings, made.overrides, made.choices)

    def apply(given: Handover) -> None:
        settings = checked(resolve(compose(typed), folder, given))
        write_atomically(folder.config_file, as_yaml(settings))

    return StageController(folder, _policy(config.stages), prepare=prepare, apply=apply)


def _policy(node: DictConfig) -> Policy:
    from omegaconf import OmegaConf

    from noisyml.assembly.build import build
    from noisyml.stages.policies import FixedStages

    if "_target_" not in node:
        entries = OmegaConf.to_container(node)
        assert isinstance(entries, dict)
        return FixedStages({str(name): entry for name, entry in entries.items()})
    policy = build(node)
    if not isinstance(policy, Policy):
        raise UserError(f"stages={node['_target_']} is no policy (noisyml.stages.plan.Policy).")
    return policy


def _compose_from(
    origin: Mapping[str, Any], folder: RunFolder
) -> Callable[[Sequence[str]], DictConfig]:
    """Composes as the run itself was composed, inside its Hydra job or long after it.

    Long after it what is composed is checked: the overrides come from the run folder.
    """
    import hydra
    from hydra.core.global_hydra import GlobalHydra

    from noisyml.command.config import conf_dir, register_resolvers

    def compose(overrides: Sequence[str]) -> DictConfig:
        typed = list(overrides)
        if GlobalHydra.instance().is_initialized():
            return hydra.compose(origin["config_name"], typed, return_hydra_config=True)
        register_resolvers()
        foreign = [path for path in origin["search_path"] if not path.startswith("file://")]
        if foreign:
            raise UserError(
                f"{folder.path} is not gone on with: {foreign[0]} names a package for YAML files; "
                f"start it anew with the settings in {folder.overrides_file.name}."
            )
        if origin["search_path"]:
            listed = ",".join(f"'{path}'" for path in origin["search_path"])
            typed.insert(0, f"hydra.searchpath=[{listed}]")
        with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
            made = hydra.compose(origin["config_name"], typed, return_hydra_config=True)
        check_composed(made, folder.path)
        return made

    return compose
