"""Metrics as people write them: short names, their order in a table, and which are errors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from noisyml.storage.files import write_atomically

#: First parts of the names of metrics that tell what a run cost, which no two runs have alike.
COSTS = ("time/", "memory/")


@dataclass(frozen=True)
class MetricNames:
    """Names of the metrics of a run, as its evaluators give them.

    Attributes:
        labels: short names by the names in ``metrics.json`` without a split, in the order of a
            table, e.g. ``{"map_at_r": "MAP@R"}``. A key may end with K for any number, which then
            stands for K in the short name: ``{"recall_at_K": "R@K"}``; such metrics are not among
            the default columns.
        lower_is_better: names of metrics of which smaller values are better.
    """

    labels: Mapping[str, str] = field(default_factory=dict)
    lower_is_better: frozenset[str] = frozenset()

    def label(self, metric: str) -> str | None:
        """The short name of a metric, None if it has none."""
        if metric in self.labels:
            return self.labels[metric]
        stem = metric.rstrip("0123456789")
        pattern = self.labels.get(f"{stem}K")
        return None if pattern is None else pattern.replace("K", metric.removeprefix(stem))

    def place(self, metric: str) -> int | None:
        """Position of a metric among the default columns of a table, None if it is not there."""
        return list(self.labels).index(metric) if metric in self.labels else None

    def joined(self, other: MetricNames) -> MetricNames:
        """These names and, after them, those that only `other` has."""
        return MetricNames(
            {**self.labels, **{k: v for k, v in other.labels.items() if k not in self.labels}},
            self.lower_is_better | other.lower_is_better,
        )

    def write(self, file: Path) -> None:
        """Write the names as JSON."""
        content = {"labels": dict(self.labels), "lower_is_better": sorted(self.lower_is_better)}
        write_atomically(file, json.dumps(content, indent=2) + "\n")

    @classmethod
    def read(cls, file: Path) -> MetricNames:
        """The names in a file that `write` wrote; none if it is not there.

        Raises:
            ValueError: it is damaged.
        """
        if not file.is_file():
            return cls()
        content = json.loads(file.read_bytes())
        labels = {str(key): str(value) for key, value in content["labels"].items()}
        return cls(labels, frozenset(map(str, content["lower_is_better"])))
