"""The world around a run: slow tools, full disks, leftovers of kills, children."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import time

import numpy as np
import psutil
import pytest

from noisyml.command.mistakes import as_user_error
from noisyml.runs import environment, processes
from noisyml.runs.folder import RunFolder
from noisyml.storage.files import DiskFull, atomic, write_atomically


def test_a_git_that_hangs_neither_kills_nor_delays(tmp_path, monkeypatch):
    git = tmp_path / "git"
    git.write_text("#!/bin/sh\nsleep 10\n")
    git.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(environment, "GIT_PATIENCE", 0.3)
    environment._commit.cache_clear()
    began = time.monotonic()
    assert environment._commit() is None
    assert time.monotonic() - began < 5
    environment._commit.cache_clear()


def full_disk():
    with open("/dev/full", "w") as file:
        file.write("x")


def test_a_full_disk_is_one_sentence_and_leaves_no_temporary(tmp_path):
    target = tmp_path / "file"
    target.write_text("before")

    def write():
        with atomic(target) as temporary:
            temporary.write_text("half")
            full_disk()

    with pytest.raises(DiskFull, match=r"There is no space left to write .*file: free some"):
        write()
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    assert target.read_text() == "before"


def test_an_array_that_a_disk_takes_in_part_is_the_same_sentence(tmp_path):
    """NumPy writes past Python's files and does not say why it failed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    array = np.zeros(10_000)

    def write():
        with atomic(tmp_path / "rows.npy") as temporary, temporary.open("wb") as file:
            np.save(file, array)

    resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, hard))
    try:
        with pytest.raises(DiskFull, match=r"no space left to write .*rows\.npy"):
            write()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.iterdir())


def test_a_full_disk_outside_of_our_writers_is_one_sentence_too():
    with pytest.raises(OSError) as raised:
        full_disk()
    assert isinstance(as_user_error(raised.value, "train", []), DiskFull)


def test_the_status_is_true_on_a_full_disk(tmp_path, monkeypatch):
    folder = RunFolder(tmp_path)
    folder.write_status("running", began=1.0, more="x" * 200)

    def fail(path, content, durable=False):
        raise DiskFull(path)

    monkeypatch.setattr("noisyml.runs.folder.write_atomically", fail)
    folder.write_status("failed", error="full")
    assert json.loads(folder.status_file.read_text()) == {"state": "failed", "error": "full"}


def test_what_a_kill_left_half_written_is_removed_by_the_next_run(tmp_path):
    (tmp_path / "embeddings").mkdir()
    leftovers = [
        tmp_path / ".history.csv.4711-0a1b2c3d.tmp",
        tmp_path / "embeddings" / ".rows.npy.tmp",
    ]
    for leftover in leftovers:
        leftover.write_text("half")
    write_atomically(tmp_path / "history.csv", "step\n")
    with RunFolder(tmp_path).claimed():
        assert not any(leftover.exists() for leftover in leftovers)
    assert (tmp_path / "history.csv").read_text() == "step\n"


@pytest.mark.long
def test_children_and_theirs_end_with_a_command(tmp_path):
    """In a process of its own: whatever the one that tests has started lives on."""
    said = tmp_path / "said.txt"
    child = os.fork()
    if child == 0:
        try:
            shell = psutil.Process(subprocess.Popen(["sh", "-c", "sleep 60 & sleep 60; wait"]).pid)
            deadline = time.monotonic() + 20
            while len(started := shell.children()) < 2 and time.monotonic() < deadline:
                time.sleep(0.05)
            processes.end_children()
            left = [process for process in [shell, *started] if process.is_running()]
            said.write_text(f"{len(started)} started, {len(left)} left")
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert said.read_text() == "2 started, 0 left"
