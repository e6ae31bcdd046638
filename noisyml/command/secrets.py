"""Secrets in what was typed: masked wherever a configuration is written.

A value that comes from an environment variable is written by the variable's name where it, or the
key, speaks of a secret; a secret that was typed itself is written as `MASK`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from noisyml.command.words import Word, words_in

if TYPE_CHECKING:
    from omegaconf import DictConfig

#: Stands for a secret that was typed.
MASK = "***"
#: Names of settings and of environment variables that hold secrets.
_NAMES = re.compile(
    r"(^|[_\-])(api_?key|access_?key|passwd|passphrase|pwd|credentials?|auth|bearer)s?([_\-]|$)|"
    r"(^|[_\-])(token|pass|private)$|[_\-]key$|apikey|password|secret",
    re.IGNORECASE,
)
#: A value from the environment while a configuration is resolved.
_FROM_ENVIRONMENT = re.compile("\x00env:(.*?)\x01(.*?)\x00", re.DOTALL)


def is_secret(name: str) -> bool:
    """True if the last part of a key, or a variable's name, speaks of a secret.

    Example:
        >>> [is_secret(n) for n in ("logger.wandb.api_key", "HF_TOKEN", "key", "tokens_per_word")]
        [True, True, False, False]
    """
    return _NAMES.search(name.rpartition(".")[2]) is not None


def resolved(config: DictConfig) -> dict[str, Any]:
    """A configuration as plain containers, interpolations replaced by their values.

    What comes from an environment variable that may hold a secret stays an interpolation, read anew
    whenever it is used. Hydra's own part is left out.
    """
    from omegaconf import OmegaConf
    from omegaconf.resolvers import oc

    def from_environment(key: str, *default: Any) -> Any:
        given = oc.env(key, *default)
        hidden = key in os.environ and is_secret(key) | _may_be_secret(key, given)
        return f"\x00env:{key}\x01{given}\x00" if hidden else given

    raw: Any = OmegaConf.to_container(config, resolve=False)
    values: dict[str, Any] = {}
    OmegaConf.register_new_resolver("oc.env", from_environment, replace=True)
    try:
        for key in config:
            if key != "hydra":
                value = config[key]
                if OmegaConf.is_config(value):
                    value = OmegaConf.to_container(value, resolve=True)
                values[str(key)] = value
    finally:
        OmegaConf.register_new_resolver("oc.env", oc.env, replace=True)
    return {key: _by_name(value, raw.get(key), key) for key, value in values.items()}


def _may_be_secret(name: str, value: Any) -> bool:
    """True for a variable that users name, unless it holds a number or an existing path."""
    if name.startswith(("NOISYML_", "SLURM_")) or name in ("HOME", "USER", "TMPDIR"):
        return False
    text = str(value)
    return re.fullmatch(r"[-+.\deE]*", text) is None and not os.path.exists(text)


def _by_name(value: Any, raw: Any, key: str) -> Any:
    """`value` with what came from a secret variable written by the variable's name."""
    if isinstance(value, dict):
        below = raw if isinstance(raw, dict) else {}
        return {name: _by_name(v, below.get(name), f"{key}.{name}") for name, v in value.items()}
    if isinstance(value, list):
        given = raw if isinstance(raw, list) and len(raw) == len(value) else [None] * len(value)
        return [_by_name(v, r, key) for v, r in zip(value, given, strict=True)]
    if not isinstance(value, str):
        return value
    if is_secret(key) and isinstance(raw, str) and "${oc.env:" in raw:
        return raw
    return _FROM_ENVIRONMENT.sub(lambda m: f"${{oc.env:{m[1]}}}", value)


def masked(value: Any, key: str = "") -> Any:
    """Plain containers with `MASK` for every secret that stands there itself.

    Example:
        >>> masked({"logger": {"api_key": "abc", "project": "p"}})
        {'logger': {'api_key': '***', 'project': 'p'}}
    """
    if isinstance(value, Mapping):
        return {name: masked(inner, f"{key}.{name}") for name, inner in value.items()}
    if isinstance(value, list):
        return [masked(inner, key) for inner in value]
    hidden = isinstance(value, str) and value and "${" not in value and is_secret(key)
    return MASK if hidden else value


def as_yaml(config: DictConfig) -> str:
    """The text of a configuration for a file: the one way in which configurations are written."""
    from omegaconf import OmegaConf

    plain = OmegaConf.to_container(config, resolve=False)
    return OmegaConf.to_yaml(OmegaConf.create(masked(plain)))


def words_as_yaml(typed: Sequence[str]) -> str:
    """The text of typed words for a file."""
    from omegaconf import OmegaConf

    # As plain text: an interpolation in a word is not resolved here.
    return OmegaConf.to_yaml(OmegaConf.create(masked_words(typed)))


def masked_words(typed: Sequence[str]) -> list[str]:
    """Typed words with `MASK` for the secrets among their values.

    Example:
        >>> masked_words(["seed=1", "+logger.wandb.api_key=abc", "x={token:abc,n:1}"])
        ['seed=1', '+logger.wandb.api_key=***', 'x={token:***,n:1}']
    """
    return [_masked_word(word) for word in words_in(typed)]


def _masked_word(word: Word) -> str:
    if not word.is_given or word.value is None:
        return word.text
    if is_secret(word.key) and "${" not in word.value:
        return f"{word.target}={MASK}"
    pairs = re.sub(
        r"([\w.\-]+)(\s*:\s*)([^,{}\[\]]+)",
        lambda m: m[1] + m[2] + MASK if is_secret(m[1]) and "$" not in m[3] else m[0],
        word.value,
    )
    return f"{word.target}={pairs}" if "{" in word.value else word.text


def still_masked(config: DictConfig) -> list[str]:
    """The keys of secrets that a saved configuration does not hold."""
    from noisyml.command.config import flatten

    return [key for key, value in flatten(config) if value == MASK]
