"""From an exception of composition or instantiation to the sentence a user can act on."""

from __future__ import annotations

import functools
import pydoc
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from noisyml.checks import allows
from noisyml.command.config import (
    compose,
    conf_dir,
    flatten,
    group_names,
    keys_by_option,
    package_of,
)
from noisyml.command.words import Word, choices_in, words_in
from noisyml.errors import UserError, causes, did_you_mean
from noisyml.storage.files import DiskFull, is_disk_full

#: Options of Hydra's own command line; anything else that starts with a dash is a mistake.
HYDRA_FLAGS = (
    "--help",
    "-h",
    "--hydra-help",
    "--version",
    "--cfg",
    "-c",
    "--resolve",
    "--package",
    "-p",
    "--run",
    "-r",
    "--multirun",
    "-m",
    "--shell-completion",
    "-sc",
    "--config-path",
    "-cp",
    "--config-name",
    "-cn",
    "--config-dir",
    "-cd",
    "--experimental-rerun",
    "--info",
    "-i",
)


def check_flags(arguments: list[str]) -> None:
    """Refuse options that Hydra does not have, or has but cannot follow here.

    Raises:
        UserError: such an option, with the nearest one that exists.
    """
    served = ("install=", "uninstall=", "query=")
    completes = bool({"-sc", "--shell-completion"} & set(arguments))
    if completes and not any(argument.startswith(served) for argument in arguments):
        raise UserError(
            "-sc wants install=SHELL or uninstall=SHELL, e.g. noisyml -sc install=bash."
        )
    for argument in arguments:
        flag = Word.parse(argument).key
        if flag.startswith("-") and flag not in HYDRA_FLAGS:
            raise UserError(f"There is no option '{flag}'.{did_you_mean(flag, HYDRA_FLAGS)}")


def check_types(root: str, overrides: list[str]) -> None:
    """Refuse words where the default is a number or a switch.

    Raises:
        UserError: such an override.
    """
    words = words_in(overrides)
    for word in words:
        # Hydra would ask each name of such a list whether it is an interpolation.
        if _chooses_no_name(word) and isinstance(word.typed_value(), list):
            raise _no_choice(word.text)
    values = [w for w in words if not (w.deletes or w.chooses or w.is_below("hydra"))]
    if not any(word.value for word in values):
        return
    leaves = _leaves(root, tuple(choices_in(words)))
    defaults = {key: value for key, value in leaves if isinstance(value, bool | int | float)}
    for word in values:
        if word.key in defaults:
            for text in word.values():
                if not (text.startswith("[") and _takes_list(word.key, text, dict(leaves))):
                    _check_type(word.key, text, defaults[word.key])


@functools.lru_cache(maxsize=64)
def _leaves(root: str, choices: tuple[str, ...]) -> list[tuple[str, Any]]:
    """The settings of a root YAML with these options of its groups, and their defaults."""
    from hydra.errors import HydraException

    try:
        whole = compose(root, list(choices))
    except HydraException:  # a choice is what is wrong, and is told elsewhere
        whole = compose(root, [])
    return list(flatten(whole))


def _takes_list(key: str, text: str, leaves: Mapping[str, Any]) -> bool:
    """True where the signature of the class or function that a setting goes to takes the list."""
    node, _, name = key.rpartition(".")
    try:
        target = pydoc.locate(str(leaves.get(f"{node}._target_", "")))
    except pydoc.ErrorDuringImport:
        return False
    return callable(target) and allows(target, name, Word.parse(f"{key}={text}").typed_value())


def _check_type(key: str, text: str, default: bool | int | float) -> None:
    if text.startswith("["):
        one = text.strip("[] ")
        raise UserError(
            f"{key}={text} is a list where one value belongs; several are run one after the other "
            f"by: noisyml ... -m {key}={one}."
        )
    if not text or re.search(r"[${(]", text):
        return
    value = Word.parse(f"{key}={text}").typed_value()
    switch = isinstance(default, bool)
    whole = isinstance(default, int) and not switch
    if whole and isinstance(value, float) and not value.is_integer():
        raise UserError(f"{key}={text} should be a whole number, as {default} is.")
    if isinstance(value, str) or (isinstance(value, bool) and not switch):
        kind = "true or false" if switch else "a number"
        shown = str(default).lower() if switch else default
        raise UserError(f"{key}={text} should be {kind}; the default is {shown}.")


def _known_keys(root: str, overrides: list[str]) -> list[str]:
    """Keys of the composed configuration, then those that other options would bring."""
    composed = [key for key, _ in _leaves(root, tuple(choices_in(words_in(overrides))))]
    others = [
        f"{package_of(group, option)}.{key}".removeprefix("_global_.")
        for group in group_names()
        for option, keys in keys_by_option(group).items()
        for key in keys
    ]
    known = [key for key in [*composed, *group_names(), *others] if "._" not in key]
    return list(dict.fromkeys(known))


def _unknown_key(key: str, root: str, overrides: list[str]) -> str:
    """The sentence for a setting that does not exist."""
    group, _, leaf = key.partition(".")
    if key in group_names():
        having = [
            file.stem
            for file in sorted((conf_dir() / "method").glob("*.yaml"))
            if re.search(
                rf"^\s*- (override )?/{re.escape(key)}[@:]", _text(file), flags=re.MULTILINE
            )
        ]
        where = f"; these have: {', '.join(f'method={name}' for name in having)}" if having else ""
        return f"Nothing in this configuration takes {key}={where}: leave it out."
    words = words_in(choices_in(words_in(overrides)))
    chosen = {word.key: word.value for word in words if word.package is None}
    if leaf and group in group_names():
        having = [option for option, keys in keys_by_option(group).items() if leaf in keys]
        if having and chosen.get(group) not in having:
            now = f"{group}={chosen[group]}" if group in chosen else f"The {group} in use"
            return (
                f"{now} has no setting '{leaf}'; these have: "
                f"{', '.join(f'{group}={option}' for option in having)}."
            )
    hint = suggest_key(key, _known_keys(root, overrides))
    return f"There is no setting '{key}'.{hint} `noisyml {root} --cfg job` shows all settings."


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8")


def _chooses_no_name(word: Word) -> bool:
    """True for the choice of a group that is no name: ``head=null``, ``head=3``, ``loss=[.9]``."""
    if not word.chooses or word.deletes or word.value is None:
        return False
    try:
        value = word.typed_value()
    except UserError:
        return False
    names = value if isinstance(value, list) else [value]
    return not all(isinstance(name, str) for name in names)


def _no_choice(word: str) -> UserError:
    return UserError(
        f"{word} is no choice: leave it out of the command (`noisyml list` says what there is)."
    )


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


def as_user_error(error: Exception, root: str, overrides: list[str]) -> Exception:
    """The sentence for an error of composition or instantiation; other errors come back as are.

    Args:
        error: what Hydra raised, with its causes.
        root: name of the root YAML.
        overrides: what was typed.
    """
    from hydra.errors import (
        ConfigCompositionException,
        HydraException,
        MissingConfigException,
        OverrideParseException,
    )
    from omegaconf.errors import (
        InterpolationResolutionError,
        MissingMandatoryValue,
        OmegaConfBaseException,
        ValidationError,
    )

    chain = list(causes(error))
    for link in chain:
        if isinstance(link, UserError):
            return link
    if is_disk_full(error):
        files = [link.filename for link in chain if isinstance(link, OSError) and link.filename]
        return DiskFull(files[0] if files else "the results")
    for link in chain:
        if isinstance(link, MissingConfigException) and link.missing_cfg_file:
            missing = link.missing_cfg_file
            group, _, name = (missing if isinstance(missing, str) else "?").rpartition("/")
            known = [str(option) for option in link.options or []]
            where = f"{group} '{name}'" if group else f"configuration '{name}'"
            listed = f" Choose from: {', '.join(known)}." if known else ""
            return UserError(f"There is no {where}.{did_you_mean(name, known)}{listed}")
        if isinstance(link, ValueError) and "override must be a string" in str(link):
            wrong = [word.text for word in words_in(overrides) if _chooses_no_name(word)]
            return _no_choice(wrong[0] if wrong else "GROUP=null")
        if isinstance(link, OverrideParseException):
            reason = str(link).splitlines()[0]
            return UserError(f"The override '{link.override}' cannot be read: {reason}.")
        if isinstance(link, MissingMandatoryValue):
            key = _full_key(link)
            return UserError(f"A value for '{key}' is needed: add {key}=... to the command.")
        if isinstance(link, InterpolationResolutionError):
            return UserError(f"The configuration refers to something missing: {_first_line(link)}.")
        if isinstance(link, ValidationError):
            return UserError(
                f"A value does not fit the setting {_full_key(link)}: {_first_line(link)}."
            )
    for link in chain:
        match = re.match(r"Could not override '([^']+)'", str(link))
        if match is None and isinstance(link, HydraException):
            match = re.match(r"Could not (?:append|delete)[^']*'([^']+)'", str(link))
        if match:
            key = match.group(1).partition("@")[0]
            return UserError(_unknown_key(key, root, overrides))
    everything = "\n".join(str(link) for link in chain)
    if "Expected more than 1 value per channel when training" in everything:
        return UserError(
            "Batch norm has nothing to compare the only image of a batch (or of a process's share "
            "of it) with: set sampler.drop_last=true or another sampler.batch_size."
        )
    for link in chain:
        if isinstance(link, OSError) and link.filename:
            return UserError(f"{link.strerror}: {link.filename}.")
        if type(link).__name__ == "MisconfigurationException":
            return UserError(f"The trainer cannot be set up so: {_first_line(link)}.")
        if isinstance(link, ConfigCompositionException):
            return UserError(f"The configuration does not compose: {_first_line(link)}.")
    for link in chain:
        if isinstance(link, OmegaConfBaseException | HydraException):
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
