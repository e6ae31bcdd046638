"""Composing configurations: where they lie, how a verb runs under Hydra, what an error means."""

from __future__ import annotations

import math
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from noisyml.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from omegaconf import DictConfig

#: Options of Hydra's own command line; anything else that starts with a dash is a mistake.
HYDRA_FLAGS = (
    "--help -h --hydra-help --version --cfg -c --resolve --package -p --run -r --multirun -m "
    "--shell-completion -sc --config-path -cp --config-name -cn --config-dir -cd "
    "--experimental-rerun --info -i"
).split()
#: What constructors raise when a value does not suit them.
EXPECTED = (TypeError, ValueError, OSError)


def conf_dir() -> Path:
    """The folder of YAML files: inside an installed package, beside it in a checkout."""
    package = Path(__file__).resolve().parent
    for candidate in (package / "conf", package.parent / "conf"):
        if (candidate / "train.yaml").is_file():
            return candidate
    raise UserError(f"The configuration files of noisyml are missing from {package}; reinstall it.")


@dataclass(frozen=True)
class Option:
    """One YAML file of a config group."""

    name: str
    description: str
    target: str | None


def options(group: str) -> list[Option]:
    """The choices of a config group with their one-line descriptions; no import of the targets."""
    found = []
    for path in sorted((conf_dir() / group).glob("*.yaml")):
        text = path.read_text(encoding="utf-8")
        comments = [
            line[1:].strip()
            for line in text.splitlines()
            if line.startswith("#") and "@package" not in line
        ]
        target = re.search(r"^\s*_target_:\s*(\S+)", text, flags=re.MULTILINE)
        found.append(
            Option(path.stem, comments[0] if comments else "", target and target.group(1))
        )
    return found


def register_resolvers() -> None:
    """The interpolation ``${choice:GROUP}`` of the YAML files: the option chosen in a group.

    Unlike ``${hydra:runtime.choices.GROUP}`` it also resolves where Hydra names a sweep's folder,
    before its own configuration is in place.
    """
    from omegaconf import OmegaConf

    OmegaConf.register_new_resolver("choice", _choice, replace=True)


def _choice(group: str, *, _root_: DictConfig) -> str:
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf

    choices = OmegaConf.select(_root_, "hydra.runtime.choices")
    if choices is None:
        choices = HydraConfig.get().runtime.choices
    return str(choices[group])


def compose(root: str, overrides: list[str]) -> DictConfig:
    """Compose ``conf/<root>.yaml`` with overrides, outside a Hydra run.

    Raises:
        UserError: an override is misspelt or impossible.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    register_resolvers()
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            return hydra_compose(root, overrides)
    except Exception as error:
        raise _as_user_error(error, root, overrides) from error


def run_hydra(task: Callable[[DictConfig], Any], root: str, verb: str, arguments: list[str]) -> int:
    """Run `task` under Hydra (sweeps, ``--cfg``, ``--help``, launchers) with our error messages.

    Args:
        task: receives the composed configuration of each job.
        root: name of the root YAML, e.g. ``train``.
        verb: the word typed after ``noisyml``; shown in help texts.
        arguments: what was typed after the verb.

    Raises:
        UserError: any mistake a user can make, in one sentence.
    """
    import hydra

    _check_flags(arguments)
    try:
        check_types(root, _overrides_in(arguments))
    except UserError:
        raise
    except Exception as error:
        raise _as_user_error(error, root, _overrides_in(arguments)) from error
    saved_argv, saved_env = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    sys.argv = [f"{sys.argv[0]}", *arguments]
    # Hydra then hands us the exception itself instead of printing its own account of it.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    failed: list[str] = []
    jobs = 0

    def guarded(config: DictConfig) -> Any:
        nonlocal jobs
        jobs += 1
        try:
            return task(config)
        except UserError as error:
            if not _runs_here():
                raise
            # The other jobs of a sweep go on; what failed is said again at the end.
            failed.append(str(error))
            print(f"noisyml: {error}", file=sys.stderr)
            return None

    try:
        hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=root)(guarded)()
    except Exception as error:
        raise _as_user_error(error, root, _overrides_in(arguments)) from error
    finally:
        sys.argv = saved_argv
        if saved_env is None:
            os.environ.pop("HYDRA_FULL_ERROR", None)
        else:
            os.environ["HYDRA_FULL_ERROR"] = saved_env
    if jobs > 1 and failed:
        print(f"noisyml: {len(failed)} of {jobs} jobs failed, see above.", file=sys.stderr)
    return 2 if failed else 0


def count_jobs(arguments: list[str], params: Mapping[str, Any]) -> int:
    """How many jobs a sweep has: the product of the choices typed and those of the configuration.

    Args:
        arguments: what was typed after the verb.
        params: ``hydra.sweeper.params``; a key that is also typed counts as typed.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser

    configured = [f"{key}={value}" for key, value in params.items()]
    parsed = OverridesParser.create().parse_overrides([*configured, *_overrides_in(arguments)])
    choices = {
        override.key_or_group: len(list(override.sweep_string_iterator()))
        if override.is_sweep_override()
        else 1
        for override in parsed
    }
    return math.prod(choices.values())


def _runs_here() -> bool:
    """True unless a launcher has moved the job into another process."""
    from hydra.core.hydra_config import HydraConfig

    return str(HydraConfig.get().launcher.get("_target_", "")).endswith("BasicLauncher")


def complete_shell(arguments: list[str], verbs: list[str]) -> int:
    """Serve ``noisyml -sc install=bash`` and the queries of the script it prints."""
    line = os.environ.get("COMP_LINE", "")
    if not any(argument.startswith("query=") for argument in arguments):
        return run_hydra(_no_task, "train", "train", arguments)
    words = line.split()
    if len(words) < 2 or (len(words) == 2 and not line.endswith(" ")):
        typed = words[1] if len(words) == 2 else ""
        print(" ".join(verb for verb in verbs if verb.startswith(typed)))
        return 0
    if words[1] not in verbs or not (conf_dir() / f"{words[1]}.yaml").is_file():
        return 0
    os.environ["COMP_LINE"] = f"{words[0]} " + line.split(words[1], 1)[1].lstrip()
    return run_hydra(_no_task, words[1], words[1], arguments)


def _no_task(config: DictConfig) -> None:
    """Nothing to run: Hydra only answers a completion query."""


def flatten(config: DictConfig | dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """All leaves of a configuration as (dotted key, raw value); interpolations stay unresolved."""
    from omegaconf import DictConfig, OmegaConf

    plain = OmegaConf.to_container(config, resolve=False) if isinstance(config, DictConfig) else config
    if not isinstance(plain, dict):
        return
    for key, value in plain.items():
        dotted = f"{prefix}{key}"
        if isinstance(value, dict):
            yield dotted, None
            yield from flatten(value, f"{dotted}.")
        else:
            yield dotted, value


def _overrides_in(arguments: list[str]) -> list[str]:
    return [argument for argument in arguments if not argument.startswith("-")]


def _check_flags(arguments: list[str]) -> None:
    for argument in arguments:
        flag = argument.partition("=")[0]
        if flag.startswith("-") and flag not in HYDRA_FLAGS:
            raise UserError(f"There is no option '{flag}'.{did_you_mean(flag, HYDRA_FLAGS)}")


def _chain(error: BaseException) -> Iterator[BaseException]:
    current: BaseException | None = error
    while current is not None:
        yield current
        current = current.__cause__ or current.__context__


def _group_names() -> list[str]:
    folders = [path for path in conf_dir().rglob("*") if path.is_dir()]
    return [str(folder.relative_to(conf_dir())) for folder in folders]


def _choices_in(overrides: list[str]) -> list[str]:
    """Those overrides that choose an existing option of a group (of a sweep, the first one)."""
    groups = set(_group_names())
    chosen = []
    for override in overrides:
        key, _, value = override.partition("=")
        first = value.split(",")[0]
        if key in groups and (conf_dir() / key / f"{first}.yaml").is_file():
            chosen.append(f"{key}={first}")
    return chosen


def _defaults(root: str, overrides: list[str]) -> DictConfig:
    """The composed configuration with the chosen options, before any value is changed."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    register_resolvers()
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = hydra_compose(root, _choices_in(overrides))
    GlobalHydra.instance().clear()
    return config


def _keys_by_option(group: str) -> dict[str, list[str]]:
    """The settings of every option of a group."""
    found = {}
    for path in sorted((conf_dir() / group).glob("*.yaml")):
        keys = re.findall(r"^(\w+):", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
        found[path.stem] = [key for key in keys if key not in ("defaults", "_target_", "_partial_")]
    return found


def _known_keys(root: str, overrides: list[str]) -> list[str]:
    """Keys of the composed configuration, then those that other options would bring."""
    composed = [key for key, _ in flatten(_defaults(root, overrides))]
    others = [
        f"{group}.{key}"
        for group in _group_names()
        for keys in _keys_by_option(group).values()
        for key in keys
    ]
    known = [key for key in [*composed, *_group_names(), *others] if "._" not in key]
    return list(dict.fromkeys(known))


def _unknown_key(key: str, root: str, overrides: list[str]) -> str:
    """The sentence for a setting that does not exist."""
    group, _, leaf = key.partition(".")
    chosen = dict(choice.split("=", 1) for choice in _choices_in(overrides))
    if leaf and group in _group_names():
        having = [option for option, keys in _keys_by_option(group).items() if leaf in keys]
        if having:
            now = f"{group}={chosen[group]}" if group in chosen else f"The {group} in use"
            return (
                f"{now} has no setting '{leaf}'; these have: "
                f"{', '.join(f'{group}={option}' for option in having)}."
            )
    hint = suggest_key(key, _known_keys(root, overrides))
    return f"There is no setting '{key}'.{hint} `noisyml {root} --cfg job` shows all settings."


def check_types(root: str, overrides: list[str]) -> None:
    """Refuse words where the default is a number or a switch.

    Raises:
        UserError: such an override.
    """
    from omegaconf import OmegaConf

    changed = [o.lstrip("+") for o in overrides if "=" in o and not o.startswith(("~", "hydra"))]
    values = [o for o in changed if o.partition("=")[0] not in _group_names()]
    if not values:
        return
    defaults = {
        key: value
        for key, value in flatten(_defaults(root, overrides))
        if isinstance(value, bool | int | float)
    }
    for override in values:
        key, _, text = override.partition("=")
        if key in defaults and text and not re.search(r"[${(,\[]", text):
            value = OmegaConf.create(f"x: {text}").x if text.strip() else ""
            if isinstance(value, str):
                kind = "true or false" if isinstance(defaults[key], bool) else "a number"
                raise UserError(f"{key}={text} should be {kind}; the default is {defaults[key]}.")


def suggest_key(key: str, known: list[str]) -> str:
    """The best guess at what `key` was meant to be, as a sentence or an empty string."""
    guess = did_you_mean(key, known)
    if guess:
        return guess
    leaf = key.rpartition(".")[2]
    by_leaf: dict[str, str] = {}
    for candidate in known:
        by_leaf.setdefault(candidate.rpartition(".")[2], candidate)
    close = did_you_mean(leaf, list(by_leaf))
    return f" Did you mean '{by_leaf[close.split(chr(39))[1]]}'?" if close else ""


def _as_user_error(error: Exception, root: str, overrides: list[str]) -> Exception:
    """The sentence for an error of composition or instantiation; other errors come back as are."""
    from hydra.errors import HydraException, MissingConfigException, OverrideParseException
    from omegaconf.errors import (
        InterpolationResolutionError,
        MissingMandatoryValue,
        OmegaConfBaseException,
        ValidationError,
    )

    chain = list(_chain(error))
    for link in chain:
        if isinstance(link, UserError):
            return link
    for link in chain:
        if isinstance(link, MissingConfigException) and link.missing_cfg_file:
            group, _, name = str(link.missing_cfg_file).rpartition("/")
            known = [str(option) for option in link.options or []]
            where = f"{group} '{name}'" if group else f"configuration '{name}'"
            listed = f" Choose from: {', '.join(known)}." if known else ""
            return UserError(f"There is no {where}.{did_you_mean(name, known)}{listed}")
        if isinstance(link, OverrideParseException):
            reason = str(link).splitlines()[0]
            return UserError(f"The override '{link.override}' cannot be read: {reason}.")
        if isinstance(link, MissingMandatoryValue):
            key = _full_key(link)
            return UserError(f"A value for '{key}' is needed: add {key}=... to the command.")
        if isinstance(link, InterpolationResolutionError):
            return UserError(f"The configuration refers to something missing: {_first_line(link)}.")
        if isinstance(link, ValidationError):
            return UserError(f"A value does not fit the setting {_full_key(link)}: {_first_line(link)}.")
    for link in chain:
        match = re.match(r"Could not override '([^']+)'", str(link))
        if match is None and isinstance(link, HydraException):
            match = re.match(r"Could not (?:append|delete)[^']*'([^']+)'", str(link))
        if match:
            key = match.group(1).partition("@")[0]
            return UserError(_unknown_key(key, root, overrides))
    for link in chain:
        match = re.search(r"got an unexpected keyword argument '(\w+)'", str(link))
        if match and any("instantiat" in str(other) or "Error in call" in str(other) for other in chain):
            target = re.search(r"target '([\w.]+)'", " ".join(str(other) for other in chain))
            what = target.group(1).rpartition(".")[2] if target else "the object"
            where = re.search(r"full_key: (\S+)", " ".join(str(other) for other in chain))
            key = f"{where.group(1)}.{match.group(1)}" if where else match.group(1)
            return UserError(f"{what} has no setting '{match.group(1)}': remove {key} from the command.")
    for link in chain:
        match = re.match(r"Error in call to target '([\w.]+)'", str(link))
        if match and isinstance(link, HydraException) and isinstance(link.__cause__, EXPECTED):
            what = match.group(1).rpartition(".")[2]
            return UserError(f"{what} cannot be made of its settings: {_first_line(link.__cause__)}.")
    for link in chain:
        if isinstance(link, OmegaConfBaseException):
            return UserError(f"The configuration cannot be read: {_first_line(link)}.")
    return error


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__


def _full_key(error: BaseException) -> str:
    match = re.search(r"full_key: (\S+)", str(error))
    if match:
        return match.group(1)
    match = re.search(r"Missing mandatory value: (\S+)", str(error))
    return match.group(1) if match else "?"
