"""One run by torchrun and by srun, ranks that die, and sweeps in other processes."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import yaml
from lightning import Callback
from support.shell import TINY
from torch.distributed import TCPStore

from noisyml.runs.metric_names import COSTS
from noisyml.runs.processes import free_port

ENDLESS = [*TINY, "trainer.max_epochs=100000", "callbacks.checkpoint.every_n_steps=5"]
#: Two processes on the CPU, as two machines of one process would be.
TWO_MACHINES = ["trainer=ddp_cpu", "trainer.devices=1", "trainer.num_nodes=2"]


class KillRank(Callback):
    """SIGKILL one rank in the middle of the run, the first time."""

    def __init__(self, rank: int, step: int) -> None:
        self.rank, self.step = rank, step

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if trainer.global_rank == self.rank and trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def timeless(run):
    metrics = json.loads((run / "metrics.json").read_text())
    return {k: v for k, v in metrics.items() if not k.startswith(COSTS)}


def status(run):
    return json.loads((run / "status.json").read_text())


def processes_of(run):
    """The processes whose command line names the run folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if str(run).encode() in entry.read_bytes():
                found.append(int(entry.parent.name))
        except OSError:
            continue
    return found


def torchrun(*arguments):
    from torch.distributed.run import main

    main(list(arguments))


@pytest.mark.parametrize(
    "really", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["as-it-does", "itself"]
)
def test_two_torchruns_make_one_run_equal_to_that_of_one_process(shell, really):
    port, two = free_port(), ["train", *TINY, *TWO_MACHINES, "name=two"]
    if really:
        nodes = [
            shell.start(
                torchrun,
                *("--nnodes", "2", "--nproc-per-node", "1", "--node-rank", str(node)),
                *("--master-addr", "127.0.0.1", "--master-port", str(port)),
                *("-m", "noisyml", *two),
            )
            for node in range(2)
        ]
    else:
        # The first machine's agent serves the store at which all meet.
        agent = TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
        assert agent.port == port
        nodes = [
            shell.beside(
                *two,
                MASTER_ADDR="127.0.0.1",
                MASTER_PORT=str(port),
                TORCHELASTIC_USE_AGENT_STORE="True",
                WORLD_SIZE="2",
                RANK=str(node),
                GROUP_RANK=str(node),
                LOCAL_RANK="0",
            )
            for node in range(2)
        ]
    assert shell("train", *TINY, "name=one")[0] == 0
    for done in [node.wait(200) for node in nodes]:
        assert done.returncode == 0, done.stdout + done.stderr
    one, two = shell.runs()
    assert (one.parent.name, two.parent.name) == ("one", "two")
    assert len(list((shell.folder / "outputs/train/two").iterdir())) == 1
    assert status(two)["state"] == "finished"
    assert timeless(two) == pytest.approx(timeless(one), abs=2e-3, nan_ok=True)


@pytest.mark.parametrize(
    "mistake", [pytest.param(False, marks=pytest.mark.slow), True], ids=["run", "mistake"]
)
def test_srun_makes_one_run_or_one_sentence(shell, mistake):
    port = str(free_port())
    tasks = [
        shell.beside(
            *("train", *TINY, "trainer=slurm", "trainer.accelerator=cpu"),
            "trainer.max_epochs=1",
            *(["noise.rat=1"] if mistake else []),
            MASTER_PORT=port,
            SLURM_JOB_ID="4711",
            SLURM_JOB_NAME="train",
            SLURM_NTASKS="2",
            SLURM_NTASKS_PER_NODE="2",
            SLURM_NNODES="1",
            SLURM_NODEID="0",
            SLURM_NODELIST="127.0.0.1",
            SLURM_STEP_ID="0",
            SLURM_STEP_NODELIST="127.0.0.1",
            SLURM_PROCID=str(task),
            SLURM_LOCALID=str(task),
            **({"MASTER_ADDR": "127.0.0.1"} if mistake else {}),
        )
        for task in range(2)
    ]
    ended = [task.wait(200) for task in tasks]
    said = "".join(task.stdout + task.stderr for task in ended)
    assert [task.returncode for task in ended] == ([2, 2] if mistake else [0, 0]), said
    if mistake:
        assert said.count("noisyml:") == 1
        assert "There is no setting 'noise.rat'" in said
        assert shell.runs() == []
    else:
        (run,) = shell.runs()
        assert status(run)["state"] == "finished"
        assert said.count("test/map_at_r") == 1


def test_a_killed_rank_ends_the_run_which_then_goes_on(shell):
    kill = "+callbacks.kill={_target_: e2e.test_launching.KillRank, rank: 1, step: 20}"
    done = shell.apart("train", *TINY, "trainer=ddp_cpu", kill)
    (run,) = shell.runs()
    sentence = "Rank 1 of the run was killed by SIGKILL (by the system, if memory ran out)"
    assert done.returncode == 2, done.stderr
    assert f"noisyml: {sentence}; go on with: noisyml train resume={run}" in done.stderr
    assert "Traceback" not in done.stderr
    assert status(run)["state"] == "failed"
    assert sentence in status(run)["error"]
    assert processes_of(run) == []
    # Continued after the checkpoint of the first epoch, by one process instead of two.
    state, said = shell("train", f"resume={run}", "callbacks.kill.step=-1", "trainer.devices=1")
    assert state == 0, said
    assert status(run)["state"] == "finished"
    assert set(pd.read_csv(run / "history.csv")["epoch"]) == {0, 1}


@pytest.mark.further
@pytest.mark.parametrize(
    "how", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_the_others_end_with_the_first_rank(shell, how):
    first = shell.beside("train", *ENDLESS, "trainer=ddp_cpu")
    deadline = time.monotonic() + 120
    while not list(shell.folder.glob("outputs/train/*/*/checkpoints/last.ckpt")):
        assert first.process.is_alive(), first.err.read_text()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    (run,) = shell.runs()
    assert len(processes_of(run)) == 1
    os.kill(first.process.pid, how)
    killed = how == signal.SIGKILL
    assert first.wait(60).returncode == (-signal.SIGKILL if killed else 130)
    deadline = time.monotonic() + 20
    while processes_of(run):
        assert time.monotonic() < deadline, "the other rank outlives the first"
        time.sleep(0.1)
    said = first.err.read_text()
    assert f"noisyml train resume={run}" in said
    assert "Traceback" not in said
    assert ("Rank 0 of the run was killed" in said) == killed
    assert status(run)["state"] == ("failed" if killed else "interrupted")


def test_an_unfinished_run_goes_on_in_its_folder(shell):
    """What the script of a job does that SLURM starts again."""
    run = shell.folder / "outputs/train/job/4711"
    command = ["train", *TINY, f"hydra.run.dir={run}"]
    assert shell(*command, "trainer.max_epochs=1")[0] == 0
    state, said = shell(*command)
    assert state == 2
    assert "holds a run with another trainer.max_epochs; choose another hydra.run.dir" in said
    # As it would lie there if the second epoch had been interrupted.
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["trainer"]["max_epochs"] = 2
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    (run / "status.json").write_text('{"state": "running"}')
    first = pd.read_csv(run / "history.csv")
    assert shell(*command)[0] == 0
    history = pd.read_csv(run / "history.csv")
    pd.testing.assert_frame_equal(history[: len(first)], first)
    assert set(history["epoch"]) == {0, 1}
    state, said = shell(*command)
    assert state == 0
    assert "is finished already" in said


@pytest.mark.further
@pytest.mark.parametrize(
    ("launcher", "settings"),
    [
        # One process for both jobs, as each imports everything anew.
        ("joblib", ["hydra.launcher.n_jobs=2", "hydra.launcher.batch_size=2"]),
        pytest.param("submitit_local", [], marks=pytest.mark.slow),
        pytest.param("ray", ["+hydra.launcher.ray.init.num_cpus=2"], marks=pytest.mark.slow),
    ],
)
def test_launchers_run_a_sweep_whose_failures_stop_nothing(shell, launcher, settings):
    package = f"hydra_plugins.hydra_{launcher.partition('_')[0]}_launcher"
    if importlib.util.find_spec("hydra_plugins") is None or not importlib.util.find_spec(package):
        pytest.skip(f"{package} is not installed")
    sweep = [
        *("train", "-m", *TINY, "trainer.max_epochs=1", "sampler=shuffle"),
        *("sampler.batch_size=64,4096", "hydra.sweep.dir=outputs/train/sweep"),
    ]
    # From a fresh process: workers of joblib outlive a forked one, which waits for its children.
    done = subprocess.run(
        [
            *(sys.executable, "-m", "noisyml", *sweep, "report=true"),
            *(f"hydra/launcher={launcher}", *settings),
        ],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 2, said
    assert "1 of 2 jobs failed:\n  job 1: sampler.batch_size=4096 exceeds the" in said
    assert "Traceback" not in said
    home = shell.folder / "outputs/train/sweep"
    assert (home / "report.html").is_file()
    assert [status(home / str(job))["state"] for job in range(2)] == ["finished", "failed"]
    metrics = (home / "0" / "metrics.json").stat().st_mtime_ns
    # Typed again, here and without a launcher: what is finished is left alone.
    state, said = shell(*sweep)
    assert state == 2
    assert "finished already" in said
    assert (home / "0" / "metrics.json").stat().st_mtime_ns == metrics
    # Without -m there is nothing to launch.
    state, said = shell("train", *TINY, "trainer.max_epochs=1", f"hydra/launcher={launcher}")
    assert state == 0
    assert said.count("test/map_at_r") == 1
