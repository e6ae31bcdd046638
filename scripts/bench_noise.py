"""Seconds to corrupt many labels, beside the released one-draw-per-sample recipe.

Both run in this process on the same labels; the recipe (one multinomial draw per sample from a
legacy generator, as in the Co-teaching line of code) is timed on a part and scaled.

    python scripts/bench_noise.py --out outputs/bench/noise.json
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from noisyml.noise import Asymmetric, Matrix, Pair, Symmetric
from noisyml.noise.base import Injector


def seconds(work: Callable[[], object], repeats: int) -> float:
    """The best wall time of several runs."""
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=1_000_000, help="labels")
    parser.add_argument("--classes", type=int, default=1000, help="classes")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, help="JSON file")
    options = parser.parse_args()

    rng = np.random.default_rng(0)
    labels = rng.integers(0, options.classes, options.n)
    keys = [f"image_{i:08d}.jpg" for i in range(options.n)]
    matrix = np.full((options.classes, options.classes), 0.4 / (options.classes - 1))
    np.fill_diagonal(matrix, 0.6)
    injectors: dict[str, Injector] = {
        "symmetric": Symmetric(rate=0.4),
        "symmetric exact": Symmetric(rate=0.4, count="exact"),
        "symmetric exact_per_class": Symmetric(rate=0.4, count="exact_per_class"),
        "symmetric exact_global": Symmetric(rate=0.4, count="exact_global"),
        "pair": Pair(rate=0.4),
        "asymmetric": Asymmetric(
            rate=0.4, map={i: i + 1 for i in range(0, options.classes - 1, 2)}
        ),
        "matrix": Matrix(matrix=matrix.tolist()),
    }
    part = min(20_000, options.n)
    recipe = Symmetric(rate=0.4, count="legacy")
    peer = seconds(lambda: recipe.inject(labels[:part], options.classes), 1) * options.n / part
    rows = {}
    for name, injector in injectors.items():
        plain = seconds(lambda i=injector: i.inject(labels, options.classes), options.repeats)
        named = seconds(
            lambda i=injector: i.inject(labels, options.classes, keys=keys), options.repeats
        )
        rows[name] = {
            "seconds": plain,
            "seconds_with_keys": named,
            "recipe_over_ours": peer / plain,
        }
        ratio = f"{peer / plain:7.0f}x the recipe"
        print(f"{name:28s} {plain:6.2f} s   with keys {named:6.2f} s   {ratio}")
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        facts = {"n": options.n, "classes": options.classes, "machine": platform.processor()}
        options.out.write_text(json.dumps({**facts, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
