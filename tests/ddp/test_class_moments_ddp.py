"""Shards of class moments and of k-means, one of them empty, join to what one process finds."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from noisyml.similarity.class_moments import ClassMoments

N, CLASSES, DIM = 300, 7, 6
#: Where each rank's contiguous share ends: uneven, and some rank has nothing.
ENDS = {2: (190, N), 3: (120, 120, N)}


def _data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(CLASSES - 1, (N,), generator=generator)
    centres = 4.0 * torch.randn(CLASSES, DIM, generator=generator, dtype=torch.float64)
    x = centres[y] + torch.randn(N, DIM, generator=generator, dtype=torch.float64)
    return x, y


def _moments(x: Tensor, y: Tensor) -> ClassMoments:
    moments = ClassMoments(CLASSES, DIM)
    for rows, labels in zip(x.split(64), y.split(64), strict=True):
        moments.update(rows, labels)
    return moments


def _results(start: int, stop: int) -> dict[str, Tensor]:
    x, y = _data()
    reduced = _moments(x[start:stop], y[start:stop]).all_reduced()
    return {
        "counts": reduced.counts,
        "means": reduced.means,
        "squares": reduced.squares,
        "variances": reduced.variances(1),
    }


def _work(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=world,
        timeout=timedelta(seconds=60),
    )
    start = ENDS[world][rank - 1] if rank else 0
    torch.save(_results(start, ENDS[world][rank]), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_equal_one_process(world: int, tmp_path: Path) -> None:
    mp.spawn(_work, args=(world, str(tmp_path)), nprocs=world)
    alone = _results(0, N)
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(world)]
    for rank in range(world):
        assert found[rank].keys() == alone.keys()
        for name, value in alone.items():
            assert torch.equal(found[rank][name], found[0][name]), (rank, name)
            if value.dtype == torch.int64:
                assert torch.equal(found[rank][name], value), (rank, name)
            else:
                torch.testing.assert_close(
                    found[rank][name], value, rtol=1e-12, atol=1e-12, msg=f"{rank} {name}"
                )
