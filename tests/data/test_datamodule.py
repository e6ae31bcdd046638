"""Splits, noise and loaders together."""

import dataclasses

import numpy as np
import pytest
import torch

from noisyml import distributed
from noisyml.data.base import DatasetSource, Split
from noisyml.data.datamodule import DataModule
from noisyml.data.inputs import ArrayImages, BrokenImage
from noisyml.data.labelling import raw_pixels
from noisyml.data.samplers.plans import Shuffle
from noisyml.data.transforms.image import ImageTransform
from noisyml.errors import UserError
from noisyml.models.backbones.small import mlp
from noisyml.noise import (
    ClassificationBased,
    NoNoise,
    OpenSet,
    PartDependent,
    SmallCluster,
    Symmetric,
)

RNG = np.random.default_rng(0)


def split(name, n, offset=0):
    return Split(
        name,
        ArrayImages(RNG.integers(0, 256, (n, 8, 8), dtype=np.uint8)),
        np.arange(n) % 5,
        list("abcde"),
        [f"{name}{i}" for i in range(offset, offset + n)],
        f"{name}{n}{offset}",
    )


class Toy(DatasetSource):
    """Five classes of random images."""

    description = "toy"

    def __init__(self, n=60, clean_val=False, labels_are_true=True):
        self.n, self.clean_val, self.labels_are_true = n, clean_val, labels_are_true
        self.made = {
            "train": split("train", n),
            "val": split("val", 40),
            "query": split("query", 13),
            "gallery": split("gallery", 21),
        }

    def missing(self):
        return None

    def splits(self):
        return self.made


def module(tmp_path, dataset=None, noise=None, **settings):
    def plan(labels, seed):
        return Shuffle(labels, seed, batch_size=16)

    return DataModule(
        dataset or Toy(),
        noise or NoNoise(),
        ImageTransform(),
        plan,
        seed=0,
        cache_dir=str(tmp_path),
        eval_batch_size=8,
        **settings,
    )


def test_training_sees_observed_labels_and_tests_the_true_ones(tmp_path):
    data = module(tmp_path, noise=Symmetric(rate=0.5))
    manifest = data.prepare_labels()
    for batch in data.train_dataloader():
        index = batch["index"].numpy()
        assert np.array_equal(batch["label"].numpy(), manifest.observed[index])
    query, gallery = data.test_dataloader()
    for loader, name in ((query, "query"), (gallery, "gallery")):
        labels = torch.cat([batch["label"] for batch in loader]).numpy()
        assert np.array_equal(labels, data.splits[name].labels)
    assert data.test_sets == {"test": {"query": "query", "gallery": "gallery"}}
    assert data.test_splits == {"query": [("test", "query")], "gallery": [("test", "gallery")]}


@pytest.mark.parametrize(
    ("clean_val", "noisy_val", "corrupted"),
    [(False, "auto", True), (True, "auto", False), (True, True, True), (False, False, False)],
)
def test_validation_carries_noise_like_training_unless_it_is_official(
    tmp_path, clean_val, noisy_val, corrupted
):
    data = module(tmp_path, Toy(clean_val=clean_val), Symmetric(rate=0.5), noisy_val=noisy_val)
    data.prepare_labels()
    assert (data.val_labels != data.splits["val"].labels).any() == corrupted


def test_labels_of_unknown_truth_are_not_called_right(tmp_path):
    data = module(tmp_path, Toy(labels_are_true=False))
    assert not data.prepare_labels().truth_known


def test_noise_by_features_takes_those_of_the_frozen_backbone(tmp_path):
    data = module(tmp_path, noise=SmallCluster(rate=0.3))
    with pytest.raises(UserError, match=r"set backbone\.frozen=true"):
        data.prepare_labels()
    backbone = mlp(image_size=8, hidden_features=[], frozen=True)
    manifest = module(tmp_path, noise=SmallCluster(rate=0.3)).prepare_labels(backbone)
    assert 0.3 <= manifest.actual_rate < 0.6
    assert manifest.num_classes < 5


def test_noise_by_probabilities_flips_exactly_its_share(tmp_path):
    data = module(tmp_path, noise=ClassificationBased(rate=0.25))
    assert data.prepare_labels().changed.sum() == 15


def test_open_set_noise_takes_images_from_elsewhere(tmp_path):
    noise = OpenSet(rate=0.5, open_share=1.0, source_size=30)
    with pytest.raises(UserError, match=r"data\.open_set_source"):
        module(tmp_path, noise=noise).prepare_labels()
    source = Toy(n=30)
    data = module(tmp_path, noise=noise, open_set_source=source)
    manifest = data.prepare_labels()
    foreign = np.flatnonzero(manifest.source_index >= 0)
    assert len(foreign) == 30
    for i in foreign[:5]:
        expected = source.made["train"].images.load(int(manifest.source_index[i]))
        assert np.array_equal(
            np.asarray(data.splits["train"].images.load(int(i))), np.asarray(expected)
        )
    assert data.splits["train"].fingerprint != Toy().splits()["train"].fingerprint


def test_cached_features_take_the_place_of_images(tmp_path):
    data = module(tmp_path, noise=Symmetric(rate=0.5))
    backbone = mlp(image_size=8, hidden_features=[4], frozen=True, standardise=True)
    data.prepare_labels(backbone)
    data.use_features_of(backbone)
    data.prepare_data()
    data.setup("fit")
    batches = list(data.train_dataloader())
    assert all("image" not in batch for batch in batches)
    images = data.splits["train"].images
    for batch in batches:
        pixels = torch.stack(
            [torch.from_numpy(np.asarray(images.load(int(i))).copy())[None] for i in batch["index"]]
        )
        torch.testing.assert_close(batch["features"], backbone.raw_features(pixels))
    every = torch.cat([backbone.finish(b["features"]) for b in data.predict_dataloader("train")])
    torch.testing.assert_close(every.mean(0), torch.zeros(4), atol=1e-5, rtol=0)


def test_a_checkpoint_of_other_labels_is_refused(tmp_path):
    data = module(tmp_path, noise=Symmetric(rate=0.5))
    manifest = data.prepare_labels()
    data.load_state_dict({"epoch": 1, "consumed": 2, "noise_sha256": manifest.sha256})
    whole = module(tmp_path, noise=Symmetric(rate=0.5))
    whole.prepare_labels()
    resumed = list(data.train_dataloader().batch_sampler)
    assert len(resumed) == len(list(whole.train_dataloader().batch_sampler)) - 2
    with pytest.raises(UserError, match="trained with other labels"):
        data.load_state_dict({"epoch": 1, "consumed": 2, "noise_sha256": "other"})


def test_loaders_do_not_advance_the_global_generator(tmp_path):
    data = module(tmp_path)
    data.prepare_labels()
    before = torch.get_rng_state()
    list(data.train_dataloader())
    list(data.val_dataloader()[0])
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_do_not_depend_on_the_number_of_workers(tmp_path, workers):
    data = module(tmp_path, num_workers=workers)
    data.transform = ImageTransform(size=8, crop="random", padding=2, horizontal_flip=0.5)
    data.prepare_labels()
    alone = module(tmp_path)
    alone.transform = data.transform
    alone.dataset = data.dataset
    alone.prepare_labels()
    for ours, theirs in zip(data.train_dataloader(), alone.train_dataloader(), strict=True):
        assert torch.equal(ours["index"], theirs["index"])
        assert torch.equal(ours["image"], theirs["image"])


def test_pixels_for_noise_come_in_height_width_channel_order(tmp_path):
    """Released generators project raw pixels in this order; bit-exact labels depend on it."""
    pixels = RNG.integers(0, 256, (7, 8, 8, 3), dtype=np.uint8)
    coloured = Split("train", ArrayImages(pixels), np.zeros(7, int), ["a"], list("abcdefg"), "c")
    np.testing.assert_array_equal(
        raw_pixels(coloured, ImageTransform(), "error"), pixels.reshape(7, -1)
    )


def test_processes_with_different_labels_are_refused(tmp_path, monkeypatch):
    data = module(tmp_path, noise=Symmetric(rate=0.4))
    data.prepare_labels()
    other = module(tmp_path, noise=Symmetric(rate=0.4, seed=1))
    other.prepare_labels()
    sent = []
    monkeypatch.setattr(distributed, "is_distributed", lambda: True)
    monkeypatch.setattr(distributed, "gather", lambda x: sent.append(x) or torch.cat([x, x]))
    data.setup("fit")
    other.setup("fit")
    monkeypatch.setattr(distributed, "gather", lambda x: torch.cat(sent))
    with pytest.raises(UserError, match="Process 1 made other noisy labels than process 0"):
        data.setup("fit")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"on_broken": "skipp"}, "on_broken=skipp must be error or skip. Did you mean"),
        ({"noisy_val": "maybe"}, "noisy_val=maybe must be auto or true or false"),
    ],
)
def test_values_outside_the_choices_are_refused(tmp_path, settings, said):
    with pytest.raises(UserError, match=said):
        module(tmp_path, **settings)


class Mixed(ArrayImages):
    """Images of which the fourth is larger, or cannot be decoded."""

    broken = False

    def load(self, index):
        if index == 3 and self.broken:
            raise BrokenImage("three.png", "truncated")
        image = super().load(index)
        return image.resize((9, 7)) if index == 3 else image


class MixedBroken(Mixed):
    broken = True


def with_images(kind):
    toy = Toy()
    train = toy.made["train"]
    toy.made["train"] = dataclasses.replace(train, inputs=kind(train.images.pixels))
    return toy


@pytest.mark.parametrize("workers", [0, 1])
def test_images_of_different_sizes_end_in_one_sentence(tmp_path, workers):
    data = module(tmp_path, with_images(Mixed), num_workers=workers)
    data.prepare_labels()
    with pytest.raises(UserError) as caught:
        list(data.predict_dataloader("train"))
    assert str(caught.value) == (
        "The images differ in size (9x7 and 8x8 pixels in one batch): set transform=square "
        "transform.size=64 or transform=photo."
    )


def test_a_broken_image_in_a_worker_keeps_its_sentence(tmp_path):
    data = module(tmp_path, with_images(MixedBroken), num_workers=1)
    data.prepare_labels()
    with pytest.raises(BrokenImage) as caught:
        list(data.predict_dataloader("train"))
    assert str(caught.value) == "three.png: truncated"


def test_noise_by_pixels_skips_broken_images(tmp_path):
    toy = with_images(MixedBroken)
    with pytest.raises(BrokenImage):
        module(tmp_path, toy, PartDependent(rate=0.4)).prepare_labels()
    data = module(tmp_path, toy, PartDependent(rate=0.4), on_broken="skip")
    assert len(data.prepare_labels().observed) == 60
    pixels = raw_pixels(toy.made["train"], data.transform, "skip")
    assert not pixels[3].any()
    np.testing.assert_array_equal(pixels[4], toy.made["train"].images.pixels[4].ravel())


@pytest.mark.further
def test_the_size_of_the_open_set_source_need_not_be_given(tmp_path):
    noise = OpenSet(rate=0.5, open_share=1.0)
    with pytest.raises(UserError, match=r"data\.open_set_source"):
        module(tmp_path, noise=noise).prepare_labels()
    manifest = module(tmp_path, noise=noise, open_set_source=Toy(n=30)).prepare_labels()
    assert (manifest.source_index >= 0).sum() == 30
    assert manifest.params["source_size"] == 30
    with pytest.raises(UserError, match="but the source has 20"):
        module(tmp_path, noise=noise, open_set_source=Toy(n=20)).prepare_labels()


def test_a_smaller_training_split_is_drawn_before_its_labels_are_corrupted(tmp_path):
    data = DataModule(
        dataset=Toy(),
        noise=Symmetric(rate=0.5),
        transform=ImageTransform(),
        sampler=lambda labels, seed: None,
        seed=0,
        cache_dir=str(tmp_path),
        train_size=20,
    )
    manifest = data.prepare_labels()
    assert len(manifest) == len(data.splits["train"]) == 20
    assert np.bincount(manifest.clean).tolist() == [4] * 5
    assert 0 < manifest.actual_rate < 1
    assert len(data.splits["val"]) == 40


@pytest.mark.parametrize(
    ("queries", "gallery", "remark"),
    [
        ([0, 1, 1], [2, 3], "none of its 3 queries has an image of its class in the gallery"),
        ([0, 1, 2], [2, 3], None),
        ([0, 1, 2], None, "none of its 3 queries has an image of its class beside it"),
        ([0, 1, 1], None, None),
    ],
)
@pytest.mark.long
def test_a_test_set_without_anything_to_find_is_said(tmp_path, queries, gallery, remark):
    source = Toy()
    parts = {"query": queries, "gallery": gallery} if gallery else {"test": queries}
    for name, labels in parts.items():
        made = split(name, len(labels))
        source.made[name] = dataclasses.replace(made, labels=np.array(labels))
    if not gallery:
        del source.made["query"], source.made["gallery"]
    data = module(tmp_path, source)
    data.prepare_labels()
    found = [text for text in data.remarks() if text.startswith("test set 'test': ")]
    assert [remark in text for text in found] == ([True] if remark else [])
