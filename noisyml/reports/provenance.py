"""Under which circumstances runs were made, how to make them again, and whether they compare."""

from __future__ import annotations

import math
import re
import shlex
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from noisyml.reports.artefacts import fingerprints
from noisyml.reports.settings import decides_data, text_of, typed_settings
from noisyml.reports.tables import FINISHED
from noisyml.runs.folder import RunFolder

_VERSIONS = re.compile(r"^((versions?|packages)\.|python$)")
_COMMIT = re.compile(r"(^|[._])commit$")
_DEVICE = re.compile(r"(^|[._])(device|devices|gpu|accelerator|device_name)$")

#: What ends a commit's name if files differed from it.
_DIRTY = "-dirty"

#: Whatever its folder is called, a run was made by this.
_TRAIN = ("noisyml", "train")

#: Nominal and realised noise rate further apart than this are pointed out.
RATE_GAP = 0.02


@dataclass(frozen=True)
class Fact:
    """One line of the environment: a name and its values with the number of runs of each."""

    name: str
    values: tuple[tuple[str, int], ...]

    @property
    def mixed(self) -> bool:
        """True if not all runs agree."""
        return len(self.values) > 1


def environment_facts(environments: Sequence[dict[str, str]]) -> list[Fact]:
    """Facts of ``environment.json`` of each run, merged; a run without a fact counts as ``–``."""
    names = list(dict.fromkeys(name for environment in environments for name in environment))
    facts = []
    for name in names:
        counts = Counter(environment.get(name, "–") for environment in environments)
        facts.append(Fact(name, tuple(counts.most_common())))
    return facts


def environment_warnings(facts: Sequence[Fact]) -> list[str]:
    """Sentences on runs made by different code, libraries or machines."""
    said = []
    mixed = [fact for fact in facts if fact.mixed]
    commits = next((fact for fact in mixed if _COMMIT.search(fact.name)), None)
    if commits:
        listed = _listed([f"{short_commit(value)} ({count})" for value, count in commits.values])
        said.append(f"Runs of different code are mixed: commits {listed}.")
    changed = sum(
        count
        for fact in facts
        if _COMMIT.search(fact.name)
        for value, count in fact.values
        if value.endswith(_DIRTY)
    )
    if changed:
        said.append(f"{_runs(changed)} made from code with uncommitted changes.")
    versions = [fact for fact in mixed if _VERSIONS.match(fact.name)]
    if versions:
        listed = "; ".join(
            f"{fact.name.rpartition('.')[2]} {_listed([value for value, _ in fact.values])}"
            for fact in versions
        )
        said.append(f"Runs with different library versions are mixed: {listed}.")
    device = next((fact for fact in mixed if _DEVICE.search(fact.name)), None)
    if device:
        listed = _listed([value for value, _ in device.values])
        said.append(f"Runs on different devices are mixed ({listed}): times do not compare.")
    return said


def data_warnings(
    runs: pd.DataFrame, read_manifest: Callable[[RunFolder], pd.DataFrame | None]
) -> list[str]:
    """Sentences on runs whose training labels differ although their settings say the same data.

    Args:
        runs: what `load_runs` returned.
        read_manifest: reads the noise manifest of a run, None where there is none.
    """
    finished = runs[runs["state"] == FINISHED]
    manifests = [read_manifest(RunFolder(path)) for path in map(_path, finished["run"])]
    data_keys = [key for key in runs.attrs["varied"] if decides_data(key)]
    dataset_keys = [key for key in data_keys if not key.startswith("noise")]
    truths: dict[tuple, set[str]] = {}
    labels: dict[tuple, set[str]] = {}
    for (_, row), manifest in zip(finished.iterrows(), manifests, strict=True):
        if manifest is not None:
            truth, observed = fingerprints(manifest)
            truths.setdefault(tuple(row[k] for k in dataset_keys), set()).add(truth)
            block = (*(row[k] for k in data_keys), row["seed"])
            labels.setdefault(block, set()).add(observed)
    if any(len(found) > 1 for found in truths.values()):
        return ["Runs on different training data are mixed: their true labels differ."]
    differing = [block for block, found in labels.items() if len(found) > 1]
    if differing:
        names = [*data_keys, "seed"]
        example = ", ".join(f"{n}={text_of(v)}" for n, v in zip(names, differing[0], strict=True))
        return [
            "Runs with the same data, noise and seed were given different wrong labels "
            f"(for example at {example}): their figures do not compare one to one."
        ]
    return []


def repetition_warnings(runs: pd.DataFrame, groups: Sequence[str]) -> list[str]:
    """Sentences on seeds that were run twice and on groups with fewer seeds than others.

    Args:
        runs: what `load_runs` returned.
        groups: name of the group of every row of `runs`.
    """
    finished = runs["state"] == FINISHED
    table = pd.DataFrame({"group": groups, "seed": runs["seed"]})[finished.to_numpy()]
    said = []
    twice = table[table.duplicated(["group", "seed"])]
    if len(twice):
        first = twice.iloc[0]
        where = f" in {first['group']}" if first["group"] else ""
        said.append(
            f"Seed {first['seed']}{where} was run more than once: the repetitions count as "
            "separate runs in mean and deviation."
        )
    counts = table.groupby("group").size().reindex(list(dict.fromkeys(groups)), fill_value=0)
    if counts.min() != counts.max():
        said.append(f"Groups have between {counts.min()} and {counts.max()} finished runs.")
    return said


def rate_warnings(runs: pd.DataFrame) -> list[str]:
    """A sentence if the realised noise rate is not the nominal one."""
    names = ("noise/nominal_rate", "noise/actual_rate")
    if not all(name in runs for name in names):
        return []
    pairs = runs[list(names)].astype(float).dropna().to_numpy()
    gaps = np.abs(pairs[:, 0] - pairs[:, 1])
    if not len(gaps) or gaps.max() <= RATE_GAP:
        return []
    nominal, actual = pairs[gaps.argmax()]
    return [
        f"The realised noise rate differs from the nominal one, most where {nominal:.3f} "
        f"became {actual:.3f}: compare methods at the realised rate."
    ]


def rerun_commands(runs: Sequence[RunFolder]) -> list[str]:
    """Command lines that repeat the runs: one for a complete sweep, else one per run.

    A sweep is written as one command if the values typed form a full product.
    """
    typed = [typed_settings(run.overrides()) for run in runs]
    keys = list(dict.fromkeys(key for one in typed for key in one))
    same_keys = all(len(one) == len(keys) for one in typed)
    if len(runs) > 1 and same_keys:
        values = {key: list(dict.fromkeys(one[key] for one in typed)) for key in keys}
        combinations = {tuple(one[key] for key in keys) for one in typed}
        if len(combinations) == math.prod(len(found) for found in values.values()):
            words = [f"{key}={','.join(found)}" for key, found in values.items()]
            swept = ["-m"] if len(combinations) > 1 else []
            return [shlex.join([*_TRAIN, *swept, *words])]
    return list(dict.fromkeys(shlex.join([*_TRAIN, *run.overrides()]) for run in runs))


def _path(text: object) -> Path:
    return Path(str(text))


def short_commit(commit: str) -> str:
    """A commit by its first ten digits."""
    ending = _DIRTY if commit.endswith(_DIRTY) else ""
    return f"{commit.removesuffix(_DIRTY)[:10]}{ending}"


def _listed(items: Sequence[str]) -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def _runs(number: int) -> str:
    return "1 run was" if number == 1 else f"{number} runs were"
