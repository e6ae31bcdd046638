"""Exact multi-process semantics in a few functions; each is the identity in a single process.

The convention of the house: *the global batch is the truth*. Ranks hold shards in rank order, and a
gather restores the batch that one process would have seen. Shards may have different lengths and
may be empty.

Gradients. `gather` is the true all-gather: its adjoint sums what every rank sends back. A loss
computed identically on every rank from gathered embeddings therefore yields ``world_size`` times
the gradient of the one-process loss, and the averaging of `DistributedDataParallel` takes that
factor out again: the parameter gradients equal those of one process.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor


def is_distributed() -> bool:
    """True inside an initialised process group of more than one rank."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def rank() -> int:
    """This process's rank, 0 without a process group."""
    return dist.get_rank() if is_distributed() else 0


def world_size() -> int:
    """Number of ranks, 1 without a process group."""
    return dist.get_world_size() if is_distributed() else 1


def collective_device() -> torch.device:
    """Where a rank that has nothing must put its tensors to take part in a collective."""
    if is_distributed() and dist.get_backend() == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def shard_sizes(n: int, device: torch.device) -> list[int]:
    """The lengths of all ranks' shards, in rank order, given this rank's `n`."""
    if not is_distributed():
        return [n]
    mine = torch.tensor([n], dtype=torch.int64, device=device)
    sizes = [torch.zeros_like(mine) for _ in range(world_size())]
    dist.all_gather(sizes, mine)
    return [int(size) for size in torch.cat(sizes).tolist()]


def _gather_padded(x: Tensor, sizes: list[int]) -> Tensor:
    """Concatenate shards of known, possibly different lengths in rank order."""
    longest = max(sizes)
    padded = x.new_zeros((longest, *x.shape[1:]))
    padded[: len(x)] = x
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded)
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])


class _Gather(torch.autograd.Function):
    """All-gather along dim 0; the backward pass sums the ranks' gradients for this shard."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, sizes: list[int]) -> Tensor:
        ctx.start = sum(sizes[: rank()])
        ctx.length = sizes[rank()]
        return _gather_padded(x.detach(), sizes)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        total = grads[0].contiguous().clone()
        dist.all_reduce(total)
        return total[ctx.start : ctx.start + ctx.length], None


def gather(x: Tensor) -> Tensor:
    """Concatenate the ranks' shards [n_r, ...] along dim 0 in rank order; differentiable.

    Args:
        x: this rank's shard; any dtype, same trailing shape on all ranks, ``n_r`` may be 0.

    Returns:
        [sum n_r, ...], identical on all ranks. `x` itself in a single process.
    """
    if not is_distributed():
        return x
    sizes = shard_sizes(len(x), x.device)
    if x.dtype == torch.bool:
        return _gather_padded(x.to(torch.uint8), sizes).to(torch.bool)
    if torch.is_grad_enabled() and x.requires_grad:
        gathered: Tensor = _Gather.apply(x, sizes)
        return gathered
    return _gather_padded(x, sizes)


def all_reduce_sum(x: Tensor) -> Tensor:
    """The sum of `x` over ranks as a new tensor (not differentiable)."""
    if not is_distributed():
        return x
    total = x.detach().clone()
    dist.all_reduce(total)
    return total


def shard_slice(n: int) -> slice:
    """The contiguous part of ``range(n)`` that belongs to this rank; sizes differ by at most 1."""
    share, rest = divmod(n, world_size())
    r = rank()
    start = r * share + min(r, rest)
    return slice(start, start + share + (1 if r < rest else 0))


def class_statistics(x: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Sums and counts per class over the samples of all ranks; not differentiable.

    Sums run in double precision: how samples are spread over ranks does not show in single.

    Args:
        x: [n_r, D] floating point, this rank's samples; ``n_r`` may be 0.
        labels: [n_r] int64 in ``0 .. num_classes - 1``.
        num_classes: C.

    Returns:
        Sums [C, D] in the dtype of `x` and counts [C] int64, identical on all ranks.
    """
    sums = torch.zeros(num_classes, x.shape[1], dtype=torch.float64, device=x.device)
    sums.index_add_(0, labels, x.detach().double())
    counts = torch.bincount(labels, minlength=num_classes)
    return all_reduce_sum(sums).to(x.dtype), all_reduce_sum(counts)


def k_smallest(values: Tensor, k: int) -> Tensor:
    """Which of this rank's samples are among the `k` smallest of the global batch.

    All ranks choose alike: equal values in the order of ranks, then of places; NaN comes last.

    Args:
        values: [n_r], e.g. losses; ``n_r`` may be 0.
        k: how many of the global batch, from 0 to its size.

    Returns:
        [n_r] bool; over all ranks exactly `k` are true.

    Raises:
        ValueError: the global batch has fewer than `k` samples.
    """
    sizes = shard_sizes(len(values), values.device)
    total = sum(sizes)
    if not 0 <= k <= total:
        raise ValueError(f"k={k} must lie between 0 and the size of the global batch, {total}")
    chosen = torch.zeros(total, dtype=torch.bool, device=values.device)
    chosen[gather(values.detach()).argsort(stable=True)[:k]] = True
    start = sum(sizes[: rank()])
    return chosen[start : start + len(values)]


def agreed_generator(
    seed: int, epoch: int, step: int, device: torch.device | str = "cpu"
) -> torch.Generator:
    """A generator that draws the same on every rank, and again after a resumption.

    Args:
        seed: of the run, at least 0.
        epoch: at least 0.
        step: at least 0.
        device: where it draws.
    """
    return _generator((seed, epoch, step), (), device)


def own_generator(
    seed: int, epoch: int, step: int, device: torch.device | str = "cpu"
) -> torch.Generator:
    """A generator that draws differently on every rank, but again so after a resumption.

    Args:
        seed: of the run, at least 0.
        epoch: at least 0.
        step: at least 0.
        device: where it draws.
    """
    return _generator((seed, epoch, step), (rank(),), device)


def _generator(
    entropy: tuple[int, ...], branch: tuple[int, ...], device: torch.device | str
) -> torch.Generator:
    # Neighbouring seeds must not give related streams, hence the hashing of `SeedSequence`.
    words = np.random.SeedSequence(entropy, spawn_key=branch).generate_state(1, np.uint64)
    return torch.Generator(device=device).manual_seed(int(words[0] >> np.uint64(1)))
