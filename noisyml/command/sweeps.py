"""Sweeps: what they vary, where their folder lies, and which launcher runs their jobs."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from noisyml.command.config import conf_dir
from noisyml.command.words import Word, overrides_in, words_in
from noisyml.errors import UserError

#: Runs the jobs of a sweep one after the other in this process.
BASIC_LAUNCHER = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"


def sweep_settings(root: str, arguments: list[str]) -> tuple[Path, str, str]:
    """The folder of a sweep, the same for all its jobs wherever they run, and its launcher.

    Where the configured folder is named after a choice that the sweep varies, it is named after
    all of them: ``prism-digits+glyphs``.

    Args:
        root: name of the root YAML.
        arguments: what was typed after the verb.

    Returns:
        The absolute path, the import path of the launcher, and a sentence about what is varied
        though it was not typed, if anything is.
    """
    from hydra import compose, initialize_config_dir
    from hydra._internal.utils import get_args_parser
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.core.utils import setup_globals
    from omegaconf import open_dict

    options = get_args_parser().parse_known_args(arguments)[0]
    first: list[str] = []
    if options.config_dir:
        first.append(f"hydra.searchpath=[{quoted(f'file://{Path(options.config_dir).resolve()}')}]")
    varied: dict[str, list[str]] = {}
    setup_globals()
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        for word in words_in(options.overrides):
            if not word.swept:
                first.append(word.text)
            elif values := word.values():
                varied[word.key] = values
                first.append(f"{word.target}={values[0]}")
        config = compose(options.config_name or root, first, return_hydra_config=True)
    GlobalHydra.instance().clear()
    with open_dict(config):
        for group in varied.keys() & config.hydra.runtime.choices.keys():
            values = varied[group]
            several = "+".join(values) if len(values) <= 3 else f"{len(values)}_{group}s"
            config.hydra.runtime.choices[group] = several
    HydraConfig.instance().set_config(config)
    launcher = str(config.hydra.launcher["_target_"])
    params = config.hydra.sweeper.get("params") or {}
    return Path(config.hydra.sweep.dir).absolute(), launcher, _unasked(params, arguments)


def _unasked(params: Mapping[str, Any], arguments: list[str]) -> str:
    """A sentence on values that the configuration brings and nobody typed, or nothing."""
    typed = {word.key for word in words_in(overrides_in(arguments))}
    varied = swept_keys([], {key: value for key, value in params.items() if key not in typed})
    if not varied or not any(key != "experiment" and not key.startswith("hydra") for key in typed):
        return ""  # nothing was typed that might be overruled
    listed = ", ".join(f"{key} ({n} values)" for key, n in varied.items())
    first = next(iter(varied))
    return (
        f"The configuration brings values for {listed}, which are all run; type {first}=ONE to "
        "choose."
    )


def quoted(text: str) -> str:
    """`text` as a quoted value of Hydra's override grammar."""
    # Backslashes count only before a quote, and before the one that ends the value.
    return "'" + re.sub(r"(\\*)('|$)", lambda m: 2 * m[1] + m[2].replace("'", r"\'"), text) + "'"


def check_launcher(words: Sequence[Word]) -> None:
    """Refuse a launcher whose package is not installed.

    Raises:
        UserError: such a launcher.
    """
    for word in words:
        kind = (word.value or "").partition("_")[0]
        package = f"hydra_{kind}_launcher"
        if (
            word.key == "hydra/launcher"
            and kind in ("joblib", "ray", "submitit")
            and not importlib.util.find_spec(f"hydra_plugins.{package}")
        ):
            raise UserError(
                f"hydra/launcher={word.value} needs the package {package.replace('_', '-')}: "
                f"pip install 'noisyml[launchers]'."
            )


def swept_keys(arguments: list[str], params: Mapping[str, Any]) -> dict[str, int]:
    """The settings a sweep varies, with their numbers of values.

    Args:
        arguments: what was typed after the verb.
        params: ``hydra.sweeper.params``; a key that is also typed counts as typed.
    """
    configured = [f"{key}={value}" for key, value in params.items()]
    found: dict[str, int] = {}
    for word in words_in([*configured, *overrides_in(arguments)]):
        found.pop(word.key, None)
        if word.swept:
            found[word.key] = max(1, len(word.values()))
    return found
