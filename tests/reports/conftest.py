"""Fixtures for the tests of reports."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.synthetic_runs import RunMaker


@pytest.fixture
def maker(tmp_path: Path) -> RunMaker:
    """A maker of run folders under a fresh ``outputs/train``."""
    return RunMaker(tmp_path / "outputs" / "train")


@pytest.fixture
def sweep(maker: RunMaker) -> Path:
    """Two selectors at two noise rates with three seeds, without pictures: 12 runs."""
    number = 0
    for selector in ("keep_all", "prism_avg"):
        for rate in (0.3, 0.5):
            for seed in range(3):
                maker.run(f"demo/{number}", selector, rate, seed, files=False)
                number += 1
    return maker.root / "demo"
