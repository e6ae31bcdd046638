"""Random settings and files such as nobody should type or own, and what the command makes of them.

Everything is drawn from a seed. An attempt goes as far as the first step of training or evaluation
(or to the first further process) and stops there.
"""

from __future__ import annotations

import contextlib
import io
import os
import random
import resource
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from noisyml.command.config import (
    compose,
    flatten,
    group_names,
    keys_by_option,
    options,
    package_of,
)
from noisyml.errors import UserError

#: Seconds after which an attempt counts as hanging.
PATIENCE = 120
#: Bytes that an attempt may allocate on top of what the process has; large layers end there.
MEMORY = 6 * 2**30

NUMBERS = [
    "-1", "0", "1", "2", "3", "7", "100", "1000000000", str(2**63), str(-(2**70)), "0.0", "-0.5",
    "0.5", "1.5", "1e-300", "1e300", "1e6", "nan", "inf", "-inf", "0x10", "1_000",
]  # fmt: skip
WORDS = [
    "foo", "true", "false", "null", "", "''", "auto", "'a b'", "Ünï", "None", "last", "cuda", "..",
    "/nonexistent", "/dev/null", "~", "-", "???", "${seed}", "${nope}", "${oc.env:NOPE}",
    "${oc.decode:x}", "${choice:nope}",
]  # fmt: skip
NESTED = [
    "[]", "[1]", "[1,2]", "[.9]", "[a,b]", "[[1]]", "[null]", "[-1,nan]", "{}", "{a:1}", "{1:2}",
    "{_target_:foo}", "{_target_:os.getcwd}", "{_target_:noisyml.optim.adam}", "{a:{b:[]}}",
]  # fmt: skip
BROKEN = [
    "[1", "{a", "'x", '"', "a,b", "range(3)", "choice(1,2)", "interval(0,1)", "=1", "a=b", "(",
    "$", "${", "\\", "glob(*)", "sort(3,1)", "a b", "[1,,2]", "{a:1", "cast", "int(x)", "*", "@",
]  # fmt: skip
#: Parts that are small enough to be built often.
SMALL = {
    "dataset": ["digits", "digits", "digits", "mosaic", "digits_closed_set"],
    "backbone": ["mlp", "mlp", "mlp", "small_cnn", "lenet"],
    "trainer": ["cpu"],
    "logger": ["csv", "tensorboard"],
}
#: Groups that hold whole studies, or what needs a machine or a file of its own.
LEFT_OUT = ("experiment", "recipe", "paths", "hydra", "transform")


class Built(BaseException):
    """Raised where training, evaluation or a further process would begin."""


class Hang(BaseException):
    """Raised when an attempt has taken too long."""


@dataclass(frozen=True)
class Outcome:
    """The end of an attempt: ``refused``, ``built``, ``done``, ``traceback`` or ``hang``."""

    kind: str
    text: str = ""


def attempt(work: Callable[[], object]) -> Outcome:
    """Call a function as far as training would begin.

    Args:
        work: e.g. a command.
    """
    before = signal.signal(signal.SIGALRM, _too_long)
    signal.alarm(PATIENCE)
    try:
        silent = io.StringIO()
        with (
            _limited(),
            _stopped(),
            contextlib.redirect_stdout(silent),
            contextlib.redirect_stderr(silent),
        ):
            work()
        return Outcome("done")
    except UserError as error:
        return Outcome("refused", str(error))
    except Built:
        return Outcome("built")
    except Hang:
        return Outcome("hang", traceback.format_exc(limit=-8))
    except SystemExit as stop:
        return Outcome("traceback" if stop.code not in (0, 2, None) else "done", str(stop.code))
    except Exception:
        return Outcome("traceback", traceback.format_exc(limit=-8))
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def _too_long(number: int, frame: object) -> None:
    raise Hang


@contextlib.contextmanager
def _limited() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@contextlib.contextmanager
def _stopped() -> Iterator[None]:
    import lightning

    def stop(*args: object, **settings: object) -> None:
        raise Built

    with (
        mock.patch.object(lightning.Trainer, "fit", stop),
        mock.patch.object(lightning.Trainer, "test", stop),
        mock.patch.object(lightning.Trainer, "predict", stop),
        mock.patch("noisyml.runs.processes._beside_children", stop),
    ):
        yield


def warm_up(folder: Path) -> None:
    """Import everything, which takes longer than an attempt may."""
    import noisyml.assembly.build
    import noisyml.callbacks.artefacts  # noqa: F401

    assert command(folder, "train", "dataset=digits", "backbone=mlp").kind == "built"


def command(folder: Path, *typed: str) -> Outcome:
    """Run ``noisyml *typed`` in a folder of its own, which is emptied afterwards."""
    from noisyml import cli

    def work() -> None:
        with mock.patch.object(sys, "argv", ["noisyml", *typed]):
            cli.run(list(typed))

    here = Path.cwd()
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    try:
        return attempt(work)
    finally:
        os.chdir(here)
        shutil.rmtree(folder / "outputs", ignore_errors=True)


class Overrides:
    """Draws command lines of ``noisyml train``."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.groups = [
            group
            for group in group_names()
            if group.partition("/")[0] not in LEFT_OUT and options(group)
        ]
        self.keys = [
            key
            for key, _ in flatten(compose("train", ["dataset=digits", "backbone=mlp"]))
            if not key.startswith("hydra")
        ]
        self.own = {
            (group, option): [
                f"{package_of(group, option)}.{key}".removeprefix("_global_.") for key in keys
            ]
            for group in self.groups
            for option, keys in keys_by_option(group).items()
        }

    def draw(self) -> list[str]:
        """One command line: a few parts, and one to three settings, most of them senseless."""
        typed = ["dataset=digits", "backbone=mlp", "report=false"]
        keys = list(self.keys)
        for _ in range(self.random.choice([0, 1, 1, 2])):
            group = self.random.choice(self.groups)
            option = self.random.choice(SMALL.get(group) or [o.name for o in options(group)])
            typed.append(f"{group}={option}")
            # Most often a setting of a part that was just chosen.
            keys += 20 * self.own.get((group, option), [])
        number = self.random.choice([1, 1, 2, 3])
        return typed + [self._setting(self.random.choice(keys)) for _ in range(number)]

    def _setting(self, key: str) -> str:
        chance = self.random.random()
        if chance < 0.03:
            at = self.random.randrange(len(key))
            key = key[:at] + key[at + 1 :]
        elif chance < 0.06:
            return self.random.choice(
                [f"~{key}", key, f"{key}@here=1", f"={key}", "", f"+{key}.x=1"]
            )
        elif chance < 0.09:
            return f"{self.random.choice(self.groups)}={self.random.choice(WORDS + NESTED)}"
        elif chance < 0.12:
            key = self.random.choice(["+", "++"]) + key
        kinds = [NUMBERS, NUMBERS, WORDS, NESTED, BROKEN]
        return f"{key}={self.random.choice(self.random.choice(kinds))}"


def damaged(content: bytes, chance: random.Random) -> bytes:
    """A file cut off, emptied, changed in some places, or replaced by another kind of file."""
    kind = chance.randrange(6)
    if kind == 0 or not content:
        return b""
    if kind == 1:
        return content[: chance.randrange(len(content))]
    if kind == 2:
        return chance.choice(
            [b"{", b"[1, 2]", b"null", b"\x80\x04K\x01.", b"PK\x03\x04", b"\x93NUMPY"]
        )
    if kind == 3:
        return chance.randbytes(200)
    changed = bytearray(content)
    for _ in range(chance.choice([1, 3, 20])):
        changed[chance.randrange(len(changed))] = chance.randrange(256)
    return bytes(changed)


def shown(typed: Sequence[str], outcome: Outcome) -> str:
    """An attempt that went wrong, as one may type it again."""
    import shlex

    return f"noisyml {shlex.join(typed)}\n{outcome.text}"
