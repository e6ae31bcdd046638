"""Exact nearest neighbours: time and memory beside faiss and beside a plain matrix product.

Rows of the table, chosen by --row:

* self-join: the k nearest others of all rows, of isotropic noise (where nothing can be ruled out
  cheaply), of clusters with a power-law spectrum (see bench_retrieval.py) and of --embeddings FILE.
  Contenders take turns in one process; peak memory is that of a process of its own. The neighbours
  of all contenders must agree but for ties within float32.
* cuda: the same on a GPU at --n 1000000, with the time that the product alone would take in
  bfloat16 at the speed measured there.
* memory: peak memory of the search, and of faiss, as N grows.

--smoke runs the code of any row at a tiny size, on a CPU where there is no GPU.

    python scripts/bench_similarity.py --row self-join --repeats 3 --out outputs/bench/search.json
    python scripts/bench_similarity.py --row cuda --device cuda --n 1000000
    python scripts/bench_similarity.py --row memory
    python scripts/bench_similarity.py --row cuda --smoke
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_retrieval import synthetic_embeddings
from torch import Tensor

from noisyml.similarity.search import self_topk

#: Scores of the same neighbour rank may differ by this much between contenders.
TOLERANCE = 2e-6
#: Rows of a block of the plain product: the fastest of 256 to 4,096 on 2 cores.
PLAIN_BLOCK = 1024
#: Parts of a row whose products Panorama compares in turn.
PANORAMA_LEVELS = 8
#: Rows and columns of the products whose speed is the ceiling.
CEILING_SIDE = 16_384
#: Rows and dimensions that the search warms up with before its memory is measured: enough for all
#: libraries that it uses to be loaded.
WARM_UP = (8_000, 512)

Found = tuple[Tensor, Tensor]
Contender = Callable[[Tensor, int], Found]


def by_noisyml(precision: str) -> Contender:
    def search(x: Tensor, k: int) -> Found:
        return self_topk(x, k, precision=precision)  # type: ignore[arg-type]

    return search


def without_oneself(scores: Tensor, index: Tensor) -> Found:
    """Drop each row's own number, or its last neighbour where equal rows have displaced it."""
    own = index == torch.arange(len(index), device=index.device)[:, None]
    own[:, -1] |= ~own.any(1)
    shape = (len(index), index.shape[1] - 1)
    return scores[~own].view(shape), index[~own].view(shape)


def by_faiss(x: Tensor, k: int) -> Found:
    import faiss

    flat = faiss.IndexFlatIP(x.shape[1])
    if x.device.type == "cuda":
        flat = faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), x.device.index or 0, flat)
    rows = x.cpu().numpy()
    flat.add(rows)
    scores, index = flat.search(rows, k + 1)
    return without_oneself(torch.from_numpy(scores), torch.from_numpy(index))


def by_panorama(x: Tensor, k: int) -> Found:
    """faiss' flat index that gives rows up by partial distances (faiss 1.15)."""
    import faiss

    flat = faiss.IndexFlatIPPanorama(x.shape[1], PANORAMA_LEVELS)
    rows = x.numpy()
    flat.add(rows)
    scores, index = flat.search(rows, k + 1)
    return without_oneself(torch.from_numpy(scores), torch.from_numpy(index))


def by_usearch(x: Tensor, k: int) -> Found:
    """USearch without an index, where it is installed."""
    from usearch.index import MetricKind, search

    rows = x.numpy()
    found = search(rows, rows, k + 1, MetricKind.IP, exact=True, threads=torch.get_num_threads())
    scores, index = 1 - found.distances, found.keys.astype(np.int64)
    return without_oneself(torch.from_numpy(scores), torch.from_numpy(index))


def by_product(x: Tensor, k: int) -> Found:
    """Every row of the whole matrix, block by block."""
    scores = torch.empty((len(x), k + 1), dtype=x.dtype, device=x.device)
    index = torch.empty((len(x), k + 1), dtype=torch.int64, device=x.device)
    block = torch.empty((PLAIN_BLOCK, len(x)), dtype=x.dtype, device=x.device)
    for start in range(0, len(x), PLAIN_BLOCK):
        part = slice(start, min(start + PLAIN_BLOCK, len(x)))
        products = torch.mm(x[part], x.T, out=block[: part.stop - start])
        scores[part], index[part] = products.topk(k + 1, dim=1)
    return without_oneself(scores, index)


CONTENDERS: dict[str, Contender] = {
    "exact": by_noisyml("exact"),
    "fast": by_noisyml("fast"),
    "faiss": by_faiss,
    "product": by_product,
    "panorama": by_panorama,
    "usearch": by_usearch,
}
#: Contenders unless others are named.
USUAL = ("exact", "fast", "faiss", "product")


def embeddings_of(kind: str, n: int, dim: int, file: Path | None) -> Tensor:
    """Unit rows [n, dim] float32."""
    if kind == "isotropic":
        rows = torch.randn(n, dim, generator=torch.Generator().manual_seed(0))
    elif kind == "clustered":
        rows = torch.from_numpy(synthetic_embeddings(n, dim, 0)[0])
    else:
        rows = torch.from_numpy(np.load(str(file), allow_pickle=False)).to(torch.float32)
    return torch.nn.functional.normalize(rows, dim=1)


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def timed(contender: Contender, x: Tensor, k: int) -> tuple[dict[str, float], Found]:
    clock, processor = time.perf_counter(), time.process_time()
    found = contender(x, k)
    synchronise(x.device)
    seconds = {
        "seconds": time.perf_counter() - clock,
        "cpu_seconds": time.process_time() - processor,
    }
    return seconds, found


def agreement(x: Tensor, one: Found, other: Found) -> float:
    """Share of equal neighbours; ends the script if unequal ones are no ties."""
    device = x.device
    mine, theirs = one[0].to(device, torch.float32), other[0].to(device, torch.float32)
    apart = float((mine - theirs).abs().max())
    if apart > TOLERANCE:
        raise SystemExit(f"Scores of the same rank are {apart:.1e} apart: not the same neighbours.")
    return float((one[1].to(device) == other[1].to(device)).float().mean())


def peak_bytes(name: str, file: Path, arguments: argparse.Namespace) -> int:
    """Peak memory beyond the embeddings of one contender, in a process of its own but for smoke."""
    k, threads, device = arguments.k, arguments.threads, arguments.device
    if arguments.smoke:
        return peak_of_this_process(name, file, k, device, (arguments.n, arguments.dim))
    command = [sys.executable, __file__, "--contender", name, "--embeddings", str(file)]
    command += ["--k", str(k), "--threads", str(threads), "--device", device]
    done = subprocess.run(
        command, env=environment(threads), check=True, capture_output=True, text=True
    )
    return int(done.stdout.splitlines()[-1])


def environment(threads: int) -> dict[str, str]:
    count = str(threads)
    # Threads that wait for a preempted one would burn the time of all contenders.
    waiting = {"OMP_WAIT_POLICY": "passive"}
    return {**os.environ, **waiting, "OMP_NUM_THREADS": count, "MKL_NUM_THREADS": count}


def peak_of_this_process(
    name: str, file: Path, k: int, device: str, warm_up: tuple[int, int] = WARM_UP
) -> int:
    x = torch.from_numpy(np.load(file, allow_pickle=False)).to(device)
    CONTENDERS[name](torch.randn(warm_up, device=device), k)
    if x.device.type == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        CONTENDERS[name](x, k)
        return torch.cuda.max_memory_allocated() - before
    # What is free but still ours would hide a part of the peak, and the peak so far belongs to
    # imports and to the warm-up.
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    resident = kibibytes("VmRSS")
    CONTENDERS[name](x, k)
    return max(0, kibibytes("VmHWM") - resident) * 1024


def kibibytes(field: str) -> int:
    """A line of this process's status; unlike getrusage's peak, not inherited from the parent."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1])


def self_join(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Times, ratios and memory for each kind of data."""
    kinds = ["isotropic", "clustered"] if not arguments.embeddings else ["file"]
    results = []
    for kind in kinds:
        x = embeddings_of(kind, arguments.n, arguments.dim, arguments.embeddings)
        x = x.to(arguments.device)
        runs: dict[str, list[dict[str, float]]] = {name: [] for name in arguments.contenders}
        for name in arguments.contenders:
            CONTENDERS[name](x[:3000], arguments.k)
        for _ in range(arguments.repeats):
            first: Found | None = None
            for name in arguments.contenders:
                seconds, found = timed(CONTENDERS[name], x, arguments.k)
                first = first or found
                runs[name].append({**seconds, "agreement": agreement(x, first, found)})
                print(f"{kind:10s} n={len(x)} {name:8s} {runs[name][-1]}", flush=True)
        memory = {}
        with tempfile.TemporaryDirectory() as folder:
            np.save(Path(folder) / "x.npy", x.cpu().numpy())
            for name in arguments.contenders:
                memory[name] = peak_bytes(name, Path(folder) / "x.npy", arguments)
        ratios = {
            f"{peer} / {name}, {clock}": [
                round(b[clock] / a[clock], 2) for a, b in zip(runs[name], runs[peer], strict=True)
            ]
            for name in ("exact", "fast")
            for peer in ("faiss", "product", "panorama", "usearch")
            for clock in ("seconds", "cpu_seconds")
            if {name, peer} <= set(runs)
        }
        print(
            kind, json.dumps(ratios), {name: f"{b / 2**20:.0f} MiB" for name, b in memory.items()}
        )
        results.append(
            {
                "data": kind if kind != "file" else str(arguments.embeddings),
                "n": len(x),
                "dim": x.shape[1],
                "k": arguments.k,
                "runs": runs,
                "ratios": ratios,
                "peak_extra_bytes": memory,
            }
        )
    return results


def product_ceiling(device: torch.device, n: int, dim: int) -> dict[str, float]:
    """Speed of large bfloat16 products, and what N x N / 2 of them would take."""
    side = min(n, CEILING_SIDE)
    rows = torch.randn(side, dim, device=device, dtype=torch.bfloat16)
    out = torch.empty(side, side, device=device, dtype=torch.bfloat16)
    torch.mm(rows, rows.T, out=out)
    synchronise(device)
    start = time.perf_counter()
    for _ in range(20):
        torch.mm(rows, rows.T, out=out)
    synchronise(device)
    speed = 20 * 2 * side**2 * dim / (time.perf_counter() - start)
    return {"flop_per_second": speed, "seconds_of_half_the_matrix": n * n * dim / speed}


def memory_growth(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Peak memory beyond the embeddings, as N grows, and per row of what is kept and returned."""
    results = []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "x.npy"
        for n in arguments.sizes:
            np.save(file, embeddings_of("clustered", n, arguments.memory_dim, None).numpy())
            for name in ("exact", "fast", "faiss"):
                used = peak_bytes(name, file, arguments)
                row = {"n": n, "dim": arguments.memory_dim, "search": name, "peak": used}
                results.append({**row, "bytes_per_row": used / n, "n_squared": 4 * n * n})
                print(f"n={n:7d} {name:6s} {used / 2**20:7.1f} MiB {used / n:7.0f} bytes a row")
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--row", choices=["self-join", "cuda", "memory"], default="self-join")
    parser.add_argument(
        "--n", type=int, default=60_502, help="rows; Stanford Online Products' test"
    )
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--embeddings", type=Path, help="float [N, D] .npy to search instead")
    parser.add_argument("--contenders", nargs="+", choices=list(CONTENDERS), default=list(USUAL))
    parser.add_argument("--sizes", type=int, nargs="+", default=[20_000, 60_000, 200_000])
    parser.add_argument("--memory-dim", type=int, default=32, help="D of the row `memory`")
    parser.add_argument("--smoke", action="store_true", help="a tiny size, to see that all runs")
    parser.add_argument("--out", type=Path, help="write the results here as JSON")
    parser.add_argument("--contender", choices=list(CONTENDERS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if "OMP_WAIT_POLICY" not in os.environ:  # read when the threads start, so before this process
        command = [sys.executable, *sys.argv]
        os.execve(sys.executable, command, environment(arguments.threads))
    torch.set_num_threads(arguments.threads)
    if arguments.smoke:
        arguments.n, arguments.dim, arguments.memory_dim = 640, 24, 8
        arguments.sizes = [320, 640]
        if not torch.cuda.is_available():
            arguments.device = "cpu"
    if arguments.contender:
        file = arguments.embeddings
        print(peak_of_this_process(arguments.contender, file, arguments.k, arguments.device))
        return
    if arguments.device == "cpu":
        import faiss

        faiss.omp_set_num_threads(arguments.threads)
    report: dict[str, Any] = {
        "torch": torch.__version__,
        "processor": platform.processor() or platform.machine(),
        "threads": arguments.threads,
        "row": arguments.row,
    }
    if arguments.row == "memory":
        report["results"] = memory_growth(arguments)
    else:
        report["results"] = self_join(arguments)
    if arguments.row == "cuda":
        device = torch.device(arguments.device)
        on_gpu = device.type == "cuda"
        report["device"] = torch.cuda.get_device_name(device) if on_gpu else "cpu"
        report["ceiling"] = product_ceiling(device, arguments.n, arguments.dim)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
