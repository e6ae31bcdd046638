"""Sharded search on 2 and 3 gloo processes equals one process, index for index, bit for bit."""

import pytest
import torch
from support.ranks import run_ranks

from noisyml.errors import UserError
from noisyml.similarity.exact import quantised as coarse
from noisyml.similarity.search import self_topk, topk
from noisyml.similarity.sharded import sharded_self_topk, sharded_topk

#: Rows of each rank; one rank of three has none.
GALLERY = {2: (170, 331), 3: (150, 0, 351)}
QUERIES = {2: (0, 67), 3: (40, 20, 7)}
BLOCKS = {"query_block": 64, "gallery_block": 128}


def _data(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    gallery = 2 + torch.randn(501, 13, generator=generator, dtype=dtype)
    # Ties within and across ranks: more than a shortlist holds, zero rows, a few duplicates.
    gallery[100:200] = gallery[0]
    gallery[400:420] = 0
    gallery[230:300] = torch.randint(-1, 2, (70, 13), generator=generator).to(dtype)
    queries = 2 + torch.randn(67, 13, generator=generator, dtype=dtype)
    queries[5] = 0
    queries[60] = gallery[0]
    exclude = torch.randint(-1, 501, (67, 2), generator=generator)
    return gallery, queries, exclude


def _part(rows, sizes, rank):
    start = sum(sizes[:rank])
    return rows[start : start + sizes[rank]]


def _same(found, whole, sizes, rank):
    return all(
        torch.equal(mine, _part(theirs, sizes, rank))
        for mine, theirs in zip(found, whole, strict=True)
    )


def _message(work):
    try:
        work()
    except UserError as error:
        return str(error)
    return ""


def _work(rank, world, out):
    gallery_sizes, query_sizes = GALLERY[world], QUERIES[world]
    results = {}
    for metric, dtype in (("cosine", torch.float32), ("ip", torch.float64), ("l2", torch.float32)):
        gallery, queries, exclude = _data(dtype)
        mine, asked = _part(gallery, gallery_sizes, rank), _part(queries, query_sizes, rank)
        found = sharded_self_topk(mine, 6, metric=metric, **BLOCKS)
        whole = self_topk(gallery, 6, metric=metric)
        results[f"self {metric}"] = _same(found, whole, gallery_sizes, rank)
        found = sharded_topk(asked, mine, 6, metric=metric, **BLOCKS)
        whole = topk(queries, gallery, 6, metric=metric)
        results[f"search {metric}"] = _same(found, whole, query_sizes, rank)
        left_out = _part(exclude, query_sizes, rank)
        found = sharded_topk(asked, mine.numpy(), 9, metric=metric, exclude=left_out, **BLOCKS)
        whole = topk(queries, gallery, 9, metric=metric, exclude=exclude)
        results[f"exclude {metric}"] = _same(found, whole, query_sizes, rank)
    coarse.LEAST_WORK = 0
    coarse._CANDIDATE_COST.update(dict.fromkeys(coarse._CANDIDATE_COST, 1))
    found = sharded_self_topk(mine, 6, metric="l2", precision="fast", **BLOCKS)
    whole = self_topk(gallery, 6, metric="l2")
    results["fast"] = _same(found, whole, gallery_sizes, rank)
    gallery, queries, _ = _data()
    mine = _part(gallery, gallery_sizes, rank).clone()
    few = sharded_topk(mine[:2], mine[:1], 5)
    results["fewer than k"] = bool(
        ((few.index >= 0).sum(1) == sum(n > 0 for n in gallery_sizes)).all()
    )
    if rank == world - 1:
        mine[3, 2] = torch.nan
    results["broken rows"] = _message(lambda: sharded_self_topk(mine, 3)).startswith(
        "1 of " if rank == world - 1 else f"Rank {world - 1} cannot search"
    )
    odd = torch.zeros(4, 5 if rank else 6)
    results["dimensions"] = "dimensions" in _message(lambda: sharded_self_topk(odd, 3))
    results["k"] = "k=0" in _message(lambda: sharded_self_topk(odd, 0))
    torch.save(results, f"{out}/{rank}.pt")


@pytest.mark.parametrize("world", [2, 3])
def test_shards_find_what_one_process_finds(tmp_path, world):
    run_ranks(_work, world, tmp_path, str(tmp_path))
    for rank in range(world):
        results = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert all(results.values()), (rank, results)


@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_one_process_searches_by_itself(metric):
    gallery, queries, exclude = _data()
    alone = topk(queries, gallery, 4, metric=metric, exclude=exclude)
    found = sharded_topk(queries, gallery, 4, metric=metric, exclude=exclude, **BLOCKS)
    assert torch.equal(found.index, alone.index)
    assert torch.equal(found.scores, alone.scores)
    found = sharded_self_topk(gallery, 4, metric=metric, **BLOCKS)
    assert torch.equal(found.index, self_topk(gallery, 4, metric=metric).index)
