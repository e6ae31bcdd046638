"""Foreign pickles are read as plain values, and nothing in them is called."""

from __future__ import annotations

import os
import pickle
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch

from noisyml.errors import UserError
from noisyml.storage.pickles import read_plain


class Trap:
    """Runs a command when it is unpickled the ordinary way."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.file}",)


def read(path: Path) -> object:
    return read_plain(path, encoding="bytes", advice="fetch it again")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_arrays_and_plain_values_come_back(tmp_path: Path, protocol: int) -> None:
    content = {
        "pixels": np.arange(12, dtype=np.uint8).reshape(3, 4),
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "labels": [1, 2.5, None, True, b"bytes", "text"],
        "names": OrderedDict(a=(1, 2)),
    }
    file = tmp_path / "batch"
    file.write_bytes(pickle.dumps(content, protocol))
    found = read(file)
    assert isinstance(found, dict)
    np.testing.assert_array_equal(found["pixels"], content["pixels"])
    np.testing.assert_array_equal(found["fortran"], content["fortran"])
    assert found["labels"] == content["labels"]
    assert found["names"] == content["names"]


@pytest.mark.parametrize("where", ["alone", "in a list", "in an array"])
def test_a_malicious_file_is_refused_and_nothing_of_it_runs(tmp_path: Path, where: str) -> None:
    touched, file = tmp_path / "touched", tmp_path / "batch"
    trap = Trap(touched)
    content = {"alone": trap, "in a list": [1, trap], "in an array": np.array([trap])}[where]
    file.write_bytes(pickle.dumps(content))
    with pytest.raises(UserError, match=r"it names posix\.system\), and is not read: fetch it"):
        read(file)
    assert not touched.exists()
    pickle.loads(file.read_bytes())  # the trap works on others
    assert touched.exists()


@pytest.mark.parametrize(
    "content",
    [torch.nn.Linear(1, 1), torch.zeros(1), np.float64, print, Path("x"), range(3), {1, 2}, 1j],
)
def test_other_objects_are_refused(tmp_path: Path, content: object) -> None:
    file = tmp_path / "batch"
    file.write_bytes(pickle.dumps(content, 2))
    with pytest.raises(UserError, match=f"{file} is damaged or holds more than arrays"):
        read(file)


def test_a_damaged_file_is_one_sentence(tmp_path: Path) -> None:
    file = tmp_path / "batch"
    file.write_bytes(pickle.dumps({"a": np.arange(100)})[:-20])
    with pytest.raises(UserError, match="is damaged or holds more than arrays"):
        read(file)
