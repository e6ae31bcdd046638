"""Running whole commands, in this process where that suffices."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NamedTuple

import pytest

from noisyml import cli
from noisyml.conformance import forked
from noisyml.runs.processes import free_port

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


class Ended(NamedTuple):
    """A process that has ended, and what it said."""

    returncode: int
    stdout: str
    stderr: str


class Started(NamedTuple):
    """A process at work, and the files that it writes to."""

    process: BaseProcess
    out: Path
    err: Path

    def wait(self, seconds: float = 280.0) -> Ended:
        """Wait for its end; it is killed when the time is up."""
        status = forked.finish(self.process, seconds)
        return Ended(status, self.out.read_text(), self.err.read_text())


@dataclass
class Shell:
    """A folder to type commands in."""

    folder: Path
    monkeypatch: pytest.MonkeyPatch
    capfd: pytest.CaptureFixture[str]
    started: list[Started] = field(default_factory=list)

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

    def apart(self, *arguments: str, **env: str) -> Ended:
        """Run ``noisyml *arguments`` in a process of its own, to its end."""
        return self.beside(*arguments, **env).wait()

    def beside(self, *arguments: str, **env: str) -> Started:
        """Start ``noisyml *arguments`` in a process of its own."""
        return self.start(_type, *arguments, **env)

    def ranks(self, world: int, *arguments: str) -> list[Started]:
        """Start ``noisyml *arguments`` as torchrun does on one machine."""
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        return [
            self.beside(
                *arguments, **meeting, WORLD_SIZE=str(world), RANK=str(rank), LOCAL_RANK=str(rank)
            )
            for rank in range(world)
        ]

    def start(self, work: Callable[..., int], *arguments: object, **env: str) -> Started:
        """Call a function of a module in a process of its own, which is ended with the test."""
        logs = self.folder / ".logs"
        logs.mkdir(exist_ok=True)
        number = len(self.started)
        out, err = (logs / f"{number}.{stream}" for stream in ("out", "err"))
        process = forked.start(work, *arguments, out=out, err=err, env=env)
        self.started.append(Started(process, out, err))
        return self.started[-1]

    def runs(self) -> list[Path]:
        """The run folders made so far, oldest first."""
        found = self.folder.glob("outputs/**/config.yaml")
        return sorted(p.parent for p in found if p.parent.name != ".hydra")


def _type(*arguments: str) -> int:
    sys.argv = ["noisyml", *arguments]
    return cli.main()


@pytest.fixture
def shell(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NOISYML_CACHE", str(tmp_path / "cache"))
    # Runs of the tests that are resumed or evaluated name classes of the tests.
    monkeypatch.setenv("NOISYML_TRUST", "support,e2e")
    shell = Shell(tmp_path, monkeypatch, capfd)
    yield shell
    for started in shell.started:
        started.process.kill()
        started.process.join()
