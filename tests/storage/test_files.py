"""Files are written whole or not at all, and nothing is left lying beside them."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from noisyml.storage import files
from noisyml.storage.files import atomic, write_atomically


@pytest.mark.parametrize("content", ["words\n", b"\x00bytes", memoryview(b"a view")])
def test_content_replaces_what_was_there(tmp_path: Path, content: str | bytes | memoryview) -> None:
    file = tmp_path / "made" / "by" / "need.txt"
    write_atomically(file, "old")
    write_atomically(file, content, durable=True)
    expected = content.encode() if isinstance(content, str) else bytes(content)
    assert file.read_bytes() == expected
    assert [path.name for path in file.parent.iterdir()] == [file.name]


@pytest.mark.parametrize("sole_writer", [False, True])
def test_a_failure_keeps_the_old_file_and_removes_the_temporary_one(
    tmp_path: Path, sole_writer: bool
) -> None:
    file = tmp_path / "table.csv"
    file.write_text("old")

    def write_half() -> None:
        with atomic(file, sole_writer=sole_writer) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_two_writers_at_once_do_not_share_a_temporary_file(tmp_path: Path) -> None:
    file = tmp_path / "facts.json"
    with atomic(file) as first, atomic(file) as second:
        assert first != second
        first.write_text("first")
        second.write_text("second")
    assert file.read_text() == "first"  # the outer context ends last


def test_the_file_has_the_mode_of_any_new_file(tmp_path: Path) -> None:
    plain, atomically = tmp_path / "plain", tmp_path / "atomically"
    plain.write_text("x")
    write_atomically(atomically, "x")
    assert atomically.stat().st_mode == plain.stat().st_mode


def test_a_kill_leaves_the_old_file_and_the_next_attempt_cleans_up(tmp_path: Path) -> None:
    file = tmp_path / "last.ckpt"
    file.write_text("old")
    program = f"""
import os, signal
from pathlib import Path
from noisyml.storage.files import atomic
with atomic(Path({str(file)!r}), sole_writer=True) as temporary:
    temporary.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = subprocess.run([sys.executable, "-c", program], env=os.environ, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert file.read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 2
    with atomic(file, sole_writer=True) as temporary:
        temporary.write_text("new")
    assert file.read_text() == "new"
    assert list(tmp_path.iterdir()) == [file]


def test_text_is_utf8_whatever_the_system_writes(tmp_path):
    program = (
        "import sys; from pathlib import Path; from noisyml.storage.files import write_atomically"
    )
    program += "; write_atomically(Path(sys.argv[1]), '\\u56f3\\n')"
    env = {**os.environ, "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "a.txt")], env=env)
    assert done.returncode == 0
    assert (tmp_path / "a.txt").read_bytes() == "図\n".encode()


def test_room_to_work_with_leaves_nothing_behind(tmp_path):
    room = files.scratch(tmp_path / "new", 2**20 + 1)
    room[-1] = 7
    assert room.shape == (2**20 + 1,)
    assert room[-1] == 7
    assert not room[:-1].any()
    assert not list((tmp_path / "new").iterdir())


def test_room_that_is_not_there_is_a_sentence(tmp_path, monkeypatch):
    class Full:
        def __init__(self, **_):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def write(self, _):
            raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(files.tempfile, "TemporaryFile", Full)
    with pytest.raises(files.DiskFull, match="no space left"):
        files.scratch(tmp_path, 10)
