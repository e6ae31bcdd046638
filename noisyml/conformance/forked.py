"""Processes that start at once: each is forked from one that has imported everything already.

That one, the fork server of `multiprocessing`, does nothing else. What it forks may use threads and
compute gradients, which a process forked from one that has trained cannot do on every machine.
Where the system cannot fork, processes start anew.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable, Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

#: What a training run imports, most of it slow; read when the first process starts.
PRELOAD = [
    "lightning",
    "pandas",
    "hydra.core.plugins",
    "noisyml.apps.train",
    "noisyml.assembly.build",
    "noisyml.callbacks.artefacts",
    "noisyml.callbacks.checkpoint",
    "noisyml.callbacks.history",
    "noisyml.callbacks.progress",
    "noisyml.callbacks.selection_log",
    "noisyml.command.hydra",
    "noisyml.runs.processes",
]


def start(
    work: Callable[..., int | None],
    *arguments: Any,
    out: Path,
    err: Path | None = None,
    env: Mapping[str, str] | None = None,
    threads: int | None = None,
) -> BaseProcess:
    """Start `work` in a process of its own, in the folder and environment of this one.

    Args:
        work: a function of a module; what it returns becomes the exit status.
        *arguments: of `work`; must pickle.
        out: file that receives what it prints.
        err: the same for errors; None: into the same file.
        env: environment variables on top of this process's.
        threads: of PyTorch; None: as many as here.
    """
    import torch

    environment = {**os.environ, **(env or {})}
    files = (str(out), str(err or out))
    settings = (environment, threads or torch.get_num_threads(), files)
    process = _context().Process(target=_run, args=(work, arguments, *settings))
    process.start()
    return process


def finish(process: BaseProcess, seconds: float = 900.0) -> int:
    """The exit status of a process, as `subprocess` has it; it is killed when its time is up."""
    process.join(seconds)
    if process.is_alive():
        process.kill()
        process.join()
    assert process.exitcode is not None
    return process.exitcode


def _context() -> multiprocessing.context.SpawnContext | multiprocessing.context.ForkServerContext:
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    multiprocessing.set_forkserver_preload(PRELOAD)
    return multiprocessing.get_context("forkserver")


def _run(
    work: Callable[..., int | None],
    arguments: tuple[Any, ...],
    environment: Mapping[str, str],
    threads: int,
    files: tuple[str, str],
) -> None:
    import torch

    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(threads)
    for stream, file in enumerate(files, start=1):
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(descriptor, stream)
        os.close(descriptor)
    sys.exit(work(*arguments))
