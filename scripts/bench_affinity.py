"""Time of PromptCAL's affinity step beside the dense form of its release, in one process.

A step is everything from unit embeddings to the edges between a batch and the memory: the rows of
the memory that the last batch overwrote, neighbours, consensus, diffusion, both thresholds. The
dense form multiplies N x N matrices, as the released code does, in float32 unless told otherwise
(then a few edges at the threshold differ).
Times are seconds of the processor (of one thread: what a machine with nothing else to do takes).
Four kinds of embeddings: separate clusters, classes that overlap, no structure at all, and hubs,
nodes that are neighbours of many.

    python scripts/bench_affinity.py --batch 256 --memory 4096 --out outputs/bench/affinity.json
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

K, QUANTILE, WIDTH = 10, 0.5, 768


def embeddings(kind: str, n: int, width: int) -> Any:
    """Unit rows [n, width] of a kind."""
    import torch

    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(n, width, generator=generator)
    centres = torch.randn(100, width, generator=generator)
    rows = centres[torch.randint(100, (n,), generator=generator)]
    if kind == "clusters":
        rows = rows + 0.7 * noise
    elif kind == "overlapping":
        rows = rows + 2.5 * noise
    elif kind == "random":
        rows = noise
    else:
        rows = 1 + 0.2 * noise * torch.rand(n, 1, generator=generator)
    return torch.nn.functional.normalize(rows, dim=1)


def ours(rows: Any, batch: int) -> Callable[[], Any]:
    """This package, on a memory of which a batch is overwritten at every step."""
    import torch

    from noisyml.methods.discovery.neighbours import MemoryNeighbours
    from noisyml.similarity.diffusion import query_affinity

    queries, memory = rows[:batch], rows[batch:]
    lists = MemoryNeighbours(len(memory), K, memory.dtype)
    lists.renew(torch.arange(len(memory)), memory)

    def step() -> Any:
        lists.renew(torch.arange(min(batch, len(memory))), memory)
        index = lists.nearest(queries, memory, K)
        return query_affinity(queries, memory, k=K, quantile=QUANTILE, index=index).edges

    return step


def dense(rows: Any, batch: int, dtype: Any) -> Any:
    """Products of N x N matrices, with the thresholds over all entries."""
    import numpy as np
    import torch

    n = len(rows)
    scores = rows @ rows.T
    scores.fill_diagonal_(-torch.inf)
    index = scores.topk(K, dim=1).indices
    near = torch.eye(n, dtype=dtype)
    near.scatter_(1, index, 1.0)
    counts = near.T @ near
    counts.fill_diagonal_(0)
    walk = counts / (counts.sum(dim=1, keepdim=True) + 1e-10)
    diffused = walk @ walk @ walk.T
    diffused.diagonal().add_(1)
    values = diffused[diffused != 0]
    above = values[values > values.mean()]
    threshold = float(np.quantile(above.numpy(), QUANTILE))
    return diffused[:batch, batch:] > threshold


def fastest(work: Callable[[], Any], repeats: int) -> tuple[float, Any]:
    """Seconds of the fastest call, and its answer."""
    best, answer = float("inf"), None
    for _ in range(repeats):
        start = time.process_time()
        answer = work()
        best = min(best, time.process_time() - start)
    return best, answer


def main() -> int:
    """Run the benchmark and write or print its JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=256, help="rows of the batch, two an image")
    parser.add_argument("--memory", type=int, default=4096)
    parser.add_argument("--width", type=int, default=WIDTH)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", choices=["float32", "float64"], default="float32")
    kinds = ["clusters", "overlapping", "random", "hubs"]
    parser.add_argument("--kinds", nargs="+", choices=kinds, default=kinds)
    parser.add_argument("--out", type=Path)
    typed = parser.parse_args()

    import torch

    torch.set_num_threads(typed.threads)
    results = []
    for kind in typed.kinds:
        rows = embeddings(kind, typed.batch + typed.memory, typed.width)
        mine, edges = fastest(ours(rows, typed.batch), typed.repeats)
        theirs, expected = fastest(
            lambda rows=rows: dense(rows, typed.batch, getattr(torch, typed.dtype)),
            min(typed.repeats, 2),
        )
        results.append(
            {
                "kind": kind,
                "seconds": round(mine, 3),
                "dense_seconds": round(theirs, 3),
                "ratio": round(theirs / mine, 2),
                "edges": int(edges.sum()),
                "different_edges": int((edges != expected).sum()),
            }
        )
        print(json.dumps(results[-1]), flush=True)
    report = {
        "batch": typed.batch,
        "memory": typed.memory,
        "width": typed.width,
        "threads": typed.threads,
        "dense_dtype": typed.dtype,
        "torch": torch.__version__,
        "results": results,
    }
    text = json.dumps(report, indent=2) + "\n"
    if typed.out is None:
        print(text, end="")
    else:
        typed.out.parent.mkdir(parents=True, exist_ok=True)
        typed.out.write_text(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
