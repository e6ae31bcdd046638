"""Time and memory of Sinkhorn plans beside POT's solver in the log domain and OTTER's loop.

The problem is that of OTTER: similarities of random unit embeddings of images and captions, the
diagonal removed, epsilon 0.15, 5 iterations, single precision. Every measurement runs in a process
of its own, which reports the seconds of the fastest call, by the clock and of the processors (for
machines that do other work as well), and the peak memory beyond what it held before.

    python scripts/bench_sinkhorn.py --sizes 512 2048 8192 --out outputs/bench/sinkhorn.json
"""

from __future__ import annotations

import argparse
import ctypes
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

EPSILON, ITERATIONS, WIDTH = 0.15, 5, 64


def cost(n: int) -> Any:
    """The costs [n, n] float32 of a batch of n pairs."""
    import torch

    generator = torch.Generator().manual_seed(0)
    image, text = (
        torch.nn.functional.normalize(torch.randn(n, WIDTH, generator=generator)) for _ in range(2)
    )
    similarity = image @ image.T + text @ text.T + image @ text.T
    similarity.fill_diagonal_(-200.0)
    return -similarity


def ours(domain: Any) -> Callable[[Any], Any]:
    """This package, in one of its domains."""
    from noisyml.similarity.transport import sinkhorn

    return lambda costs: sinkhorn(
        costs, EPSILON, n_iterations=ITERATIONS, domain=domain
    ).row_conditional()


def loop() -> Callable[[Any], Any]:
    """The kernel scaled in place, rows and then columns, as OTTER's code does."""

    def scaled(costs: Any) -> Any:
        plan = (-costs / EPSILON).exp()
        plan /= plan.sum()
        for _ in range(ITERATIONS):
            plan /= plan.sum(1, keepdim=True) * len(plan)
            plan /= plan.sum(0, keepdim=True) * len(plan)
        return plan / plan.sum(1, keepdim=True)

    return scaled


def pot() -> Callable[[Any], Any]:
    """POT's solver in the log domain, on the transposed costs: its columns come first."""
    import ot
    import torch

    def solved(costs: Any) -> Any:
        mass = torch.full((len(costs),), 1 / len(costs))
        plan = ot.bregman.sinkhorn_log(
            mass, mass, costs.T, EPSILON, numItermax=ITERATIONS, stopThr=0, warn=False
        ).T
        return plan / plan.sum(1, keepdim=True)

    return solved


CONTENDERS: dict[str, Callable[[], Callable[[Any], Any]]] = {
    "log": lambda: ours("log"),
    "scaling": lambda: ours("scaling"),
    "released": lambda: ours("released"),
    "loop": loop,
    "pot": pot,
}


def kibibytes(line: str) -> int:
    """A line of this process's status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(found for found in lines if found.startswith(line)).split()[1])


def measure(name: str, n: int, repeats: int, threads: int, answer: Any) -> None:
    """Seconds of the fastest call, peak memory beyond the costs, and distance from ``log``."""
    import torch

    torch.set_num_threads(threads)
    costs, solve = cost(n), CONTENDERS[name]()
    solve(cost(16))
    # What is free but still held would hide a part of the peak, and the peak so far is the costs'.
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = kibibytes("VmRSS")
    seconds, processor = [], []
    for _ in range(repeats):
        began, worked = time.perf_counter(), time.process_time()
        found = solve(costs)
        seconds.append(time.perf_counter() - began)
        processor.append(time.process_time() - worked)
    peak = kibibytes("VmHWM")
    apart = float((found - ours("log")(costs)).abs().max())
    answer.put(
        {
            "contender": name,
            "n": n,
            "seconds": min(seconds),
            "processor_seconds": min(processor),
            "all_seconds": seconds,
            "peak_extra_bytes": (peak - before) * 1024,
            "greatest_difference_from_log": apart,
        }
    )


def main(arguments: list[str]) -> int:
    """Run the benchmark and write or print its JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[512, 2048, 8192])
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path)
    typed = parser.parse_args(arguments)
    context = multiprocessing.get_context("spawn")
    results = []
    for n in typed.sizes:
        for name in typed.contenders:
            answer = context.Queue()
            given = (name, n, typed.repeats, typed.threads, answer)
            process = context.Process(target=measure, args=given)
            process.start()
            process.join()
            if process.exitcode:
                print(f"{name} at {n} failed", file=sys.stderr)
                return 1
            results.append(answer.get())
            print(json.dumps(results[-1]), file=sys.stderr)
    import torch

    report = {
        "epsilon": EPSILON,
        "iterations": ITERATIONS,
        "threads": typed.threads,
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
    raise SystemExit(main(sys.argv[1:]))
