"""Neighbours and retrieval metrics of up to a million rows, from a memory-mapped file.

Writes N x 512 float32 rows (clusters with a power-law spectrum as in bench_similarity.py, in
classes of 2 to 12 items) below OUT and runs on them, each in a process of its own,

* knn: ``noisyml knn k=10 precision=fast``, as typed;
* metrics: precision@1, R-Precision and MAP@R of `noisyml.metrics.retrieval`, on the mapped file.

For each: clock, processor time, and the peak of anonymous memory, sampled: all that the process
holds but for mapped files, that is rows and libraries. Results of all sizes gather in
OUT/results.json. --limit measures the 8-bit products that one core can do a second: by nothing but
the two vector instructions that one takes, in registers, and by the compiled loops on a tile of
which nothing passes. --plot draws processor time over N beside what N * N / 2 products take at
either rate. --kill kills a search as soon as it has kept something, goes on, and compares the bits.
Threads that wait sleep (OMP_WAIT_POLICY=passive), or they would count as work.

    python scripts/bench_million.py --n 100000 200000 500000 1000000 --limit --plot
    python scripts/bench_million.py --n 200000 --rows knn --kill
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

DIM, NEIGHBOURS = 512, 10
#: Rows that are made at once.
ROWS_AT_ONCE = 50_000
#: Seconds between two looks at a process's memory.
LOOK_EVERY = 0.2


def write_rows(folder: Path, n: int, seed: int = 0) -> None:
    """``rows.npy`` [n, DIM] float32 of norm 1 and ``labels.npy`` [n] int64."""
    from numpy.lib.format import open_memmap

    if (folder / "labels.npy").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    sizes = np.minimum(rng.integers(2, 13, size=n), rng.integers(2, 13, size=n))
    labels = np.repeat(np.arange(n), sizes)[:n]
    labels[-1] = labels[-2]  # a class cut to one item would have nothing to find
    n_classes = labels[-1] + 1
    labels = labels[rng.permutation(n)]
    spectrum = (np.arange(1, DIM + 1) ** -0.35).astype(np.float32)
    centres = rng.standard_normal((n_classes, DIM), dtype=np.float32) * spectrum
    spread = rng.uniform(0.6, 2.2, size=n_classes)
    rows = open_memmap(folder / "rows.npy", mode="w+", dtype=np.float32, shape=(n, DIM))
    for start in range(0, n, ROWS_AT_ONCE):
        own = labels[start : start + ROWS_AT_ONCE]
        noise = rng.standard_normal((len(own), DIM), dtype=np.float32) * spectrum
        apart = (spread[own] * rng.uniform(0.6, 1.6, size=len(own))).astype(np.float32)
        block = centres[own] + noise * apart[:, None]
        rows[start : start + len(own)] = block / np.linalg.norm(block, axis=1, keepdims=True)
    rows.flush()
    np.save(folder / "labels.npy", labels)


def measured(
    command: list[str], threads: int, killed: Callable[[], bool] = lambda: False
) -> dict[str, Any]:
    """Run a command; seconds by clock and processor, and its peak of anonymous memory.

    Args:
        command: to run.
        threads: of its libraries.
        killed: asked now and then; the process is killed when it says so.
    """
    count = str(threads)
    asked = {"OMP_NUM_THREADS": count, "MKL_NUM_THREADS": count, "OMP_WAIT_POLICY": "passive"}
    environment = {**os.environ, **asked}
    began = time.perf_counter()
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    process = subprocess.Popen(command, env=environment)
    peak, was_killed = 0, False
    while process.poll() is None:
        peak = max(peak, anonymous_bytes(process.pid))
        if not was_killed and killed():
            process.kill()
            was_killed = True
        time.sleep(LOOK_EVERY)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    if process.returncode and not was_killed:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}.")
    return {
        "seconds": round(time.perf_counter() - began, 2),
        "cpu_seconds": round(spent, 2),
        "anonymous_bytes": peak,
        "threads": threads,
        "load": os.getloadavg()[0],
        "killed": was_killed,
    }


def anonymous_bytes(process: int) -> int:
    """Memory of a process that is no file's; 0 once it has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon")), 0)


def knn_command(folder: Path, result: Path) -> list[str]:
    """The command as typed."""
    typed = [f"embeddings={folder / 'rows.npy'}", f"k={NEIGHBOURS}", "precision=fast"]
    return [sys.executable, "-m", "noisyml", "knn", *typed, f"hydra.run.dir={result}"]


def metrics_of(folder: Path, budget: int) -> dict[str, float]:
    """Precision@1, R-Precision and MAP@R of the rows in a folder, in this process."""
    from noisyml.metrics.retrieval import retrieval_metrics

    rows = np.load(folder / "rows.npy", mmap_mode="r", allow_pickle=False)
    labels = np.load(folder / "labels.npy", allow_pickle=False)
    return retrieval_metrics(rows, labels, recall_at=(), memory_budget_bytes=budget)


def measure_knn(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    result = folder / "knn"
    shutil.rmtree(result, ignore_errors=True)
    found = measured(knn_command(folder, result), arguments.threads)
    if not arguments.kill:
        return found
    again = folder / "killed"
    shutil.rmtree(again, ignore_errors=True)
    parts = [
        measured(knn_command(folder, again), arguments.threads, (again / "search.npz").exists),
        measured(knn_command(folder, again), arguments.threads),
    ]
    if not parts[0]["killed"]:
        raise SystemExit("The search ended before it kept anything: take more rows.")
    names = ("neighbours.npy", "scores.npy")
    same = all((result / name).read_bytes() == (again / name).read_bytes() for name in names)
    return found | {"killed_and_continued": parts, "same_bits": same}


def measure_metrics(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    with tempfile.NamedTemporaryFile() as said:
        command = [sys.executable, __file__, "--metrics-of", str(folder), "--said", said.name]
        command += ["--metrics-budget", str(arguments.metrics_budget)]
        found = measured(command, arguments.threads)
        return found | {"values": json.loads(Path(said.name).read_text(encoding="utf-8"))}


ROWS: dict[str, Callable[[Path, argparse.Namespace], dict[str, Any]]] = {
    "knn": measure_knn,
    "metrics": measure_metrics,
}

#: Products of 32 pairs of 8-bit numbers a step, in eight sums that do not wait for each other.
LIMIT_SOURCE = """
#include <immintrin.h>
#include <stdint.h>
__attribute__((target("avx2"))) int64_t multiplied(int64_t steps) {
    __m256i x[8], a = _mm256_set1_epi8(3), b = _mm256_set1_epi8(5);
    for (int i = 0; i < 8; i++) x[i] = _mm256_setzero_si256();
    for (int64_t s = 0; s < steps; s++)
#pragma GCC unroll 8
        for (int i = 0; i < 8; i++) {
            __asm__("" : "+x"(a));
            x[i] = _mm256_add_epi16(x[i], _mm256_maddubs_epi16(a, b));
        }
    int64_t sum = 0;
    for (int i = 0; i < 8; i++) sum += _mm256_extract_epi64(x[i], 0);
    return sum;
}
"""


def products_per_second() -> dict[str, float]:
    """8-bit products that one thread does in a second of processor time."""
    found = {}
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is not None and platform.machine() == "x86_64":
        with tempfile.TemporaryDirectory() as folder:
            source, library = Path(folder) / "limit.c", Path(folder) / "limit.so"
            source.write_text(LIMIT_SOURCE, encoding="utf-8")
            command = [compiler, "-O2", "-shared", "-fPIC", str(source), "-o", str(library)]
            subprocess.run(command, check=True)
            loop = ctypes.CDLL(str(library)).multiplied
            steps = 2**27
            found["instructions"] = 8 * 32 * steps / spent(lambda: loop(ctypes.c_int64(steps)))
    found["loops"] = tile_rate()
    return found


def tile_rate(side: int = 2048, times: int = 20) -> float:
    """Products a second of the compiled loops on a tile of which nothing passes."""
    import torch

    from noisyml.similarity.exact import kernels

    torch.set_num_threads(1)
    rows = torch.nn.functional.normalize(torch.randn(2 * side, DIM), dim=1)
    whole = kernels.rounded(rows, 5.4 / DIM**0.5 / kernels.LIMIT)[0]
    nothing, bias = torch.full((side,), torch.inf), torch.zeros(side, dtype=torch.int32)
    bar = torch.full((side,), 2**29, dtype=torch.int32)
    key = torch.arange(2 * side)
    left, right = (
        kernels.IntegerSide(part, bias, bar, key[some], kernels.FloatRows(rows[some]), nothing)
        for part, some in (
            (whole[:side], slice(0, side)),
            (kernels.packed(whole[side:]), slice(side, None)),
        )
    )
    kernels.scan_integers(left, right, 0.1)

    def work() -> None:
        for _ in range(times):
            kernels.scan_integers(left, right, 0.1)

    return times * side * side * DIM / spent(work)


def spent(work: Callable[[], Any]) -> float:
    """Processor seconds."""
    began = time.process_time()
    work()
    return time.process_time() - began


def plot(results: dict[str, Any], path: Path) -> None:
    """Processor seconds over N, and the limits."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.4, 4.0), layout="constrained")
    sizes = sorted({run["n"] for run in results["runs"]})
    names = {"knn": "10 nearest others", "metrics": "P@1, R-Precision, MAP@R"}
    for row, marker in (("knn", "o"), ("metrics", "s")):
        runs = sorted(
            (run["n"], run["cpu_seconds"]) for run in results["runs"] if run["row"] == row
        )
        if runs:
            axes.plot(*zip(*runs, strict=True), marker=marker, label=names[row])
    labels = {
        "instructions": "the two instructions of a product alone",
        "loops": "the product of our loops alone",
    }
    for (name, rate), dashes in zip(results["limit"].items(), (":", "--"), strict=False):
        axes.plot(sizes, [n * n / 2 * DIM / rate for n in sizes], "k" + dashes, label=labels[name])
    axes.set(xscale="log", yscale="log", xlabel="rows N (512 dimensions)")
    axes.set(ylabel="processor seconds")
    axes.grid(alpha=0.3, which="both")
    axes.legend(frameon=False)
    figure.savefig(path, dpi=120)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, nargs="+", default=[100_000])
    parser.add_argument("--rows", nargs="*", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--kill", action="store_true", help="also kill a search and go on")
    parser.add_argument("--limit", action="store_true", help="measure this processor's rate")
    parser.add_argument("--plot", action="store_true", help="draw OUT/million.png")
    parser.add_argument("--out", type=Path, default=Path("outputs/bench/million"))
    parser.add_argument("--metrics-budget", type=int, default=2**30, help="bytes")
    parser.add_argument("--metrics-of", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--said", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.metrics_of:
        values = metrics_of(arguments.metrics_of, arguments.metrics_budget)
        arguments.said.write_text(json.dumps(values), encoding="utf-8")
        return 0
    arguments.out.mkdir(parents=True, exist_ok=True)
    file = arguments.out / "results.json"
    results: dict[str, Any] = {"runs": [], "limit": {}}
    if file.exists():
        results = json.loads(file.read_text(encoding="utf-8"))
    if arguments.limit:
        results["limit"] = products_per_second()
        print({name: f"{rate:.3e}" for name, rate in results["limit"].items()})
    for n in arguments.n if arguments.rows else ():
        folder = arguments.out / str(n)
        write_rows(folder, n)
        for row in arguments.rows:
            found = {"row": row, "n": n} | ROWS[row](folder, arguments)
            others = [run for run in results["runs"] if (run["row"], run["n"]) != (row, n)]
            results["runs"] = [*others, found]
            print(json.dumps(found), flush=True)
            file.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    file.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    if arguments.plot:
        plot(results, arguments.out / "million.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
