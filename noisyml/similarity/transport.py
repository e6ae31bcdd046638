"""Entropic optimal transport by Sinkhorn's iteration, in the log domain.

min over plans Q with row sums r and column sums c of <Q, C> - epsilon H(Q) (Cuturi, "Sinkhorn
Distances", NeurIPS 2013). The log domain (Peyré and Cuturi, "Computational Optimal Transport",
2019, section 4.4) neither overflows nor underflows, whatever epsilon.

Two uses in the field, which differ only in what follows the iteration:

* Soft targets between the two sides of a batch (Wu et al., OTTER, ICLR 2022):
  ``sinkhorn(-similarity, 0.15, n_iterations=5).row_conditional()``.
* Balanced cluster assignment (Caron et al., SwAV, NeurIPS 2020, section 3.1): prototypes are rows,
  ``sinkhorn(-scores.T, 0.05, n_iterations=3).column_conditional().T``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from noisyml.checks import NonNegative, Positive, WholeNonNegative, checked
from noisyml.errors import UserError

#: Arithmetic of the iteration, see `sinkhorn`.
Domain = Literal["log", "scaling", "released"]

#: What is smaller than the exponential of this is nothing beside the 1 that every row and column of
#: a kernel has, as long as the scalings do not range further than that.
_SMALLEST = {torch.float32: -80.0, torch.float64: -700.0}
#: Digits that must be left between what is lost and what counts, as a logarithm.
_MARGIN = {torch.float32: 20.0, torch.float64: 40.0}
#: Entries of a block of rows, which stays in the cache of a core while it is worked on.
_BLOCK = 2**17


@dataclass(frozen=True)
class Transport:
    """A plan and its dual potentials: ``log_plan = (f + g - cost) / epsilon``.

    Attributes:
        row_potential: f [..., M], in units of the cost.
        column_potential: g [..., N], in units of the cost.
        n_iterations: iterations done.
        form: how the plan is kept.
    """

    row_potential: Tensor
    column_potential: Tensor
    n_iterations: int
    form: _Logarithm | _Scaled

    @property
    def log_plan(self) -> Tensor:
        """Logarithm of the joint plan [..., M, N]; -inf where nothing may or can be moved.

        Raises:
            ValueError: it is computed from the cost, which was changed since.
        """
        return self.form.logarithm()

    @property
    def plan(self) -> Tensor:
        """The joint plan [..., M, N], total mass 1."""
        return self.form.joint()

    def row_conditional(self) -> Tensor:
        """The plan with each row scaled to sum 1 [..., M, N]: where the mass of a row goes.

        A row of vanishing mass is no division of zero by zero; a row without any mass at all is
        NaN.
        """
        return self.form.rows()

    def column_conditional(self) -> Tensor:
        """The plan with each column scaled to sum 1 [..., M, N]."""
        return self.form.columns()


@dataclass(frozen=True)
class _Logarithm:
    """A plan as its logarithm [..., M, N]."""

    log_plan: Tensor

    def logarithm(self) -> Tensor:
        return self.log_plan

    def joint(self) -> Tensor:
        return self.log_plan.exp()

    def rows(self) -> Tensor:
        return self.log_plan.softmax(-1)

    def columns(self) -> Tensor:
        return self.log_plan.softmax(-2)


@dataclass(frozen=True)
class _Scaled:
    """A plan as a kernel between two scalings, ``u K v``; no gradient passes through it.

    Attributes:
        kernel: K [..., M, N], greatest entry of every row and column 1.
        u: [..., M].
        v: [..., N].
        cost: of the problem, for the logarithm of entries that K has lost.
        version: of the cost when the plan was made.
        shift: smallest cost of each row [..., M].
        epsilon: weight of the entropy.
        log_u, log_v: scalings of ``exp((shift - cost) / epsilon)``.
    """

    kernel: Tensor
    u: Tensor
    v: Tensor
    cost: Tensor
    version: int
    shift: Tensor
    epsilon: float
    log_u: Tensor
    log_v: Tensor

    def logarithm(self) -> Tensor:
        if _version(self.cost) != self.version:
            raise ValueError(
                "the costs were changed after their plan was made; ask for log_plan before that"
            )
        log_kernel = (self.shift[..., None] - self.cost).div_(self.epsilon)
        return log_kernel + (self.log_u[..., :, None] + self.log_v[..., None, :])

    def joint(self) -> Tensor:
        found, blocks = self._empty()
        for rows in blocks:
            part = found[..., rows, :]
            torch.mul(self.kernel[..., rows, :], self.v[..., None, :], out=part)
            part *= self.u[..., rows, None]
        return found

    def rows(self) -> Tensor:
        found, blocks = self._empty()
        for rows in blocks:
            part = found[..., rows, :]
            torch.mul(self.kernel[..., rows, :], self.v[..., None, :], out=part)
            part /= part.sum(-1, keepdim=True)
        return found

    def columns(self) -> Tensor:
        found, blocks = self._empty()
        mass = (self.u[..., None, :] @ self.kernel)[..., 0, :]
        for rows in blocks:
            part = found[..., rows, :]
            torch.mul(self.kernel[..., rows, :], self.u[..., rows, None], out=part)
            part /= mass[..., None, :]
        return found

    def _empty(self) -> tuple[Tensor, list[slice]]:
        shape = (*self.u.shape, self.v.shape[-1])
        return self.kernel.new_empty(shape), _row_blocks(shape)


def _version(tensor: Tensor) -> int:
    """Number of changes in place; of a tensor that does not count them 0."""
    return 0 if tensor.is_inference() else tensor._version


def _row_blocks(shape: Sequence[int]) -> list[slice]:
    """Cuts of the rows of an array [..., M, N] into blocks of about `_BLOCK` entries."""
    in_a_row = max(math.prod(shape) // max(shape[-2], 1), 1)
    height = max(_BLOCK // in_a_row, 1)
    return [slice(at, min(at + height, shape[-2])) for at in range(0, shape[-2], height)]


def _log_marginal(mass: Tensor | None, cost: Tensor, dim: int) -> Tensor:
    """Logarithm of a marginal scaled to total 1; uniform for None."""
    size = cost.shape[dim]
    if mass is None:
        return cost.new_full((size,), -math.log(size))
    if mass.shape[-1:] != (size,):
        raise ValueError(f"a marginal {tuple(mass.shape)} does not fit a cost {tuple(cost.shape)}")
    mass = mass.to(cost)
    return mass.log() - mass.sum(-1, keepdim=True).log()


def _update(log_marginal: Tensor, log_mass: Tensor) -> Tensor:
    """The logarithm of a scaling that reaches the marginal; -inf for lines without mass."""
    return torch.where(log_marginal == -torch.inf, -torch.inf, log_marginal - log_mass)


@checked
def sinkhorn(
    cost: Tensor,
    epsilon: Positive,
    *,
    n_iterations: WholeNonNegative = 100,
    row_marginal: Tensor | None = None,
    column_marginal: Tensor | None = None,
    tolerance: NonNegative | None = None,
    domain: Domain = "log",
    validate: bool = True,
) -> Transport:
    """The entropic transport plan after a number of (rows, then columns) scalings.

    After the last iteration the column sums are exact and the row sums approximate. Without an
    iteration the plan is ``exp(-cost / epsilon)`` over its total. The result is differentiable in
    `cost` through the iterations.

    Args:
        cost: C [..., M, N] float; +inf forbids a pair. Half precision is computed in float32.
        epsilon: weight of the entropy, positive, in units of the cost.
        n_iterations: the number of iterations, at least 0; the most, if a `tolerance` is given.
        row_marginal: [..., M] non-negative, any total; None is uniform.
        column_marginal: [..., N] non-negative, any total; None is uniform.
        tolerance: stop as soon as, for every problem of the batch, the row sums before an update
            differ from the marginal by at most this much of the total mass (L1). None does the
            given number of iterations and never waits for the device.
        domain: ``log`` is safe for any epsilon; on a CPU, where no gradient is asked for, it mostly
            does without logarithms (see `_absorbing_iterations`). ``scaling`` exponentiates once
            and iterates with two matrix-vector products, and is refused where a column underflows.
            ``released`` is the code of OTTER: the kernel as it is, scaled in place; refused where
            it overflows.
        validate: refuse a plan that does not exist, which waits for the device; without it such a
            plan is NaN.

    Returns:
        The plan with its potentials.

    Raises:
        ValueError: shapes that do not fit.
        UserError: no plan exists (NaN costs, or mass on a line whose pairs are all forbidden), or
            the scaling domain underflowed.

    Example:
        >>> cost = torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=torch.float64)
        >>> sinkhorn(cost, 0.5).plan.round(decimals=3).tolist()
        [[0.44, 0.06], [0.06, 0.44]]
    """
    if cost.ndim < 2:
        raise ValueError(f"a cost must be a matrix [..., M, N], got {tuple(cost.shape)}")
    if cost.dtype not in (torch.float32, torch.float64):
        cost = cost.float()
    log_r = _log_marginal(row_marginal, cost, -2)
    log_c = _log_marginal(column_marginal, cost, -1)

    batch = torch.broadcast_shapes(cost.shape[:-2], log_r.shape[:-1], log_c.shape[:-1])
    log_r, log_c = log_r.expand(*batch, -1), log_c.expand(*batch, -1)
    if domain == "released":
        log_kernel, log_u, log_v, done = _released_iterations(
            -cost / epsilon, log_r, log_c, n_iterations, tolerance
        )
        shift = torch.zeros_like(cost.amin(-1))
        _check(validate, cost, log_r, log_c, log_u, log_v, domain)
        return _transport(log_kernel, log_u, log_v, shift, epsilon, done)
    # A row's smallest cost only shifts its potential. Taken out first, the entries that matter are
    # small differences, and dividing them by a small epsilon magnifies no rounding.
    shift = cost.amin(-1)
    shift = torch.where(shift.isfinite(), shift, 0.0)
    tracked = torch.is_grad_enabled() and any(x.requires_grad for x in (cost, log_r, log_c))
    if domain == "log" and n_iterations and not (cost.is_cuda or tracked):
        quick = _absorbing_iterations(cost, shift, epsilon, log_r, log_c, n_iterations, tolerance)
        if quick is not None:
            return quick
    log_kernel = (shift[..., None] - cost) / epsilon
    iterate = _log_iterations if domain == "log" else _scaling_iterations
    log_u, log_v, done = iterate(log_kernel, log_r, log_c, n_iterations, tolerance)
    if done == 0:
        log_kernel = -cost / epsilon
        total = log_kernel.flatten(-2).logsumexp(-1)
        log_u, log_v = -total[..., None].expand_as(log_r), torch.zeros_like(log_c)
        shift = torch.zeros_like(shift)
    _check(validate, cost, log_r, log_c, log_u, log_v, domain)
    return _transport(log_kernel, log_u, log_v, shift, epsilon, done)


def _check(
    validate: bool,
    cost: Tensor,
    log_r: Tensor,
    log_c: Tensor,
    log_u: Tensor,
    log_v: Tensor,
    domain: Domain,
) -> None:
    """Refuse scalings that are no numbers.

    Raises:
        UserError: there are such, and the caller wants to know.
    """
    if validate and bool(~(log_u < torch.inf).all() | ~(log_v < torch.inf).all()):
        raise UserError(_complaint(cost, log_r, log_c, domain))


def _transport(
    log_kernel: Tensor, log_u: Tensor, log_v: Tensor, shift: Tensor, epsilon: float, done: int
) -> Transport:
    return Transport(
        row_potential=epsilon * log_u + shift,
        column_potential=epsilon * log_v,
        n_iterations=done,
        form=_Logarithm(log_kernel + (log_u[..., :, None] + log_v[..., None, :])),
    )


def _log_iterations(
    log_kernel: Tensor, log_r: Tensor, log_c: Tensor, n_iterations: int, tolerance: float | None
) -> tuple[Tensor, Tensor, int]:
    """Logarithms of both scalings and the number of iterations done."""
    log_u, log_v = torch.zeros_like(log_r), torch.zeros_like(log_c)
    for done in range(n_iterations):
        log_mass = (log_kernel + log_v[..., None, :]).logsumexp(-1)
        if (
            tolerance is not None
            and done
            and _converged((log_u + log_mass).exp(), log_r.exp(), tolerance)
        ):
            return log_u, log_v, done
        log_u = _update(log_r, log_mass)
        log_v = _update(log_c, (log_kernel + log_u[..., :, None]).logsumexp(-2))
    return log_u, log_v, n_iterations


def _scaling_iterations(
    log_kernel: Tensor, log_r: Tensor, log_c: Tensor, n_iterations: int, tolerance: float | None
) -> tuple[Tensor, Tensor, int]:
    """The same with the kernel exponentiated once: rows of it have the maximum 1."""
    kernel, r, c = log_kernel.exp(), log_r.exp(), log_c.exp()
    u, v = torch.ones_like(r), torch.ones_like(c)
    done = 0
    while done < n_iterations:
        mass = (kernel @ v[..., None])[..., 0]
        if tolerance is not None and done and _converged(u * mass, r, tolerance):
            break
        u = torch.where(r > 0, r / mass, 0.0)
        v = torch.where(c > 0, c / (kernel.mT @ u[..., None])[..., 0], 0.0)
        done += 1
    return u.log(), v.log(), done


def _absorbing_iterations(
    cost: Tensor,
    shift: Tensor,
    epsilon: float,
    log_r: Tensor,
    log_c: Tensor,
    n_iterations: int,
    tolerance: float | None,
) -> Transport | None:
    """The iterations of the log domain by two products each; None where those would lose digits.

    The greatest entry of every row and column of the kernel is 1, and what underflows is less than
    `_SMALLEST`: scaled by u and v it is nothing beside the plan's entries as long as the logarithms
    of u and v range little. Once they range further, the kernel takes them in and is exponentiated
    anew (Schmitzer, "Stabilized Sparse Scaling Algorithms for Entropy Regularized Transport
    Problems", SIAM J. Sci. Comput. 2019, section 3.1).
    """
    if not bool((log_r > -torch.inf).all() & (log_c > -torch.inf).all()):
        return None
    r, c = log_r.exp(), log_c.exp()
    log_v: Tensor | None = None
    u, done = torch.ones_like(r), 0
    while True:
        absorbed = _absorbed(cost, shift, epsilon, log_v)
        if absorbed is None:
            return None
        kernel, alpha, columns = absorbed
        # The iteration goes on as it would on a kernel whose columns are not scaled.
        v, began, converged = columns.exp().expand_as(c), done, False
        beta = -columns if log_v is None else log_v - columns
        while done < n_iterations:
            next_u, next_v, mass = _product_iteration(kernel, v, r, c)
            if tolerance is not None and done > began:
                converged = _converged(u * mass, r, tolerance)
            if converged or not (_ranges_little(next_u) and _ranges_little(next_v)):
                break
            u, v, done = next_u, next_v, done + 1
        log_v = beta + v.log()
        if converged or done == n_iterations:
            break
        if done == began:
            return None
    log_u = alpha + u.log()
    return Transport(
        row_potential=epsilon * log_u + shift,
        column_potential=epsilon * log_v,
        n_iterations=done,
        form=_Scaled(kernel, u, v, cost, _version(cost), shift, epsilon, log_u, log_v),
    )


def _absorbed(
    cost: Tensor, shift: Tensor, epsilon: float, log_v: Tensor | None
) -> tuple[Tensor, Tensor, Tensor] | None:
    """The kernel ``exp((shift - cost) / epsilon)`` with its columns scaled by v, and normalised.

    Returns:
        K [..., M, N], greatest entry of every row and column 1; logarithm of the factors of its
        rows [..., M]; greatest logarithm of each column before it was scaled to 1 [..., N]. None
        where a line has no finite entry.
    """
    shape = cost.shape
    if log_v is not None:
        shape = torch.broadcast_shapes(shape, (*log_v.shape[:-1], 1, log_v.shape[-1]))
    kernel = cost.new_empty(shape)
    alpha, columns = cost.new_zeros(shape[:-1]), cost.new_full((*shape[:-2], shape[-1]), -torch.inf)
    blocks = _row_blocks(shape)
    for rows in blocks:
        part = kernel[..., rows, :]
        torch.sub(shift[..., rows, None], cost[..., rows, :], out=part)
        part /= epsilon
        if log_v is not None:
            part += log_v[..., None, :]
            alpha[..., rows] = -part.amax(-1)
            part += alpha[..., rows, None]
        torch.maximum(columns, part.amax(-2), out=columns)
    if not bool(columns.isfinite().all() & alpha.isfinite().all()):
        return None
    for rows in blocks:
        part = kernel[..., rows, :]
        part -= columns[..., None, :]
        part.exp_()
    return kernel, alpha, columns


def _product_iteration(
    kernel: Tensor, v: Tensor, r: Tensor, c: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Both scalings after an iteration, and the mass of rows before it; the kernel is read once."""
    u, mass, column_mass = torch.empty_like(r), torch.empty_like(r), torch.zeros_like(c)
    for rows in _row_blocks(kernel.shape):
        part = kernel[..., rows, :]
        mass[..., rows] = (part @ v[..., None])[..., 0]
        u[..., rows] = r[..., rows] / mass[..., rows]
        column_mass += (u[..., None, rows] @ part)[..., 0, :]
    return u, c / column_mass, mass


def _ranges_little(x: Tensor) -> bool:
    """True if products with a kernel whose lines have the maximum 1 lose nothing that counts."""
    low, high = (float(bound) for bound in x.aminmax())
    if not (low > 0 and high < math.inf):
        return False
    most = -_SMALLEST[x.dtype] - _MARGIN[x.dtype]
    return math.log(high) - math.log(low) < most and -most < math.log(low) and math.log(high) < most


def _released_iterations(
    log_kernel: Tensor, log_r: Tensor, log_c: Tensor, n_iterations: int, tolerance: float | None
) -> tuple[Tensor, Tensor, Tensor, int]:
    """Logarithms of the kernel and of both scalings as the code of OTTER scales, row by row.

    The kernel is exponentiated without a shift and divided by its total, so that it overflows for
    a small epsilon.
    """
    kernel = log_kernel.exp()
    total = kernel.sum((-2, -1), keepdim=True)
    plan, r, c = kernel / total, log_r.exp(), log_c.exp()
    u = (1 / total)[..., 0].expand_as(r)
    v, done = torch.ones_like(c), 0
    while done < n_iterations:
        mass = plan.sum(-1)
        if tolerance is not None and done and _converged(mass, r, tolerance):
            break
        rows = r / mass
        plan = plan * rows[..., :, None]
        columns = c / plan.sum(-2)
        plan = plan * columns[..., None, :]
        u, v, done = u * rows, v * columns, done + 1
    # An overflow of the kernel itself must not hide behind finite scalings.
    broken = ~plan.isfinite().all(-1)
    return log_kernel, torch.where(broken, torch.nan, u).log(), v.log(), done


def _converged(rows: Tensor, marginal: Tensor, tolerance: float) -> bool:
    """True if the row sums of every problem are within `tolerance` of the marginal (L1)."""
    return bool(((rows - marginal).abs().sum(-1) <= tolerance).all())


def _complaint(cost: Tensor, log_r: Tensor, log_c: Tensor, domain: str) -> str:
    if bool(log_r.isnan().any() | log_c.isnan().any()):
        return (
            "A marginal of the transport plan holds negative numbers or NaN, or nothing but zeros; "
            "give non-negative masses."
        )
    if bool(cost.isnan().any()):
        return (
            "The transport costs hold NaN; look for a diverged loss or embeddings with NaN and "
            "lower the learning rate."
        )
    if domain != "log":
        return (
            "The transport iteration left the range of its number format: raise epsilon or use "
            "domain=log."
        )
    return (
        "No transport plan exists: a row or column that must carry mass has only forbidden "
        "(infinite) costs; give it a finite cost or a marginal of 0."
    )
