"""Time and peak memory of the retrieval metrics beside another library's.

Each contender runs in its own process on the same synthetic embeddings: classes of 2 to 12 items
as in Stanford Online Products (or of one size, with --classes-of), a power-law spectrum,
precision@1 about 0.75. The script fails unless the metrics that both have agree to 1e-6:

* pytorch-metric-learning's AccuracyCalculator: precision@1, R-precision, MAP@R.
* open-metric-learning's search and metrics, where that package is installed: precision@1; beside
  it the peer computes precision and AP at the largest class's size.

    python scripts/bench_retrieval.py --n 20000 60502 --repeats 2 --out outputs/bench_retrieval.json
    python scripts/bench_retrieval.py --n 20000 --classes-of 1000
    python scripts/bench_retrieval.py --n 20000 --classes-of 1000 --threads 2 --wait spin
    python scripts/bench_retrieval.py --n 20000 --peer open-metric-learning
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

PEER_NAMES = {
    "precision_at_1": "precision_at_1",
    "r_precision": "r_precision",
    "map_at_r": "mean_average_precision_at_r",
}
PEERS = ("pytorch-metric-learning", "open-metric-learning")
TOLERANCE = 1e-6


def synthetic_embeddings(
    n: int, dim: int, seed: int, classes_of: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Unit-norm float32 [n, dim] in clusters, and int64 labels [n], in random order."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(2, 13, size=n)
    # Small classes are the rule: the mean size is about 5.
    sizes = np.minimum(sizes, rng.integers(2, 13, size=n))
    if classes_of is not None:
        sizes = np.full(-(-n // classes_of), classes_of)
    labels = np.repeat(np.arange(len(sizes)), sizes)[:n]
    if n > 1 and labels[-1] != labels[-2]:  # a class cut to one item would have nothing to find
        labels[-1] = labels[-2]
    spectrum = (np.arange(1, dim + 1) ** -0.35).astype(np.float32)
    centres = rng.standard_normal((labels[-1] + 1, dim), dtype=np.float32) * spectrum
    noise = rng.standard_normal((n, dim), dtype=np.float32) * spectrum
    # Some classes are tight and some are loose, some items are outliers.
    spread = rng.uniform(0.6, 2.2, size=labels[-1] + 1)[labels] * rng.uniform(0.6, 1.6, size=n)
    embeddings = centres[labels] + noise * spread[:, None].astype(np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    order = rng.permutation(n)
    return embeddings[order], labels[order].astype(np.int64)


def _resident_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def run_contender(name: str, folder: Path) -> dict[str, float]:
    """Metrics, seconds and extra peak memory of one contender in this process."""
    embeddings = torch.from_numpy(np.load(folder / "embeddings.npy", allow_pickle=False))
    labels = torch.from_numpy(np.load(folder / "labels.npy", allow_pickle=False))
    if name == "noisyml":
        from noisyml.metrics.retrieval import retrieval_metrics

        def measure(x: torch.Tensor, y: torch.Tensor) -> dict[str, float]:
            return retrieval_metrics(x, y, metrics=list(PEER_NAMES), recall_at=())
    elif name == "open-metric-learning":
        from oml.functional.knn import batched_knn
        from oml.functional.metrics import calc_retrieval_metrics

        def measure(x: torch.Tensor, y: torch.Tensor) -> dict[str, float]:
            largest = int(torch.bincount(y).max()) - 1
            everyone = torch.arange(len(x))
            _, retrieved, relevant = batched_knn(x, everyone, everyone, largest, labels_gt=y)
            found = calc_retrieval_metrics(
                retrieved,
                relevant,
                cmc_top_k=(1,),
                precision_top_k=(largest,),
                map_top_k=(largest,),
                verbose=False,
            )
            return {"precision_at_1": float(found["cmc"][1])}

    else:
        from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

        calculator = AccuracyCalculator(
            include=tuple(PEER_NAMES.values()), k="max_bin_count", device=torch.device("cpu")
        )

        def measure(x: torch.Tensor, y: torch.Tensor) -> dict[str, float]:
            found = calculator.get_accuracy(x, y)
            return {ours: found[theirs] for ours, theirs in PEER_NAMES.items()}

    measure(embeddings[:2000], labels[:2000])
    before = _resident_bytes()
    start, cpu_start = time.perf_counter(), time.process_time()
    values = measure(embeddings, labels)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        **{key: values[key] for key in PEER_NAMES if key in values},
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "peak_extra_bytes": float(max(0, peak - before)),
    }


def _spawn(name: str, folder: Path, threads: int, wait: str) -> dict[str, float]:
    count = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    environment = {**os.environ, **count}
    environment.pop("OMP_WAIT_POLICY", None)
    if wait == "sleep":
        environment["OMP_WAIT_POLICY"] = "passive"
    command = [sys.executable, __file__, "--contender", name, "--folder", str(folder)]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def compare(
    n: int,
    dim: int,
    threads: int,
    repeats: int,
    seed: int,
    classes_of: int | None,
    peer_name: str,
    wait: str,
) -> dict[str, Any]:
    """Both contenders in turn, `repeats` times, and the ratios of each turn."""
    runs: dict[str, list[dict[str, float]]] = {"noisyml": [], peer_name: []}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        embeddings, labels = synthetic_embeddings(n, dim, seed, classes_of)
        np.save(folder / "embeddings.npy", embeddings)
        np.save(folder / "labels.npy", labels)
        n_classes = len(np.unique(labels))
        del embeddings, labels
        for _ in range(repeats):
            for name, results in runs.items():
                results.append(_spawn(name, folder, threads, wait))
    ours, theirs = runs["noisyml"], runs[peer_name]
    for mine, peer in zip(ours, theirs, strict=True):
        for key in PEER_NAMES.keys() & peer.keys():
            if abs(mine[key] - peer[key]) > TOLERANCE:
                raise SystemExit(f"n={n}: {key} differs: {mine[key]!r} and {peer[key]!r}")
    return {
        "n": n,
        "dim": dim,
        "classes": n_classes,
        "threads": threads,
        "wait": wait,
        "runs": runs,
        "time_ratios": [b["seconds"] / a["seconds"] for a, b in zip(ours, theirs, strict=True)],
        "cpu_time_ratios": [
            b["cpu_seconds"] / a["cpu_seconds"] for a, b in zip(ours, theirs, strict=True)
        ],
        "memory_ratios": [
            a["peak_extra_bytes"] / b["peak_extra_bytes"] for a, b in zip(ours, theirs, strict=True)
        ],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, nargs="+", default=[20_000, 60_000])
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--classes-of", type=int, metavar="SIZE", help="items of every class (default: 2 to 12)"
    )
    parser.add_argument("--peer", choices=PEERS, default=PEERS[0])
    parser.add_argument(
        "--wait",
        choices=("sleep", "spin"),
        default="sleep",
        help="what threads without work do: sleep at once, which on a busy machine keeps them from "
        "burning time while they wait for one that was preempted; or spin for a while first, as "
        "PyTorch's do of themselves (default: %(default)s)",
    )
    parser.add_argument("--out", type=Path, help="write the results here as JSON")
    parser.add_argument("--contender", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.contender:
        print(json.dumps(run_contender(arguments.contender, arguments.folder)))
        return

    results = []
    for n in arguments.n:
        result = compare(
            n,
            arguments.dim,
            arguments.threads,
            arguments.repeats,
            arguments.seed,
            arguments.classes_of,
            arguments.peer,
            arguments.wait,
        )
        results.append(result)
        for name, runs in result["runs"].items():
            for run in runs:
                print(
                    f"n={n:6d} {name:24s} {run['seconds']:7.1f} s {run['cpu_seconds']:7.1f} CPU s "
                    f"{run['peak_extra_bytes'] / 2**20:7.0f} MiB  "
                    + "  ".join(f"{key} {run[key]:.4f}" for key in PEER_NAMES if key in run)
                )
        for label, key in (
            ("times as fast by the clock", "time_ratios"),
            ("times as fast by CPU time", "cpu_time_ratios"),
            ("share of the memory", "memory_ratios"),
        ):
            print(f"n={n:6d} {label}: " + ", ".join(f"{ratio:.2f}" for ratio in result[key]))
    report = {
        "torch": torch.__version__,
        "processor": platform.processor() or platform.machine(),
        "results": results,
    }
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
