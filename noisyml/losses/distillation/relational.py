"""Losses that hand on the geometry of a teacher's embedding space, not its single outputs.

Park et al., "Relational Knowledge Distillation", CVPR 2019 (arXiv 1904.05068), and, as a baseline
of theirs, the hard form of Chen et al., "DarkRank", AAAI 2018 (arXiv 1707.01220), both with the
constants of the released RKD code. None of them reads labels.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from noisyml.checks import Count, Ge, NonNegative
from noisyml.losses.distillation.classical import DistillationLoss, Features
from noisyml.losses.metric_learning.distances import centred, pair_distances
from noisyml.losses.second_order import KnownGradient

#: Tuples the mean runs over: all indices, repeated ones included (they add 0), or distinct ones.
Tuples = Literal["all", "distinct"]
#: Rows among which triples are formed.
Group = Annotated[int, Ge(3)]


def rkd_distance(student: Tensor, teacher: Tensor, *, tuples: Tuples = "all") -> Tensor:
    """RKD-D: Huber loss between the networks' pair distances, each divided by its batch's mean.

    A batch of which all students coincide has no gradient.

    Args:
        student: [N, D_s] float, not to be normalised; computed in float64.
        teacher: [N, D_t] float, a constant.
        tuples: mean over ``all`` N^2 pairs (released code) or the N(N-1) ``distinct`` ones.

    Returns:
        Scalar (arXiv 1904.05068, eq. 5 to 7, as a mean).

    Example:
        >>> student = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]])
        >>> rkd_distance(student, 2 * student)  # the scale does not matter
        tensor(0.)
        >>> rkd_distance(student, torch.tensor([[0.0], [1.0], [2.0]]))
        tensor(0.0556)
    """
    n = len(student)
    psi_student, psi_teacher = (_relative_distances(x) for x in (student, teacher.detach()))
    cost = F.smooth_l1_loss(psi_student, psi_teacher, reduction="sum")
    pairs = n * n if tuples == "all" else n * (n - 1)
    return _as_loss(cost / max(1, pairs), student)


def rkd_angle(
    student: Tensor,
    teacher: Tensor,
    *,
    tuples: Tuples = "all",
    eps: float = 1e-6,
    group_size: int | None = None,
    block_bytes: int = 2**22,
) -> Tensor:
    """RKD-A: Huber loss between the cosines of the networks' angles at every vertex.

    The cosine at vertex i is (G_jk - G_ij - G_ik + G_ii) / (d_ij d_ik) of the Gram matrix G: O(N^2
    D + N^3) time, and memory for a block of vertices. Value and gradient are found in one pass; a
    graph of the gradient (``create_graph=True``) holds all N^3 cosines.

    Args:
        student: [N, D_s] float, not to be normalised; computed in float64, for the Gram form
            cancels.
        teacher: [N, D_t] float, a constant.
        tuples: mean over ``all`` N^3 triples (released code) or the N(N-1)(N-2) ``distinct`` ones.
        eps: rows closer than this share of the batch's radius have no direction to each other:
            such a cosine is 0 and has no gradient. (In the released code the gradient of equal
            rows is of the order 1e9.)
        group_size: triples only among this many neighbours in the batch, as when every process
            looks at its own share; None: among the whole batch.
        block_bytes: bound on the cosines of one network held at a time, in bytes; at least one
            vertex, N^2 of them, is held.

    Returns:
        Scalar (arXiv 1904.05068, eq. 8 and 9, as a mean).

    Example:
        >>> student = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]])
        >>> rkd_angle(student, 2 * student).abs().round(decimals=4)
        tensor(0.)
        >>> rkd_angle(student, torch.tensor([[0.0, 0.0], [1.0, 0.0], [2.0, 0.0]])).round(decimals=4)
        tensor(0.1200)
    """
    costs, slopes, triples = [], [], 0
    with torch.no_grad(), torch.autocast(student.device.type, enabled=False):
        size = max(1, len(student) if group_size is None else group_size)
        for xs, xt in zip(student.split(size), teacher.split(size), strict=True):
            cost, slope = _angle_cost(xs, xt, tuples == "distinct", eps, block_bytes)
            costs.append(cost)
            slopes.append(slope)
            n = len(xs)
            triples += n**3 if tuples == "all" else n * (n - 1) * (n - 2)
        share = 1 / max(1, triples)
        value = torch.stack(costs).sum() * share
        gradient = (torch.cat(slopes) * share).to(student.dtype)
    plain = partial(
        _plain_angle_loss, teacher=teacher.detach(), size=size, tuples=tuples, eps=eps, share=share
    )
    loss: Tensor = KnownGradient.apply(student, _as_loss(value, student), gradient, plain)
    return loss


def rkd_angles(points: Tensor, *, eps: float = 1e-6) -> Tensor:
    """Cosine of the angle j-i-k at every vertex i: the relation that `rkd_angle` compares.

    Args:
        points: [N, D] float, not to be normalised; computed in float64.
        eps: see `rkd_angle`.

    Returns:
        [N, N, N] float64 by vertex and both ends; 0 where an end coincides with the vertex.

    Example:
        >>> rkd_angles(torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]])).round(decimals=2)[1]
        tensor([[1.0000, 0.0000, 0.6000],
                [0.0000, 0.0000, 0.0000],
                [0.6000, 0.0000, 1.0000]], dtype=torch.float64)
    """
    with torch.autocast(points.device.type, enabled=False):
        _, gram, inverse = _gram_and_inverse_distances(points, eps)
        half = gram - gram.diagonal()[:, None] / 2
        cosine = gram - half[:, :, None] - half[:, None, :]
        return cosine * inverse[:, :, None] * inverse[:, None, :]


def hard_darkrank(
    student: Tensor,
    teacher: Tensor,
    *,
    alpha: float = 2.0,
    beta: float = 3.0,
    list_length: int = 4,
) -> Tensor:
    """Negative log-likelihood of the teacher's ranking of its nearest rows under the student.

    The score of a row is -alpha d^beta; the likelihood is that of Plackett and Luce, among the
    nearest rows alone.

    Args:
        student: [N, D_s] float; computed in float64.
        teacher: [N, D_t] float, a constant.
        alpha: scale of the scores.
        beta: power of the distance.
        list_length: nearest rows ranked; fewer where the batch has fewer.

    Returns:
        Scalar: the mean over the batch, 0 for fewer than two rows.

    Example:
        >>> student = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]])
        >>> hard_darkrank(student, torch.tensor([[0.0], [1.0], [2.0]]), alpha=0.1, beta=1.0)
        tensor(0.6623)
    """
    n = len(student)
    with torch.no_grad():
        distance = pair_distances(teacher).fill_diagonal_(torch.inf)
        nearest = distance.topk(max(0, min(list_length, n - 1)), largest=False).indices
    # Gathered first: the power of a pair that is not ranked needs no gradient.
    score = -alpha * pair_distances(student).gather(1, nearest).pow(beta)
    among_rest = score.flip(1).logcumsumexp(dim=1).flip(1)
    return _as_loss((among_rest - score).sum() / max(1, n), student)


class RKDDistance(DistillationLoss):
    """RKD-D on the final embeddings; see `rkd_distance`.

    Args:
        tuples: ``all`` or ``distinct``.

    Raises:
        ArgumentError: another choice of tuples.

    Example:
        >>> student = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]])
        >>> teacher = torch.tensor([[0.0], [1.0], [2.0]])
        >>> RKDDistance()(Features(student), Features(teacher))
        tensor(0.0556)
    """

    def __init__(self, tuples: Tuples = "all") -> None:
        super().__init__()
        self.tuples = tuples

    def forward(self, student: Features, teacher: Features, labels: Tensor | None = None) -> Tensor:
        """The loss of the embeddings; labels are not read."""
        return rkd_distance(student.need_embedding(), teacher.need_embedding(), tuples=self.tuples)


class RKDAngle(DistillationLoss):
    """RKD-A on the final embeddings; see `rkd_angle`.

    Args:
        tuples: ``all`` or ``distinct``.
        eps: share of the batch's radius below which two rows count as equal.
        group_size: rows among which triples are formed; None: the global batch.
        block_bytes: bound on the cosines held at a time, in bytes.

    Raises:
        ArgumentError: a value out of range.

    Example:
        >>> student = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]])
        >>> teacher = torch.tensor([[0.0], [1.0], [2.0]])
        >>> RKDAngle()(Features(student), Features(teacher)).round(decimals=4)
        tensor(0.1200)
    """

    def __init__(
        self,
        tuples: Tuples = "all",
        eps: NonNegative = 1e-6,
        group_size: Group | None = None,
        block_bytes: Count = 2**22,
    ) -> None:
        super().__init__()
        self.tuples = tuples
        self.eps = eps
        self.group_size = group_size
        self.block_bytes = block_bytes

    def forward(self, student: Features, teacher: Features, labels: Tensor | None = None) -> Tensor:
        """The loss of the embeddings; labels are not read."""
        return rkd_angle(
            student.need_embedding(),
            teacher.need_embedding(),
            tuples=self.tuples,
            eps=self.eps,
            group_size=self.group_size,
            block_bytes=self.block_bytes,
        )


class HardDarkRank(DistillationLoss):
    """Hard DarkRank on the final embeddings; see `hard_darkrank`.

    Args:
        alpha: scale of the scores. The class of the RKD code has 3, the script it is run by 2.
        beta: power of the distance.
        list_length: nearest rows ranked.

    Raises:
        ArgumentError: a list without rows.

    Example:
        >>> student = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]])
        >>> teacher = torch.tensor([[0.0], [1.0], [2.0]])
        >>> HardDarkRank(alpha=0.1, beta=1.0)(Features(student), Features(teacher))
        tensor(0.6623)
    """

    def __init__(self, alpha: float = 2.0, beta: float = 3.0, list_length: Count = 4) -> None:
        super().__init__()
        self.alpha = alpha
        self.beta = beta
        self.list_length = list_length

    def forward(self, student: Features, teacher: Features, labels: Tensor | None = None) -> Tensor:
        """The loss of the embeddings; labels are not read."""
        return hard_darkrank(
            student.need_embedding(),
            teacher.need_embedding(),
            alpha=self.alpha,
            beta=self.beta,
            list_length=self.list_length,
        )


def _relative_distances(points: Tensor) -> Tensor:
    """Pair distances [N, N] over their mean, the diagonal left out of the mean."""
    distances = pair_distances(points)
    n = len(points)
    mean = distances.sum() / max(1, n * (n - 1))
    # Only a batch of one has no distances; all others are at least 1e-6 apart.
    return distances / mean.clamp(min=torch.finfo(distances.dtype).tiny)


def _gram_and_inverse_distances(points: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Centred points [N, D], their Gram matrix and 1 / d_ij [N, N], 0 where d_ij counts as 0."""
    points = centred(points)
    gram = points @ points.T
    norms = gram.diagonal()
    squared = norms[:, None] + norms - 2 * gram
    apart = squared > eps**2 * norms.mean()
    apart = apart & ~torch.eye(len(points), dtype=torch.bool, device=points.device)
    # What is not apart is left out before the root, whose derivatives there are infinite.
    return points, gram, torch.where(apart, torch.where(apart, squared, 1.0).rsqrt(), 0.0)


def _angle_cost(
    student: Tensor, teacher: Tensor, distinct: bool, eps: float, block_bytes: int
) -> tuple[Tensor, Tensor]:
    """Sum of the Huber loss over all triples, and its gradient [N, D] at the students."""
    points, gram, inverse = _gram_and_inverse_distances(student, eps)
    _, teacher_gram, teacher_inverse = _gram_and_inverse_distances(teacher, eps)
    n = len(points)
    total = gram.new_zeros(())
    by_gram = torch.zeros_like(gram)  # derivative by G_jk, through all vertices i
    by_spoke = torch.zeros_like(gram)  # by -G_ij, through one of the two legs at i
    by_length = torch.zeros_like(gram)  # by -log d_ij, through one leg
    step = max(1, block_bytes // max(1, gram.element_size() * n * n))
    for start in range(0, n, step):
        vertices = slice(start, start + step)
        inv = inverse[vertices]
        cosine = _cosines(gram, inv, vertices)
        difference = cosine - _cosines(teacher_gram, teacher_inverse[vertices], vertices)
        if distinct:
            difference.diagonal(dim1=1, dim2=2).zero_()
        # Huber with delta 1: x^2/2 inside, |x| - 1/2 outside, is w x - w^2/2 with w its slope.
        slope = difference.clamp(-1, 1)
        total += torch.sum(slope * (difference - slope / 2))
        by_length[vertices] = torch.sum(cosine.mul_(slope), dim=2)
        by_spoke[vertices] = inv * torch.bmm(slope, inv[:, :, None]).squeeze(2)
        by_gram += slope.mul_(inv[:, :, None]).mul_(inv[:, None, :]).sum(dim=0)
    # d_ij^2 = G_ii + G_jj - 2 G_ij, and both legs of an angle contribute alike.
    by_squared = -inverse.square() * by_length
    by_gram += 2 * (-by_spoke - by_squared)
    on_diagonal = by_spoke.sum(dim=1) + by_squared.sum(dim=1) + by_squared.sum(dim=0)
    by_gram.diagonal().add_(on_diagonal)
    return total, (by_gram + by_gram.T) @ points


def _plain_angle_loss(
    student: Tensor, teacher: Tensor, size: int, tuples: Tuples, eps: float, share: float
) -> Tensor:
    """`rkd_angle` in operations that autograd can follow, with all cosines at once."""
    total = student.new_zeros((), dtype=torch.float64)
    for xs, xt in zip(student.split(size), teacher.split(size), strict=True):
        cost = F.smooth_l1_loss(rkd_angles(xs, eps=eps), rkd_angles(xt, eps=eps), reduction="none")
        if tuples == "distinct":
            same = torch.eye(len(xs), dtype=torch.bool, device=cost.device)
            cost = cost.masked_fill(same, 0.0)
        total = total + cost.sum()
    return _as_loss(total * share, student)


def _cosines(gram: Tensor, inverse: Tensor, vertices: slice) -> Tensor:
    """Cosines [b, N, N] of the angles j-i-k at the vertices i."""
    half = gram[vertices] - gram.diagonal()[vertices, None] / 2
    cosine = gram - half[:, :, None]
    return cosine.sub_(half[:, None, :]).mul_(inverse[:, :, None]).mul_(inverse[:, None, :])


def _as_loss(value: Tensor, student: Tensor) -> Tensor:
    """Back from float64 to the student's precision, float32 at least."""
    return value.to(torch.promote_types(student.dtype, torch.float32))
