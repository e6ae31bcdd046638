"""Losses between a student network and its teacher: the interface, and the classical ones.

Hinton et al., "Distilling the Knowledge in a Neural Network", 2015 (arXiv 1503.02531); Romero et
al., "FitNets", ICLR 2015 (arXiv 1412.6550); Zagoruyko and Komodakis, "Paying More Attention to
Attention", ICLR 2017 (arXiv 1612.03928). FitNet and attention transfer are computed as by the code
released with Park et al., "Relational Knowledge Distillation", CVPR 2019 (arXiv 1904.05068).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from noisyml.checks import Count, NonNegative, Positive
from noisyml.errors import UserError
from noisyml.losses.base import Declared, Loss
from noisyml.losses.sums import LossSum

#: Name under which `FitNet` finds the final embedding among the layers.
EMBEDDING = "embedding"


@dataclass(frozen=True)
class Features:
    """Outputs of one network for one batch.

    Attributes:
        embedding: [B, D], normalised or not as the network emits it, or None.
        logits: [B, C] class scores, or None.
        maps: feature maps [B, C_l, H_l, W_l] by the name of the block they come from.

    Example:
        >>> features = Features(embedding=torch.eye(3))
        >>> features.rows(torch.tensor([True, False, True])).embedding
        tensor([[1., 0., 0.],
                [0., 0., 1.]])
    """

    embedding: Tensor | None = None
    logits: Tensor | None = None
    maps: Mapping[str, Tensor] = field(default_factory=dict)

    def layer(self, name: str) -> Tensor:
        """The map of that name, or the embedding as ``embedding``.

        Raises:
            UserError: the network gives no such layer.
        """
        if name == EMBEDDING and self.embedding is not None:
            return self.embedding
        if name not in self.maps:
            known = [*self.maps, *([EMBEDDING] if self.embedding is not None else [])]
            raise UserError(
                f"Distillation asks for layer '{name}', but the network gives "
                f"{', '.join(known) or 'none'}: name one of these."
            )
        return self.maps[name]

    def rows(self, keep: Tensor) -> Features:
        """Those samples of the batch for which `keep` [B] bool is true."""
        at = keep.nonzero().squeeze(1)
        return Features(
            embedding=None if self.embedding is None else self.embedding[at],
            logits=None if self.logits is None else self.logits[at],
            maps={name: x[at] for name, x in self.maps.items()},
        )

    def need_embedding(self) -> Tensor:
        """The embedding [B, D]; raises ValueError where there is none."""
        if self.embedding is None:
            raise ValueError("this distillation loss needs embeddings")
        return self.embedding

    def need_logits(self) -> Tensor:
        """The class scores [B, C]; raises ValueError where there are none."""
        if self.logits is None:
            raise ValueError("this distillation loss needs logits")
        return self.logits


class DistillationLoss(Loss):
    """A loss between two networks on one batch; parameters it owns (adapters) are trained.

    The teacher is a constant: no gradient reaches it, whatever it is given with. Under DDP every
    rank calls it with the same gathered batch.
    """

    kind: ClassVar[str] = "a loss between two networks"

    @property
    def needs_maps(self) -> bool:
        """True if `forward` reads feature maps."""
        return "maps" in self.needs

    @property
    def needs_logits(self) -> bool:
        """True if `forward` reads logits."""
        return "logits" in self.needs

    @abstractmethod
    def forward(self, student: Features, teacher: Features, labels: Tensor | None = None) -> Tensor:
        """The loss of the student.

        Args:
            student: with gradient.
            teacher: of the same samples in the same order.
            labels: [B] int64, observed; None where the loss reads none.

        Returns:
            Scalar tensor attached to the graph of the student.
        """


class DistillationSum(LossSum, DistillationLoss):
    """Weighted sum of distillation losses, as composed in a config file.

    Args:
        terms: losses by name.
        weights: factor of each; 1 where none is given. A term of weight 0 is left out.

    Raises:
        UserError: see `LossSum`.

    Example:
        >>> student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[2.0, 0.0]])
        >>> loss = DistillationSum({"hinton": HintonDistillation()}, {"hinton": 16.0})
        >>> loss(Features(logits=student), Features(logits=teacher))
        tensor(7.7568)
    """

    takes = DistillationLoss

    def values(
        self, student: Features, teacher: Features, labels: Tensor | None = None
    ) -> dict[str, Tensor]:
        """The terms by name, before they are weighted."""
        return {name: term(student, teacher, labels) for name, term in self.terms.items()}

    def forward(self, student: Features, teacher: Features, labels: Tensor | None = None) -> Tensor:
        """The weighted sum of the terms."""
        return self.total(self.values(student, teacher, labels))


def softened_divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """KL(teacher || student) of softened class probabilities, times temperature^2.

    Args:
        student: logits [B, C]; computed in float32 at least.
        teacher: logits [B, C], a constant.
        temperature: T > 0, divides the logits (Hinton et al., section 2).

    Returns:
        Scalar: the mean over the batch, 0 for an empty one.

    Example:
        >>> student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[2.0, 0.0]])
        >>> softened_divergence(student, teacher, temperature=2.0)
        tensor(0.4438)
    """
    with torch.autocast(student.device.type, enabled=False):
        log_q = F.log_softmax(_at_least_float32(student) / temperature, dim=1)
        log_p = F.log_softmax(_at_least_float32(teacher.detach()) / temperature, dim=1)
        divergence = F.kl_div(log_q, log_p, reduction="sum", log_target=True)
        return divergence * temperature**2 / max(1, len(student))


class HintonDistillation(DistillationLoss):
    """Knowledge distillation by softened class probabilities; see `softened_divergence`.

    Args:
        temperature: T, divides the logits of both networks.

    Raises:
        ArgumentError: a temperature that is not positive.

    Example:
        >>> student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[2.0, 0.0]])
        >>> HintonDistillation()(Features(logits=student), Features(logits=teacher))
        tensor(0.4848)
    """

    needs = frozenset({"logits"})

    def __init__(self, temperature: Positive = 4.0) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, student: Features, teacher: Features, labels: Tensor | None = None) -> Tensor:
        """The divergence of the logits; labels are not read."""
        return softened_divergence(student.need_logits(), teacher.need_logits(), self.temperature)


def attention_transfer(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of normalised attention maps.

    The attention at a position is the mean over channels of the squared activations; a sample's
    attention has unit L2 norm (Zagoruyko and Komodakis, eq. 2, with the means of the RKD code).

    Args:
        student: [B, C_s, H, W]; computed in float32 at least.
        teacher: [B, C_t, H, W], a constant.

    Returns:
        Scalar: the mean over samples and positions.

    Raises:
        UserError: H x W differ.

    Example:
        >>> teacher = torch.tensor([[[[1.0, 0.0]]]])
        >>> attention_transfer(3 * teacher, teacher)  # only where it looks counts
        tensor(0.)
        >>> attention_transfer(teacher.flip(-1), teacher)
        tensor(1.)
    """
    _check_same_size(student, teacher)
    with torch.autocast(student.device.type, enabled=False):
        return _mean_squares(_attention(student), _attention(teacher.detach()))


class AttentionTransfer(DistillationLoss):
    """`attention_transfer` summed over blocks.

    Args:
        layers: names of the feature maps compared.

    Raises:
        UserError: no layers.

    Example:
        >>> student, teacher = torch.tensor([[[[0.0, 1.0]]]]), torch.tensor([[[[1.0, 0.0]]]])
        >>> loss = AttentionTransfer(["block2"])
        >>> loss(Features(maps={"block2": student}), Features(maps={"block2": teacher}))
        tensor(1.)
    """

    needs = frozenset({"maps"})

    def __init__(self, layers: Iterable[str]) -> None:
        super().__init__()
        self.layers = tuple(layers)
        if not self.layers:
            raise UserError("Attention transfer names no layers: give at least one.")

    def forward(self, student: Features, teacher: Features, labels: Tensor | None = None) -> Tensor:
        """The sum over layers; labels are not read."""
        return torch.stack(
            [attention_transfer(student.layer(name), teacher.layer(name)) for name in self.layers]
        ).sum()


def fitnet_loss(student: Tensor, teacher: Tensor, weight: Tensor) -> Tensor:
    """Mean squared difference between the teacher's features and the student's, adapted.

    Args:
        student: [B, C_s, ...]; computed in float32 at least.
        teacher: [B, C_t, ...], a constant.
        weight: [C_t, C_s], the adapter at every position (a 1 x 1 convolution without bias).

    Returns:
        Scalar: the mean over all entries (Romero et al., eq. 3, with the mean of the RKD code).

    Raises:
        UserError: channels or positions do not fit.

    Example:
        >>> student, teacher = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0]])
        >>> fitnet_loss(student, teacher, torch.tensor([[1.0, 0.5]]))
        tensor(1.)
    """
    _check_same_size(student, teacher)
    if weight.shape != (teacher.shape[1], student.shape[1]):
        raise UserError(
            f"The FitNet adapter maps {weight.shape[1]} to {weight.shape[0]} channels, but student "
            f"and teacher have {student.shape[1]} and {teacher.shape[1]}: correct its channels."
        )
    with torch.autocast(student.device.type, enabled=False):
        student = _at_least_float32(student)
        adapted = weight.to(student.dtype) @ student.reshape(*student.shape[:2], -1)
        return _mean_squares(adapted, teacher.detach().reshape(adapted.shape).to(student.dtype))


class FitNet(DistillationLoss):
    """`fitnet_loss` summed over layers, each with a linear adapter of its own.

    The adapters exist from construction, so the optimiser finds them among the parameters. (The
    released script makes them after its optimiser and never trains them: ``trainable=False``.)

    Args:
        student_channels: channels by layer; the layer ``embedding`` is the final embedding.
        teacher_channels: the teacher's channels of the same layers.
        trainable: whether the adapters learn.
        init_range: the weights start uniform in +- this.

    Raises:
        UserError: no layers, or layers of which only one network's channels are given.

    Example:
        >>> loss = FitNet({"embedding": 2}, {"embedding": 3})
        >>> loss.adapters[0].shape
        torch.Size([3, 2])
    """

    def __init__(
        self,
        student_channels: Mapping[str, Count],
        teacher_channels: Mapping[str, Count],
        trainable: bool = True,
        init_range: NonNegative = 0.005,
    ) -> None:
        super().__init__()
        unpaired = sorted(set(student_channels) ^ set(teacher_channels))
        if unpaired or not student_channels:
            raise UserError(
                f"FitNet needs the channels of the same layers of both networks; "
                f"{', '.join(unpaired) or 'all'} are missing."
            )
        self.layers = tuple(student_channels)
        self.needs = self._reads(self.layers)
        self.adapters = nn.ParameterList(
            nn.Parameter(
                torch.empty(teacher_channels[name], channels).uniform_(-init_range, init_range),
                requires_grad=trainable,
            )
            for name, channels in student_channels.items()
        )

    @classmethod
    def declares(cls, settings: Mapping[str, Any]) -> Declared:
        """Feature maps, if a layer is not the final embedding."""
        return Declared(cls._reads(settings.get("student_channels") or ()), cls.gives)

    @staticmethod
    def _reads(layers: Iterable[str]) -> frozenset[str]:
        return frozenset({"maps"} if any(name != EMBEDDING for name in layers) else ())

    def forward(self, student: Features, teacher: Features, labels: Tensor | None = None) -> Tensor:
        """The sum over layers; labels are not read."""
        return torch.stack(
            [
                fitnet_loss(student.layer(name), teacher.layer(name), weight)
                for name, weight in zip(self.layers, self.adapters, strict=True)
            ]
        ).sum()


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _mean_squares(a: Tensor, b: Tensor) -> Tensor:
    """Mean squared difference; 0, not NaN, for an empty batch."""
    return F.mse_loss(a, b, reduction="sum") / max(1, a.numel())


def _attention(maps: Tensor) -> Tensor:
    return F.normalize(_at_least_float32(maps).square().mean(dim=1).flatten(1))


def _check_same_size(student: Tensor, teacher: Tensor) -> None:
    """The positions of both networks' maps must correspond."""
    if student.shape[2:] != teacher.shape[2:]:
        raise UserError(
            f"Feature maps of student and teacher differ in size: "
            f"{' x '.join(map(str, student.shape[2:]))} and "
            f"{' x '.join(map(str, teacher.shape[2:]))}; compare layers of equal resolution."
        )
