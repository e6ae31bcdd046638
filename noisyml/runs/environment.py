"""The surroundings of a run: versions, commit, device; no names of hosts or users, no secrets."""

from __future__ import annotations

import functools
import importlib.metadata
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

#: Distributions whose versions may change a result.
PACKAGES = (
    "noisyml",
    "torch",
    "torchvision",
    "lightning",
    "hydra-core",
    "omegaconf",
    "numpy",
    "scipy",
    "scikit-learn",
    "timm",
    "torchmetrics",
    "pytorch-metric-learning",
    "pillow",
    "matplotlib",
)


#: How long git may take for an answer, in seconds: nothing waits for it.
GIT_PATIENCE = 2.0


def describe_environment() -> dict[str, Any]:
    """Versions, processor or GPU, and the commit of the checkout (null in an installation)."""
    import os

    import torch

    return {
        "python": platform.python_version(),
        "platform": f"{sys.platform}-{platform.machine()}",
        "packages": dict(_versions()),
        "cpu_count": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "commit": _commit(),
    }


@functools.cache
def _versions() -> dict[str, str | None]:
    """The installed versions of `PACKAGES`, None for one that is not there."""
    versions: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return versions


@functools.cache
def _commit() -> str | None:
    """The commit of the checkout, ``-dirty`` if files differ from it; None where git does not say
    so at once.
    """
    here = Path(__file__).resolve().parents[2]
    if not (here / ".git").exists():
        return None
    try:
        head = _git(here, "rev-parse", "HEAD")
        return f"{head}-dirty" if _git(here, "status", "--porcelain", "-uno") else head
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
        timeout=GIT_PATIENCE,
    )
    return done.stdout.strip()
