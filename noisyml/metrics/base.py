"""Interface of the metrics of a split, and several of them at work on the same samples."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar, Literal

from torch import Tensor

from noisyml.checks import Checked
from noisyml.errors import UserError
from noisyml.runs.artefacts import Artefact
from noisyml.runs.metric_names import MetricNames
from noisyml.targets import TargetKind
from noisyml.targets.judgements import Judgements

SplitRole = Literal["pool", "query", "gallery", "distractors"]


class Evaluator(Checked, ABC):
    """Streams a model's outputs in, gives a flat dict of named metrics out.

    Exact under DDP: the ranks' shards may be uneven or empty, samples that a distributed sampler
    repeated for padding count once (recognised by `index`), and every rank returns the same dict.
    """

    #: Names of the outputs a model must give: ``embeddings``, ``logits``.
    needs: ClassVar[frozenset[str]] = frozenset({"embeddings"})
    #: Kinds of labels it evaluates against.
    target_kinds: ClassVar[frozenset[TargetKind]] = frozenset({"single"})
    #: False if it does not look at labels, which may then be missing.
    reads_labels: ClassVar[bool] = True
    #: Names of metrics of which smaller values are better.
    lower_is_better: ClassVar[frozenset[str]] = frozenset()
    #: Short names of its metrics, in the order of a table, see `MetricNames`.
    metric_labels: ClassVar[Mapping[str, str]] = {}
    #: Name of the metric that checkpoints and progress go by unless told otherwise.
    headline: str
    #: Names of the classes, for metrics named after them; set before use.
    class_names: Sequence[str] = ()
    #: Classes that any training label names, where some samples have none; set before use.
    known_classes: Sequence[int] = ()
    #: Judgements of documents for queries, where the data set has any; set before use.
    judgements: Judgements | None = None

    def know(self, class_names: Sequence[str], judgements: Judgements | None) -> None:
        """Take what the data set says, before the first batch.

        Args:
            class_names: names of the classes.
            judgements: of the gallery for the queries, where there are any.
        """
        self.class_names = class_names
        self.judgements = judgements

    @abstractmethod
    def update(
        self,
        outputs: Mapping[str, Tensor],
        targets: Tensor,
        index: Tensor,
        role: SplitRole = "pool",
    ) -> None:
        """Take in one batch of this rank.

        Args:
            outputs: what the model gives for the batch, by name: ``embeddings`` [b, D] float,
                ``logits`` [b, C] float. Those that `needs` does not name are not looked at.
            targets: labels [b] int64, or multi-hot [b, C].
            index: positions in the split [b] int64.
            role: ``pool`` (queries that are their own gallery), ``query``, ``gallery``, or
                ``distractors`` (more gallery, of no query's class).

        Raises:
            UserError: an output is missing, or the labels are of another kind.
        """

    @abstractmethod
    def compute(self) -> dict[str, float]:
        """The metrics over everything taken in on all ranks; a collective call.

        Names carry no split prefix (``precision_at_1``); fractions of 1; NaN where undefined.
        """

    def artefacts(self) -> Iterable[Artefact]:
        """Pictures and tables for the run folder and its report; here none.

        Called on every rank between `compute` and `reset` of a test.
        """
        return ()

    @abstractmethod
    def reset(self) -> None:
        """Forget all batches."""

    def needed(self, outputs: Mapping[str, Tensor], name: str) -> Tensor:
        """The output called `name`.

        Raises:
            UserError: the model does not give it.
        """
        if name not in outputs:
            given = ", ".join(outputs) or "nothing"
            raise UserError(
                f"{type(self).__name__} evaluates {name}, but the method gives {given}: choose "
                f"another evaluator=... or another method=..."
            )
        return outputs[name]


class Evaluation:
    """The evaluators of a run at work on one set of samples.

    Args:
        evaluators: by name; copied, so that the same ones serve several sets.
    """

    def __init__(self, evaluators: Mapping[str, Evaluator]) -> None:
        self._evaluators = copy.deepcopy(dict(evaluators))
        for evaluator in self._evaluators.values():
            evaluator.reset()

    @property
    def evaluators(self) -> list[Evaluator]:
        """The copies at work."""
        return list(self._evaluators.values())

    def update(
        self, outputs: Mapping[str, Tensor], targets: Tensor, index: Tensor, role: SplitRole
    ) -> None:
        """Show one batch of this rank to every evaluator, see `Evaluator.update`."""
        for evaluator in self._evaluators.values():
            evaluator.update(outputs, targets, index, role)

    def compute(self) -> dict[str, float]:
        """The metrics of all evaluators; a collective call.

        Raises:
            UserError: two of them measure something under the same name.
        """
        metrics: dict[str, float] = {}
        source: dict[str, str] = {}
        for name, evaluator in self._evaluators.items():
            found = evaluator.compute()
            for metric in found:
                if metric in source:
                    raise UserError(
                        f"The evaluators {source[metric]} and {name} both measure '{metric}': "
                        f"leave one of them out of evaluator=[...]."
                    )
                source[metric] = name
            metrics |= found
        return metrics

    def artefacts(self) -> Iterable[Artefact]:
        """Artefacts of all evaluators, see `Evaluator.artefacts`."""
        for evaluator in self._evaluators.values():
            yield from evaluator.artefacts()


def needed_outputs(evaluators: Mapping[str, Evaluator]) -> frozenset[str]:
    """Names of the outputs that any of the evaluators looks at."""
    return frozenset().union(*(evaluator.needs for evaluator in evaluators.values()))


def metric_names(evaluators: Mapping[str, Evaluator]) -> MetricNames:
    """Short names of the metrics of all evaluators, and which of them are errors."""
    names = MetricNames()
    for evaluator in evaluators.values():
        names = names.joined(MetricNames(evaluator.metric_labels, evaluator.lower_is_better))
    return names


def headline(evaluators: Mapping[str, Evaluator]) -> str:
    """Name of the metric that a run goes by: the headline of its first evaluator.

    Raises:
        UserError: there is no evaluator.
    """
    first = next(iter(evaluators.values()), None)
    if first is None:
        raise UserError("The run has no evaluator: choose one, e.g. evaluator=retrieval.")
    return first.headline


def is_lower_better(evaluators: Mapping[str, Evaluator], metric: str) -> bool:
    """True for a metric, by its name without a split, of which smaller values are better."""
    return any(metric in evaluator.lower_is_better for evaluator in evaluators.values())
