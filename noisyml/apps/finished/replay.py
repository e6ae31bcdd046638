"""Train a run anew from its folder and compare the metrics.

``noisyml replay RUN`` reads the configuration kept in a run folder, trains in a new folder and says
which metrics differ: none, on the same type of processor with the same versions.
"""

from __future__ import annotations

import argparse
from datetime import datetime
from pathlib import Path


def main(arguments: list[str]) -> int:
    """Run ``noisyml replay RUN [--out DIR]``; status 0 if every metric has the same bits, else 1.

    Raises:
        UserError: the folder holds no finished run of this version.
    """
    parser = argparse.ArgumentParser(prog="noisyml replay", description=__doc__)
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of the new run")
    typed = parser.parse_args(arguments)

    from noisyml.apps.train import Training
    from noisyml.reports.differences import differences
    from noisyml.runs.folder import RunFolder, locate_run

    first = locate_run(typed.run)
    first.metrics()  # a run without results is refused before hours of training
    name = f"{datetime.now():%Y-%m-%d_%H-%M-%S-%f}"
    out = typed.out or Path("outputs") / "replay" / first.path.resolve().name / name
    words = [*first.overrides(), f"hydra.run.dir={out}", "report=false"]
    status = Training().main([word for word in words if not word.startswith("hydra.sweep")])
    if status:
        return status
    found = differences(first, RunFolder(out))
    for part in ("settings", "data", "environment"):
        for key, one, other in found.get(part, []):
            if key != "report":
                print(f"{part}, {key}: {one} | {other}")
    apart = found.get("results", [])
    for key, one, other in apart:
        print(f"differs: {key}: {one} | {other}")
    total = sum(not key.startswith("time/") for key in first.metrics())
    print(f"{total - len(apart)} of {total} metrics are the same to the last bit; {out}")
    return int(bool(apart))
