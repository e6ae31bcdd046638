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

_HAS_GROUPS = dist.is_available()


def is_distributed() -> bool:
    """True inside an initialised process group of more than one rank."""
    # The first part is a constant of the build of PyTorch; the whole is asked five times a step.
    return _HAS_GROUPS and dist.is_initialized() and dist.get_world_size() > 1


def rank() -> int:
    """This process's rank, 0 without a process group."""
    return dist.get_rank() if is_distributed() else 0


def world_size() -> int:
    """Number of ranks, 1 without a process group."""
    return dist.get_world_size() if is_distributed() else 1


def collective_device() -> torch.device:
    """The device on which a rank without tensors takes part in a collective."""
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
        ctx.sizes = sizes
        return _gather_padded(x.detach(), sizes)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _SumShard.apply(grads[0], ctx.sizes), None


class _SumShard(torch.autograd.Function):
    """Sum over the ranks of this rank's shard; it and `_Gather` are each other's adjoints.

    A function of its own, so that second derivatives cross the ranks too.
    """

    @staticmethod
    def forward(ctx: Any, whole: Tensor, sizes: list[int]) -> Tensor:
        ctx.sizes = sizes
        total = whole.detach().contiguous().clone()
        dist.all_reduce(total)
        start = sum(sizes[: rank()])
        return total[start : start + sizes[rank()]]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _Gather.apply(grads[0], ctx.sizes), None


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


def from_first(x: Tensor) -> Tensor:
    """The first rank's `x`, in place, on every rank; same shape and dtype on all of them."""
    if is_distributed():
        dist.broadcast(x, src=0)
    return x


@torch.no_grad()
def agree_on_statistics(module: torch.nn.Module) -> None:
    """Give every rank the first rank's running statistics of batch normalisation, in place.

    Each rank keeps its own while it trains, of its share of the batches. They serve evaluation
    alone, and a checkpoint holds those of the first rank: with these everywhere, metrics do not
    depend on when a run was interrupted, nor on when checkpoints were written.
    """
    if not is_distributed():
        return
    for part in module.modules():
        if isinstance(part, torch.nn.modules.batchnorm._NormBase):
            for buffer in part.buffers(recurse=False):
                dist.broadcast(buffer, 0)


def shard_slice(n: int) -> slice:
    """The contiguous part of ``range(n)`` that belongs to this rank; sizes differ by at most 1."""
    share, rest = divmod(n, world_size())
    r = rank()
    start = r * share + min(r, rest)
    return slice(start, start + share + (1 if r < rest else 0))


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
    # Neighbouring seeds must not give related streams, hence the hashing of `SeedSequence`.
    words = np.random.SeedSequence((seed, epoch, step)).generate_state(1, np.uint64)
    return torch.Generator(device=device).manual_seed(int(words[0] >> np.uint64(1)))
