"""Pseudo-labels in files: the most confident share of each class."""

import numpy as np
import pytest

from noisyml.methods.pseudo_label_files import PseudoLabelFolder, StoredLabels
from noisyml.targets import MASKS, SINGLE
from noisyml.targets.masks import IGNORE, as_labels, decode_mask, encode_mask
from noisyml.targets.partial import NO_LABEL


def by_sorting(labels, confidence, share, none):
    """Of each class the first of a sorted list, and what is as confident as the last of them."""
    kept = np.full_like(labels, none)
    for label in set(labels[labels != none].tolist()):
        own = labels == label
        ordered = np.sort(confidence[own])[::-1]
        least = ordered[int(np.ceil(share * len(ordered))) - 1]
        kept[own & (confidence >= least)] = label
    return kept


@pytest.mark.parametrize("share", [0.1, 0.5, 0.75, 1.0])
def test_each_class_of_masks_keeps_its_most_confident_pixels(tmp_path, share):
    rng = np.random.default_rng(0)
    # The ground (0) is easy, one class is rare, one is absent, some pixels have no label.
    masks = rng.choice([0, 1, 2, IGNORE], size=(5, 8, 8), p=[0.7, 0.2, 0.05, 0.05])
    masks = masks.astype(np.uint8)
    levels = np.where(masks == 0, 250, 60) + rng.integers(0, 6, masks.shape)
    levels = levels.astype(np.uint8)
    folder = PseudoLabelFolder(tmp_path, MASKS, classes=4)
    written = StoredLabels(
        np.arange(5),
        as_labels([encode_mask(mask) for mask in masks]),
        levels.mean(axis=(1, 2)) / 255,
        confidence_masks=list(levels),
    )
    folder.write(written, soft=False)
    found = folder.most_confident(folder.read(np.arange(5), checked=False), share)
    kept = np.stack([decode_mask(mask) for mask in found.labels])
    assert np.array_equal(kept, by_sorting(masks, levels, share, IGNORE))
    assert all((kept == label).sum() >= share * (masks == label).sum() for label in (0, 1, 2))
    # The files go on holding all of them.
    again = folder.read(np.arange(5), checked=False)
    assert np.array_equal(np.stack([decode_mask(mask) for mask in again.labels]), masks)


@pytest.mark.parametrize("share", [0.2, 0.5, 1.0])
def test_each_class_of_samples_keeps_its_most_confident_ones(tmp_path, share):
    rng = np.random.default_rng(1)
    labels = rng.choice([0, 1, NO_LABEL], size=40, p=[0.7, 0.2, 0.1])
    confidence = np.where(labels == 0, 0.9, 0.4) + rng.random(40) / 10
    found = StoredLabels(np.arange(40), labels, confidence)
    kept = PseudoLabelFolder(tmp_path, SINGLE, classes=3).most_confident(found, share)
    assert np.array_equal(kept.labels, by_sorting(labels, confidence, share, NO_LABEL))
    assert np.array_equal(found.labels, labels)
