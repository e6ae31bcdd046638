"""The feature cache: computed once, found again, never half written."""

import dataclasses
import json
import resource

import numpy as np
import pytest
import torch
from PIL import Image

from noisyml.data.base import Split
from noisyml.data.features import cache_entry, cached_features
from noisyml.data.inputs import ArrayImages, BrokenImage, FileImages
from noisyml.data.transforms.image import ImageTransform
from noisyml.storage import caches

PIXELS = np.random.default_rng(0).integers(0, 256, (10, 6, 6), dtype=np.uint8)


class Images(ArrayImages):
    """Images of which number 3 is broken on request."""

    broken = False

    def load(self, index):
        if self.broken and index == 3:
            raise BrokenImage("three.png", "truncated")
        return super().load(index)


def split(fingerprint="a"):
    return Split(
        "train", Images(PIXELS), np.arange(10), [str(i) for i in range(10)],
        [f"k{i}" for i in range(10)], fingerprint,
    )  # fmt: skip


class Counting:
    """An encoder that counts its calls."""

    def __init__(self):
        self.calls = self.images = 0

    def __call__(self, images):
        self.calls += 1
        self.images += len(images)
        return images.flatten(1).float() / 255


def features(folder, encode, *, of=None, transform=None, key="weights", **settings):
    return cached_features(
        of or split(), transform or ImageTransform(), encode, key, folder, batch_size=4, **settings
    )


def test_features_are_computed_once_and_in_order(tmp_path):
    encode = Counting()
    first = features(tmp_path, encode)
    assert encode.calls == 3
    np.testing.assert_allclose(first.features, PIXELS.reshape(10, -1) / 255, rtol=1e-6)
    again = features(tmp_path, encode)
    assert encode.calls == 3
    assert isinstance(again.features, np.memmap)
    np.testing.assert_array_equal(first.features, again.features)


@pytest.mark.parametrize(
    "change",
    [
        {"transform": ImageTransform(size=4)},
        {"key": "other weights"},
    ],
)
def test_another_transform_or_network_is_another_entry(tmp_path, change):
    encode = Counting()
    features(tmp_path, encode)
    features(tmp_path, encode, **change)
    assert encode.calls == 6


def part(rows, fingerprint):
    """Some of the images as a split of its own."""
    return Split(
        "val", Images(PIXELS[rows]), np.zeros(len(rows), dtype=np.int64), ["0"],
        [f"k{i}" for i in rows], fingerprint,
    )  # fmt: skip


def test_features_are_those_of_pictures_and_not_of_splits(tmp_path):
    encode = Counting()
    features(tmp_path, encode)
    assert (encode.calls, encode.images) == (3, 10)
    # Another choice in another order: nothing to compute.
    rows = [7, 2, 2, 9]
    found = features(tmp_path, encode, of=part(rows, "choice"))
    assert encode.images == 10
    np.testing.assert_allclose(found.features, PIXELS[rows].reshape(4, -1) / 255, rtol=1e-6)
    # One new picture: one to compute.
    more = np.concatenate([PIXELS, 255 - PIXELS[:1]])
    grown = dataclasses.replace(
        split("grown"), inputs=Images(more), labels=np.zeros(11, dtype=np.int64),
        keys=[str(i) for i in range(11)],
    )  # fmt: skip
    seen = []
    found = features(tmp_path, encode, of=grown, progress=lambda *done: seen.append(done))
    assert (encode.calls, encode.images) == (4, 11)
    assert seen == [(11, 11)]
    np.testing.assert_allclose(found.features, more.reshape(11, -1) / 255, rtol=1e-6)


def test_a_damaged_neighbour_is_no_help_and_no_harm(tmp_path):
    encode = Counting()
    features(tmp_path, encode)
    (pictures,) = tmp_path.rglob("*.pictures.npy")
    pictures.write_bytes(b"half")
    features(tmp_path, encode, of=part([1, 2], "choice"))
    assert encode.images == 12


def test_pictures_that_could_not_be_decoded_are_tried_again(tmp_path, monkeypatch):
    monkeypatch.setattr(Images, "broken", True)
    features(tmp_path, Counting(), on_broken="skip")
    monkeypatch.setattr(Images, "broken", False)
    encode = Counting()
    found = features(tmp_path, encode, of=split("again"))
    assert encode.images == 1
    np.testing.assert_allclose(found.features[3], PIXELS[3].ravel() / 255, rtol=1e-6)


def test_files_are_known_by_their_content_wherever_they_lie(tmp_path):
    chosen = []
    for root, names in (("a", "01"), ("b", "xy")):
        (tmp_path / root).mkdir()
        for name, pixels in zip(names, PIXELS, strict=False):
            Image.fromarray(pixels).save(tmp_path / root / f"{name}.png")
        files = [f"{name}.png" for name in names]
        inputs = FileImages(files, str(tmp_path / root))
        chosen.append(Split("train", inputs, np.zeros(2, dtype=np.int64), ["c"], files, root))
    encode = Counting()
    for part_ in chosen:
        features(tmp_path / "cache", encode, of=part_)
    assert encode.images == 2


@pytest.mark.parametrize("size", [0, 2000])
def test_a_cache_without_space_is_done_without(tmp_path, caplog, size):
    """Neither a signal nor an error where files may not grow: a file of features has 1440 bytes."""
    whole = split() if size == 0 else part([0, 1, 2] * 10, "large")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    caches._SAID.clear()
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        got = features(tmp_path, Counting(), of=whole).features.tobytes()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    expected = features(tmp_path / "elsewhere", Counting(), of=whole).features
    assert got == expected.tobytes()
    assert not list(tmp_path.glob("features/**/*.tmp"))
    assert not list(tmp_path.glob("features/**/*.json"))
    assert caplog.text.count("cannot be written (no space is left)") == 1


def test_a_cache_whose_folder_cannot_be_made_is_done_without(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    caches._SAID.clear()
    found = features(tmp_path / "file", Counting())
    np.testing.assert_allclose(found.features, PIXELS.reshape(10, -1) / 255, rtol=1e-6)
    assert "nothing is kept there" in caplog.text


def test_an_interrupted_computation_leaves_no_entry(tmp_path):
    class Dying(Counting):
        def __call__(self, images):
            if self.calls == 2:
                raise KeyboardInterrupt
            return super().__call__(images)

    with pytest.raises(KeyboardInterrupt):
        features(tmp_path, Dying())
    assert not list(tmp_path.rglob("*.json"))
    encode = Counting()
    whole = features(tmp_path, encode)
    np.testing.assert_allclose(whole.features, PIXELS.reshape(10, -1) / 255, rtol=1e-6)


def test_broken_images_are_an_error_or_are_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(Images, "broken", True)
    with pytest.raises(BrokenImage, match=r"three\.png"):
        features(tmp_path, Counting())
    seen = []
    skipped = features(
        tmp_path,
        Counting(),
        on_broken="skip",
        progress=lambda done, total: seen.append((done, total)),
    )
    assert skipped.broken.tolist() == [3]
    assert not skipped.features[3].any()
    np.testing.assert_allclose(skipped.features[4], PIXELS[4].ravel() / 255, rtol=1e-6)
    assert seen[-1] == (10, 10)
    with pytest.raises(BrokenImage):
        features(tmp_path, Counting(), on_broken="error")


def test_the_record_is_readable(tmp_path):
    features(tmp_path, Counting())
    (record,) = tmp_path.rglob("*.json")
    assert json.loads(record.read_text()) == {"broken": [], "split": "train", "samples": 10}


def test_the_encoder_sees_uint8_images(tmp_path):
    def encode(images):
        assert images.dtype == torch.uint8
        return images.flatten(1).float()

    features(tmp_path, encode)


def test_equal_names_sizes_and_times_do_not_share_features(tmp_path):
    entries = []
    for root, content in (("a", b"one"), ("b", b"one"), ("a", b"two")):
        (tmp_path / root).mkdir(exist_ok=True)
        (tmp_path / root / "0.png").write_bytes(content)
        inputs = FileImages(["0.png"], str(tmp_path / root))
        same = Split("train", inputs, np.zeros(1, dtype=np.int64), ["c"], ["0.png"], "same")
        entries.append(cache_entry(same, ImageTransform(), "weights", tmp_path))
    assert len(set(entries)) == 3
