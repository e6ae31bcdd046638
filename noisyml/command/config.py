"""The configuration tree: where its files lie, what they offer, how they compose."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from noisyml.errors import UserError

if TYPE_CHECKING:
    from omegaconf import DictConfig


def conf_dir() -> Path:
    """The folder of YAML files: inside an installed package, beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
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
        found.append(Option(path.stem, comments[0] if comments else "", target and target.group(1)))
    return found


def chosen_by(group: str, option: str, folders: Sequence[Path] = ()) -> frozenset[str]:
    """The groups in which an option, or one that it builds on, chooses in its turn.

    Args:
        group: of the option.
        option: name of its YAML file.
        folders: further configuration trees, looked through first.
    """
    found: set[str] = set()
    for entry in _content(group, option, folders).get("defaults") or []:
        if isinstance(entry, str):
            if entry != "_self_" and not entry.startswith("/"):
                found |= chosen_by(group, entry, folders)
            continue
        for key, chosen in entry.items():
            target = str(key).removeprefix("override ").partition("@")[0].strip()
            if target.startswith("/"):
                found.add(target[1:])
                for name in chosen if isinstance(chosen, list) else [chosen]:
                    found |= chosen_by(target[1:], str(name), folders)
    return frozenset(found)


def sweep_values_of(group: str, option: str, folders: Sequence[Path] = ()) -> dict[str, Any]:
    """The sweep (``hydra.sweeper.params``) that an option's own file states, its bases' left out.

    Args:
        group, option, folders: as for `chosen_by`.
    """
    node: Any = _content(group, option, folders)
    for key in ("hydra", "sweeper", "params"):
        node = node.get(key) or {} if isinstance(node, dict) else {}
    return dict(node)


def _content(group: str, option: str, folders: Sequence[Path]) -> dict[str, Any]:
    """The content of an option's YAML file, as it stands there; nothing if there is none."""
    import yaml

    for folder in (*folders, conf_dir()):
        file = folder / group / f"{option}.yaml"
        if file.is_file():
            content = yaml.safe_load(file.read_text(encoding="utf-8"))
            return content if isinstance(content, dict) else {}
    return {}


def package_of(group: str, option: str) -> str:
    """The dotted key under which an option's settings stand; ``_global_`` for the whole tree."""
    text = (conf_dir() / group / f"{option}.yaml").read_text(encoding="utf-8")
    header = re.search(r"^#\s*@package\s+(\S+)", text, flags=re.MULTILINE)
    return header[1] if header else group.replace("/", ".")


@functools.cache
def top_level_keys(root: str) -> tuple[str, ...]:
    """The keys that a root YAML itself brings, which every configuration has.

    Those of its groups are left out: a method may choose none of a group.
    """
    import yaml

    content = yaml.safe_load((conf_dir() / f"{root}.yaml").read_text(encoding="utf-8"))
    return tuple(key for key in content if key not in ("defaults", "hydra"))


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
    """Compose ``conf/<root>.yaml`` with overrides, outside a Hydra run."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    register_resolvers()
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = hydra_compose(root, overrides)
    GlobalHydra.instance().clear()
    return config


@functools.cache
def group_names() -> tuple[str, ...]:
    """The folders of the tree, e.g. ``noise`` or ``hydra/launcher``."""
    folders = [path for path in conf_dir().rglob("*") if path.is_dir()]
    return tuple(str(folder.relative_to(conf_dir())) for folder in folders)


def keys_by_option(group: str) -> dict[str, list[str]]:
    """The settings of every option of a group."""
    found = {}
    for path in sorted((conf_dir() / group).glob("*.yaml")):
        keys = re.findall(r"^(\w+):", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
        found[path.stem] = [key for key in keys if key not in ("defaults", "_target_", "_partial_")]
    return found


def flatten(config: DictConfig | dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """All leaves of a configuration as (dotted key, raw value); interpolations stay unresolved."""
    from omegaconf import DictConfig, OmegaConf

    plain = (
        OmegaConf.to_container(config, resolve=False) if isinstance(config, DictConfig) else config
    )
    if not isinstance(plain, dict):
        return
    for key, value in plain.items():
        dotted = prefix + str(key)
        if isinstance(value, dict):
            yield dotted, None
            yield from flatten(value, f"{dotted}.")
        else:
            yield dotted, value
