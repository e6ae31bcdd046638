"""Compiles the search loops when the package is built or installed (a hatchling build hook).

Without a C compiler the package still installs: the search then does without, as
`noisyml.similarity.exact.kernels` says. By hand: ``python scripts/build_kernels.py``. With
``NOISYML_PURE=1`` in the environment a wheel has none and fits every system.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

try:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface
except ModuleNotFoundError:  # called by hand
    BuildHookInterface = object

FOLDER = Path("noisyml/similarity/exact")
SOURCES, LIBRARY = FOLDER / "loops", FOLDER / "_kernels.so"
#: Products are rounded before they are added, so that all processors give the same bits. Roots that
#: need not report errors are taken several at once.
OPTIONS = ["-O3", "-ffp-contract=off", "-fno-math-errno", "-fPIC", "-shared", "-fvisibility=hidden"]
#: Behind the sources, as linkers want them.
LIBRARIES = ["-lm", "-pthread"]
#: Environment variable: "1" asks for a wheel without compiled loops.
PURE = "NOISYML_PURE"


def build(root: Path) -> str | None:
    """Compile; the reason if it cannot be done."""
    compiler = os.environ.get("CC") or next(filter(shutil.which, ("cc", "gcc", "clang")), None)
    if compiler is None:
        return "no C compiler was found"
    made = root / LIBRARY.with_suffix(".new")
    sources = sorted(str(file) for file in (root / SOURCES).glob("*.c"))
    command = [*compiler.split(), *OPTIONS, *sources, "-o", str(made), *LIBRARIES]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        return f"{compiler} does not run: {error}"
    if done.returncode:
        return f"{compiler} failed: {done.stderr.strip()[-500:]}"
    made.replace(root / LIBRARY)  # processes that have the old one open keep it
    return None


class CustomBuildHook(BuildHookInterface):
    """Adds the compiled loops to a wheel, or puts them beside their source."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called before the files are collected."""
        asked = os.environ.get(PURE, "0")
        if asked not in ("0", "1"):
            raise ValueError(f"{PURE}={asked} must be 0 or 1.")
        if asked == "1":
            return
        problem = build(Path(self.root))
        if problem is not None:
            self.app.display_warning(f"The search loops are not compiled: {problem}.")
            return
        build_data["artifacts"].append(str(LIBRARY))
        # Of Python itself nothing is used, so any version does.
        build_data["pure_python"] = False
        build_data["tag"] = (
            f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"
        )


if __name__ == "__main__":
    trouble = build(Path(__file__).resolve().parent.parent)
    sys.exit(f"The search loops are not compiled: {trouble}." if trouble else None)
