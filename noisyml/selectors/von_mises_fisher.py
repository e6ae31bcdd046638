"""Von Mises-Fisher densities on the unit sphere: normaliser, concentration, class posterior.

The density of a unit vector x in R^D is ``C_D(kappa) exp(kappa mu.x)`` with
``C_D(kappa) = kappa^v / ((2 pi)^(D/2) I_v(kappa))`` and ``v = D/2 - 1`` (Mardia and Jupp,
"Directional Statistics", 2000, section 9.3). Everything here is float64 and runs on any device.
"""

from __future__ import annotations

import math
from fractions import Fraction
from functools import cache
from typing import Literal

import torch
from torch import Tensor

from noisyml.checks import Count, Positive, WholeNonNegative, checked

#: A class without rows: left out, or as likely as the uniform density.
Absent = Literal["exclude", "uniform"]
#: Of the classes: equal, or their share of the rows.
Prior = Literal["uniform", "empirical"]

#: From this order upwards 8 terms of the uniform expansion are exact to about 1e-13.
_MIN_ORDER = 40
_TERMS = 8


@cache
def _debye_polynomials() -> tuple[list[list[Fraction]], list[list[Fraction]]]:
    """Coefficients in p, lowest power first, of the expansions of I_v and of its derivative.

    First ``U_k``, k = 0 .. K, by the recursion DLMF 10.41.9. Second ``W_k``, k = 0 .. K, with
    ``V_k = U_k - (1 - p^2) W_k`` for the ``V_k`` of I'_v: ``W_k = p U_{k-1} / 2 + p^2 U'_{k-1}``
    (DLMF 10.41.11), ``W_0 = 0``.
    """
    u = [[Fraction(1)]]
    w = [[Fraction(0)]]
    for _ in range(_TERMS):
        last = u[-1]
        following = [Fraction(0)] * (len(last) + 3)
        slope = [Fraction(0)] * (len(last) + 1)
        for power, c in enumerate(last):
            following[power + 1] += c * Fraction(power, 2) + c * Fraction(1, 8 * (power + 1))
            following[power + 3] -= c * Fraction(power, 2) + c * Fraction(5, 8 * (power + 3))
            slope[power + 1] += c * Fraction(1, 2) + c * power
        u.append(following)
        w.append(slope)
    return u, w


@cache
@torch.inference_mode(False)
def _debye_series(order: float, device: torch.device) -> Tensor:
    """``sum_k U_k(p) / order^k`` and the same of ``W_k``: coefficients in p, [3 K + 1, 2]."""
    total = torch.zeros(3 * _TERMS + 1, 2, dtype=torch.float64)
    for column, polynomials in enumerate(_debye_polynomials()):
        for k, coefficients in enumerate(polynomials):
            for power, c in enumerate(coefficients):
                total[power, column] += float(c) / order**k
    return total.to(device)


def _bessel_terms(kappa: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """``log[I_v(kappa) (2/kappa)^v Gamma(v+1)]`` and ``I_{v+1}(kappa) / I_v(kappa)``.

    The uniform (Debye) expansion at an order N >= 40, then N - v steps of the downward recurrence,
    which damps errors. Written so that nothing divides by kappa and nothing large cancels.
    """
    order = dim / 2 - 1
    steps = max(0, math.ceil(_MIN_ORDER - order))
    top = order + steps
    coefficients = _debye_series(top, kappa.device)

    root = torch.sqrt(top**2 + kappa**2)
    p = top / root
    powers = p[..., None] ** torch.arange(len(coefficients), device=kappa.device)
    series, slope = (powers @ coefficients).unbind(-1)
    series_at_zero = coefficients[:, 0].sum()

    stretch = kappa**2 / (top * (root + top))  # sqrt(1 + z^2) - 1 for z = kappa / N
    log_scaled = (
        top * (stretch - torch.log1p(stretch / 2))
        - 0.5 * torch.log1p(stretch)
        + torch.log(series / series_at_zero)
    )
    ratio = kappa / (root + top) - kappa / root * (slope / series)
    for step in range(steps):
        twice = 2 * (top - step)
        log_scaled = log_scaled + torch.log1p(kappa * ratio / twice)
        ratio = kappa / (twice + kappa * ratio)
    return log_scaled, ratio


def log_vmf_ratio(kappa: Tensor, dim: int) -> Tensor:
    """``g(kappa) = log C_D(kappa) - log C_D(0)``: the log normaliser relative to the uniform one.

    The constant ``log C_D(0)`` is the same for all classes and cancels in a posterior. Absolute
    error below 1e-10 + 1e-13 |g| for every D >= 2 and kappa up to 1e6.

    Args:
        kappa: any shape, float, >= 0; computed in float64.
        dim: D >= 2.

    Returns:
        float64 of the same shape, <= 0, and 0 at kappa = 0.

    Raises:
        ValueError: `dim` below 2.

    Example:
        >>> import torch
        >>> [round(x, 4) for x in log_vmf_ratio(torch.tensor([0.0, 1.0, 100.0]), 3).tolist()]
        [-0.0, -0.1614, -94.7017]
    """
    _check_dim(dim)
    return -_bessel_terms(kappa.to(torch.float64), dim)[0].clamp(min=0.0)


def mean_resultant_length(kappa: Tensor, dim: int) -> Tensor:
    """``A_D(kappa) = I_{D/2}(kappa) / I_{D/2-1}(kappa)``, the length of the mean of the density.

    Args:
        kappa: any shape, float, >= 0; computed in float64.
        dim: D >= 2.

    Returns:
        float64 of the same shape in [0, 1).

    Raises:
        ValueError: `dim` below 2.

    Example:
        >>> import torch
        >>> kappa = torch.tensor([0.0, 1.0, 100.0])
        >>> [round(x, 4) for x in mean_resultant_length(kappa, 3).tolist()]
        [0.0, 0.313, 0.99]
    """
    _check_dim(dim)
    return _bessel_terms(kappa.to(torch.float64), dim)[1]


def kappa_from_resultant(
    r_bar: Tensor, dim: int, newton_steps: int = 0, kappa_max: float = float("inf")
) -> Tensor:
    """Concentration whose density has a mean of length `r_bar`.

    The closed form ``R (D - R^2) / (1 - R^2)`` (Banerjee et al., "Clustering on the Unit
    Hypersphere using von Mises-Fisher Distributions", JMLR 2005, eq. 4.4), improved by Newton
    steps on ``A_D(kappa) = R`` (Sra, "A short note on parameter approximation for von
    Mises-Fisher distributions", 2012).

    Args:
        r_bar: any shape, float in [0, 1]; 1 (one row, or identical rows) gives `kappa_max`.
        dim: D >= 2.
        newton_steps: 0 leaves the closed form (relative error 3e-4 at D = 512); 1 gives 1e-7.
        kappa_max: upper bound.

    Returns:
        float64 of the same shape in [0, `kappa_max`].

    Raises:
        ValueError: `dim` below 2.

    Example:
        >>> import torch
        >>> r_bar = torch.tensor([0.0, 0.5, 1.0])
        >>> [round(x, 3) for x in kappa_from_resultant(r_bar, 3, kappa_max=1000.0).tolist()]
        [0.0, 1.833, 1000.0]
    """
    _check_dim(dim)
    r_bar = r_bar.to(torch.float64)
    spread = 1 - r_bar**2
    finite = spread > 0
    kappa = r_bar * (dim - r_bar**2) / torch.where(finite, spread, 1.0)
    for _ in range(newton_steps):
        mean = mean_resultant_length(kappa, dim)
        per_kappa = torch.where(kappa > 0, mean / kappa.clamp(min=1e-300), 1 / dim)
        slope = 1 - mean**2 - (dim - 1) * per_kappa
        # Near R = 1 the slope drowns in rounding; there the closed form is exact anyway.
        step = torch.where(slope > 1e-13, (mean - r_bar) / slope.clamp(min=1e-13), 0.0)
        kappa = kappa - step.clamp(min=-kappa, max=kappa / 2)
    return torch.where(finite, kappa, kappa_max).clamp(max=kappa_max)


def resultant_statistics(
    class_sums: Tensor, class_counts: Tensor, bias_correction: bool = False
) -> tuple[Tensor, Tensor]:
    """Mean direction and mean resultant length of every class.

    Args:
        class_sums: [C, D] float64, sums of unit vectors.
        class_counts: [C] int64.
        bias_correction: with few rows the length is biased upwards, ``E R^2 = 1/M + (1 - 1/M)
            rho^2``; True solves this for rho (0 where M = 1: one row says nothing about spread).

    Returns:
        directions [C, D] float64, unit norm, 0 where the rows cancel or there are none; and
        lengths [C] float64 in [0, 1], 0 for an empty class.

    Example:
        >>> import torch
        >>> sums = torch.tensor([[1.0, 1.0], [0.0, 0.0]], dtype=torch.float64)
        >>> directions, r_bar = resultant_statistics(sums, torch.tensor([2, 0]))
        >>> [round(x, 3) for x in directions[0].tolist()], [round(x, 3) for x in r_bar.tolist()]
        ([0.707, 0.707], [0.707, 0.0])
    """
    norm = class_sums.norm(dim=1)
    directions = class_sums / norm.clamp(min=1e-300)[:, None]
    count = class_counts.to(torch.float64)
    r_bar = (norm / count.clamp(min=1)).clamp(max=1.0)
    if bias_correction:
        squared = (count * r_bar**2 - 1) / (count - 1).clamp(min=1)
        r_bar = torch.where(count > 1, squared.clamp(min=0).sqrt(), 0.0)
    return directions, r_bar


def vmf_log_density(
    embeddings: Tensor, directions: Tensor, kappa: Tensor, log_ratio: Tensor
) -> Tensor:
    """Log density of every embedding under every class, relative to the uniform density.

    Args:
        embeddings: [B, D] float, unit norm.
        directions: [C, D], same dtype, unit norm (or 0).
        kappa: [C] float64.
        log_ratio: [C] float64, ``log_vmf_ratio(kappa, D)``.

    Returns:
        [B, C] float64: ``log C_D(kappa_k) - log C_D(0) + kappa_k mu_k.x``. The products mu.x
        keep the precision of `embeddings`.

    Example:
        >>> import torch
        >>> kappa = torch.tensor([0.0, 2.0], dtype=torch.float64)
        >>> density = vmf_log_density(torch.eye(2), torch.eye(2), kappa, log_vmf_ratio(kappa, 2))
        >>> [[round(x, 3) for x in row] for row in density.tolist()]
        [[0.0, -0.824], [0.0, 1.176]]
    """
    similarity = embeddings @ directions.T
    return torch.addcmul(log_ratio, similarity.to(torch.float64), kappa)


def vmf_log_posterior(
    log_density: Tensor, labels: Tensor, log_prior: Tensor
) -> tuple[Tensor, Tensor]:
    """Log probability that each sample belongs to its labelled class (vMF-Sim).

    Args:
        log_density: [B, C] float64, see `vmf_log_density`.
        labels: [B] int64.
        log_prior: [C] float64, up to a constant; ``-inf`` leaves a class out.

    Returns:
        log P [B] float64, <= 0, and scored [B] bool; a sample of a class left out is not scored
        and gets log P = 0.

    Example:
        >>> import torch
        >>> density = torch.tensor([[0.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
        >>> log_p, scored = vmf_log_posterior(density, torch.tensor([0, 0]), torch.zeros(2))
        >>> [round(x, 3) for x in log_p.exp().tolist()], scored.tolist()
        ([0.5, 0.731], [True, True])
    """
    joint = log_density + log_prior
    own = joint.gather(1, labels[:, None]).squeeze(1)
    scored = torch.isfinite(log_prior)[labels]
    log_p = torch.where(scored, own - torch.logsumexp(joint, dim=1), 0.0)
    return log_p.clamp(max=0.0), scored


def vmf_log_odds(log_density: Tensor, labels: Tensor, log_prior: Tensor) -> Tensor:
    """Log-odds that each sample belongs to its labelled class and to no other one (vMF-Sim).

    In 64 dimensions or more the probability itself is 0 or 1 to the last digit; its log-odds are
    not.

    Args:
        log_density, labels, log_prior: as for `vmf_log_posterior`.

    Returns:
        [B] float64; NaN for a sample of a class left out, infinite if there is no other class.

    Example:
        >>> import torch
        >>> density = torch.tensor([[0.0, 0.0], [900.0, 0.0]], dtype=torch.float64)
        >>> vmf_log_odds(density, torch.tensor([0, 0]), torch.zeros(2)).tolist()
        [0.0, 900.0]
    """
    joint = log_density + log_prior
    own = joint.gather(1, labels[:, None])
    others = joint.scatter(1, labels[:, None], -torch.inf)
    log_odds = own.squeeze(1) - others.logsumexp(dim=1)
    return torch.where(torch.isfinite(log_prior)[labels], log_odds, torch.nan)


def vmf_concentrations(
    r_bar: Tensor,
    class_counts: Tensor,
    dim: int,
    *,
    own: tuple[Tensor, Tensor] | None = None,
    min_count: int = 2,
    newton_steps: int = 0,
    kappa_max: float = 1e4,
) -> tuple[Tensor, Tensor, Tensor]:
    """Concentration of every class, the pooled one where rows are few.

    Args:
        r_bar: mean resultant lengths [C] float64.
        class_counts: [C] int64, rows of each class.
        dim: D >= 2.
        own: each class's own concentration and its log normaliser [C] float64, where known.
        min_count: classes with fewer rows share the pooled concentration of the others.
        newton_steps, kappa_max: see `kappa_from_resultant`.

    Returns:
        kappa [C] float64, its log normaliser [C] float64, and known [C] bool: False for classes
        without rows, and for all with few rows while no class has enough.

    Example:
        >>> import torch
        >>> r_bar = torch.tensor([0.5, 1.0, 0.0], dtype=torch.float64)
        >>> kappa, _, known = vmf_concentrations(r_bar, torch.tensor([4, 1, 0]), dim=3)
        >>> [round(x, 3) for x in kappa.tolist()], known.tolist()
        ([1.833, 1.833, 0.0], [True, True, False])
    """
    if own is None:
        kappa = kappa_from_resultant(r_bar, dim, newton_steps, kappa_max)
        own = kappa, log_vmf_ratio(kappa, dim)
    enough = class_counts >= min_count
    weight = torch.where(enough, class_counts, 0).to(torch.float64)
    pooled_r = (r_bar * weight).sum() / weight.sum().clamp(min=1)
    pooled = kappa_from_resultant(pooled_r, dim, newton_steps, kappa_max)
    known = (class_counts > 0) & enough.any()
    kappa = torch.where(enough, own[0], torch.where(known, pooled, 0.0))
    log_ratio = torch.where(enough, own[1], torch.where(known, log_vmf_ratio(pooled, dim), 0.0))
    return kappa, log_ratio, known


def vmf_log_prior(
    class_counts: Tensor, known: Tensor, absent: Absent = "exclude", prior: Prior = "uniform"
) -> Tensor:
    """Logarithm of the prior weight of every class, up to a constant.

    Args:
        class_counts: [C] int64.
        known: [C] bool, see `vmf_concentrations`.
        absent: a class that is not known is left out, or is as likely as the uniform density.
        prior: equal weights, or the classes' share of the rows.

    Returns:
        [C] float64, -inf for a class that is left out.

    Example:
        >>> import torch
        >>> vmf_log_prior(torch.tensor([4, 0]), torch.tensor([True, False])).tolist()
        [0.0, -inf]
    """
    if prior == "empirical":
        weight = torch.where(known, class_counts, 0).to(torch.float64)
    elif absent == "exclude":
        weight = known.to(torch.float64)
    else:
        # While no class is known all densities are the uniform one and nothing can be scored.
        weight = known.any().to(torch.float64).expand(len(known))
    return weight.log()


@checked
@torch.no_grad()
def vmf_log_p_clean(
    embeddings: Tensor,
    labels: Tensor,
    class_sums: Tensor,
    class_counts: Tensor,
    *,
    absent: Absent = "exclude",
    prior: Prior = "uniform",
    min_count: Count = 2,
    kappa_max: Positive = 1e4,
    bias_correction: bool = False,
    newton_steps: WholeNonNegative = 0,
) -> tuple[Tensor, Tensor]:
    """Log P_clean of vMF-Sim, and its log-odds, from the sums of the rows of each class.

    Args:
        embeddings: [B, D] float, unit norm.
        labels: [B] int64.
        class_sums: [C, D], sum of each class's unit rows (`MemoryBank.class_sums`).
        class_counts: [C] int64, how many those are.
        absent, prior, min_count, kappa_max, bias_correction, newton_steps: as for
            `noisyml.selectors.prism.PrismVonMisesFisher`.

    Returns:
        log P [B] float64, 0 for a sample of a class left out; and log P / (1 - P) [B] float64,
        which still tells samples apart where P is 0 or 1 to the last digit, NaN for such a sample.

    Raises:
        ArgumentError: a setting out of range.
        ValueError: embeddings of fewer than 2 dimensions.

    Example:
        >>> import torch
        >>> sums, counts = torch.tensor([[4.0, 3.0], [-4.0, 3.0]]), torch.tensor([6, 6])
        >>> rows = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
        >>> log_p, log_odds = vmf_log_p_clean(rows, torch.tensor([0, 1]), sums, counts)
        >>> [round(x, 3) for x in log_p.exp().tolist()], [round(x, 3) for x in log_odds.tolist()]
        ([0.997, 0.003], [5.697, -5.697])
    """
    dim = embeddings.shape[1]
    _check_dim(dim)
    directions, r_bar = resultant_statistics(
        class_sums.to(torch.float64), class_counts, bias_correction
    )
    kappa, log_ratio, known = vmf_concentrations(
        r_bar,
        class_counts,
        dim,
        min_count=min_count,
        newton_steps=newton_steps,
        kappa_max=kappa_max,
    )
    density = vmf_log_density(embeddings, directions.to(embeddings.dtype), kappa, log_ratio)
    log_prior = vmf_log_prior(class_counts, known, absent, prior)
    log_p, _ = vmf_log_posterior(density, labels, log_prior)
    return log_p, vmf_log_odds(density, labels, log_prior)


def _check_dim(dim: int) -> None:
    if dim < 2:
        raise ValueError(f"the von Mises-Fisher density needs at least 2 dimensions, got {dim}")
