"""Two and three gloo processes give the dict of one, bit for bit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from support.ranks import run_ranks
from torch import Tensor

from noisyml.metrics.retrieval import retrieval_metrics
from noisyml.metrics.retrieval_evaluator import RetrievalEvaluator

METRICS = ("precision_at_1", "r_precision", "map_at_r", "map", "recall_margin_at_2")
N = 330
#: Where each rank's contiguous share ends: uneven, and some rank has nothing.
ENDS = {2: (N, N), 3: (210, 210, N)}
#: "few classes" overflow the small budget, so that each rank takes whole query blocks.
CASES = ("many classes", "few classes", "query and gallery", "clustering")


def _data(classes: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(classes)
    y = torch.randint(classes, (N,), generator=generator)
    centres = torch.randn(classes, 12, generator=generator)
    x = centres[y] + torch.randn(N, 12, generator=generator)
    # Exact duplicates: their order must not depend on who scores them.
    x[50:90] = x[280:320]
    return x, y


def _evaluate(case: str, start: int, end: int, padding: list[int]) -> dict[str, float]:
    x, y = _data(4 if case == "few classes" else 70)
    evaluator = RetrievalEvaluator(
        metrics=METRICS,
        recall_at=(1, 10),
        tie_bounds=True,
        clustering=case == "clustering",
        memory_budget_bytes=2**20,
    )
    mine = [*range(start, end), *padding]
    for part in torch.tensor(mine, dtype=torch.int64).split(64):
        if len(part) == 0:
            continue
        if case == "query and gallery":
            for role, chosen in (("query", part[part < 100]), ("gallery", part[part >= 100])):
                if len(chosen):
                    evaluator.update({"embeddings": x[chosen]}, y[chosen], chosen, role=role)
        else:
            evaluator.update({"embeddings": x[part]}, y[part], part)
    return evaluator.compute()


def _with_junk() -> dict[str, float]:
    """Junk makes every query's gallery its own, so that the ranks share queries, not tiles."""
    x, y = _data(20)
    generator = torch.Generator().manual_seed(0)
    lists = torch.randint(N, (N, 7), generator=generator)
    return retrieval_metrics(
        x,
        y,
        metrics=METRICS,
        junk=(lists.flatten(), torch.arange(0, 7 * N + 1, 7)),
        tie_bounds=True,
        memory_budget_bytes=2**20,
        share_over_ranks=True,
    )


def _worker(rank: int, world: int, folder: str, padded: bool) -> None:
    ends = ENDS[world]
    start = ends[rank - 1] if rank else 0
    # A distributed sampler pads a short shard with samples that other ranks hold.
    padding = list(range(10 * rank, 10 * rank + 30)) if padded else []
    results = {case: _evaluate(case, start, ends[rank], padding) for case in CASES}
    results["junk"] = _with_junk()
    Path(folder, f"{rank}.json").write_text(json.dumps(results))


@pytest.mark.parametrize(("world", "padded"), [(2, False), (3, True)])
def test_ranks_equal_one_process(world: int, padded: bool, tmp_path: Path) -> None:
    run_ranks(_worker, world, tmp_path, str(tmp_path), padded)
    for case in (*CASES, "junk"):
        alone = _with_junk() if case == "junk" else _evaluate(case, 0, N, [])
        assert alone["queries"] == (100 if case == "query and gallery" else N)
        for rank in range(world):
            found = json.loads((tmp_path / f"{rank}.json").read_text())[case]
            assert found == alone, (case, rank)
