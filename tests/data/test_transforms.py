"""Transforms: shapes, determinism, and that pixels come from the image."""

import numpy as np
import pytest
import torch
from PIL import Image

from noisyml.data.transforms import ImageTransform
from noisyml.errors import UserError

RNG = np.random.default_rng(0)
GREY = Image.fromarray(RNG.integers(0, 256, (40, 30), dtype=np.uint8))
COLOUR = Image.fromarray(RNG.integers(0, 256, (50, 70, 3), dtype=np.uint8))
PHOTO = ImageTransform(size=24, resize=28, crop="random_resized", horizontal_flip=0.5)


def test_without_a_size_pixels_are_untouched():
    pixels = ImageTransform().evaluate(GREY)
    assert pixels.dtype == torch.uint8
    assert np.array_equal(pixels[0].numpy(), np.asarray(GREY))


@pytest.mark.parametrize("image", [GREY, COLOUR])
@pytest.mark.parametrize("crop", ["none", "centre", "random", "random_resized"])
def test_sizes_are_as_configured(image, crop):
    transform = ImageTransform(size=16, crop=crop, padding=2)
    channels = 1 if image is GREY else 3
    assert transform.evaluate(image).shape == (channels, 16, 16)
    assert transform.train(image, 3).shape == (channels, 16, 16)


def test_training_form_is_a_function_of_the_seed():
    assert torch.equal(PHOTO.train(COLOUR, 7), PHOTO.train(COLOUR, 7))
    different = [PHOTO.train(COLOUR, seed) for seed in range(8)]
    assert len({t.numpy().tobytes() for t in different}) == 8


def test_global_generators_are_left_alone():
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    PHOTO.train(COLOUR, 7)
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])  # noqa: NPY002


def test_flip_probability_is_met():
    ramp = Image.fromarray(np.tile(np.arange(8, dtype=np.uint8) * 30, (8, 1)))
    flip = ImageTransform(size=8, horizontal_flip=0.3)
    flipped = [int(flip.train(ramp, s)[0, 0, 0]) > 100 for s in range(600)]
    assert abs(np.mean(flipped) - 0.3) < 4 * np.sqrt(0.21 / 600)


def test_random_windows_stay_inside_and_keep_their_area_range():
    transform = ImageTransform(size=8, crop="random_resized", crop_scale=(0.3, 0.6))
    rng = np.random.default_rng(0)
    for _ in range(300):
        top, left, height, width = transform._random_window(70, 50, rng)
        assert 0 <= top <= 50 - height
        assert 0 <= left <= 70 - width
        assert 0.27 < height * width / 3500 < 0.64


def test_modes_other_than_grey_and_rgb_are_converted():
    assert ImageTransform().evaluate(GREY.convert("P")).shape[0] == 3
    assert ImageTransform(colour="grey").evaluate(COLOUR).shape[0] == 1
    assert ImageTransform(colour="rgb").evaluate(GREY).shape[0] == 3


def test_a_crop_without_size_is_refused():
    with pytest.raises(UserError, match=r"transform\.size"):
        ImageTransform(crop="random")
