"""Time of semi-supervised k-means beside faiss' two forms of plain k-means, in one process.

Unit rows around as many centres as clusters; a quarter of the rows, of half of the classes, is
labelled, which faiss cannot use. Times are seconds of the processor for the same number of
iterations from a start of each contender's own; inertia tells whether they found the same sort of
clusters. ``SuperKmeans`` of faiss prunes by partial distances, and needs faiss 1.14 or later.

    python scripts/bench_kmeans.py --out outputs/bench/kmeans.json
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SIZES = ("16000x768x100", "8000x768x200")


def contenders(
    n: int, width: int, clusters: int, iterations: int
) -> dict[str, Callable[[], float]]:
    """Clusterings of the same rows by name, each of which gives its inertia."""
    import faiss
    import torch

    from noisyml.similarity.kmeans import kmeans

    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(clusters, width, generator=generator)
    classes = torch.randint(clusters, (n,), generator=generator)
    rows = centres[classes] + 2.5 * torch.randn(n, width, generator=generator)
    rows = torch.nn.functional.normalize(rows, dim=1)
    known = (classes < clusters // 2) & (torch.rand(n, generator=generator) < 0.5)
    # Numbered without gaps, as small sizes may leave classes without a labelled row.
    labels = torch.full_like(classes, -1)
    labels[known] = classes[known].unique(return_inverse=True)[1]

    def ours(backend: Any, pinned: Any, init: str = "k-means++") -> float:
        settings: dict[str, Any] = {"max_iterations": iterations, "tolerance": 0.0}
        settings |= {"backend": backend, "init": init}
        return kmeans(rows, clusters, labels=pinned, **settings).inertia

    def theirs(kind: Any, **settings: Any) -> float:
        settings |= {"niter": iterations, "seed": 1, "max_points_per_centroid": n}
        made = kind(width, clusters, **settings)
        made.train(rows.numpy())
        return float(made.obj[-1])

    found: dict[str, Callable[[], float]] = {
        "semi-supervised, torch": lambda: ours("torch", labels),
        "semi-supervised, faiss": lambda: ours("faiss", labels),
        "plain, torch": lambda: ours("torch", None),
        "plain, torch, drawn start": lambda: ours("torch", None, "random"),
        "plain, faiss": lambda: ours("faiss", None),
        "faiss.Kmeans": lambda: theirs(faiss.Kmeans, min_points_per_centroid=1),
    }
    if hasattr(faiss, "SuperKmeans"):
        found["faiss.SuperKmeans"] = lambda: theirs(faiss.SuperKmeans)
    return found


def main() -> int:
    """Run the benchmark and write or print its JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), help="rows x width x clusters")
    parser.add_argument("--iterations", type=int, default=15)
    parser.add_argument("--contenders", nargs="+", help="default: all")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    typed = parser.parse_args()

    import faiss
    import torch

    torch.set_num_threads(typed.threads)
    faiss.omp_set_num_threads(typed.threads)
    results: list[dict[str, Any]] = []
    for size in typed.sizes:
        n, width, clusters = (int(part) for part in size.split("x"))
        for name, work in contenders(n, width, clusters, typed.iterations).items():
            if typed.contenders and name not in typed.contenders:
                continue
            start = time.process_time()
            inertia = work()
            seconds = round(time.process_time() - start, 3)
            line = {"size": size, "contender": name, "seconds": seconds, "inertia": inertia}
            results.append(line)
            print(json.dumps(line), flush=True)
    report = {
        "iterations": typed.iterations,
        "threads": typed.threads,
        "faiss": faiss.__version__,
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
