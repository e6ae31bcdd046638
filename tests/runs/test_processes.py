"""Who starts ranks, what they may be told, and where a sweep lies; no processes."""

import os
import pickle
import signal
import subprocess
import sys

import pytest
import torch
from omegaconf import OmegaConf

from noisyml.command.config import register_resolvers
from noisyml.command.sweeps import sweep_settings
from noisyml.errors import UserError
from noisyml.runs import processes as launch

TORCHRUN = {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4"}
SRUN = {
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "1",
    "SLURM_NTASKS": "2",
    "SLURM_NTASKS_PER_NODE": "2",
    "SLURM_STEP_ID": "0",
}


@pytest.fixture(autouse=True)
def _empty_environment(monkeypatch):
    for name in list(os.environ):
        if name.startswith(("SLURM", "TORCHELASTIC", "NOISYML_RANK")) or name in TORCHRUN:
            monkeypatch.delenv(name)


def trainer(**settings):
    base = {"devices": 1, "num_nodes": 1, "accelerator": "cpu"}
    return OmegaConf.create({"trainer": {**base, **settings}})


@pytest.mark.parametrize(
    ("env", "starter", "rank", "world"),
    [
        ({}, None, 0, 1),
        (TORCHRUN, "torchrun", 3, 4),
        ({**TORCHRUN, "RANK": "0", "WORLD_SIZE": "1"}, None, 0, 1),
        (SRUN, "srun", 1, 2),
        # The script of sbatch knows of four tasks, and is none of them.
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, None, 0, 1),
        # A rank of ours, inside an allocation and under torchrun.
        ({**SRUN, **TORCHRUN, "NOISYML_RANK_0_PID": "77"}, "noisyml", 1, 1),
    ],
)
def test_a_process_knows_who_started_it(monkeypatch, env, starter, rank, world):
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert launch.started_by() == starter
    assert launch.rank() == rank
    assert launch.is_main_process() == (rank == 0)
    assert launch.world_size() == world


@pytest.mark.parametrize(
    ("env", "settings", "sentence"),
    [
        ({}, {"num_nodes": 2}, "start it with torchrun or srun"),
        (TORCHRUN, {"devices": 3}, "torchrun started 4 processes, but trainer.num_nodes=1 times"),
        (SRUN, {"num_nodes": 2, "devices": 2}, "is 4: make them agree"),
        ({**SRUN, "SLURM_NTASKS_PER_NODE": None}, {"devices": 2}, "--ntasks-per-node=N"),
    ],
)
def test_a_configuration_of_other_processes_is_refused(monkeypatch, env, settings, sentence):
    for name, value in env.items():
        if value is not None:
            monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=sentence):
        launch.check_ranks(trainer(**settings))


def test_a_configuration_of_the_processes_started_is_accepted(monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    launch.check_ranks(trainer(devices=8))
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    launch.check_ranks(trainer(devices="2", num_nodes=2))
    launch.check_ranks(trainer(devices=[0, 5], num_nodes=2))


def test_many_more_processes_than_cores_are_asked_for_twice(monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    launch.check_ranks(trainer(devices=4))
    with pytest.raises(UserError, match=r"trainer.devices=100 starts 100 processes.* has 2 cores"):
        launch.check_ranks(trainer(devices=100))
    monkeypatch.setenv("NOISYML_PROCESSES", "100")
    launch.check_ranks(trainer(devices=100))


def test_devices_are_counted_as_lightning_counts_them():
    for devices, processes in ((3, 3), ("2", 2), ([0, 1], 2), ("auto", 1)):
        assert launch.processes_here(trainer(devices=devices)) == processes


def test_errors_of_missing_neighbours_are_told_from_our_own():
    lost = RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer")
    assert launch.is_peer_death(lost)
    assert launch.is_peer_death(torch.distributed.DistNetworkError("gone"))
    with pytest.raises(ValueError) as raised:
        raise ValueError("in the middle of it") from lost
    assert launch.is_peer_death(raised.value)
    assert not launch.is_peer_death(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


def test_one_process_has_no_followers_and_starts_none(tmp_path):
    before = dict(os.environ)
    with launch.Followers() as followers, followers.lead(tmp_path):
        assert dict(os.environ) == before
        with launch.other_ranks(1, ["train"]):
            assert dict(os.environ) == before
    assert isinstance(pickle.loads(pickle.dumps(followers)), launch.Followers)


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        ("import os; os.kill(os.getpid(), 9)", "Rank 1 of the run was killed by SIGKILL"),
        ("raise SystemExit(2)", "Rank 1 of the run ended with status 2"),
    ],
)
def test_a_lost_neighbour_is_named(monkeypatch, code, sentence):
    """Rank 0 sees a collective operation fail; the reason is the rank that died of itself."""
    start = subprocess.Popen

    def other(command, **settings):
        assert settings["env"]["LOCAL_RANK"] in "12"
        assert settings["env"]["NOISYML_RANK_0_PID"] == str(os.getpid())
        first = settings["env"]["LOCAL_RANK"] == "1"
        peer_died = f"raise SystemExit({launch.EXIT_PEER_DIED})"
        return start([sys.executable, "-c", code if first else peer_died], **settings)

    monkeypatch.setattr(subprocess, "Popen", other)
    before = dict(os.environ)

    def run():
        with launch.other_ranks(3, ["train", "resume=outputs/a run"]):
            assert os.environ["WORLD_SIZE"] == "3"
            raise RuntimeError("gloo: Connection closed by peer")

    with pytest.raises(launch.RankDied, match=sentence) as raised:
        run()
    assert str(raised.value).endswith("go on with: noisyml train 'resume=outputs/a run'")
    assert dict(os.environ) == before


def test_an_error_of_our_own_ends_the_others_and_stays_what_it_is(monkeypatch):
    children = []
    start = subprocess.Popen

    def sleeper(command, **settings):
        children.append(start([sys.executable, "-c", "import time; time.sleep(60)"], **settings))
        return children[-1]

    monkeypatch.setattr(subprocess, "Popen", sleeper)
    with pytest.raises(UserError, match="mine"), launch.other_ranks(2, ["train"]):
        raise UserError("mine")
    assert children[0].returncode == -signal.SIGKILL


def test_sigterm_is_an_interruption():
    before = signal.getsignal(signal.SIGTERM)

    def run():
        with launch.interruptible():
            os.kill(os.getpid(), signal.SIGTERM)
            signal.pause()

    with pytest.raises(KeyboardInterrupt):
        run()
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.long
def test_a_sweep_has_one_folder_named_after_all_it_varies(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    register_resolvers()
    for typed, name in (
        (["seed=0,1", "dataset=digits"], "prism-digits"),
        (["dataset=digits,glyphs", "seed=0,1"], "prism-digits+glyphs"),
        (["dataset=digits,glyphs", "name=mine"], "mine"),
    ):
        sweep = sweep_settings("train", ["-m", *typed], print)
        assert sweep.home.parent == tmp_path / "outputs" / "train" / name
        assert sweep.launcher.endswith("BasicLauncher")
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    (tmp_path / "mine" / "experiment" / "own.yaml").write_text("# @package _global_\nname: own\n")
    own = ["-m", "--config-dir", "mine", "experiment=own", "seed=0,1"]
    assert sweep_settings("train", own, print).home.parent.name == "own"
    elsewhere = ["-m", "seed=0,1", "hydra.sweep.dir=my sweeps/one"]
    assert sweep_settings("train", elsewhere, print).home == tmp_path / "my sweeps" / "one"


@pytest.mark.long
def test_values_that_an_experiment_brings_are_named_where_more_is_typed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    register_resolvers()
    leaderboard = ["-m", "experiment=noisy_labels_leaderboard"]

    def said(*typed):
        sentences: list[str] = []
        sweep_settings("train", [*leaderboard, *typed], sentences.append)
        return " ".join(sentences)

    assert said() == said("hydra.sweep.dir=here") == ""
    assert "noise (3 values), recipe (13 values), which are all run; type noise=" in said("seed=1")
    assert "of the experiment is left out: method was typed" in said("noise=pair", "method=bare")
    assert said("noise=pair", "recipe=bare,elr") == ""


def test_a_missing_launcher_is_named(monkeypatch):
    from noisyml.command import hydra as command
    from noisyml.command import sweeps

    monkeypatch.setattr(sweeps.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="needs the package hydra-submitit-launcher: pip install"):
        command.run_hydra(print, "train", "train", ["-m", "hydra/launcher=submitit_slurm"])


def test_paths_survive_the_grammar_of_overrides():
    from hydra.core.override_parser.overrides_parser import OverridesParser

    from noisyml.command.sweeps import quoted

    for path in ("a b", "it's", "back\\slash", "end\\", "x=1,y=2", "a\\'b", "ünï"):
        (parsed,) = OverridesParser.create().parse_overrides([f"key={quoted(path)}"])
        assert parsed.value() == path
