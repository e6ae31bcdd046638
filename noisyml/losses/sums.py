"""Weighted sums of losses by name: on embeddings, on class scores, on several labels per image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from torch import Tensor, nn

from noisyml.errors import UserError, did_you_mean
from noisyml.losses.base import Declared, EmbeddingLoss, Loss, ScoreLoss
from noisyml.losses.classification.base import ClassificationLoss
from noisyml.losses.multilabel.base import MultiLabelLoss, Reduction

if TYPE_CHECKING:
    from noisyml.similarity.memory_bank import MemoryBank


class LossSum(Loss):
    """Base of weighted sums; goes before the kind of loss in the list of bases.

    A sum needs and gives what its terms need and give together. Terms of weight 0 are left out.

    Args:
        terms: losses by name, of the kind `takes`.
        weights: factor of each; 1 where none is given.
        **base: arguments of the kind of loss.

    Raises:
        UserError: no term, a term of another kind, a weight without a term, or no weight other
            than 0.
    """

    #: Kind of the terms.
    takes: ClassVar[type[Loss]]

    def __init__(
        self, terms: Mapping[str, Loss], weights: Mapping[str, float] | None = None, **base: Any
    ) -> None:
        super().__init__(**base)
        for name, term in terms.items():
            if not isinstance(term, self.takes):
                raise UserError(
                    f"The term '{name}' of {type(self).__name__} is {type(term).__name__}, and not "
                    f"{self.takes.kind}: choose another one (`noisyml list losses`)."
                )
        self.weights = _counting(terms, weights)
        self.terms = nn.ModuleDict({name: terms[name] for name in self.weights})
        self.needs = frozenset().union(*(terms[name].needs for name in self.weights))
        self.gives = frozenset().union(*(terms[name].gives for name in self.weights))
        self._last: dict[str, Tensor] = {}

    @classmethod
    def declares(cls, settings: Mapping[str, Any]) -> Declared:
        """The union over the terms that count."""
        terms = settings.get("terms") or {}
        declared = [
            _class_of(name, terms[name]).declares(terms[name])
            for name in _counting(terms, settings.get("weights"))
        ]
        return Declared(
            frozenset().union(*(one.needs for one in declared)),
            frozenset().union(*(one.gives for one in declared)),
        )

    def total(self, values: Mapping[str, Tensor]) -> Tensor:
        """The weighted sum of the terms' values, which `last_terms` keeps."""
        self._last = {name: value.detach().mean() for name, value in values.items()}
        return torch.stack([self.weights[name] * x for name, x in values.items()]).sum(dim=0)

    @property
    def last_terms(self) -> dict[str, Tensor]:
        """The terms of the last call by name, before they are weighted."""
        return self._last


class EmbeddingSum(LossSum, EmbeddingLoss):
    """Weighted sum of losses on embeddings, such as CBML with an auxiliary loss.

    Args:
        terms: losses by name.
        weights: factor of each; 1 where none is given. A term of weight 0 is left out.

    Raises:
        UserError: see `LossSum`.

    Example:
        >>> from noisyml.losses.metric_learning.contrastive import ContrastiveLoss
        >>> from noisyml.losses.metric_learning.pair_losses import HardestNegativeTripletLoss
        >>> terms = {"pairs": ContrastiveLoss(), "triplets": HardestNegativeTripletLoss()}
        >>> loss = EmbeddingSum(terms, {"triplets": 0.5})
        >>> embeddings = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
        >>> round(float(loss(embeddings, torch.tensor([7, 7, 8]))), 3)
        0.877
        >>> {name: round(float(value), 3) for name, value in loss.last_terms.items()}
        {'pairs': 0.8, 'triplets': 0.154}
    """

    takes = EmbeddingLoss

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        *,
        memory: MemoryBank | None = None,
        keep: Tensor | None = None,
    ) -> Tensor:
        """The weighted sum of the terms, each for the kept samples."""
        return self.total(
            {
                name: term(embeddings, labels, memory=memory, keep=keep)
                for name, term in self.terms.items()
            }
        )

    @torch.no_grad()
    def per_sample(self, embeddings: Tensor, labels: Tensor) -> Tensor | None:
        """The weighted sum of the terms' losses [B]; None if a term has none."""
        return self._weighted([term.per_sample(embeddings, labels) for term in self._terms()])

    @property
    def last_losses(self) -> Tensor | None:
        """The weighted sum of those of the terms; None if a term has none."""
        return self._weighted([term.last_losses for term in self._terms()])

    def _terms(self) -> list[EmbeddingLoss]:
        return cast("list[EmbeddingLoss]", list(self.terms.values()))

    def _weighted(self, losses: Sequence[Tensor | None]) -> Tensor | None:
        known = [own for own in losses if own is not None]
        if len(known) < len(losses):
            return None
        weighted = zip(self.weights.values(), known, strict=True)
        return torch.stack([weight * own for weight, own in weighted]).sum(dim=0)

    def proxies(self) -> Tensor:
        """Class proxies [C, D] of the first term that has them, unit norm, detached."""
        for term in self._terms():
            if term.has_proxies:
                return term.proxies()
        return super().proxies()


class ScoreSum(LossSum, ScoreLoss):
    """Base of weighted sums of losses on class scores."""

    @property
    def warmup_epochs(self) -> int:
        """Epochs after which the last of the terms is no plain loss any more."""
        return max(term.warmup_epochs for term in self._terms())

    def check_length(self, epochs: int | None) -> None:
        """Refuse a run in which the warm-up of a term would never end; see `ScoreLoss`."""
        for term in self._terms():
            term.check_length(epochs)

    def wants_predictions(self, epoch: int) -> bool:
        """True if a term wants them."""
        self._asking = [term for term in self._terms() if term.wants_predictions(epoch)]
        return bool(self._asking)

    @torch.no_grad()
    def learn(self, probabilities: Tensor) -> None:
        """Those terms learn that wanted to when last asked."""
        for term in self._asking:
            term.learn(probabilities)

    def forward(self, logits: Tensor, labels: Tensor, index: Tensor, epoch: int) -> Tensor:
        """The weighted sum of the terms, for each sample or entry."""
        return self.total(
            {name: term(logits, labels, index, epoch) for name, term in self.terms.items()}
        )

    def _terms(self) -> list[ScoreLoss]:
        return cast("list[ScoreLoss]", list(self.terms.values()))


class ClassificationSum(ScoreSum, ClassificationLoss):
    """Weighted sum of losses on class scores, one number per sample.

    Args:
        terms: losses by name.
        weights: factor of each; 1 where none is given. A term of weight 0 is left out.

    Raises:
        UserError: see `LossSum`.

    Example:
        >>> from noisyml.losses.classification.base import CrossEntropy, GeneralisedCrossEntropy
        >>> terms = {"plain": CrossEntropy(), "robust": GeneralisedCrossEntropy()}
        >>> loss = ClassificationSum(terms, {"plain": 0.5})
        >>> logits, labels = torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 0])
        >>> loss(logits, labels, torch.tensor([0, 1]), epoch=0)
        tensor([0.1849, 1.5155])
    """

    takes = ClassificationLoss


class MultiLabelSum(ScoreSum, MultiLabelLoss):
    """Weighted sum of losses on several labels per image, one number per entry.

    Args:
        terms: losses by name; how they reduce entries does not matter.
        weights: factor of each; 1 where none is given. A term of weight 0 is left out.
        reduction: see `MultiLabelLoss`.

    Raises:
        UserError: see `LossSum`.

    Example:
        >>> from noisyml.losses.multilabel.base import BinaryCrossEntropy, Focal
        >>> loss = MultiLabelSum({"plain": BinaryCrossEntropy(), "focal": Focal()}, {"focal": 0.5})
        >>> logits, labels = torch.tensor([[0.0, 2.0]]), torch.tensor([[1, 0]])
        >>> loss(logits, labels, torch.tensor([0]), epoch=0)
        tensor([[0.7148, 2.7457]])
    """

    takes = MultiLabelLoss

    def __init__(
        self,
        terms: Mapping[str, MultiLabelLoss],
        weights: Mapping[str, float] | None = None,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(terms, weights, reduction=reduction)


def _counting(terms: Mapping[str, Any], weights: Mapping[str, float] | None) -> dict[str, float]:
    """The weights of the terms that count, in the order of the terms.

    Raises:
        UserError: there are none, or a weight without a term.
    """
    if not terms:
        raise UserError("A sum of losses has no terms: name at least one loss.")
    weights = weights or {}
    for name in weights:
        if name not in terms:
            raise UserError(
                f"A sum of losses weighs a term '{name}' it does not have: use "
                f"{', '.join(terms)}.{did_you_mean(name, list(terms))}"
            )
    counting = {name: weights.get(name, 1.0) for name in terms if weights.get(name, 1.0) != 0}
    if not counting:
        raise UserError("A sum of losses has nothing to learn: all its weights are 0.")
    return counting


def _class_of(name: str, settings: Any) -> type[Loss]:
    """The class of a term in a configuration.

    Raises:
        UserError: it names none.
    """
    target = settings.get("_target_") if isinstance(settings, Mapping) else None
    module, _, attribute = str(target or "").rpartition(".")
    try:
        found = getattr(import_module(module), attribute) if module else None
    except (ImportError, AttributeError):
        found = None
    if not (isinstance(found, type) and issubclass(found, Loss)):
        raise UserError(
            f"The term '{name}' of a sum of losses names no loss by its _target_ ({target}): add "
            f"one by +loss@loss.terms.{name}=... (`noisyml list losses`)."
        )
    return found
