"""Trust in saved configurations: the classes and functions they may name, and nothing else.

A run folder may come from anybody, and its ``config.yaml`` says what is built from it. What is
typed, or lies in one's own ``--config-dir``, is one's own and is not asked here; a configuration
that is read from a file is checked whole before anything of it is built. It may name

- parts that noisyml defines: methods, losses, selectors, evaluators, data sets, noise, batch plans,
  transforms, networks, graphs of pairs, callbacks, policies, and functions that make networks,
  optimisers, schedules, teachers or loggers;
- optimisers, schedules and modules of PyTorch, transforms and networks of torchvision, modules of
  timm, losses and miners of pytorch-metric-learning, and a few classes of Lightning;
- what lies in a package, or has a name, that the user trusts: ``trust=[my_package]`` on the command
  line, or the environment variable ``NOISYML_TRUST=my_package,another.Class``.

Decided is on the object that a name leads to, so that a name of ours that leads elsewhere
(``noisyml.data.features.np.load``) is no way out; a module of anybody else is not even imported.
Values are plain in a saved configuration: nothing in it may read the environment, unless the user
trusts ``oc.env``. A secret that was typed as ``${oc.env:TOKEN}`` is saved as that.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
import re
import typing
from collections.abc import Callable, Collection, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from noisyml.errors import TRUST, UserError
from noisyml.storage.reading import read_yaml

if TYPE_CHECKING:
    from omegaconf import DictConfig

#: Trust in this word lets a configuration read the environment.
ENVIRONMENT = "oc.env"
#: A value of an environment variable, as a configuration refers to it.
_VARIABLE = re.compile(r"\$\{oc\.env:\w+\}")
#: Classes and functions of Lightning by their names there.
_LIGHTNING = frozenset(
    {
        "Trainer",
        "pytorch.Trainer",
        "pytorch.loggers.CSVLogger",
        "pytorch.loggers.TensorBoardLogger",
        "pytorch.loggers.WandbLogger",
        "pytorch.strategies.DDPStrategy",
        "pytorch.strategies.FSDPStrategy",
        "pytorch.strategies.SingleDeviceStrategy",
        "pytorch.callbacks.DeviceStatsMonitor",
        "pytorch.callbacks.EarlyStopping",
        "pytorch.callbacks.GradientAccumulationScheduler",
        "pytorch.callbacks.LearningRateMonitor",
        "pytorch.callbacks.StochasticWeightAveraging",
        "pytorch.callbacks.Timer",
    }
)
#: Arguments of callbacks and loggers that say where they write.
_PLACES = frozenset({"file", "folder", "save_dir", "dirpath", "root_dir"})


class UntrustedError(UserError):
    """A saved configuration names something that it may not."""


def check_saved(config: Any, source: Path) -> None:
    """Refuse a configuration from a file that names more than parts, or is more than values.

    Args:
        config: as plain dictionaries and lists, interpolations as they stand in the file.
        source: the file, for messages.

    Raises:
        UntrustedError: it does.
    """
    for key, value in _leaves(config):
        if key.rpartition(".")[2] == "_target_":
            check_target(value, f"{key}={value}", source)
        elif isinstance(value, str) and "${" in value:
            from_environment = "${" not in _VARIABLE.sub("", value)
            if from_environment and ENVIRONMENT in _trusted():
                continue
            allowed = f", or say trust=[{ENVIRONMENT}] if the run is yours"
            raise UntrustedError(
                f"{source} is not read: {key}={value} refers to something else, and a saved "
                f"configuration holds plain values; put the value itself there"
                f"{allowed if from_environment else ''}."
            )


def check_composed(config: DictConfig, source: Path) -> None:
    """Refuse what was composed anew from the overrides that a run folder keeps.

    Args:
        config: composed, not resolved; Hydra's own part of it is passed over.
        source: the run folder, for messages.

    Raises:
        UntrustedError: it names more than parts, or reads more than the YAML files of noisyml do.
    """
    from omegaconf import OmegaConf

    plain = OmegaConf.to_container(config, resolve=False)
    assert isinstance(plain, dict)
    plain.pop("hydra", None)
    ours = _own_interpolations()
    anything = ENVIRONMENT in _trusted()
    for key, value in _leaves(plain):
        if key.rpartition(".")[2] == "_target_":
            check_target(value, f"{key}={value}", source)
        elif anything or not isinstance(value, str) or value in ours:
            continue
        elif _reads(value):
            raise UntrustedError(
                f"{source} is not gone on with: {key}={value} reads more than the configuration; "
                f"trust=[{ENVIRONMENT}] allows it, if the run is yours."
            )


def check_target(target: Any, setting: str, source: Path) -> None:
    """Refuse a name that a saved configuration may not have for a ``_target_``.

    Args:
        target: an import path.
        setting: the key and the name, for messages.
        source: where it stands, for messages.

    Raises:
        UntrustedError: such a name.
    """
    reason = _objection(target)
    if reason is None:
        return
    package = str(target).partition(".")[0]
    raise UntrustedError(
        f"{source} names {setting}, {reason}, so nothing of it is built; if {package} is a package "
        f"of yours, say trust=[{package}] (or {TRUST}={package})."
    )


def check_places(config: DictConfig, folder: Path, typed: Collection[str] = ()) -> None:
    """Refuse callbacks and loggers that would write outside the run folder.

    Args:
        config: of a run that is gone on with.
        folder: of the run.
        typed: keys whose values were typed and are the user's own.

    Raises:
        UntrustedError: such a place.
    """
    from omegaconf import OmegaConf

    home = folder.resolve()
    plain: Any = OmegaConf.to_container(config, resolve=True)
    for part in ("callbacks", "logger"):
        for key, value in _leaves(plain.get(part) or {}, part):
            if key in typed or not isinstance(value, str) or not _is_place(key, value):
                continue
            if not Path(value).expanduser().resolve().is_relative_to(home):
                raise UntrustedError(
                    f"{folder} is not gone on with: {key}={value} lies outside of it; a run writes "
                    f"into its own folder alone."
                )


@contextlib.contextmanager
def admitting() -> Iterator[None]:
    """A context at whose end what `admit` has admitted is forgotten."""
    before = os.environ.get(TRUST)
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(TRUST, None)
        else:
            os.environ[TRUST] = before


def admit(config: DictConfig | Mapping[str, Any]) -> None:
    """Trust the names in a configuration that was typed, here and in processes started from here.

    Stages, teachers and other ranks of one command read what it has saved.
    """
    from omegaconf import DictConfig, OmegaConf

    typed = isinstance(config, DictConfig)
    plain = OmegaConf.to_container(config, resolve=False) if typed else config
    leaves = list(_leaves(plain))
    names = {str(value) for key, value in leaves if key.rpartition(".")[2] == "_target_"}
    new = sorted(name for name in names if "$" not in name and _objection(name) is not None)
    if any(isinstance(value, str) and _VARIABLE.search(value) for _, value in leaves):
        new.append(ENVIRONMENT)
    if new:
        os.environ[TRUST] = ",".join([*_trusted(), *new])


def _trusted() -> list[str]:
    return [name for word in os.environ.get(TRUST, "").split(",") if (name := word.strip())]


# -- names -------------------------------------------------------------------------------------


def _objection(target: Any) -> str | None:
    """The reason why a saved configuration may not name something, or None."""
    # Private modules are none to name; one that is called __main__ would run a program.
    if not isinstance(target, str) or not re.fullmatch(r"[^\W_]\w*(\.[^\W_]\w*)+", target):
        return "which is no import path"
    trusted = [name for name in _trusted() if target == name or target.startswith(f"{name}.")]
    if target in trusted:
        return None
    rules = {name: _defined_in(name.partition(".")[0]) for name in trusted} or _RULES
    ways = {prefix: rule for prefix, rule in rules.items() if target.startswith(f"{prefix}.")}
    if not ways:
        return "which is no part of noisyml or of the libraries on its list"
    found = _object_at(target)
    if found is None:
        return "which leads to no class or function of that module"
    if not any(rule(target, found) for rule in ways.values()):
        return "which is not of a kind that a run is made of"
    return None


def _object_at(target: str) -> Any:
    """The class or function that the module itself has under that name; None for anything else."""
    module, _, name = target.rpartition(".")
    try:
        found = vars(import_module(module)).get(name)
    except Exception:  # whatever a module does when it is imported
        return None
    return found if inspect.isclass(found) or inspect.isfunction(found) else None


_Rule = Callable[[str, Any], bool]


def _from(found: Any, *packages: str) -> bool:
    """True if a class or function is defined in one of the packages."""
    home = str(found.__module__)
    return any(home == name or home.startswith(f"{name}.") for name in packages)


def _defined_in(package: str) -> _Rule:
    return lambda target, found: _from(found, package)


def _of_noisyml(target: str, found: Any) -> bool:
    from lightning.pytorch.callbacks import Callback
    from lightning.pytorch.loggers import Logger
    from torch import nn
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler

    from noisyml.data.base import DatasetSource
    from noisyml.methods.self_training import PseudoLabelling
    from noisyml.methods.vectors.graph import PairGraph
    from noisyml.metrics.base import Evaluator
    from noisyml.models.backbones.base import Backbone
    from noisyml.models.teacher import Teacher
    from noisyml.models.text.encoder import TextEncoder
    from noisyml.noise.base import Injector
    from noisyml.stages.plan import Policy

    if not _from(found, "noisyml") or found.__name__.startswith("_"):
        return False
    if inspect.isclass(found):
        parts = (nn.Module, Injector, Evaluator, DatasetSource, Policy, Callback, LRScheduler)
        plain = ("noisyml.data.samplers", "noisyml.data.transforms")
        return issubclass(found, (*parts, PairGraph, PseudoLabelling)) or _from(found, *plain)
    try:
        made = typing.get_type_hints(found).get("return")
    except NameError:  # imported for type checkers alone
        return False
    makes = (Backbone, TextEncoder, Optimizer, LRScheduler, Teacher, Logger)
    return inspect.isclass(made) and issubclass(made, makes)


def _of_torch_nn(target: str, found: Any) -> bool:
    from torch import nn

    return inspect.isclass(found) and issubclass(found, nn.Module) and _from(found, "torch.nn")


def _of_torch_optim(target: str, found: Any) -> bool:
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler

    kinds = (Optimizer, LRScheduler)
    return inspect.isclass(found) and issubclass(found, kinds) and _from(found, "torch.optim")


def _of_torchvision(target: str, found: Any) -> bool:
    from torch import nn
    from torchvision import models

    if inspect.isclass(found):
        transform = _from(found, "torchvision.transforms")
        return transform or (issubclass(found, nn.Module) and _from(found, "torchvision"))
    return _from(found, "torchvision.models") and found.__name__ in models.list_models()


def _module_of(package: str) -> _Rule:
    def rule(target: str, found: Any) -> bool:
        from torch import nn

        return inspect.isclass(found) and issubclass(found, nn.Module) and _from(found, package)

    return rule


def _of_lightning(target: str, found: Any) -> bool:
    return target.partition(".")[2] in _LIGHTNING and _from(found, "lightning")


#: Rules by the package in which a name begins.
_RULES: dict[str, _Rule] = {
    "noisyml": _of_noisyml,
    "torch.nn": _of_torch_nn,
    "torch.optim": _of_torch_optim,
    "torchvision.models": _of_torchvision,
    "torchvision.ops": _of_torchvision,
    "torchvision.transforms": _of_torchvision,
    "timm.layers": _module_of("timm"),
    "timm.models": _module_of("timm"),
    "pytorch_metric_learning.distances": _module_of("pytorch_metric_learning"),
    "pytorch_metric_learning.losses": _module_of("pytorch_metric_learning"),
    "pytorch_metric_learning.miners": _module_of("pytorch_metric_learning"),
    "pytorch_metric_learning.reducers": _module_of("pytorch_metric_learning"),
    "pytorch_metric_learning.regularizers": _module_of("pytorch_metric_learning"),
    "lightning": _of_lightning,
}


# -- values ------------------------------------------------------------------------------------


def _leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """All values of nested mappings and lists by their dotted keys."""
    if isinstance(node, Mapping):
        items: Any = node.items()
    elif isinstance(node, list | tuple):
        items = enumerate(node)
    else:
        yield prefix, node
        return
    for key, value in items:
        dotted = f"{prefix}.{key}" if prefix else str(key)
        # A list or mapping in the place of a name is no name either.
        if str(key) == "_target_":
            yield dotted, value
        else:
            yield from _leaves(value, dotted)


def _reads(text: str) -> bool:
    """True for text with an interpolation that is more than a key or the option of a group."""
    inner = re.findall(r"\$\{([^{}]*)", text)
    plain = re.compile(r"\s*(choice\s*:\s*[\w/]+|[\w.\[\]]+)\s*")
    return any(not plain.fullmatch(part) for part in inner)


@functools.cache
def _own_interpolations() -> frozenset[str]:
    """The values with interpolations in the YAML files of noisyml."""
    from noisyml.command.config import conf_dir

    found = set()
    for file in conf_dir().rglob("*.yaml"):
        if b"${" in file.read_bytes():
            leaves = _leaves(read_yaml(file, "reinstall noisyml"))
            found |= {v for _, v in leaves if isinstance(v, str) and "${" in v}
    return frozenset(found)


def _is_place(key: str, value: str) -> bool:
    parts = Path(value).parts
    if value.startswith(("file:", "sqlite:")):
        return True
    return key.rpartition(".")[2] in _PLACES or value[:1] in ("/", "~") or ".." in parts
