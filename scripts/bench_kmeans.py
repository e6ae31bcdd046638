"""Time of semi-supervised k-means beside faiss' two forms of plain k-means and SuperKMeans.

Unit rows around as many centres as clusters; a quarter of the rows, of half of the classes, is
labelled, which only ours can use. Times are seconds of the processor for the same number of
iterations, in turns in one process, medians over the rounds. "Given start" are the same drawn rows
for ours and for faiss, so that the inertia is the same, too; elsewhere it tells whether contenders
found the same sort of clusters. "Products" is ours without bounds and integers. ``SuperKmeans`` of
faiss (1.14 or later) and the package ``superkmeans``, each where it is installed, prune by partial
distances; they take no start.

    python scripts/bench_kmeans.py --out outputs/bench/kmeans.json
    python scripts/bench_kmeans.py --sizes 60000x512x1000 --iterations 6 --rounds 3
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SIZES = ("16000x768x100", "8000x768x200")
Inertia = float | Callable[[], float]


def contenders(
    n: int, width: int, clusters: int, iterations: int, noise: float, threads: int
) -> dict[str, Callable[[], Inertia]]:
    """Clusterings of the same rows by name, which give their inertia or what measures it."""
    import faiss
    import torch

    from noisyml.similarity import kmeans as module
    from noisyml.similarity.kmeans import kmeans

    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(clusters, width, generator=generator)
    classes = torch.randint(clusters, (n,), generator=generator)
    rows = centres[classes] + noise * torch.randn(n, width, generator=generator)
    rows = torch.nn.functional.normalize(rows, dim=1)
    start = rows[torch.randperm(n, generator=generator)[:clusters]]
    known = (classes < clusters // 2) & (torch.rand(n, generator=generator) < 0.5)
    # Numbered without gaps, as small sizes may leave classes without a labelled row.
    labels = torch.full_like(classes, -1)
    labels[known] = classes[known].unique(return_inverse=True)[1]

    def ours(backend: Any, pinned: Any = None, init: Any = "k-means++") -> float:
        settings: dict[str, Any] = {"max_iterations": iterations, "tolerance": 0.0}
        settings |= {"backend": backend, "init": init}
        return kmeans(rows, clusters, labels=pinned, **settings).inertia

    def products() -> float:
        least, module._BOUNDED = module._BOUNDED, clusters * width + 1
        try:
            return ours("torch", init=start)
        finally:
            module._BOUNDED = least

    def theirs(kind: Any, given: Any = None, **settings: Any) -> float:
        settings |= {"niter": iterations, "seed": 1, "max_points_per_centroid": n}
        made = kind(width, clusters, **settings)
        if given is None:
            made.train(rows.numpy())
        else:
            made.train(rows.numpy(), init_centroids=given.numpy())
        return float(made.obj[-1])

    found: dict[str, Callable[[], Inertia]] = {
        "semi-supervised, torch": lambda: ours("torch", labels),
        "semi-supervised, faiss": lambda: ours("faiss", labels),
        "plain, torch": lambda: ours("torch"),
        "plain, torch, given start": lambda: ours("torch", init=start),
        "products, given start": products,
        "plain, faiss": lambda: ours("faiss"),
        "faiss.Kmeans": lambda: theirs(faiss.Kmeans, min_points_per_centroid=1),
        "faiss.Kmeans, given start": lambda: theirs(faiss.Kmeans, start, min_points_per_centroid=1),
    }
    if hasattr(faiss, "SuperKmeans"):
        found["faiss.SuperKmeans"] = lambda: theirs(faiss.SuperKmeans)
    try:
        import superkmeans
    except ImportError:
        return found

    def super_kmeans(quantizer: str) -> Inertia:
        made = superkmeans.SuperKMeans(
            clusters,
            width,
            hierarchical=False,
            quantizer=quantizer,
            iters=iterations,
            sampling_fraction=1.0,
            max_points_per_cluster=n,
            n_threads=threads,
            early_termination=False,
        )
        moved = torch.from_numpy(made.train(rows.numpy()))
        # Of the centroids that it ends with; the others count before their last move.
        return lambda: float(torch.cdist(rows, moved).amin(1).double().square().sum())

    found["SuperKMeans"] = lambda: super_kmeans("f32")
    found["SuperKMeans, 8 bits"] = lambda: super_kmeans("sq8")
    return found


def main() -> int:
    """Run the benchmark and write or print its JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), help="rows x width x clusters")
    parser.add_argument("--iterations", type=int, default=15)
    parser.add_argument("--noise", type=float, default=2.5, help="of a row around its centre")
    parser.add_argument("--contenders", nargs="+", help="default: all")
    parser.add_argument("--rounds", type=int, default=1)
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
        found = contenders(n, width, clusters, typed.iterations, typed.noise, typed.threads)
        wanted = {name: found[name] for name in typed.contenders or found}
        times: dict[str, list[float]] = {name: [] for name in wanted}
        inertia: dict[str, float] = {}
        for _ in range(typed.rounds):
            for name, work in wanted.items():
                start = time.process_time()
                value = work()
                times[name].append(round(time.process_time() - start, 3))
                inertia[name] = value() if callable(value) else value
        for name, seconds in times.items():
            line = {"size": size, "contender": name, "seconds": statistics.median(seconds)}
            line |= {"inertia": inertia[name], "rounds": seconds}
            results.append(line)
            print(json.dumps(line), flush=True)
    report = {
        "iterations": typed.iterations,
        "noise": typed.noise,
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
