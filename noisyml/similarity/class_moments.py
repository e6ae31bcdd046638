"""Count, mean and diagonal variance of every class over a stream of blocks, in one pass.

Blocks are merged pairwise in float64 (Chan, Golub and LeVeque, "Updating Formulae and a Pairwise
Algorithm for Computing Sample Variances", COMPSTAT 1982, eq. 2.1), so a variance that is small
against the square of its mean survives, and shards of any size (also empty ones) join to what one
process would have found.
"""

from __future__ import annotations

import torch
from torch import Tensor

from noisyml.checks import Count, checked
from noisyml.distributed import all_reduce_sum
from noisyml.errors import UserError


@checked
class ClassMoments:
    """Running moments of `num_classes` classes of `dim`-dimensional rows.

    A block of n rows costs O(n D), whatever the number of classes: only classes that occur in it
    are touched. On a CPU the sums have a fixed order; CUDA's index_add has one under
    ``torch.use_deterministic_algorithms(True)``.

    Args:
        num_classes: C, at least 1; labels lie in ``0 .. C - 1``.
        dim: D, at least 1.
        device: where the moments are kept; blocks are brought there.

    Attributes:
        counts: [C] int64, rows seen.
        means: [C, D] float64, zero for a class without rows.
        squares: [C, D] float64, sum of squared deviations from the mean.

    Example:
        >>> moments = ClassMoments(num_classes=2, dim=1)
        >>> moments.update(torch.tensor([[1.0], [3.0], [5.0]]), torch.tensor([0, 0, 1]))
        >>> moments.means.tolist(), moments.variances().tolist()
        ([[2.0], [5.0]], [[1.0], [0.0]])
    """

    def __init__(
        self, num_classes: Count, dim: Count, device: torch.device | str | None = None
    ) -> None:
        self.counts = torch.zeros(num_classes, dtype=torch.int64, device=device)
        self.means = torch.zeros(num_classes, dim, dtype=torch.float64, device=device)
        self.squares = torch.zeros(num_classes, dim, dtype=torch.float64, device=device)

    @torch.no_grad()
    def update(self, rows: Tensor, labels: Tensor) -> None:
        """Take in one block.

        Args:
            rows: [n, D] float; n may be 0.
            labels: [n] int64.

        Raises:
            ValueError: shapes that do not fit.
            UserError: a label outside ``0 .. C - 1``, or NaN or infinite rows.
        """
        num_classes, dim = self.means.shape
        if rows.ndim != 2 or rows.shape[1] != dim or labels.shape != rows.shape[:1]:
            raise ValueError(
                f"rows {tuple(rows.shape)} and labels {tuple(labels.shape)} must be [n, {dim}] "
                "and [n]"
            )
        if len(rows) == 0:
            return
        rows = rows.to(self.means.device, torch.float64)
        present, member = labels.to(self.means.device).unique(return_inverse=True)
        if int(present[0]) < 0 or int(present[-1]) >= num_classes:
            wrong = int(present[0]) if int(present[0]) < 0 else int(present[-1])
            raise UserError(
                f"The label {wrong} is outside 0..{num_classes - 1}, so its class has no "
                "statistics; correct the labels or the number of classes."
            )
        counts = torch.bincount(member, minlength=len(present))
        means = rows.new_zeros(len(present), dim).index_add_(0, member, rows)
        means /= counts[:, None]
        if not bool(means.isfinite().all()):
            row = int((~rows.isfinite().all(1)).nonzero().flatten()[0])
            raise UserError(
                f"Row {row} of a block of class statistics holds NaN or infinite values; look for "
                "a diverged loss or lower the learning rate."
            )
        squares = torch.zeros_like(means).index_add_(0, member, (rows - means[member]).square_())
        self._merge_rows(present, counts, means, squares)

    def merge(self, other: ClassMoments) -> None:
        """Take in everything that `other` has seen.

        Raises:
            ValueError: `other` has another number of classes or dimensions.
        """
        if other.means.shape != self.means.shape:
            raise ValueError(
                f"moments of shape {tuple(other.means.shape)} cannot join moments of shape "
                f"{tuple(self.means.shape)}"
            )
        device = self.means.device
        present = other.counts.nonzero().flatten()
        self._merge_rows(
            present.to(device),
            other.counts[present].to(device),
            other.means[present].to(device),
            other.squares[present].to(device),
        )

    def _merge_rows(self, present: Tensor, counts: Tensor, means: Tensor, squares: Tensor) -> None:
        """Chan's merge for the classes `present`, each with at least one new row."""
        old_counts = self.counts[present]
        total = old_counts + counts
        share = (counts / total.to(torch.float64))[:, None]
        shift = means - self.means[present]
        self.counts[present] = total
        self.squares[present] += squares + shift.square() * share * old_counts[:, None]
        self.means[present] += shift * share

    def all_reduced(self) -> ClassMoments:
        """The moments over all ranks' rows, the same on every rank; a collective call.

        In a single process: a copy. Communication: C (2 D + 1) numbers of 8 bytes.
        """
        num_classes, dim = self.means.shape
        joined = ClassMoments(num_classes, dim, self.means.device)
        joined.counts = all_reduce_sum(self.counts).clone()
        held = self.counts[:, None].to(torch.float64)
        total = joined.counts[:, None].clamp(min=1).to(torch.float64)
        # A weighted sum of the ranks' means has no cancellation; its rounding enters the squared
        # deviations only to second order.
        joined.means = all_reduce_sum(self.means * (held / total))
        deviation = (self.means - joined.means).square_() * held
        joined.squares = all_reduce_sum(self.squares + deviation)
        return joined

    def variances(self, correction: int = 0) -> Tensor:
        """Diagonal variances [C, D] float64, zero for classes of `correction` rows or fewer.

        Args:
            correction: 0 for the population variance, 1 for the unbiased one.
        """
        freedom = (self.counts - correction)[:, None]
        return torch.where(freedom > 0, self.squares / freedom.clamp(min=1), 0.0)
