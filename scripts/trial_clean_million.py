"""Time and memory of ``noisyml clean`` on a million vectors, killed once and gone on with.

Rows of 512 numbers in float16 lie in a file: 100 classes, each around a mean in 64 dimensions of
falling variance, turned into all 512, with a little of every direction added; a fifth of the labels
is wrong. The command is typed once, killed as soon
as its first round is kept, and gone on with. For each step that the command names: processor time,
and the peak of anonymous memory, sampled.

    python scripts/trial_clean_million.py --rows 100000 --out outputs/clean_million
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from bench_million import LOOK_EVERY, anonymous_bytes

from noisyml.metrics.label_trust import auroc, fnr_at_budget
from noisyml.storage.files import write_atomically

WIDTH, CLASSES, WRONG, BLOCK = 512, 100, 0.2, 50_000
#: Dimensions that hold the rows but for little, the power by which their spread falls, the distance
#: of class means in units of it, and the little.
HELD_BY, FALLS, APART, LITTLE = 64, -0.35, 0.6, 0.05
#: A line that tells that a step begins.
BEGINS = re.compile(r"([^%]+) \(\d+ s\)$")


def make(folder: Path, rows: int) -> None:
    """Write ``rows.npy``, the labels beside it, and the truth."""
    rng = np.random.default_rng(0)
    spread = np.arange(1, HELD_BY + 1) ** FALLS
    means = rng.normal(size=(CLASSES, HELD_BY)) * APART
    turn = rng.normal(size=(HELD_BY, WIDTH)) / WIDTH**0.5
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
        held = (means[part] + rng.normal(size=(len(part), HELD_BY))) * spread
        stored[start : start + BLOCK] = held @ turn + LITTLE * rng.normal(size=(len(part), WIDTH))
    stored.flush()
    np.save(folder / "rows.labels.npy", labels)
    np.save(folder / "true.npy", true)
    os.replace(file.with_suffix(".part"), file)


def processor_seconds(process: int) -> float:
    """Processor time of a process; 0 once it has ended."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def followed(
    command: list[str], threads: int, killed: Callable[[], bool] = lambda: False
) -> dict[str, Any]:
    """Run a command; clock, processor time and peak of anonymous memory, of all and of each step.

    Args:
        command: to run; its lines on standard error tell the steps.
        threads: of its libraries.
        killed: asked now and then; the process is killed when it says so.
    """
    count = str(threads)
    asked = {"OMP_NUM_THREADS": count, "MKL_NUM_THREADS": count, "OMP_WAIT_POLICY": "passive"}
    began = time.perf_counter()
    process = subprocess.Popen(
        command, env={**os.environ, **asked}, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    lines: list[str] = []
    reader = threading.Thread(target=lambda: lines.extend(process.stderr), daemon=True)
    reader.start()
    steps = [{"step": "beginning", "cpu_seconds": 0.0, "peak": 0, "from": 0.0}]
    read, spent, was_killed = 0, 0.0, False
    while process.poll() is None:
        time.sleep(LOOK_EVERY)
        spent = max(spent, processor_seconds(process.pid))
        steps[-1]["peak"] = max(steps[-1]["peak"], anonymous_bytes(process.pid))
        steps[-1]["cpu_seconds"] = spent - steps[-1]["from"]
        for line in lines[read:]:
            print(line, end="", flush=True)
            if begins := BEGINS.match(line.strip()):
                name = begins.group(1)
                steps.append({"step": name, "cpu_seconds": 0.0, "peak": 0, "from": spent})
        read = len(lines)
        if not was_killed and killed():
            process.kill()
            was_killed = True
    reader.join()
    print("".join(lines[read:]), end="", flush=True)
    if process.returncode and not was_killed:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}.")
    return {
        "killed": was_killed,
        "seconds": round(time.perf_counter() - began, 1),
        "cpu_seconds": round(spent, 1),
        "peak_gib": round(max(step["peak"] for step in steps) / 2**30, 2),
        "load": os.getloadavg()[0],
        "steps": [
            {
                "step": step["step"],
                "cpu_seconds": round(step["cpu_seconds"], 1),
                "peak_gib": round(step["peak"] / 2**30, 2),
            }
            for step in steps
        ],
    }


def table(found: dict[str, Any]) -> str:
    """Steps of both commands, as Markdown."""
    lines = ["| command | step | CPU s | GiB |", "|---|---|---:|---:|"]
    for name in ("killed", "gone on with"):
        run = found[name]
        lines += [
            f"| {name} | {step['step']} | {step['cpu_seconds']:.0f} | {step['peak_gib']:.2f} |"
            for step in run["steps"]
        ]
        lines.append(f"| {name} | **all** | {run['cpu_seconds']:.0f} | {run['peak_gib']:.2f} |")
    return "\n".join(lines)


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
    shutil.rmtree(audit, ignore_errors=True)
    clean = [sys.executable, "-m", "noisyml", "clean"]
    typed = [*clean, "dataset=vectors", f"dataset.path={folder / 'rows.npy'}",
             f"hydra.run.dir={audit}", *options.words]  # fmt: skip
    finished = audit / "steps" / "round_1.npz"
    first = followed(typed, options.threads, finished.is_file)
    second = followed([*clean, f"resume={audit}"], options.threads)
    issues = pq.read_table(audit / "issues.parquet", columns=["path", "given", "p_wrong"])
    place = np.asarray([int(path.rpartition(":")[2]) for path in issues["path"].to_pylist()])
    true = np.load(folder / "true.npy")[place]
    wrong = torch.from_numpy(true != np.asarray(issues["given"].to_pylist(), dtype=np.int64))
    trust = 1 - torch.tensor(issues["p_wrong"].to_pylist(), dtype=torch.float64)
    summary = json.loads((audit / "summary.json").read_text())
    found = {
        "killed": first,
        "gone on with": second,
        "kept_gib": sum(f.stat().st_size for f in audit.rglob("*") if f.is_file()) / 2**30,
        "wrong": float(wrong.double().mean()),
        "estimated": summary["noise_rate"],
        "neighbours_found": summary["neighbours_found"],
        "AUROC": auroc(trust, ~wrong),
        "FNR at budget": fnr_at_budget(trust, wrong),
    }
    write_atomically(folder / "result.json", json.dumps(found, indent=1) + "\n")
    print(json.dumps({key: found[key] for key in found if key not in ("killed", "gone on with")}))
    print(table(found))


if __name__ == "__main__":
    main()
