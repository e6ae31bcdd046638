"""Time and memory of ``noisyml clean`` on a million vectors, killed once and gone on with.

Rows of 512 numbers in float16 lie in a file: 100 classes around means of their own, with directions
in which all rows vary, and a fifth of the labels wrong. The command is typed once, killed when its
first classifiers are done, and gone on with.

    python scripts/trial_clean_million.py --rows 100000 --out outputs/clean_million
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from bench_million import measured

from noisyml.metrics.label_trust import auroc, fnr_at_budget
from noisyml.storage.files import write_atomically

WIDTH, CLASSES, WRONG, BLOCK = 512, 100, 0.2, 50_000
#: Directions in which the rows of all classes vary, and how far compared with the means.
SHARED, SPREAD, NOISE = 64, 1.2, 1.0


def make(folder: Path, rows: int) -> None:
    """Write ``rows.npy``, the labels beside it, and the truth."""
    rng = np.random.default_rng(0)
    means = rng.normal(size=(CLASSES, WIDTH)) * 0.35
    shared = rng.normal(size=(SHARED, WIDTH)) / SHARED**0.5
    true = rng.integers(0, CLASSES, rows)
    wrong = rng.random(rows) < WRONG
    labels = np.where(wrong, (true + rng.integers(1, CLASSES, rows)) % CLASSES, true)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "rows.npy"
    stored = np.lib.format.open_memmap(
        file.with_suffix(".part"), "w+", dtype=np.float16, shape=(rows, WIDTH)
    )
    for start in range(0, rows, BLOCK):
        part = true[start : start + BLOCK]
        varied = rng.normal(size=(len(part), SHARED)) @ shared * SPREAD
        stored[start : start + BLOCK] = (
            means[part] + varied + NOISE * rng.normal(size=(len(part), WIDTH))
        )
    stored.flush()
    np.save(folder / "rows.labels.npy", labels)
    np.save(folder / "true.npy", true)
    os.replace(file.with_suffix(".part"), file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--out", type=Path, required=True, help="folder of the data and results")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("words", nargs="*", help="further words of the command")
    options = parser.parse_args()
    folder = (options.out / str(options.rows)).absolute()
    if not (folder / "rows.npy").is_file():
        make(folder, options.rows)
    audit = folder / "audit"
    clean = [sys.executable, "-m", "noisyml", "clean"]
    typed = [*clean, "dataset=vectors", f"dataset.path={folder / 'rows.npy'}",
             f"hydra.run.dir={audit}", *options.words]  # fmt: skip
    finished = audit / "steps" / "round_1.npz"
    first = measured(typed, options.threads, finished.is_file)
    second = measured([*clean, f"resume={audit}"], options.threads)
    table = pq.read_table(audit / "issues.parquet", columns=["path", "given", "p_wrong"])
    place = np.asarray([int(path.rpartition(":")[2]) for path in table["path"].to_pylist()])
    true = np.load(folder / "true.npy")[place]
    wrong = torch.from_numpy(true != np.asarray(table["given"].to_pylist(), dtype=np.int64))
    trust = 1 - torch.from_numpy(table["p_wrong"].to_numpy())
    found = {
        "killed": first,
        "gone on with": second,
        "wrong": float(wrong.double().mean()),
        "estimated": json.loads((audit / "summary.json").read_text())["noise_rate"],
        "AUROC": auroc(trust, ~wrong),
        "FNR at budget": fnr_at_budget(trust, wrong),
    }
    write_atomically(folder / "result.json", json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
