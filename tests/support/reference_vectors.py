"""Which reference vectors a run of the tests has opened."""

import sys
from pathlib import Path

from support import paths

GOLDEN = paths.GOLDEN
OPENED: set[str] = set()


def _note(event, arguments):
    if event == "open" and arguments and isinstance(arguments[0], str):
        path = arguments[0]
        if "golden" in path:
            OPENED.add(str(Path(path).resolve()))


sys.addaudithook(_note)


def unused_vectors(opened):
    """Reference vectors below ``golden`` that are not among the files `opened`."""
    vectors = [p for p in GOLDEN.rglob("*") if p.suffix in {".npz", ".csv", ".json"}]
    return sorted(str(p.relative_to(GOLDEN)) for p in vectors if str(p.resolve()) not in opened)
