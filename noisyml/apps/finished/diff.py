"""Name what differs between two runs: settings, data, noise, versions, results.

``noisyml diff RUN_A RUN_B`` reads run folders and builds nothing.
"""

from __future__ import annotations

import argparse
from pathlib import Path


def main(arguments: list[str]) -> int:
    """Run ``noisyml diff RUN_A RUN_B``; status 0 if nothing but results differs, else 1.

    Raises:
        UserError: a folder holds no run, or a file of it is broken.
    """
    parser = argparse.ArgumentParser(prog="noisyml diff", description=__doc__)
    parser.add_argument("first", type=Path, metavar="RUN_A")
    parser.add_argument("second", type=Path, metavar="RUN_B")
    typed = parser.parse_args(arguments)

    from noisyml.reports.differences import differences
    from noisyml.runs.folder import locate_run

    found = differences(locate_run(typed.first), locate_run(typed.second))
    for part, lines in found.items():
        print(f"{part}:")
        for name, one, other in lines:
            print(f"  {name}: {one} | {other}")
    if not found:
        print("The runs have the same settings, data, noise, versions and results.")
    return int(bool(found.keys() - {"results"}))
