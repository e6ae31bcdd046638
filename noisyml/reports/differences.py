"""Differences of two runs by their folders."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

from noisyml.reports.artefacts import fingerprints, read_environment, read_manifest
from noisyml.reports.settings import ABSENT, OF_ONE_FOLDER, Settings
from noisyml.runs.folder import RunFolder
from noisyml.runs.metric_names import COSTS

#: Name of what differs, and its two values.
Difference: TypeAlias = tuple[str, str, str]


def differences(first: RunFolder, second: RunFolder) -> dict[str, list[Difference]]:
    """Differences by part: ``settings``, ``data``, ``environment``, ``results``.

    ``data`` compares hashes of the training split's true labels (``labels``) and of those that were
    observed (``noise``), which tell other data and other noise apart whatever the settings say. Of
    ``results`` what a run cost is left out.

    Raises:
        UserError: a file is broken.
    """
    found = {
        "settings": _apart(_settings(first), _settings(second)),
        "data": _apart(_data(first), _data(second)),
        "environment": _apart(read_environment(first), read_environment(second)),
        "results": _apart(_results(first), _results(second)),
    }
    return {part: lines for part, lines in found.items() if lines}


def _settings(run: RunFolder) -> dict[str, Any]:
    leaves = Settings.read(run).leaves
    return {key: value for key, value in leaves.items() if not OF_ONE_FOLDER.search(key)}


def _data(run: RunFolder) -> dict[str, str]:
    manifest = read_manifest(run)
    if manifest is None:
        return {}
    labels, noise = fingerprints(manifest)
    return {"samples": str(len(manifest)), "labels": labels[:12], "noise": noise[:12]}


def _results(run: RunFolder) -> dict[str, float]:
    if not run.metrics_file.is_file():
        return {}
    return {key: value for key, value in run.metrics().items() if not key.startswith(COSTS)}


def _apart(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[Difference]:
    """Entries that differ; two NaN are alike."""
    lines = []
    for key in {**first, **second}:
        one, other = first.get(key, ABSENT), second.get(key, ABSENT)
        if one != other and not (one != one and other != other):
            lines.append((key, str(one), str(other)))
    return lines
