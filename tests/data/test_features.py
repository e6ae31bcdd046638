"""The feature cache: computed once, found again, never half written."""

import json

import numpy as np
import pytest
import torch

from noisyml.data.base import Split
from noisyml.data.features import cache_key, cached_features
from noisyml.data.inputs import ArrayImages, BrokenImage, FileImages
from noisyml.data.transforms.image import ImageTransform

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
        self.calls = 0

    def __call__(self, images):
        self.calls += 1
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
        {"of": split("b")},
        {"transform": ImageTransform(size=4)},
        {"key": "other weights"},
    ],
)
def test_another_split_transform_or_network_is_another_entry(tmp_path, change):
    encode = Counting()
    features(tmp_path, encode)
    features(tmp_path, encode, **change)
    assert encode.calls == 6


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
    keys = []
    for root, content in (("a", b"one"), ("b", b"one"), ("a", b"two")):
        (tmp_path / root).mkdir(exist_ok=True)
        (tmp_path / root / "0.png").write_bytes(content)
        inputs = FileImages(["0.png"], str(tmp_path / root))
        same = Split("train", inputs, np.zeros(1, dtype=np.int64), ["c"], ["0.png"], "same")
        keys.append(cache_key(same, ImageTransform(), "weights"))
    assert len(set(keys)) == 3
