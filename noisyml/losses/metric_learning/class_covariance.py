"""Mean and covariance of every class, corrected by its neighbours, and copies drawn from them.

Fu et al., "Intra-class Adaptive Augmentation with Neighbor Correction for Deep Metric Learning",
IEEE TMM 2022 (arXiv 2211.16264). Everything here lives in the space of *raw* embeddings, before
they are normalised; `noisyml.losses.metric_learning.iaa` shows how it is used.
"""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple

import torch
from torch import Tensor

from noisyml.checks import Checked, Count, Gt, NonNegative, Share, Unbounded, WholeNonNegative
from noisyml.errors import UserError
from noisyml.similarity.pinned_buffers import PinnedBuffers

#: Width of a kernel, infinite for none.
Width = Annotated[Unbounded, Gt(0)]
Covariance = Literal["diagonal", "full", "global", "identity"]
Correction = Literal["auto", "on", "off"]
KernelDistance = Literal["minmax", "raw", "released"]
Singletons = Literal["estimated", "untouched"]
SquareRoot = Literal["constant", "repeated"]

#: Value that the released code writes in place of the distance to a class that may be no neighbour.
_RELEASED_EXCLUDED = 1e12


class Neighbors(NamedTuple):
    """The classes that correct a class.

    Attributes:
        covariance: [C, A] or [C, A, A] float64, weighted mean over the neighbours; zero where a
            class has none.
        index: [C, K] int64 by increasing distance of the means, -1 where there are fewer than K.
        weights: [C, K] float64, not normalised, 0 where there is no neighbour.
    """

    covariance: Tensor
    index: Tensor  # type: ignore[assignment]  # hides tuple.index, which nobody needs here
    weights: Tensor


@torch.no_grad()
def neighbor_covariance(
    mean: Tensor,
    covariance: Tensor,
    size: Tensor,
    *,
    neighbors: int = 25,
    mean_sigma: float = 1.0,
    covariance_sigma: float = 1.0,
    kernel_distance: KernelDistance = "minmax",
    memory_budget_bytes: int = 2**28,
) -> Neighbors:
    """Mean covariance of the classes with the nearest means (arXiv 2211.16264, eq. 9 to 16).

    The distances are those of the elementwise squares of the means and of the covariances. A class
    is weighted by its size times exp(-d_mean^2 / 2 mean_sigma^2 - d_cov^2 / 2 covariance_sigma^2).
    The class itself and classes of fewer than two samples are no neighbours.

    Args:
        mean: [C, A] float64.
        covariance: [C, A] variances or [C, A, A], float64.
        size: [C], training samples of each class.
        neighbors: K; all admissible classes if there are fewer.
        mean_sigma: width of the kernel on means, infinite for none.
        covariance_sigma: width of the kernel on covariances, infinite for none.
        kernel_distance: distances that the kernel sees. ``minmax``: mapped to [0, 1] over the
            admissible classes of the row; ``raw``: as they are (paper); ``released``: the mapping
            of the code, whose stand-in of 1e12 for inadmissible classes makes all mean distances 0
            and whose range of covariance distances includes the class itself.
        memory_budget_bytes: aim of the working memory; rows are taken in blocks.

    Example:
        >>> mean = torch.tensor([[0.0], [1.0], [5.0]]).double()
        >>> variance = torch.tensor([[1.0], [2.0], [3.0]]).double()
        >>> size = torch.tensor([4, 4, 4])
        >>> neighbor_covariance(mean, variance, size, neighbors=1).index
        tensor([[1],
                [0],
                [1]])
    """
    num_classes = len(mean)
    admissible = size > 1
    neighbors = min(neighbors, num_classes)
    squares, spreads = mean.square(), covariance.flatten(1)
    # A common shift leaves distances alone and keeps their cancellation small.
    squares = squares - squares[admissible].mean(dim=0).nan_to_num()
    spreads = spreads - spreads[admissible].mean(dim=0).nan_to_num()
    weighted = covariance.flatten(1)

    means = torch.empty_like(weighted)
    index = size.new_empty((num_classes, neighbors), dtype=torch.int64)
    weights = mean.new_empty((num_classes, neighbors))
    row_bytes = mean.element_size() * (8 * num_classes + 2 * neighbors * weighted.shape[1])
    rows = max(1, memory_budget_bytes // max(1, row_bytes))
    for start in range(0, num_classes, rows):
        block = slice(start, start + rows)
        own = torch.arange(num_classes, device=mean.device)[block, None]
        allowed = admissible & (own != torch.arange(num_classes, device=mean.device))
        by_mean = _distances(squares, block)
        by_spread = _distances(spreads, block)
        nearest, index[block] = by_mean.masked_fill(~allowed, torch.inf).topk(
            neighbors, dim=1, largest=False
        )
        found = nearest.isfinite()
        if kernel_distance == "released":
            by_mean = by_mean.masked_fill(~allowed, _RELEASED_EXCLUDED)
            everything = torch.ones_like(allowed)
            by_mean, by_spread = _to_unit(by_mean, everything), _to_unit(by_spread, everything)
        elif kernel_distance == "minmax":
            by_mean, by_spread = _to_unit(by_mean, allowed), _to_unit(by_spread, allowed)
        exponent = (by_mean.gather(1, index[block]) / mean_sigma).square()
        exponent += (by_spread.gather(1, index[block]) / covariance_sigma).square()
        # The common factor cancels in the mean; taking it out of the exponents keeps the weights
        # of distant classes from vanishing all together.
        exponent = exponent.masked_fill(~found, torch.inf)
        nearness = (exponent.amin(dim=1, keepdim=True).nan_to_num(posinf=0.0) - exponent) / 2
        sizes = size[index[block]].to(mean.dtype)
        share = sizes * nearness.exp()
        share = share / share.sum(dim=1, keepdim=True).clamp(min=1.0)
        means[block] = torch.bmm(share[:, None], weighted[index[block]])[:, 0]
        weights[block] = sizes * (-exponent / 2).exp()
        index[block] = index[block].masked_fill(~found, -1)
    return Neighbors(means.view_as(covariance), index, weights)


def correction_weight(
    size: Tensor, *, beta: float = 0.1, tau: int = 40, tau_inclusive: bool = True
) -> Tensor:
    """Share of the neighbours in the covariance of a class: 1 for a single sample, 0 above tau.

    Args:
        size: [C], training samples of each class.
        beta: how fast the weight falls with the size, not negative.
        tau: largest size that is corrected.
        tau_inclusive: a class of exactly `tau` samples is corrected (paper; the code: not).

    Returns:
        alpha [C] float64 in [0, 1].

    Example:
        >>> correction_weight(torch.tensor([1, 10, 41])).round(decimals=4)
        tensor([1.0000, 0.6091, 0.0000], dtype=torch.float64)
    """
    size = size.to(torch.float64)
    alpha = 1 / (1 + torch.log1p(beta * (size - 1).clamp(min=0)))
    small = size <= tau if tau_inclusive else size < tau
    return torch.where(small, alpha, 0.0)


class ClassCovariance(Checked, PinnedBuffers):
    """Running mean and covariance of every class, the neighbour correction, and the copies.

    Memory: [C, A] float64 for ``diagonal``, twice that with the correction; [C, A, A], two or three
    times, for ``full``.

    Args:
        num_classes: C.
        embedding_size: A.
        covariance: ``diagonal`` variances per class (paper), ``full`` matrices per class, one
            ``global`` diagonal for all, or the ``identity`` (ablations of Table IX).
        momentum: share of the old statistics that an update keeps at most, in [0, 1].
        neighbor_correction: ``on``, ``off`` (what the released synthesis amounts to), or ``auto``:
            on if classes have `tau` samples or fewer on average, as in all data sets that the
            paper corrects and in none of the others. Only for ``diagonal`` and ``full``. True and
            False, as which YAML reads a bare on and off, mean the same.
        neighbors: K, neighbours of a class.
        beta: how fast the correction fades with the size of a class.
        gamma: share of the global covariance in the correction, in [0, 1].
        tau: largest class that is corrected, in samples.
        tau_inclusive: correct a class of exactly `tau` samples (paper); the released code does not.
        mean_sigma: s_m, width of the kernel on distances of means.
        covariance_sigma: s_cv, width of the kernel on distances of covariances.
        kernel_distance: ``minmax``, ``raw`` (paper) or ``released``, see `neighbor_covariance`.
        singletons: ``estimated``: a class with one sample in an update takes its mean and its
            variance of 0 like any other; ``untouched``: it keeps mean and covariance (released
            code of the data sets with more than 1000 classes).
        square_root: ``constant``: every copy has the class's standard deviation; ``repeated``: copy
            m has the covariance to the power 2^-m (a defect of the released code).
        memory_budget_bytes: aim of the working memory beyond the statistics.

    Attributes:
        mean: [C, A] float64.
        covariance: [C, A] or [C, A, A] float64, before the correction.
        count: [C] float64, samples over all updates.
        class_size: [C] float64, samples in the last update that had any of the class.
        global_covariance: [A] or [A, A] float64, over classes of two samples or more.
        neighbor_covariance: as `covariance`; no rows with ``neighbor_correction=off``.
        correction_weight: alpha [C] float64; 0 where the correction is off.
        root: [C, A, A] float64, symmetric root of the covariance in use; no rows unless ``full``.

    Raises:
        ArgumentError: a value out of range.
        UserError: settings that do not go together.

    Example:
        >>> statistics = ClassCovariance(num_classes=2, embedding_size=1)
        >>> count, mean = torch.tensor([5, 5]), torch.tensor([[0.0], [1.0]])
        >>> statistics.update(count, mean, torch.tensor([[0.04], [0.09]]))
        >>> rows, labels = torch.zeros(2, 1), torch.tensor([0, 1])
        >>> statistics.synthesise(rows, labels, copies=3, strength=0.8).shape
        torch.Size([3, 2, 1])
    """

    mean: Tensor
    covariance: Tensor
    count: Tensor
    class_size: Tensor
    global_covariance: Tensor
    neighbor_covariance: Tensor
    correction_weight: Tensor
    root: Tensor

    def __init__(
        self,
        num_classes: Count,
        embedding_size: Count,
        covariance: Covariance = "diagonal",
        momentum: Share = 0.2,
        neighbor_correction: Correction | bool = "auto",
        neighbors: Count = 25,
        beta: NonNegative = 0.1,
        gamma: Share = 0.1,
        tau: WholeNonNegative = 40,
        tau_inclusive: bool = True,
        mean_sigma: Width = 1.0,
        covariance_sigma: Width = 1.0,
        kernel_distance: KernelDistance = "minmax",
        singletons: Singletons = "estimated",
        square_root: SquareRoot = "constant",
        memory_budget_bytes: Count = 2**28,
    ) -> None:
        super().__init__()
        if isinstance(neighbor_correction, bool):
            neighbor_correction = "on" if neighbor_correction else "off"
        per_class = covariance in ("diagonal", "full")
        if neighbor_correction == "on" and not per_class:
            raise UserError(
                f"covariance={covariance} of the augmentation is the same for all classes, so "
                "neighbours cannot correct it: use neighbor_correction=auto or off."
            )
        if square_root == "repeated" and covariance == "full":
            raise UserError(
                "square_root=repeated of the augmentation exists for variances only: use "
                "covariance=diagonal or square_root=constant."
            )
        self.kind: Covariance = covariance
        self.momentum = momentum
        self.neighbor_correction: Correction = neighbor_correction if per_class else "off"
        self.neighbors = neighbors
        self.beta = beta
        self.gamma = gamma
        self.tau = tau
        self.tau_inclusive = tau_inclusive
        self.mean_sigma = mean_sigma
        self.covariance_sigma = covariance_sigma
        self.kernel_distance: KernelDistance = kernel_distance
        self.singletons: Singletons = singletons
        self.square_root: SquareRoot = square_root
        self.memory_budget_bytes = memory_budget_bytes

        shape = (embedding_size,) * (2 if covariance == "full" else 1)
        corrected = num_classes if self.neighbor_correction != "off" else 0
        rooted = num_classes if covariance == "full" else 0
        for name, size in (
            ("mean", (num_classes, embedding_size)),
            ("covariance", (num_classes, *shape)),
            ("count", (num_classes,)),
            ("class_size", (num_classes,)),
            ("global_covariance", shape),
            ("neighbor_covariance", (corrected, *shape)),
            ("correction_weight", (num_classes,)),
            ("root", (rooted, *shape)),
        ):
            self.register_buffer(name, torch.zeros(size, dtype=torch.float64))
        self._measured = not self.needs_pass

    @property
    def needs_pass(self) -> bool:
        """False if the copies depend on no statistics, so that no pass is worth its time."""
        return self.kind != "identity"

    @torch.no_grad()
    def update(self, count: Tensor, mean: Tensor, covariance: Tensor) -> None:
        """Take in the moments of one pass over the training set.

        With w = max(n_new / (n_old + n_new), 1 - momentum), the covariance becomes
        (1 - w) old + w new + w (1 - w) (difference of means)^2, the mean (1 - w) old + w new. A
        class without samples does not move.

        Args:
            count: [C], samples of each class in the pass, of all ranks.
            mean: [C, A] float, means of the raw embeddings.
            covariance: population variances [C, A], or covariances [C, A, A] where ``full`` (see
                `full_class_moments`).

        Raises:
            UserError: no class has two samples, or statistics that are not finite.
            ValueError: shapes that do not fit.
        """
        if not (
            count.shape == self.count.shape
            and mean.shape == self.mean.shape
            and covariance.shape == self.covariance.shape
        ):
            raise ValueError(
                f"count {tuple(count.shape)}, mean {tuple(mean.shape)} and covariance "
                f"{tuple(covariance.shape)} must be {tuple(self.count.shape)}, "
                f"{tuple(self.mean.shape)} and {tuple(self.covariance.shape)}"
            )
        count, mean, covariance = (x.to(self.mean) for x in (count, mean, covariance))
        if not bool((count > 1).any()):
            raise UserError(
                "No class has two samples to estimate a spread from: use fewer classes or a "
                "method without intra-class augmentation."
            )
        if not bool(mean.isfinite().all() & covariance.isfinite().all()):
            raise UserError(
                "The statistics of the classes hold NaN or infinite values; look for a diverged "
                "loss or lower the learning rate."
            )
        total = self.count + count
        new = torch.maximum(count / total.clamp(min=1), torch.full_like(count, 1 - self.momentum))
        new = torch.where(count > (1 if self.singletons == "untouched" else 0), new, 0.0)
        self.class_size.copy_(torch.where(count > 0, count, self.class_size))
        self.count.copy_(total)

        difference = self.mean - mean
        share = new.view(-1, *(1,) * (covariance.ndim - 1))
        self.covariance.mul_(1 - share).add_(share * covariance)
        between = difference.square() if self.kind != "full" else _outer(difference)
        self.covariance.add_(between.mul_(share * (1 - share)))
        self.mean.sub_(new[:, None] * difference)
        self._correct()
        self._measured = True

    def covariance_of(self, labels: Tensor) -> Tensor:
        """The covariance the copies of each sample have at strength 1.

        Args:
            labels: [B] int64.

        Returns:
            [B, A] variances, or [B, A, A] where ``full``; float64.
        """
        if self.kind == "identity":
            return torch.ones_like(self.mean[labels])
        if self.kind == "global":
            return self.global_covariance.expand(len(labels), -1)
        own = self.covariance[labels]
        if self.neighbor_correction == "off":
            return own
        alpha = self.correction_weight[labels].view(-1, *(1,) * (own.ndim - 1))
        others = torch.lerp(self.neighbor_covariance[labels], self.global_covariance, self.gamma)
        return (1 - alpha) * own + alpha * others

    def synthesise(
        self,
        raw: Tensor,
        labels: Tensor,
        *,
        copies: int,
        strength: float,
        generator: torch.Generator | None = None,
        noise: Tensor | None = None,
    ) -> Tensor:
        """Copies [M, B, A] of embeddings, float32 at least: the embeddings plus `shifts`.

        The gradient of a copy flows into the embedding that it is a copy of.

        Args:
            raw, labels, copies, strength, generator, noise: see `shifts`.

        Raises:
            ValueError: see `shifts`.
        """
        shifts = self.shifts(
            raw, labels, copies=copies, strength=strength, generator=generator, noise=noise
        )
        return raw.to(shifts.dtype) + shifts

    def shifts(
        self,
        raw: Tensor,
        labels: Tensor,
        *,
        copies: int,
        strength: float,
        generator: torch.Generator | None = None,
        noise: Tensor | None = None,
    ) -> Tensor:
        """Noise of the covariance of their class, which makes copies of embeddings.

        Args:
            raw: [B, A] float, before normalisation; its shape, type and place count.
            labels: [B] int64.
            copies: M.
            strength: lambda, multiplies the covariance; not negative.
            generator: of the noise, on any device; None: the global one.
            noise: [M, B, A] standard normal draws in place of `generator`.

        Returns:
            [M, B, A], float32 at least, without gradient; a copy is the embedding plus its shift.

        Raises:
            ValueError: no update came before, or shapes that do not fit.
        """
        if not self._measured:
            # Asked once: a loaded checkpoint may bring the statistics.
            self._measured = bool(self.count.any())
            if not self._measured:
                raise ValueError("shifts need the statistics of an update")
        dtype = torch.promote_types(raw.dtype, torch.float32)
        if noise is None:
            device = raw.device if generator is None else generator.device
            noise = torch.randn(
                (copies, *raw.shape), generator=generator, dtype=dtype, device=device
            )
        if noise.shape != (copies, *raw.shape):
            raise ValueError(f"noise {tuple(noise.shape)} for {copies} copies of {len(raw)} rows")
        noise = noise.to(raw.device, dtype)
        with torch.no_grad(), torch.autocast(raw.device.type, enabled=False):
            return self._coloured(noise, labels).mul_(strength**0.5)

    def _coloured(self, noise: Tensor, labels: Tensor) -> Tensor:
        """Noise [M, B, A] with the covariance of each sample's class."""
        if self.kind == "full":
            shift = torch.empty_like(noise)
            width = self.mean.shape[1]
            rows = max(1, self.memory_budget_bytes // (3 * self.root.element_size() * width**2))
            for start in range(0, len(labels), rows):
                block = slice(start, start + rows)
                roots = self.root[labels[block]].to(noise.dtype)
                shift[:, block] = torch.einsum("bij,mbj->mbi", roots, noise[:, block])
            return shift
        deviation = self.covariance_of(labels).sqrt()
        if self.square_root == "constant":
            return noise * deviation.to(noise.dtype)
        halvings = 0.5 ** torch.arange(len(noise), device=noise.device)
        powers = deviation ** halvings.to(deviation.dtype)[:, None, None]
        return noise * powers.to(noise.dtype)

    def _correct(self) -> None:
        """Refresh what follows from the statistics: global and neighbour covariance, roots."""
        known = torch.where(self.class_size > 1, self.class_size, 0.0)
        flat = self.covariance.flatten(1)
        overall = (known / known.sum()) @ flat
        self.global_covariance.copy_(overall.view_as(self.global_covariance))

        present = self.class_size > 0
        few = bool(self.class_size[present].mean() <= self.tau)
        if self.neighbor_correction == "on" or (self.neighbor_correction == "auto" and few):
            found = neighbor_covariance(
                self.mean,
                self.covariance,
                self.class_size,
                neighbors=self.neighbors,
                mean_sigma=self.mean_sigma,
                covariance_sigma=self.covariance_sigma,
                kernel_distance=self.kernel_distance,
                memory_budget_bytes=self.memory_budget_bytes,
            )
            # A class never seen has no place among the others, the only one of two samples or more
            # no others: both take the global covariance.
            lost = ~present | (found.index < 0).all(dim=1)
            lost = lost.view(-1, *(1,) * (self.covariance.ndim - 1))
            self.neighbor_covariance.copy_(
                torch.where(lost, self.global_covariance, found.covariance)
            )
            self.correction_weight.copy_(
                correction_weight(
                    self.class_size,
                    beta=self.beta,
                    tau=self.tau,
                    tau_inclusive=self.tau_inclusive,
                )
            )
        else:
            self.correction_weight.zero_()
        if self.kind == "full":
            rows = max(1, self.memory_budget_bytes // (6 * flat[0].nbytes))
            for start in range(0, len(self.root), rows):
                labels = torch.arange(start, min(start + rows, len(self.root)), device=flat.device)
                self.root[labels] = _symmetric_root(self.covariance_of(labels))


@torch.no_grad()
def full_class_moments(
    rows: Tensor, labels: Tensor, num_classes: int, *, memory_budget_bytes: int = 2**28
) -> tuple[Tensor, Tensor, Tensor]:
    """Count, mean and full population covariance of every class; for ``covariance=full``.

    Args:
        rows: [N, A] float, of all ranks.
        labels: [N] int64, ``0 .. C - 1``.
        num_classes: C.
        memory_budget_bytes: aim of the working memory beyond the result.

    Returns:
        [C], [C, A] and [C, A, A], float64; zero for a class without rows.

    Example:
        >>> rows, labels = torch.tensor([[0.0], [2.0], [5.0]]), torch.tensor([0, 0, 1])
        >>> count, mean, covariance = full_class_moments(rows, labels, num_classes=2)
        >>> covariance.flatten()
        tensor([1., 0.], dtype=torch.float64)
    """
    rows = rows.to(torch.float64)
    width = rows.shape[1]
    count = torch.bincount(labels, minlength=num_classes).to(torch.float64)
    size = count.clamp(min=1)
    mean = rows.new_zeros(num_classes, width).index_add_(0, labels, rows) / size[:, None]
    scatter = rows.new_zeros(num_classes, width, width)
    step = max(1, memory_budget_bytes // (2 * rows.element_size() * width**2))
    for start in range(0, len(rows), step):
        block = slice(start, start + step)
        scatter.index_add_(0, labels[block], _outer(rows[block] - mean[labels[block]]))
    return count, mean, scatter.div_(size[:, None, None])


def _outer(x: Tensor) -> Tensor:
    """Outer products [n, A, A] of the rows of `x` [n, A] with themselves."""
    return x[:, :, None] * x[:, None, :]


def _distances(x: Tensor, block: slice) -> Tensor:
    """Euclidean distances [b, C] of the rows `block` of `x` [C, F] to all rows, 0 to themselves."""
    norms = x.square().sum(dim=1)
    squared = torch.addmm(norms[block, None] + norms, x[block], x.T, alpha=-2)
    own = torch.arange(len(x), device=x.device)[block]
    squared[torch.arange(len(own), device=x.device), own] = 0.0
    return squared.clamp_(min=0).sqrt_()


def _to_unit(distance: Tensor, mask: Tensor) -> Tensor:
    """Distances [b, C] mapped to [0, 1] over the mask of each row; 0 in a row of one value."""
    low = distance.masked_fill(~mask, torch.inf).amin(dim=1, keepdim=True)
    high = distance.masked_fill(~mask, -torch.inf).amax(dim=1, keepdim=True)
    span = high - low
    return torch.where(span > 0, (distance - low) / span, 0.0)


def _symmetric_root(covariance: Tensor) -> Tensor:
    """Symmetric roots [n, A, A] of positive semi-definite matrices, also singular ones."""
    values, vectors = torch.linalg.eigh(covariance)
    return (vectors * values.clamp(min=0).sqrt()[:, None, :]) @ vectors.mT
