"""Shards of class moments and of k-means, one of them empty, join to what one process finds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.ranks import run_ranks
from torch import Tensor

from noisyml.distributed import gather
from noisyml.similarity.class_moments import ClassMoments
from noisyml.similarity.kmeans import kmeans

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
    known = torch.where(torch.arange(N) % 3 == 0, y, -1)[start:stop]
    plain = kmeans(x[start:stop], 9, sharded=True, n_init=3)
    unit = kmeans(x[start:stop], 9, sharded=True, metric="cosine", init="random", seed=1)
    half = kmeans(x[start:stop], 9, sharded=True, labels=known)
    # Only one start lies near the rows: the other clusters are empty and must be moved.
    far = torch.full((3, DIM), 1e3, dtype=torch.float64) + torch.arange(3.0)[:, None]
    far[0] = 0
    moved = kmeans(x[start:stop], 3, sharded=True, init=far)
    runs = {"plain": plain, "unit": unit, "half": half, "moved": moved}
    clusters = {f"{name}_centroids": run.centroids for name, run in runs.items()}
    clusters |= {f"{name}_labels": gather(run.labels) for name, run in runs.items()}
    clusters |= {f"{name}_inertia": torch.tensor(run.inertia) for name, run in runs.items()}
    return clusters | {
        "counts": reduced.counts,
        "means": reduced.means,
        "squares": reduced.squares,
        "variances": reduced.variances(1),
    }


def _work(rank: int, world: int, folder: str) -> None:
    start = ENDS[world][rank - 1] if rank else 0
    torch.save(_results(start, ENDS[world][rank]), f"{folder}/{rank}.pt")


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_equal_one_process(world: int, tmp_path: Path) -> None:
    run_ranks(_work, world, tmp_path, str(tmp_path))
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
