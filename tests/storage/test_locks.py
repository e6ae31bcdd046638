"""Locks: one holder at a time, whoever waits, and none left by the dead."""

import subprocess
import sys
import threading

import pytest

from noisyml.errors import UserError
from noisyml.runs.folder import RunFolder
from noisyml.storage.locks import Taken, locked

HOLDER = """
import pathlib, sys, time
from noisyml.storage.locks import locked
with locked(pathlib.Path(sys.argv[1]), wait=False):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_lock_is_held_by_one_and_given_back(tmp_path):
    path = tmp_path / "x.lock"
    with locked(path, wait=False), pytest.raises(Taken), locked(path, wait=False):
        pass
    with locked(path, wait=False):
        pass


def test_who_waits_gets_it_afterwards(tmp_path):
    path = tmp_path / "x.lock"
    order = []

    def wait() -> None:
        with locked(path, wait=True):
            order.append("second")

    with locked(path, wait=False):
        other = threading.Thread(target=wait)
        other.start()
        other.join(timeout=0.3)
        assert other.is_alive()
        order.append("first")
    other.join(timeout=10)
    assert order == ["first", "second"]


def test_a_killed_process_leaves_no_lock(tmp_path):
    path = tmp_path / "x.lock"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE, text=True
    )
    with holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(Taken), locked(path, wait=False):
            pass
        holder.kill()
        holder.wait()
    with locked(path, wait=False):
        pass


def test_a_folder_that_another_process_works_in_is_refused_in_a_sentence(tmp_path):
    run = RunFolder(tmp_path / "run")
    refused = pytest.raises(UserError, match="Another process is working in")
    with run.claimed(), refused, run.claimed():
        pass
    with run.claimed():
        pass


def test_a_file_that_cannot_be_made_is_an_error_of_the_system(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError), locked(tmp_path / "file" / "x", wait=False):
        pass
