"""Caption noise: what is exchanged, lost or replaced, and its record."""

from collections import Counter

import numpy as np
import pytest

from noisyml.errors import UserError
from noisyml.noise import (
    CaptionDropWords,
    CaptionGeneric,
    CaptionShuffle,
    FromManifest,
    NoiseManifest,
    NoNoise,
    Symmetric,
)

CLASSES = ["latin small a", "latin small b", "greek small alpha", "greek capital beta", "digit one"]
TEXTS = np.array([CLASSES[i % 5] for i in range(400)], dtype=object)
KEYS = [f"{i}.png" for i in range(400)]


@pytest.mark.parametrize("rate", [0.0, 0.3, 1.0])
def test_a_shuffle_keeps_every_caption_as_frequent_as_it_was(rate):
    manifest = CaptionShuffle(rate=rate, seed=3).inject(TEXTS, 0, keys=KEYS)
    assert Counter(manifest.observed) == Counter(TEXTS)
    assert abs(manifest.actual_rate - rate) < 0.07
    assert np.array_equal(manifest.changed, manifest.observed != TEXTS)
    assert (manifest.rates()["nominal_rate"], manifest.num_classes) == (rate, 0)
    again = CaptionShuffle(rate=rate, seed=3).inject(TEXTS, 0, keys=KEYS)
    assert again.sha256 == manifest.sha256
    other = CaptionShuffle(rate=rate, seed=4).inject(TEXTS, 0, keys=KEYS)
    assert (other.sha256 == manifest.sha256) == (rate == 0)


def test_a_caption_goes_to_many_others():
    manifest = CaptionShuffle(rate=1.0).inject(TEXTS, 0, keys=KEYS)
    assert len(set(manifest.observed[manifest.clean == CLASSES[0]])) == 4


def test_noise_depends_on_names_and_not_on_places():
    order = np.random.default_rng(0).permutation(400)
    keys = [KEYS[i] for i in order]
    for noise in (CaptionGeneric(rate=0.5), CaptionDropWords(rate=0.5), CaptionShuffle(rate=0.5)):
        chosen = noise.inject(TEXTS, 0, keys=KEYS).changed
        assert np.array_equal(noise.inject(TEXTS[order], 0, keys=keys).changed, chosen[order])


@pytest.mark.parametrize("scope", ["within", "across"])
def test_exchange_within_or_across_classes(scope):
    manifest = CaptionShuffle(rate=0.8, scope=scope).inject(TEXTS, 0, keys=KEYS)
    first = [(a.split()[0], b.split()[0]) for a, b in zip(manifest.observed, TEXTS, strict=True)]
    same = np.array([a == b for a, b in first])
    moved = manifest.changed
    assert moved.any()
    assert same[moved].all() if scope == "within" else not same[moved].any()
    # Nobody can take the caption of the only member of a class.
    assert moved[TEXTS == "digit one"].any() == (scope == "across")


def test_what_cannot_be_exchanged_is_said():
    alike = ["a cat", "a cat", "a cat", "a dog"]
    assert CaptionShuffle(rate=1.0).inject(alike, 0).actual_rate == 0.5
    with pytest.raises(UserError, match="no caption has one to be exchanged with"):
        CaptionShuffle(rate=1.0, scope="across").inject(["a cat", "a dog"], 0)


def test_words_are_lost_in_order_and_one_stays():
    manifest = CaptionDropWords(rate=1.0, share=0.9).inject([*TEXTS, "word"], 0)
    for before, after in zip(manifest.clean, manifest.observed, strict=True):
        left = after.split()
        assert 1 <= len(left) < len(before.split()) or before == after == "word"
        rest = iter(before.split())
        assert all(word in rest for word in left)
    assert manifest.actual_rate == 400 / 401


def test_generic_texts_replace():
    manifest = CaptionGeneric(rate=0.5, texts=["x", "y"]).inject(TEXTS, 0)
    assert set(manifest.observed[manifest.changed]) == {"x", "y"}
    with pytest.raises(UserError, match="no empty one"):
        CaptionGeneric(rate=0.5, texts=[" "]).inject(TEXTS, 0)


def test_the_record_of_captions_is_kept_whole(tmp_path):
    file = tmp_path / "noise.parquet"
    manifest = CaptionShuffle(rate=0.4).inject(TEXTS, 0, keys=KEYS)
    manifest.save(file)
    read = NoiseManifest.load(file)
    assert read.sha256 == manifest.sha256
    assert read.summary() == manifest.summary()
    assert read.observed.dtype == object
    again = FromManifest(path=str(file)).inject(TEXTS, 0, keys=KEYS)
    assert np.array_equal(again.observed, manifest.observed)
    with pytest.raises(UserError, match=r"400 of 400 differ, the first at sample 0 \('x'"):
        FromManifest(path=str(file)).inject(["x"] * 400, 0, keys=KEYS)
    part = manifest.take(np.array([5, 2]))
    assert part.observed.tolist() == manifest.observed[[5, 2]].tolist()


def test_captions_of_which_nobody_knows_whether_they_are_right():
    manifest = NoNoise().inject(TEXTS, 0, keys=KEYS).with_unknown_truth()
    assert not manifest.truth_known
    assert np.isnan(manifest.actual_rate)
    assert manifest.rates() == {}
    assert (manifest.clean == "").all()


def test_noise_for_other_labels_is_refused():
    with pytest.raises(UserError, match=r"gives a caption per image: choose e.g. noise=caption_sh"):
        Symmetric(rate=0.5).inject(TEXTS, 3)
    with pytest.raises(UserError, match="changes the captions of images, but the data set gives"):
        CaptionShuffle(rate=0.5).inject([0, 1], 2)
    with pytest.raises(UserError, match="sample 1 has an empty caption"):
        CaptionShuffle(rate=0.5).inject(["a", " "], 0)
