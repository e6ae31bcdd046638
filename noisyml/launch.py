"""Starting the other processes of a multi-process run on this machine.

The process that was typed becomes rank 0. The others are started with the finished run folder, so
that all ranks read one configuration file; this also gives each job of a sweep one folder and one
set of processes. A rank that dies ends the job: the others are stopped and the message says which.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

#: Set by torchrun, SLURM and this module: the ranks are started by somebody else.
STARTED_ELSEWHERE = ("LOCAL_RANK", "SLURM_PROCID")
#: How long rank 0 may take to raise its own error before a dead neighbour ends it, in seconds.
GRACE = 15.0


def is_main_process() -> bool:
    """True for rank 0 and for a run of one process."""
    rank = os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or os.environ.get("LOCAL_RANK")
    return int(rank or 0) == 0


def processes_here(config: Any) -> int:
    """Processes of a run on this machine, from its configuration's ``trainer`` section."""
    devices = config.trainer.devices
    if isinstance(devices, int):
        return devices
    if isinstance(devices, str) and devices.isdigit():
        return int(devices)
    if devices in ("auto", "-1") and config.trainer.accelerator == "gpu":
        import torch

        return max(1, torch.cuda.device_count())
    return 1 if devices == "auto" else len(devices)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def other_ranks(processes: int, arguments: Sequence[str]) -> Iterator[None]:
    """Run ranks 1 .. `processes` - 1 beside this process while the context is open.

    Args:
        processes: number of ranks on this machine; 1 does nothing, and so does an environment in
            which the ranks were started by torchrun or SLURM.
        arguments: of the `noisyml` command the other ranks run: a verb and a folder whose
            configuration is written already, e.g. ``["train", "resume=RUN_DIR"]``.
    """
    if processes <= 1 or any(name in os.environ for name in STARTED_ELSEWHERE):
        yield
        return
    shared = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
        "WORLD_SIZE": str(processes),
        "NODE_RANK": "0",
    }
    before = {name: os.environ.get(name) for name in (*shared, "LOCAL_RANK")}
    os.environ.update(shared, LOCAL_RANK="0")
    command = [sys.executable, "-m", "noisyml", *arguments]
    children = [
        subprocess.Popen(
            command, env={**os.environ, "LOCAL_RANK": str(rank)}, stdin=subprocess.DEVNULL
        )
        for rank in range(1, processes)
    ]
    done = threading.Event()
    threading.Thread(target=_watch, args=(children, done), daemon=True).start()
    try:
        yield
        done.set()
        for child in children:
            child.wait(timeout=60)
    finally:
        done.set()
        for child in children:
            if child.poll() is None:
                child.kill()
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _watch(children: list[subprocess.Popen[bytes]], done: threading.Event) -> None:
    """End this process if a neighbour died and this one does not notice by itself."""
    while not done.wait(0.5):
        dead = [(i + 1, c.returncode) for i, c in enumerate(children) if c.poll() not in (None, 0)]
        if dead and not done.wait(GRACE):
            rank, status = dead[0]
            print(
                f"noisyml: process {rank} of the run died with status {status}; the run is stopped "
                f"(its message stands above, `noisyml train resume=...` continues it).",
                file=sys.stderr,
                flush=True,
            )
            for child in children:
                if child.poll() is None:
                    child.kill()
            time.sleep(0.1)
            os._exit(1)
