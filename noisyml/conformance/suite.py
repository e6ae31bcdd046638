"""The checks of the contract, on runs that several checks share."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import re
import shutil
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow.parquet as pq
import torch

from noisyml.conformance import forked
from noisyml.conformance.comparison import (
    assert_equal,
    assert_same_judgements,
    assert_same_state,
    weights,
)
from noisyml.conformance.recipes import SETTINGS, Recipe, option_of, write_recipes
from noisyml.data.labelling import Labelling
from noisyml.errors import UserError
from noisyml.methods.base import Method
from noisyml.noise.manifest import NoiseManifest
from noisyml.runs.folder import RunFolder
from noisyml.runs.metric_names import COSTS
from noisyml.runs.processes import free_port

#: Runs ``noisyml VERB ...`` in this process and returns its exit status; must pickle.
Command = Callable[[Sequence[str]], int]


class Suite:
    """Runs of several methods, made when a check asks for them, each sort once for all methods.

    Args:
        recipes: a run of seconds of each method, by a name.
        folder: receives everything.
        command: see `Command`.
        config_dir: a folder of further config groups, which receives the recipes; None: a new one.
    """

    def __init__(
        self,
        recipes: Mapping[str, Recipe],
        folder: Path,
        command: Command,
        config_dir: Path | None = None,
    ) -> None:
        self.recipes = dict(recipes)
        self.folder = folder
        self.command = command
        self.config_dir = config_dir or folder / "conf"
        write_recipes(self.recipes, self.config_dir / "experiment")
        self.typed = ["--config-dir", str(self.config_dir), *SETTINGS]

    # -- runs ----------------------------------------------------------------------------------

    @functools.cached_property
    def trained(self) -> dict[str, Path]:
        """A run of each method in one process."""
        return self._sweep("one")

    @functools.cached_property
    def with_shuffled_truth(self) -> dict[str, Path]:
        """The same, with other true labels behind the observed ones."""
        with shuffled_truth():
            return self._sweep("shuffled")

    @functools.cached_property
    def on_two_ranks(self) -> dict[str, Path]:
        """The same by two gloo processes, which find each other as those of torchrun do."""
        typed = ["train", *self._swept("two", [*self.typed, "trainer=ddp_cpu"])]
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
        logs = [self.folder / f"rank_{rank}.log" for rank in range(2)]
        ranks = [
            forked.start(
                self.command,
                typed,
                out=log,
                env={**meeting, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                threads=1,
            )
            for rank, log in enumerate(logs)
        ]
        ended = [forked.finish(rank) for rank in ranks]
        if any(ended):
            said = "\n".join(log.read_text(encoding="utf-8")[-3000:] for log in logs)
            raise UserError(f"noisyml {' '.join(typed)} failed on two processes: {said}")
        return self._folders("two")

    @functools.cache  # noqa: B019 (as long as the runs)
    def killed_and_resumed(self, name: str) -> Path:
        """The run of a method, killed in its second epoch; its state then is ``killed.ckpt``."""
        run = self.folder / "killed" / name
        settings = f"step: {self.recipes[name].steps + 2}, name: {name}, marker: '{run}/struck'"
        victim = f"+callbacks.kill={{_target_: {_KILL}, {settings}}}"
        # Its checkpoints inside epochs change nothing either: no other run writes any.
        typed = [
            "train",
            *self.typed,
            "callbacks.checkpoint.every_n_steps=2",
            f"experiment={option_of(name)}",
            f"hydra.run.dir={run}",
            victim,
        ]
        log = self.folder / "killed.log"
        status = forked.finish(forked.start(self.command, typed, out=log))
        assert status == -signal.SIGKILL, (
            f"the run was to be killed: {log.read_text(encoding='utf-8')[-3000:]}"
        )
        assert not RunFolder(run).metrics_file.exists()
        shutil.copy(run / "checkpoints" / "last.ckpt", run / "killed.ckpt")
        assert self.command(["train", f"resume={run}"]) == 0
        return run

    def _sweep(self, side: str) -> dict[str, Path]:
        self.command(["train", *self._swept(side, self.typed)])
        return self._folders(side)

    def _swept(self, side: str, typed: Sequence[str]) -> list[str]:
        swept = f"experiment={','.join(map(option_of, self.recipes))}"
        return ["-m", *typed, swept, f"hydra.sweep.dir={self.folder / side}"]

    def _folders(self, side: str) -> dict[str, Path]:
        return {name: self.folder / side / str(i) for i, name in enumerate(self.recipes)}

    # -- checks --------------------------------------------------------------------------------

    def check_arguments(self, name: str) -> None:
        """Keys of the configuration, arguments of the constructor and their documentation agree."""
        run = _finished(self.trained[name])
        method, node = _method(run), dict(run.config()["method"])
        node.pop("_target_")
        taken = constructor_arguments(method)
        taken -= WORDS_OF_THEIR_OWN - set(node)
        unknown, missing = set(node) - taken, taken - set(node)
        assert not unknown, f"the configuration has {sorted(unknown)}, which nothing takes"
        assert not missing, f"the configuration does not show {sorted(missing)}"
        told = documented_arguments(method)
        assert taken <= told, f"the docstring does not explain {sorted(taken - told)}"
        stale = told - taken - WORDS_OF_THEIR_OWN
        assert not stale, f"the docstring explains {sorted(stale)}, which nothing takes"

    def check_learns(self, name: str) -> None:
        """Its losses are numbers, and its weights move."""
        run = _finished(self.trained[name])
        losses = run.history()["train/loss"].dropna()
        assert len(losses) == 2 * self.recipes[name].steps
        assert np.isfinite(losses).all(), "a loss is no number"
        learns = _method(run).learns
        assert losses.nunique() > 1 or not learns, "every step has the same loss"
        early = torch.load(self.killed_and_resumed(name) / "killed.ckpt", weights_only=True)
        moved = [
            key
            for key, value in weights(run.path).items()
            if isinstance(value, torch.Tensor)
            and value.is_floating_point()
            and key.startswith("encoder.")
            and not torch.equal(value, early["state_dict"][key])
        ]
        if learns:
            assert moved, "no weight of the encoder moves"
        else:
            assert not moved, f"it says that it does not learn, and {moved[0]} moves"
        if run.selection_file.is_file():
            noted = {"loss", "margin"} & set(pq.read_schema(run.selection_file).names)
            assert noted, (
                "the ledger has neither a loss nor a margin of a sample: what training_step "
                "returns has no `facts`"
            )

    def check_resumes(self, name: str) -> None:
        """Killed and resumed, it ends where the uninterrupted run ends, to the bit."""
        whole = _finished(self.trained[name])
        run = _finished(self.killed_and_resumed(name))
        assert_same_state(weights(whole.path), weights(run.path))
        assert_same_judgements(whole.path, run.path)
        metrics = [
            {k: str(v) for k, v in r.metrics().items() if not k.startswith(COSTS)}
            for r in (whole, run)
        ]
        assert metrics[0] == metrics[1]

    def check_ranks(self, name: str) -> None:
        """Two processes learn what one learns."""
        one, two = _finished(self.trained[name]), _finished(self.on_two_ranks[name])
        assert_equal(one.path, two.path, self.recipes[name])

    def check_honesty(self, name: str) -> None:
        """Other true labels behind the same observed ones change no bit."""
        truth, lie = _finished(self.trained[name]), _finished(self.with_shuffled_truth[name])
        manifests = [NoiseManifest.load(run.noise_file) for run in (truth, lie)]
        assert np.array_equal(manifests[0].observed, manifests[1].observed)
        assert not np.array_equal(manifests[0].clean, manifests[1].clean), (
            "the two runs must differ in the truth"
        )
        assert_same_state(weights(truth.path), weights(lie.path))
        assert_same_judgements(truth.path, lie.path)

    def check_evaluates(self, name: str) -> None:
        """``noisyml evaluate`` finds the metrics of the run again."""
        run = _finished(self.trained[name])
        output = self.folder / "evaluated" / name
        typed = ["evaluate", f"checkpoint={run.path}", f"hydra.run.dir={output}"]
        assert self.command(typed) == 0
        found, expected = RunFolder(output).metrics(), run.metrics()
        assert found, "no metric was measured"
        for key, value in found.items():
            np.testing.assert_allclose(value, expected[key], atol=1e-9, err_msg=key)

    def check_embeds(self, name: str) -> None:
        """``noisyml embed`` embeds the test split with the run's encoder."""
        run = _finished(self.trained[name])
        output = self.folder / "embedded" / name
        typed = ["embed", f"checkpoint={run.path}", "splits=[test]", f"hydra.run.dir={output}"]
        assert self.command(typed) == 0
        assert any(output.rglob("*.npy")), "no embeddings were written"


_KILL = "noisyml.conformance.interruption.KillOnce"

#: Parts that a method is given, or that other words of the command line bring.
WORDS_OF_THEIR_OWN = frozenset(
    {
        "parts",
        "class_names",
        "distillation",
        "encoder",
        "evaluator",
        "loss",
        "memory",
        "objective",
        "optimizer",
        "param_groups",
        "peer",
        "pseudo_labels",
        "scheduler",
        "segmenter",
        "selector",
        "teacher",
        "text_encoder",
    }
)

#: What a method promises, and the check of it, the cheapest first.
CHECKS: dict[str, Callable[[Suite, str], None]] = {
    "arguments": Suite.check_arguments,
    "learns": Suite.check_learns,
    "resumes": Suite.check_resumes,
    "honesty": Suite.check_honesty,
    "evaluates": Suite.check_evaluates,
    "embeds": Suite.check_embeds,
    "ranks": Suite.check_ranks,
}


@contextlib.contextmanager
def shuffled_truth() -> Iterator[None]:
    """Inside, every corrupted split has its true labels shuffled, its observed ones as before."""
    corrupt = Labelling.corrupt

    def lying(self: Labelling, *args: Any, **kwargs: Any) -> NoiseManifest:
        manifest = corrupt(self, *args, **kwargs)
        clean = manifest.clean[np.random.default_rng(0).permutation(len(manifest))]
        return dataclasses.replace(
            manifest, clean=clean, changed=manifest.target.changed(manifest.observed, clean)
        )

    with mock.patch.object(Labelling, "corrupt", lying):
        yield


def constructor_arguments(method: type[Method]) -> set[str]:
    """Names of the settings that a constructor takes, its parts left out."""
    return set(inspect.signature(method).parameters) - {"self", "parts"}


def documented_arguments(method: type[Method]) -> set[str]:
    """Names under ``Args:`` in the docstring of a class, or of the base that brings them."""
    owner = next((c for c in method.__mro__ if "__init__" in c.__dict__), method)
    text = inspect.cleandoc(owner.__doc__ or "")
    section = re.search(r"^Args:\n(.*?)(?=^\S|\Z)", text, flags=re.MULTILINE | re.DOTALL)
    heads = re.findall(r"^    (\w[\w, ]*):", section.group(1) if section else "", re.MULTILINE)
    return {name.strip() for head in heads for name in head.split(",")}


def _method(run: RunFolder) -> type[Method]:
    """The class of a run's method."""
    from hydra.utils import get_class

    method: type[Method] = get_class(run.config()["method"]["_target_"])
    return method


def _finished(path: Path) -> RunFolder:
    """A run folder that has its metrics.

    Raises:
        UserError: training failed; with its reason.
    """
    run = RunFolder(path)
    status = run.status()
    if status.get("state") != "finished":
        raise UserError(f"Training failed: {status.get('error', 'see the messages above')}")
    return run
