"""Differences between runs: the settings that were varied, and their values."""

from __future__ import annotations

import json
import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from noisyml.command.words import words_in
from noisyml.runs.folder import RunFolder

#: Settings that say where or how fast a run ran, or which repetition it was, not what it studied.
INCIDENTAL = re.compile(
    r"(^|[./])(\w*seed|\w*_dir|dir|root|job_num|job_id|num_workers|pin_memory|persistent_workers)$"
    r"|^(hydra|logger|paths|name|run|resume|report)([./]|$)"
)

SEED = re.compile(r"(^|[._])seed$")

#: First words of settings that decide which data and which wrong labels a run saw: figures are
#: comparable only between runs that agree in them.
DATA_GROUPS = ("dataset", "data", "noise")

ABSENT = "–"

#: Groups that say what a run is, named first where several tell the same runs apart.
DESCRIBING = ("method", "dataset", "noise", "selector", "loss")

#: Settings that may differ between two runs of the same configuration.
OF_ONE_FOLDER = re.compile(r"^(run_dir|name|report|resume|paths\.output)$|^(hydra|logger)([./]|$)")


@dataclass(frozen=True)
class Settings:
    """The settings of one run.

    Attributes:
        tree: the resolved configuration.
        leaves: the same, flat: dotted key to value, lists as JSON text, the run's own folder in
            it written ``RUN_DIR``.
        typed: what was typed on the command line, key to text.
        choices: the option chosen of each group, typed or not; empty for a run without
            ``choices.yaml``.
    """

    tree: dict[str, Any]
    leaves: dict[str, Hashable]
    typed: dict[str, str]
    choices: dict[str, str]

    @classmethod
    def read(cls, run: RunFolder) -> Settings:
        """Read ``config.yaml``, ``overrides.yaml`` and ``choices.yaml`` of a run."""
        tree = run.config()
        own_folder = str(tree.get("run_dir") or run.path)
        leaves = {
            key: value.replace(own_folder, "RUN_DIR") if isinstance(value, str) else value
            for key, value in _leaves(tree)
        }
        typed = typed_settings(run.overrides())
        return cls(tree=tree, leaves=leaves, typed=typed, choices=_choices(run))

    def name(self, group: str) -> str | None:
        """The option of a group by the name it was chosen by, None where that is not known."""
        return self.choices.get(group) or self.typed.get(group)

    def node(self, key: str) -> Any:
        """The part of the configuration at a dotted key, None where there is none."""
        current: Any = self.tree
        for part in key.replace("/", ".").split("."):
            if not isinstance(current, dict) or part not in current:
                return None
            current = current[part]
        return current


def typed_settings(overrides: Sequence[str]) -> dict[str, str]:
    """Overrides of a command line as key and text; deletions (``~key``) are left out."""
    words = words_in(overrides)
    return {w.key: w.value for w in words if w.value is not None and not w.deletes}


def varied_keys(settings: Sequence[Settings]) -> list[str]:
    """The settings that tell the runs apart, seeds and folders aside.

    Settings typed with different values count first. Then come choices that stand nowhere in the
    configuration (``experiment``), groups of which another option was chosen, and single settings,
    but only those that separate runs which would otherwise fall together: what follows from another
    setting is not listed again. A setting inside a group is left out where the choice of the group
    says it already, a noise rate excepted.
    """
    typed = [
        key
        for key in dict.fromkeys(key for s in settings for key in s.typed)
        if not INCIDENTAL.search(key) and len(set(values_of(key, settings))) > 1
    ]
    nowhere = [key for key in typed if all(one.node(key) is None for one in settings)]
    chosen = list(
        dict.fromkeys(_standing_for(key, settings) for key in typed if key not in nowhere)
    )
    paths = {key for s in settings for key in s.leaves}
    options = {key for s in settings for key in s.choices}
    groups = sorted(
        options | {key.removesuffix("._target_") for key in paths if key.endswith("._target_")},
        key=lambda key: (key not in DESCRIBING, key.count("."), key),
    )
    leaves = sorted(paths, key=lambda key: (key.count("."), key))
    columns = [values_of(key, settings) for key in chosen]
    identity: list[tuple[Hashable, ...]] = [
        tuple(column[run] for column in columns) for run in range(len(settings))
    ]
    telling = [key for key in leaves if not INCIDENTAL.search(key)]
    contents = [tuple(one.leaves.get(key, ABSENT) for key in telling) for one in settings]
    for key in [*nowhere, *groups, *leaves]:
        values = values_of(key, settings)
        if INCIDENTAL.search(key) or len(set(values)) == 1:
            continue
        if len(set(zip(identity, contents, strict=True))) == len(set(identity)):
            break  # runs that still fall together have the same settings, by whatever name
        finer = [(*known, value) for known, value in zip(identity, values, strict=True)]
        if len(set(finer)) > len(set(identity)):
            chosen.append(key)
            identity = finer
    # Data first: rows of a table are compared within the same data, and the data set before noise.
    places = {group: place for place, group in enumerate(DATA_GROUPS)}
    return sorted(chosen, key=lambda key: places.get(_outermost(key), len(places)))


def shared_settings(settings: Sequence[Settings]) -> dict[str, Hashable]:
    """The main parts, noise rates and typed settings that are alike in all runs, with their values.

    Seeds and folders are left out.
    """
    rates = [key for key in settings[0].leaves if is_rate(key)]
    found: dict[str, Hashable] = {}
    for key in dict.fromkeys([*DESCRIBING, *rates, *settings[0].typed]):
        value, *others = set(values_of(key, settings))
        if not others and value != ABSENT and not INCIDENTAL.search(key):
            found[key] = value
    return found


def same_runs(settings: Sequence[Settings]) -> list[int]:
    """Number of the configuration of each run: equal for equal ones, seeds included.

    What only says where a run lies or what it is called counts for nothing.
    """
    contents = [
        frozenset((k, v) for k, v in one.leaves.items() if not OF_ONE_FOLDER.search(k))
        for one in settings
    ]
    numbers = {content: number for number, content in enumerate(dict.fromkeys(contents))}
    return [numbers[content] for content in contents]


def repetitions(settings: Sequence[Settings]) -> list[str]:
    """Names that tell repetitions of a run apart: ``seed``, and other seeds that vary freely.

    A seed that follows from ``seed`` is not named again: ``0``, but ``0, noise.seed=3``.
    """
    seeds = [str(one.leaves.get("seed", "")) for one in settings]
    names = [list(filter(None, [seed])) for seed in seeds]
    keys = dict.fromkeys(k for s in settings for k in s.leaves if SEED.search(k))
    for key in keys:
        # A part that some runs are without has no seed there.
        having = [
            (seed, value, name)
            for seed, value, name in zip(seeds, values_of(key, settings), names, strict=True)
            if value != ABSENT
        ]
        pairs = {(seed, value) for seed, value, _ in having}
        if key != "seed" and len(pairs) > len({seed for seed, _ in pairs}):
            for _, value, name in having:
                name.append(f"{key}={value}")
    return [", ".join(name) for name in names]


def decides_data(key: str) -> bool:
    """True if the setting decides what data or which wrong labels a run saw."""
    return _outermost(key) in DATA_GROUPS


def _outermost(key: str) -> str:
    return re.split(r"[./]", key)[0]


def text_of(value: object) -> str:
    """A setting's value as text; floats in their shortest form."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def group_name(keys: Sequence[str], values: Sequence[object]) -> str:
    """A group by some of its settings: names stand alone, numbers with their setting."""
    parts = []
    for key, value in zip(keys, values, strict=True):
        number = isinstance(value, int | float) or value in ("true", "false", ABSENT)
        parts.append(f"{key}={text_of(value)}" if number else text_of(value))
    return ", ".join(parts)


def is_rate(key: str) -> bool:
    """True for the setting of a nominal noise rate."""
    return key.startswith("noise") and key.rpartition(".")[2].endswith("rate")


def values_of(key: str, settings: Sequence[Settings]) -> list[Hashable]:
    """The value of one setting in every run.

    A group of the configuration (``selector``) has no single value: the name of the option chosen
    stands, and where ``choices.yaml`` is missing, the name typed, the name known elsewhere for the
    same ``_target_``, its own ``name``, or its class.
    """
    names: dict[Hashable, set[str]] = {}
    for one in settings:
        node, name = one.node(key), one.name(key)
        if isinstance(node, dict) and name is not None:
            names.setdefault(_target(node), set()).add(name)
    return [_value(key, one, names) for one in settings]


def _value(key: str, one: Settings, names: dict[Hashable, set[str]]) -> Hashable:
    if key in one.choices:
        return one.choices[key]
    if key in one.leaves:
        return one.leaves[key]
    node = one.node(key)
    if isinstance(node, dict):
        if key in one.typed:
            return one.typed[key]
        elsewhere = names.get(_target(node), set())
        if len(elsewhere) == 1:
            return next(iter(elsewhere))
        return str(node.get("name") or _target(node) or ABSENT).rpartition(".")[2]
    return one.typed.get(key, ABSENT)


def _standing_for(key: str, settings: Sequence[Settings]) -> str:
    """The outermost group whose option determines a setting inside it, or the setting itself."""
    if is_rate(key):
        return key
    parts = key.split(".")
    values = values_of(key, settings)
    for length in range(1, len(parts)):
        group = ".".join(parts[:length])
        if not any(isinstance(one.node(group), dict) and _is_group(group, one) for one in settings):
            continue
        options = values_of(group, settings)
        if len(set(zip(options, values, strict=True))) == len(set(options)):
            return group
    return key


def _is_group(key: str, one: Settings) -> bool:
    return key in one.choices or key in one.typed or f"{key}._target_" in one.leaves


def _choices(run: RunFolder) -> dict[str, str]:
    chosen = run.choices().items()
    return {str(group): str(option) for group, option in chosen if option is not None}


def _target(node: dict[str, Any]) -> Hashable:
    target = node.get("_target_")
    return target if isinstance(target, str) else None


def _scalar(value: Any) -> Hashable:
    """Numbers stay numbers (so that they sort and can be an axis), the rest becomes text."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float | str):
        return value
    return json.dumps(value, default=str)


def _leaves(node: dict[str, Any], prefix: str = "") -> list[tuple[str, Hashable]]:
    found: list[tuple[str, Hashable]] = []
    for key, value in node.items():
        if isinstance(value, dict) and value:
            found += _leaves(value, f"{prefix}{key}.")
        else:
            found.append((f"{prefix}{key}", _scalar(value)))
    return found
