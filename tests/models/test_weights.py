"""Weight files: checksums, refusals, and where to put what cannot be fetched."""

import hashlib
import pickle
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from noisyml.errors import UserError
from noisyml.models.backbones.from_caffe import bn_inception
from noisyml.models.backbones.from_torchvision import googlenet, resnet
from noisyml.models.weights import fetch_weights, load_into, read_weights


def _save(path, content=None):
    torch.save({"weight": torch.arange(3.0)} if content is None else content, path)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_tensors_come_back_by_name(tmp_path):
    file = tmp_path / "a.pth"
    digest = _save(file)
    for sha256 in (None, digest, digest[:8], digest[:12].upper()):
        assert torch.equal(read_weights(file, sha256)["weight"], torch.arange(3.0))
    _save(file, {"state_dict": {"x": torch.ones(1)}, "epoch": 3})
    assert list(read_weights(str(file))) == ["x"]


def test_checksums_are_compared(tmp_path):
    file = tmp_path / "a.pth"
    _save(file)
    with pytest.raises(UserError, match=r"does not begin with 0123456789: it is damaged"):
        read_weights(file, "0123456789")
    for wrong in ("0123", "weights!", "0" * 65):
        with pytest.raises(UserError, match="is not a checksum: give 8 to 64"):
            read_weights(file, wrong)


def test_names_of_published_files_carry_their_checksum(tmp_path):
    plain = tmp_path / "a.pth"
    digest = _save(plain)
    right = plain.rename(tmp_path / f"resnet50-{digest[:8]}.pth")
    assert list(read_weights(right)) == ["weight"]
    wrong = right.rename(tmp_path / "bn_inception-52deb4733.pth")
    with pytest.raises(UserError, match="does not begin with 52deb4733"):
        read_weights(wrong)
    # Not a published name: nothing is known about it.
    assert list(read_weights(wrong.rename(tmp_path / "mine-52deb4733.pth"))) == ["weight"]


@pytest.mark.parametrize("content", [{"state_dict": print}, [torch.ones(1)], {"x": 3}, {}])
def test_only_named_tensors_are_read(tmp_path, content):
    file = tmp_path / "evil.pth"
    _save(file, content)
    if content == {}:
        assert read_weights(file) == {}
        return
    with pytest.raises(UserError, match=r"never unpickled|holds no state dict"):
        read_weights(file)


def test_damaged_files_are_named(tmp_path):
    file = tmp_path / "a.pth"
    _save(file)
    for content in (file.read_bytes()[:100], b"", b"no weights"):
        file.write_bytes(content)
        with pytest.raises(UserError, match=r"a\.pth is damaged"):
            read_weights(file)


def test_pickled_arrays_are_read_and_nothing_else_is_made(tmp_path):
    """Caffe's weights come as NumPy arrays in pickles, also of Python 2."""
    file = tmp_path / "weights.pkl"
    weights = {"a.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "a.bias": np.ones(2)}
    for protocol in (2, pickle.HIGHEST_PROTOCOL):
        file.write_bytes(pickle.dumps(weights, protocol=protocol))
        found = read_weights(file)
        assert found.keys() == weights.keys()
        for name, array in weights.items():
            assert torch.equal(found[name], torch.from_numpy(array))
    with pytest.raises(UserError, match="has the SHA-256"):
        read_weights(file, "00000000")
    file.write_bytes(pickle.dumps(weights | {"path": tmp_path}))
    with pytest.raises(UserError, match=r"arrays \(it names pathlib.PosixPath\), and is not read"):
        read_weights(file)
    file.write_bytes(pickle.dumps(weights | {"epoch": 3}))
    with pytest.raises(UserError, match="holds no state dict"):
        read_weights(file)
    file.write_bytes(b"no weights")
    with pytest.raises(UserError, match="is damaged"):
        read_weights(file)


@pytest.mark.long
def test_weights_of_another_architecture_are_refused(tmp_path):
    file = tmp_path / "weights.pth"
    _save(file, resnet("resnet18").body.state_dict())
    with pytest.raises(UserError, match=r"lacks \d+ of \d+ tensors .*another architecture"):
        resnet("resnet50", weights=str(file))
    with pytest.raises(UserError, match=r"weight of shape \[3\] where \[2, 2\] is wanted"):
        load_into(nn.Linear(2, 2, bias=False), {"weight": torch.ones(3)}, "x")


@pytest.mark.parametrize("error", [URLError("no route"), RuntimeError("invalid hash value")])
def test_a_failed_download_says_what_to_fetch_and_where_to_put_it(tmp_path, monkeypatch, error):
    def refuse(url, destination, prefix, progress):
        assert prefix in url
        raise error

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    for make, name in (
        (lambda: bn_inception(weights="imagenet"), "bn_inception-52deb4733.pth"),
        (lambda: resnet("resnet18", weights="imagenet"), "resnet18-f37072fd.pth"),
    ):
        with pytest.raises(UserError) as caught:
            make()
        message = str(caught.value)
        assert str(tmp_path / "checkpoints" / name) in message
        assert f"/{name} elsewhere" in message
        assert "set backbone.weights" in message


def test_a_file_in_the_cache_is_not_fetched_again(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    there = tmp_path / "checkpoints" / "resnet18-f37072fd.pth"
    there.touch()
    assert fetch_weights("https://nowhere.invalid/resnet18-f37072fd.pth", "weights") == there


@pytest.mark.parametrize("name", ["resnet18", "wide_resnet50_2", "resnext50_32x4d", "googlenet"])
@pytest.mark.long
def test_every_published_file_is_checked(tmp_path, monkeypatch, name):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    url = torchvision.models.get_model_weights(name)["IMAGENET1K_V1"].url
    _save(tmp_path / "checkpoints" / url.rpartition("/")[2])
    make = googlenet if name == "googlenet" else lambda weights: resnet(name, weights=weights)
    with pytest.raises(UserError, match=r"which does not begin with [0-9a-f]{8}: it is damaged"):
        make(weights="imagenet")
    with pytest.raises(ValueError, match="does not carry a checksum"):
        fetch_weights("https://nowhere.invalid/weights.pth", "weights")


def test_published_weights_are_checked_before_they_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    _save(tmp_path / "checkpoints" / "bn_inception-52deb4733.pth")
    with pytest.raises(UserError, match="does not begin with 52deb4733"):
        bn_inception(weights="imagenet")


@pytest.mark.parametrize("prefix", ["", "module.", "backbone.", "module.encoder_q."])
@pytest.mark.parametrize("wrapper", [None, "state_dict", "model", "teacher"])
def test_prefixes_and_wrappers_are_taken_off(tmp_path, prefix, wrapper):
    state = {f"{prefix}{name}": t for name, t in torch.nn.Linear(2, 3).state_dict().items()}
    torch.save({wrapper: state, "epoch": 3} if wrapper else state, tmp_path / "w.pth")
    body = torch.nn.Linear(2, 3)
    load_into(body, read_weights(tmp_path / "w.pth"), "w.pth")
    assert torch.equal(body.weight, state[f"{prefix}weight"])


def test_a_network_that_is_there_twice_is_named(tmp_path):
    state = torch.nn.Linear(2, 3).state_dict()
    twice = {f"{prefix}{name}": t for prefix in ("q.", "k.") for name, t in state.items()}
    with pytest.raises(UserError, match=r"2 times, with names that begin with q\., k\.;"):
        load_into(torch.nn.Linear(2, 3), twice, "w.pth")
    torch.save({"student": state, "teacher": state}, tmp_path / "w.pth")
    with pytest.raises(UserError, match="several networks: student, teacher; save"):
        read_weights(tmp_path / "w.pth")
