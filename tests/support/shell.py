"""Running whole commands, in this process where that suffices."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from noisyml import cli

#: Small enough for seconds: 8 x 8 digits, a perceptron, two epochs.
TINY = [
    "dataset=digits",
    "noise=symmetric",
    "noise.rate=0.3",
    "backbone=mlp",
    "backbone.hidden_features=[32]",
    "head.out_features=16",
    "trainer.max_epochs=2",
    "report=false",
]


@dataclass
class Shell:
    """A folder to type commands in."""

    folder: Path
    monkeypatch: pytest.MonkeyPatch
    capfd: pytest.CaptureFixture[str]

    def __call__(self, *arguments: str) -> tuple[int, str]:
        """Run ``noisyml *arguments`` in this process; exit status and all output."""
        self.capfd.readouterr()
        self.monkeypatch.setattr(sys, "argv", ["noisyml", *arguments])
        try:
            status = cli.main()
        except SystemExit as stop:
            status = stop.code if isinstance(stop.code, int) else 1
        out, err = self.capfd.readouterr()
        return status, out + err

    def apart(self, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
        """Run ``noisyml *arguments`` in a process of its own."""
        return subprocess.run(
            [sys.executable, "-m", "noisyml", *arguments],
            cwd=self.folder,
            env={**os.environ, **env},
            capture_output=True,
            text=True,
            timeout=280,
            check=False,
        )

    def runs(self) -> list[Path]:
        """The run folders made so far, oldest first."""
        found = self.folder.glob("outputs/**/config.yaml")
        return sorted(p.parent for p in found if p.parent.name != ".hydra")


@pytest.fixture
def shell(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NOISYML_CACHE", str(tmp_path / "cache"))
    # Runs of the tests that are resumed or evaluated name classes of the tests.
    monkeypatch.setenv("NOISYML_TRUST", "support")
    return Shell(tmp_path, monkeypatch, capfd)
