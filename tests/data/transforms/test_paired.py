"""Images and masks moved together."""

import numpy as np
import pytest
import torch
from PIL import Image

from noisyml.data.transforms.image import ImageTransform
from noisyml.data.transforms.paired import SegmentationTransform, paired
from noisyml.errors import UserError


def pair(height=20, width=30, seed=0):
    """An image whose grey levels are its mask's class numbers times 40."""
    mask = np.random.default_rng(seed).integers(0, 4, (height, width)).astype(np.uint8)
    mask = np.kron(mask[::5, ::5], np.ones((5, 5), dtype=np.uint8))[:height, :width]
    return Image.fromarray(mask * 40), torch.from_numpy(mask)[None]


def agree(image, mask):
    known = mask[0] != 255
    assert torch.equal(image[0][known], mask[0][known] * 40)


def test_cropping_padding_and_mirroring_move_both():
    transform = SegmentationTransform(crop=(24, 16), horizontal_flip=0.5, mean_colour=(7,))
    image, mask = pair()
    seen = []
    for seed in range(12):
        moved, labels = transform.train_pair(image, mask, seed)
        assert moved.shape == (1, 24, 16)
        assert labels.shape == (1, 24, 16)
        agree(moved, labels)
        # Four rows are filled up.
        assert (labels[0, 20:] == 255).all()
        assert (moved[0, 20:] == 7).all()
        seen.append(labels.numpy().tobytes())
        again = transform.train_pair(image, mask, seed)
        assert torch.equal(again[0], moved)
        assert torch.equal(again[1], labels)
    assert len(set(seen)) > 6


def test_scaling_never_mixes_classes():
    transform = SegmentationTransform(scale=(0.5, 1.6), crop=16)
    image, mask = pair()
    for seed in range(10):
        _, labels = transform.train_pair(image, mask, seed)
        assert set(labels.unique().tolist()) <= {0, 1, 2, 3, 255}


def test_planes_behind_a_mask_move_with_it():
    transform = SegmentationTransform(scale=(0.5, 1.6), crop=16, horizontal_flip=0.5)
    image, mask = pair()
    planes = torch.cat([mask, *[(mask == c).to(torch.uint8) * 255 for c in range(4)]])
    _, moved = transform.train_pair(image, planes, 3)
    known = moved[0] != 255
    for c in range(4):
        assert torch.equal(moved[1 + c][known] == 255, moved[0][known] == c)


def test_evaluation_pads_and_its_masks_come_back_to_their_images():
    transform = SegmentationTransform(evaluation_size=40)
    image, mask = pair()
    moved, labels = transform.evaluate_pair(image, mask)
    assert moved.shape == (1, 40, 40)
    assert torch.equal(labels[0, :20, :30], mask[0])
    assert (labels[0, 20:] == 255).all()
    assert torch.equal(transform.native(labels[0], (20, 30)), mask[0])
    resized = SegmentationTransform(resize=(10, 15))
    _, small = resized.evaluate_pair(image, mask)
    assert resized.native(small[0], (20, 30)).shape == (20, 30)
    with pytest.raises(UserError, match="evaluation_size"):
        SegmentationTransform(evaluation_size=16).evaluate_pair(image, mask)


def test_a_mask_of_another_size_is_refused():
    image, mask = pair()
    with pytest.raises(UserError, match=r"30x20.*30x19"):
        SegmentationTransform().train_pair(image, mask[:, :19], 0)
    with pytest.raises(UserError, match="transform=segmentation"):
        paired(ImageTransform())
