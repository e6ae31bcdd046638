"""The ranks of one run: who starts them, how they agree on a run folder, what ends them together.

Ranks are started in one of three ways. *By this module*: the process that was typed becomes rank 0
and starts the others of its machine with the finished run folder. *By torchrun* or *by srun*, on
any number of machines: every rank is typed, rank 0 writes the run folder and tells the others where
it lies (`Followers`), over a store at ``MASTER_ADDR:MASTER_PORT``. Either way all ranks read one
configuration file, and only rank 0 makes folders.

A rank that dies ends the job: survivors leave within `GRACE` seconds, one of them says why, and
the status of the run folder says "failed".
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

from noisyml.errors import EXIT_USER_ERROR, UserError, causes

if TYPE_CHECKING:
    from lightning.fabric.plugins.environments import ClusterEnvironment
    from torch.distributed import TCPStore

#: How long a rank may take to raise its own error before a dead neighbour ends it, in seconds.
GRACE = 10.0
#: How often the life of a neighbour is checked, in seconds.
PULSE = 0.5
#: How long ranks on other machines may take to start, in seconds.
PATIENCE = 1800.0
#: Exit status of a rank that ended only because another one did.
EXIT_PEER_DIED = 3
#: Where rank 0 leaves its own process id for the ranks it starts.
RANK_0_PID = "NOISYML_RANK_0_PID"
#: Environment variable: how many processes one command may start, whatever the machine has.
PROCESSES = "NOISYML_PROCESSES"
#: Keys of the store: what rank 0 says, and how many have heard the last of it.
ORDER, LEFT = "noisyml/order", "noisyml/left"


class RankDied(UserError):
    """Another process of the run ended, and this one cannot go on without it."""


def started_by() -> Literal["noisyml", "torchrun", "srun"] | None:
    """Starter of this process as one of several ranks; None for the process that was typed.

    A shell inside an allocation (``salloc``, the script of ``sbatch``) carries SLURM's variables
    too, but not those of a job step.
    """
    here = os.environ
    if RANK_0_PID in here:
        return "noisyml"
    if "RANK" in here and "LOCAL_RANK" in here and int(here.get("WORLD_SIZE") or 1) > 1:
        return "torchrun"
    in_step = any(name.startswith("SLURM_STEP") for name in here)
    if int(here.get("SLURM_NTASKS") or 1) > 1 and (in_step or int(here.get("SLURM_PROCID") or 0)):
        return "srun"
    return None


def rank() -> int:
    """This process's rank, before there is a process group."""
    name = {"noisyml": "LOCAL_RANK", "torchrun": "RANK", "srun": "SLURM_PROCID"}
    starter = started_by()
    return int(os.environ[name[starter]]) if starter else 0


def is_main_process() -> bool:
    """True for rank 0 and for a run of one process."""
    return rank() == 0


def started_elsewhere() -> bool:
    """True for a rank, the first included, that torchrun or srun started."""
    return started_by() in ("torchrun", "srun")


def world_size() -> int:
    """The number of ranks that torchrun or srun started; 1 where the ranks are ours to start."""
    sizes = {"torchrun": "WORLD_SIZE", "srun": "SLURM_NTASKS"}
    starter = started_by()
    return int(os.environ[sizes[starter]]) if starter in sizes else 1


def cluster_environment() -> ClusterEnvironment:
    """Lightning's account of how the ranks were started; it is told, not left to guess."""
    from lightning.fabric.plugins.environments import (
        LightningEnvironment,
        SLURMEnvironment,
        TorchElasticEnvironment,
    )

    starter = started_by()
    if starter == "torchrun":
        return TorchElasticEnvironment()
    # A requeued job continues from our own checkpoints.
    return SLURMEnvironment(auto_requeue=False) if starter == "srun" else LightningEnvironment()


def processes_here(config: Any) -> int:
    """Processes of a run on this machine, from its configuration's ``trainer`` section."""
    devices = config.trainer.devices
    if isinstance(devices, int) and devices > 0:
        return devices
    if isinstance(devices, str) and devices.isdigit():
        return int(devices)
    if devices in ("auto", "-1", -1) and config.trainer.accelerator == "gpu":
        import torch

        return max(1, torch.cuda.device_count())
    return 1 if devices in ("auto", "-1", -1) else len(devices)


def check_ranks(config: Any) -> None:
    """Refuse a configuration that describes other processes than were started.

    Raises:
        UserError: the numbers differ, or several machines are asked for and nobody started them.
    """
    machines, each = int(config.trainer.get("num_nodes") or 1), processes_here(config)
    if not started_elsewhere():
        _check_cores(config, each)
        if machines > 1 and is_main_process():
            raise UserError(
                f"trainer.num_nodes={machines} needs the same command on each machine: start it "
                f"with torchrun or srun (docs/running.md)."
            )
        return
    if started_by() == "srun" and "SLURM_NTASKS_PER_NODE" not in os.environ:
        raise UserError("Give srun or sbatch --ntasks-per-node=N: the processes of each machine.")
    if world_size() != machines * each:
        raise UserError(
            f"{started_by()} started {world_size()} processes, but trainer.num_nodes={machines} "
            f"times trainer.devices={each} is {machines * each}: make them agree."
        )


def _check_cores(config: Any, processes: int) -> None:
    """Refuse many more processes than this machine has cores, or more than it has GPUs.

    Raises:
        UserError: so many, unless `PROCESSES` allows them.
    """
    if config.trainer.accelerator == "gpu":
        import torch

        there, what = torch.cuda.device_count(), "GPUs"
        bearable = there
    else:
        there, what = os.cpu_count() or 1, "cores"
        # A few processes are of use for trying things out on any machine.
        bearable = max(4, there)
    if processes > max(bearable, int(os.environ.get(PROCESSES) or 0)):
        raise UserError(
            f"trainer.devices={config.trainer.devices} starts {processes} processes, and this "
            f"machine has {there} {what}: lower it, or allow them by {PROCESSES}={processes}."
        )


class Followers:
    """The ranks that torchrun or srun started beside rank 0, waiting to hear what to work on.

    A context of rank 0, which may be entered again inside: when it ends, the others are sent home.
    Does nothing where there are no such ranks. A pickled one arrives fresh in the process that
    unpickles it.
    """

    def __init__(self) -> None:
        self._store: TCPStore | None = None
        self._orders = 0
        self._depth = 0

    def __reduce__(self) -> tuple[type[Followers], tuple[()]]:
        return Followers, ()

    def __enter__(self) -> Self:
        self._depth += 1
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._depth -= 1
        # After a failure in the middle of a run nobody listens any more.
        if self._depth or not started_elsewhere() or (error is not None and self._orders):
            return
        store = self._tell({"status": 0 if error is None else EXIT_USER_ERROR})
        deadline = time.monotonic() + GRACE
        while store.add(LEFT, 0) < world_size() - 1 and time.monotonic() < deadline:
            time.sleep(PULSE / 5)

    @contextlib.contextmanager
    def lead(self, folder: Path) -> Iterator[None]:
        """Work on the run in `folder` with them; its configuration is written already."""
        if not started_elsewhere():
            yield
            return
        # A process group cannot meet twice at one address, and a job may have several runs.
        port = free_port()
        self._tell({"folder": str(folder.absolute()), "port": port})
        with _environment(_meeting(port)):
            yield

    def _tell(self, order: Mapping[str, Any]) -> TCPStore:
        self._store = self._store or _store(serve=True)
        self._store.set(f"{ORDER}/{self._orders}", json.dumps(order))
        self._orders += 1
        return self._store


def follow(work: Callable[[Path], object]) -> int:
    """Be a rank other than the first: `work` on each run folder that rank 0 names.

    Returns:
        The exit status.

    Raises:
        RankDied: rank 0 is not there, or says nothing.
    """
    import torch.distributed as dist

    try:
        store = _store(serve=False)
        for number in itertools.count():
            order = json.loads(store.get(f"{ORDER}/{number}"))
            if "status" in order:
                store.add(LEFT, 1)
                return int(order["status"])
            with _environment(_meeting(order["port"])):
                work(Path(order["folder"]))
    except dist.DistError as error:
        raise RankDied(f"Rank {rank()} cannot hear rank 0, whose message tells more.") from error
    raise AssertionError("unreachable: the orders end with a status")


def _meeting(port: int) -> dict[str, str | None]:
    """The address at which the process group of one run meets, on the machine of rank 0."""
    return {"MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "False"}


def _store(serve: bool) -> TCPStore:
    """The key-value store at ``MASTER_ADDR:MASTER_PORT``; torchrun's agent serves it, or rank 0."""
    import torch.distributed as dist

    if not {"MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
        # Under SLURM they follow from the allocation; Lightning, slow to import, knows how.
        environment = cluster_environment()
        os.environ["MASTER_ADDR"] = environment.main_address
        os.environ["MASTER_PORT"] = str(environment.main_port)
    by_agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    return dist.TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        is_master=serve and not by_agent,
        wait_for_workers=False,
        timeout=timedelta(seconds=PATIENCE),
    )


def interrupt(signum: int, frame: FrameType | None) -> None:
    """A handler that ends the run as Ctrl-C does, once; the signal is then ignored."""
    signal.signal(signum, signal.SIG_IGN)
    raise KeyboardInterrupt


def handle_termination(*hook: object) -> None:
    """Let SIGTERM end the run as Ctrl-C does.

    Also a hook for Lightning, whose own handler, set when it starts to train, begins a broadcast
    wherever the signal finds the process, and waits for ever if the other ranks are elsewhere.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, interrupt)


def end_children() -> None:
    """End the processes that this one has started, and theirs: asked first, then killed."""
    import psutil

    left = psutil.Process().children(recursive=True)
    for end in (psutil.Process.terminate, psutil.Process.kill):
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                end(process)
        _, left = psutil.wait_procs(left, timeout=GRACE)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Ctrl-C and SIGTERM end what is inside with a KeyboardInterrupt, whatever Lightning does."""
    before = signal.getsignal(signal.SIGTERM)
    handle_termination()
    try:
        yield
    except SystemExit:
        # What Lightning makes of Ctrl-C.
        raise KeyboardInterrupt from None
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def is_peer_death(error: BaseException) -> bool:
    """True for the error of a collective operation whose other side is gone."""
    import torch.distributed as dist

    return any(
        isinstance(link, dist.DistError)
        or (
            isinstance(link, RuntimeError) and any(w in str(link).lower() for w in ("gloo", "nccl"))
        )
        for link in causes(error)
    )


@contextlib.contextmanager
def other_ranks(
    processes: int, arguments: Sequence[str], died: Callable[[str], None] = lambda sentence: None
) -> Iterator[None]:
    """Work as one rank of several while the context is open; rank 0 starts what is its to start.

    Args:
        processes: number of ranks on this machine.
        arguments: of the `noisyml` command that makes another rank, and that continues the run: a
            verb and a folder whose configuration is written, e.g. ``["train", "resume=RUN_DIR"]``.
        died: called with the reason if this process ends, perhaps at once, because another did.

    Raises:
        RankDied: another rank ended before this one was done.
    """
    resume = f"go on with: noisyml {shlex.join(arguments)}"
    if started_elsewhere():
        with _beside_foreign_ranks(resume, died):
            yield
    elif not is_main_process():
        with _beside_parent(resume, died):
            yield
    elif processes <= 1:
        yield
    else:
        with _beside_children(processes, arguments, resume, died):
            yield


@contextlib.contextmanager
def _beside_foreign_ranks(resume: str, died: Callable[[str], None]) -> Iterator[None]:
    """One of the ranks of torchrun or srun, which end the others themselves."""
    try:
        yield
    except Exception as error:
        if not is_peer_death(error):
            raise
        # The starter ends the survivors with SIGTERM; there is something to say first.
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        sentence = (
            f"Rank {rank()} lost another process of the run, whose message tells more; {resume}"
        )
        if rank() <= 1:
            died(sentence)
        raise RankDied(sentence) from error


@contextlib.contextmanager
def _beside_parent(resume: str, died: Callable[[str], None]) -> Iterator[None]:
    """A rank that rank 0 started; it has no life of its own."""
    parent = int(os.environ[RANK_0_PID])

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(PULSE)
        if rank() == 1:
            sentence = f"Rank 0 of the run was killed; {resume}"
            died(sentence)
            print(f"noisyml: {sentence}", file=sys.stderr, flush=True)
        os._exit(EXIT_PEER_DIED)

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    except Exception as error:
        if not is_peer_death(error):
            raise
        # Whichever rank is gone, there is one to say so: rank 0, or the thread above.
        time.sleep(2 * PULSE)
        raise SystemExit(EXIT_PEER_DIED) from error


@contextlib.contextmanager
def _beside_children(
    processes: int, arguments: Sequence[str], resume: str, died: Callable[[str], None]
) -> Iterator[None]:
    """Rank 0 and the others of its machine, which end with it."""
    # A rank that torchrun started alone may still start others of its own.
    shared: dict[str, str | None] = {
        "RANK": None,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": str(processes),
        "NODE_RANK": "0",
        "LOCAL_RANK": "0",
    }
    command = [sys.executable, "-m", "noisyml", *arguments]
    children: list[subprocess.Popen[bytes]] = []
    done = threading.Event()
    with _environment(shared):
        try:
            for other in range(1, processes):
                env = {**os.environ, "LOCAL_RANK": str(other), RANK_0_PID: str(os.getpid())}
                children.append(subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL))
            threading.Thread(
                target=_watch, args=(children, done, resume, died), daemon=True
            ).start()
            yield
            done.set()
            for child in children:
                child.wait(timeout=60)
        except Exception as error:
            done.set()
            if not is_peer_death(error):
                raise
            deadline = time.monotonic() + GRACE
            while (sentence := _first_death(children, resume)) is None:
                if time.monotonic() > deadline:
                    raise
                time.sleep(PULSE / 5)
            raise RankDied(sentence) from error
        finally:
            done.set()
            for child in children:
                if child.poll() is None:
                    child.kill()
                    child.wait()


def _first_death(children: Sequence[subprocess.Popen[bytes]], resume: str) -> str | None:
    """A sentence on the rank that died first and its cause; None while that is not known."""
    for other, child in enumerate(children, 1):
        status = child.poll()
        if status is None or status in (0, EXIT_PEER_DIED):
            continue
        if status < 0:
            name = signal.Signals(-status).name
            cause = f"was killed by {name}"
            cause += " (by the system, if memory ran out)" if name == "SIGKILL" else ""
        else:
            cause = f"ended with status {status} (its message stands above)"
        return f"Rank {other} of the run {cause}; {resume}"
    return None


def _watch(
    children: Sequence[subprocess.Popen[bytes]],
    done: threading.Event,
    resume: str,
    died: Callable[[str], None],
) -> None:
    """End this process if a neighbour died and this one does not notice by itself."""
    while not done.wait(PULSE):
        sentence = _first_death(children, resume)
        if sentence is not None and not done.wait(GRACE):
            died(sentence)
            print(f"noisyml: {sentence}", file=sys.stderr, flush=True)
            for child in children:
                if child.poll() is None:
                    child.kill()
            os._exit(EXIT_PEER_DIED)


def free_port() -> int:
    """A port of this machine that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def _environment(changes: Mapping[str, str | None]) -> Iterator[None]:
    """Set environment variables, or with None remove them, while the context is open."""
    before = {name: os.environ.get(name) for name in changes}
    _change_environment(changes)
    try:
        yield
    finally:
        _change_environment(before)


def _change_environment(changes: Mapping[str, str | None]) -> None:
    for name, value in changes.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
