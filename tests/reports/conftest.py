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


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures are left out of pages and folders: for tests of what is written."""
    monkeypatch.setattr("noisyml.reports.plots.save_png", lambda figure, path: None)
    monkeypatch.setattr("noisyml.reports.plots.inline_svg", lambda *figure, **shown: "")
    monkeypatch.setattr("noisyml.reports.sections.base.Picture.figure", None)
    monkeypatch.setattr("noisyml.reports.sections.base.Picture.narrow", None)
    monkeypatch.setattr("noisyml.reports.sections.base.Picture.named", "")
