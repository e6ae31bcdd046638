"""Tables of settings, made of the YAML files in ``conf/`` and of the signatures behind them."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from hydra.utils import get_object

from noisyml.checks import allowed_values
from noisyml.command.config import conf_dir
from noisyml.reports.formats import markdown_row
from scripts.docs_site.docstrings import arguments_of

#: Keys of a node that are no settings.
_DIRECTIVES = ("_target_", "_partial_", "_convert_", "_recursive_")


@dataclass(frozen=True)
class Setting:
    """A key of a YAML file.

    Attributes:
        key: as typed on the command line.
        default: as it stands in the file.
        meaning: its comment.
        allowed: values that the constructor takes, in words; empty where it checks none.
    """

    key: str
    default: str
    meaning: str
    allowed: str


@dataclass(frozen=True)
class Choice:
    """A YAML file of a config group, with what it takes over from others of the group.

    Attributes:
        name: typed after ``GROUP=``.
        description: its first comment.
        target: import path of the class or function behind it, None where there is none.
        settings: its keys.
        brings: options of other groups that it chooses, as typed.
    """

    name: str
    description: str
    target: str | None
    settings: tuple[Setting, ...]
    brings: tuple[str, ...]


@functools.cache
def choice(group: str, name: str) -> Choice:
    """The option of a group."""
    text = (conf_dir() / group / f"{name}.yaml").read_text(encoding="utf-8")
    comments = [line[1:].strip() for line in text.splitlines() if line.startswith("#")]
    package = next((c.split()[1] for c in comments if c.startswith("@package")), None)
    description = next((c for c in comments if not c.startswith("@package")), "")
    prefix = "" if package == "_global_" else f"{package or group.replace('/', '.')}."
    own = settings_of(text, prefix)
    content = yaml.safe_load(text) or {}
    target = (content.get("method") or {} if group == "method" else content).get("_target_")
    known: dict[str, Setting] = {}
    brings: dict[str, str] = {}
    for entry in content.get("defaults", []):
        if isinstance(entry, str):
            if entry != "_self_":
                base = choice(group, entry)
                known |= {setting.key: setting for setting in base.settings}
                brings |= {word.partition("=")[0]: word for word in base.brings}
                target = target or base.target
            continue
        for key, chosen in entry.items():
            other = str(key).removeprefix("override ").removeprefix("/")
            brings[other] = f"{other}={'null' if chosen is None else _as_typed(chosen)}"
    for setting in own:
        before = known.get(setting.key)
        gained = before and {
            "meaning": setting.meaning or before.meaning,
            "allowed": setting.allowed or before.allowed,
        }
        known[setting.key] = replace(setting, **gained) if gained else setting
    words = (word for word in brings.values() if not word.endswith("=null"))
    return Choice(name, description, target, tuple(known.values()), tuple(words))


def _as_typed(chosen: Any) -> str:
    return f"[{','.join(map(str, chosen))}]" if isinstance(chosen, list) else str(chosen)


def settings_of(text: str, prefix: str = "") -> list[Setting]:
    """The settings of a YAML text, each with its comment.

    Args:
        text: of the file.
        prefix: of every key, with its dot.
    """
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    lines = text.splitlines()
    return list(_walk(root, lines, prefix, None)) if isinstance(root, yaml.MappingNode) else []


def _walk(node: yaml.MappingNode, lines: list[str], prefix: str, target: Any) -> Iterator[Setting]:
    found = {key.value: value for key, value in node.value}
    path = found.get("_target_")
    target = _object(path.value) if path is not None else target
    told = arguments_of(target) if target is not None else {}
    for key, value in node.value:
        name = key.value
        if name in _DIRECTIVES or (not prefix and name in ("defaults", "hydra")):
            continue
        block = isinstance(value, yaml.MappingNode) and not value.flow_style and value.value
        if block:
            yield from _walk(value, lines, f"{prefix}{name}.", None)
            continue
        end = value.end_mark
        meaning = _comment(lines, end.line, end.column)
        # Of a value on several lines, what it is when written in one.
        several = value.start_mark.line != end.line
        default = _in_one_line(value) if several else lines[end.line][: end.column]
        default = default if several else default[value.start_mark.column :]
        allowed = allowed_values(target, name) if callable(target) else ""
        yield Setting(
            f"{prefix}{name}", default.strip() or "null", meaning or told.get(name, ""), allowed
        )


def _in_one_line(node: yaml.Node) -> str:
    return yaml.safe_dump(_plain(node), default_flow_style=True, width=10_000).strip()


def _plain(node: yaml.Node) -> Any:
    return yaml.SafeLoader("").construct_object(node, deep=True)


def _comment(lines: list[str], line: int, column: int) -> str:
    """The comment behind a place, or above its line."""
    if line >= len(lines):
        return ""
    behind = lines[line][column:].partition("#")[2].strip()
    if behind:
        return behind
    above = []
    while line and lines[line - 1].lstrip().startswith("#") and lines[line - 1].startswith(" "):
        line -= 1
        above.insert(0, lines[line].strip().lstrip("# "))
    return " ".join(above)


@functools.cache
def _object(path: str) -> Any:
    """The object behind a ``_target_``; None where an optional package is missing."""
    try:
        return get_object(path)
    except ImportError:
        return None


def table(settings: tuple[Setting, ...] | list[Setting]) -> str:
    """Settings as a Markdown table; empty where there are none."""
    if not settings:
        return ""
    known = any(setting.allowed for setting in settings)
    heads = ["setting", "default", *(["allowed"] if known else []), "meaning"]
    rows = [markdown_row(heads), markdown_row(["---"] * len(heads))]
    for setting in settings:
        middle = [_cell(setting.allowed)] if known else []
        rows.append(
            markdown_row(
                [_code(setting.key), _code(setting.default), *middle, _cell(setting.meaning)]
            )
        )
    return "\n".join(rows) + "\n"


def _code(text: str) -> str:
    return f"`{text}`".replace("|", "\\|")


def _cell(text: str) -> str:
    """A text in a cell of a table; asterisks and angle brackets mean themselves."""
    for sign in ("\\", "|", "*", "<"):
        text = text.replace(sign, f"\\{sign}")
    return text


def files(group: str) -> list[Path]:
    """The YAML files of a group, by name."""
    return sorted((conf_dir() / group).glob("*.yaml"))
