"""Whatever is wrong with a file, one sentence names it and says what to do."""

import os

import numpy as np
import pytest

from noisyml.errors import UserError
from noisyml.storage.reading import DamagedFileError, read_json, read_npy, read_yaml, reading


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it is empty"),
        (b'{"a": [1', "Expecting"),
        (b"[1, 2]", "it holds no JSON object"),
        (b"\xff\xfe{}", "codec can't decode"),
    ],
)
def test_json(tmp_path, content, reason):
    file = tmp_path / "facts.json"
    file.write_bytes(content)
    with pytest.raises(DamagedFileError, match=reason) as caught:
        read_json(file, "make it anew")
    assert str(caught.value).startswith(f"{file} cannot be read (")
    assert str(caught.value).endswith("): make it anew.")
    assert "\n" not in str(caught.value)


def test_yaml(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("a: 1\nb: [")
    with pytest.raises(DamagedFileError, match="line 2 is no YAML"):
        read_yaml(file, "make it anew")
    file.write_text("a: &a [*a]")
    assert read_yaml(file, "") is not None
    file.write_text("")
    assert read_yaml(file, "") is None


def test_arrays(tmp_path):
    file = tmp_path / "rows.npy"
    np.save(file, np.zeros((100, 8)))
    assert read_npy(file, "").shape == (100, 8)
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    for mapped in (True, False):
        with pytest.raises(DamagedFileError):
            read_npy(file, "make it anew", mapped=mapped)
    np.savez(tmp_path / "rows", a=np.zeros(3))
    (tmp_path / "rows.npz").rename(file)
    with pytest.raises(DamagedFileError, match="an archive of several arrays"):
        read_npy(file, "make it anew")
    np.save(file, np.array([{}]), allow_pickle=True)
    with pytest.raises(DamagedFileError, match="allow_pickle"):
        read_npy(file, "make it anew", mapped=False)


def test_what_is_no_file_is_not_opened(tmp_path):
    """A named pipe without a writer would wait for ever."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DamagedFileError, match="it is no file"):
        read_json(tmp_path / "pipe", "give a file")
    with pytest.raises(DamagedFileError, match="it is no file"):
        read_json(tmp_path, "give a file")


def test_sentences_of_our_own_stay(tmp_path):
    with pytest.raises(UserError, match=r"^mine$"), reading(tmp_path / "file", "advice"):
        raise UserError("mine")
