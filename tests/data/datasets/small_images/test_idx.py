"""Fashion-MNIST from the files of its release and of Debian."""

import gzip

import numpy as np
import pytest

from noisyml.data.datasets.small_images import fashion_mnist
from noisyml.data.datasets.small_images.fashion_mnist import FashionMNIST
from noisyml.data.datasets.small_images.mnist import read_idx
from noisyml.errors import UserError


def _idx(path, array):
    head = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, dtype=">u4").tobytes()
    content = head + array.tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def _fashion(folder, suffix):
    rng = np.random.default_rng(0)
    arrays = {}
    for prefix, number in (("train", 40), ("t10k", 20)):
        arrays[prefix] = rng.integers(0, 256, (number, 28, 28), dtype=np.uint8)
        labels = np.arange(number, dtype=np.uint8) % 10
        _idx(folder / f"{prefix}-images-idx3-ubyte{suffix}", arrays[prefix])
        _idx(folder / f"{prefix}-labels-idx1-ubyte{suffix}", labels)
    return arrays


@pytest.mark.parametrize(("folder", "suffix"), [("FashionMNIST/raw", ""), (".", ".gz")])
def test_fashion_mnist(tmp_path, folder, suffix):
    arrays = _fashion(tmp_path / folder, suffix)
    splits = FashionMNIST(str(tmp_path), val_fraction=0.25, check_counts=False).splits()
    assert {n: len(s) for n, s in splits.items()} == {"train": 30, "val": 10, "test": 20}
    assert np.bincount(splits["val"].labels).tolist() == [1] * 10
    for name in ("train", "val"):
        official = [int(key.removeprefix("train/")) for key in splits[name].keys]
        np.testing.assert_array_equal(splits[name].images.pixels, arrays["train"][official])
    np.testing.assert_array_equal(splits["test"].images.pixels, arrays["t10k"])
    with pytest.raises(UserError, match="expected 60000 as published, found 40"):
        FashionMNIST(str(tmp_path)).splits()


def test_fashion_mnist_from_debian(tmp_path, monkeypatch):
    _fashion(tmp_path / "usr", ".gz")
    monkeypatch.setattr(fashion_mnist, "DEBIAN_FOLDER", tmp_path / "usr")
    assert FashionMNIST(str(tmp_path / "none")).missing() is None
    assert len(FashionMNIST(str(tmp_path / "none"), check_counts=False).splits()["test"]) == 20


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\0\0\x0d\x01\0\0\0\x01abcd", "no IDX file of bytes"),
        (b"\0\0\x08\x03\0\0\0\x01", "no IDX file of bytes"),
        (b"\0\0\x08\x01\0\0\0\x09abc", "announces 17 bytes and has 11"),
        (b"", "no IDX file"),
    ],
)
def test_idx_mistakes(tmp_path, content, message):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_idx(tmp_path / "x", 1)
    (tmp_path / "x.gz").write_bytes(gzip.compress(content + b"more")[:-6])
    with pytest.raises(UserError, match="cannot be unpacked"):
        read_idx(tmp_path / "x.gz", 1)
