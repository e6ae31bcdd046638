"""Transforms: shapes, determinism, and that pixels come from the image."""

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from PIL import Image
from support import paths

import noisyml.data.transforms.image as image_module
from noisyml.data.transforms.image import ImageTransform
from noisyml.errors import UserError

CONF = paths.CONF / "transform"
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


@pytest.mark.parametrize("crop", ["none", "centre"])
def test_without_chance_training_sees_what_evaluation_sees(crop):
    settings = {"size": 16, "resize": 20, "crop": crop, "resize_in_training": False}
    seen = ImageTransform(**settings).train(COLOUR, 7)
    assert torch.equal(seen, ImageTransform(**settings).evaluate(COLOUR))
    mirrored = ImageTransform(**settings, horizontal_flip=1.0).train(COLOUR, 7)
    assert torch.equal(seen, mirrored.flip(2))


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


def _gradient(width, height):
    """Red grows to the right and green downwards, from 0 to 255: a pixel tells where it was."""
    right = np.broadcast_to(np.linspace(0, 255, width), (height, width))
    down = np.broadcast_to(np.linspace(0, 255, height)[:, None], (height, width))
    pixels = np.stack([right, down, np.zeros((height, width))], axis=2)
    return Image.fromarray(np.round(pixels).astype(np.uint8))


def _window(pixels):
    """Share of the source's width and height that an output shows."""
    red, green = pixels[0].float(), pixels[1].float()
    return float(red.max() - red.min()) / 255, float(green.max() - green.min()) / 255


@pytest.mark.parametrize(
    ("name", "size", "evaluated"),
    [
        # Centre windows of a 400 x 200 source: size over resized side, across and down.
        ("cbml", 227, (227 / 512, 227 / 256)),
        ("iaa", 224, (224 / 256, 224 / 256)),
        ("iaa_cub", 224, (224 / 512, 224 / 256)),
        ("rkd", 224, (224 / 256, 224 / 256)),
        ("proxynca_pp", 256, (256 / 576, 256 / 288)),
    ],
)
def test_recipes_of_the_papers(name, size, evaluated):
    transform = instantiate(OmegaConf.load(CONF / f"{name}.yaml"), _convert_="all")
    image = _gradient(400, 200)
    pixels = transform.evaluate(image)
    assert pixels.shape == (3, size, size)
    assert _window(pixels) == pytest.approx(evaluated, abs=0.02)
    middle = pixels[:2, size // 2, size // 2].float()
    torch.testing.assert_close(middle, torch.full((2,), 127.5), atol=3, rtol=0)
    assert transform.evaluate(GREY).shape == (3, size, size)
    shares = np.array([_window(transform.train(image, seed)) for seed in range(40)])
    mirrored = [t[0, 0, 0] > t[0, 0, -1] for t in (transform.train(image, s) for s in range(40))]
    assert 8 <= sum(mirrored) <= 32
    if name == "rkd":
        np.testing.assert_allclose(shares, 224 / 256, atol=0.02)
        corners = {int(transform.train(image, seed)[1, 0, 0]) for seed in range(20)}
        assert len(corners) > 5
    else:
        area = shares.prod(axis=1)
        assert area.min() > {"proxynca_pp": 0.07}.get(name, 0.14)
        assert area.max() > 0.4
        # Before squashing, windows of a wide image are at most 4/3 as wide as high.
        relative = shares[:, 0] / shares[:, 1] * (1 if name == "iaa" else 2)
        assert 0.7 < relative.min() < relative.max() < 1.42


def test_training_may_crop_before_any_resizing():
    fine = Image.fromarray(np.tile(np.array([[0, 255]], dtype=np.uint8), (64, 32)))
    settings = {"size": 8, "resize": 16, "crop": "random"}
    sharp = ImageTransform(**settings, resize_in_training=False)
    blurred = ImageTransform(**settings)
    assert set(sharp.train(fine, 0).unique().tolist()) == {0, 255}
    assert 100 < blurred.train(fine, 0).float().mean() < 155
    assert not {0, 255} & set(blurred.train(fine, 0).unique().tolist())
    assert torch.equal(sharp.evaluate(fine), blurred.evaluate(fine))


def test_interpolation_is_as_configured():
    for name, mode in (
        ("bilinear", Image.Resampling.BILINEAR),
        ("bicubic", Image.Resampling.BICUBIC),
        ("lanczos", Image.Resampling.LANCZOS),
    ):
        pixels = ImageTransform(size=17, interpolation=name).evaluate(COLOUR)
        expected = np.moveaxis(np.asarray(COLOUR.resize((17, 17), mode)), 2, 0)
        assert np.array_equal(pixels.numpy(), expected)


def test_the_fingerprint_follows_the_evaluation_form_alone():
    base = {"size": 24, "resize": 28, "crop": "random_resized"}
    same = [{}, {"crop_scale": (0.3, 1.0)}, {"aspect_ratio": (0.5, 2)}, {"horizontal_flip": 0.5}]
    same += [{"resize_in_training": False}]
    assert len({ImageTransform(**base, **change).fingerprint() for change in same}) == 1
    other = [{}, {"keep_aspect": False}, {"interpolation": "lanczos"}, {"colour": "grey"}]
    assert len({ImageTransform(**base, **change).fingerprint() for change in other}) == 4


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"crop": "random"}, r"transform\.crop=random needs transform\.size"),
        ({"crop": "center", "size": 8}, r"Did you mean 'centre'"),
        ({"size": 32, "resize": 24, "crop": "centre"}, r"transform\.resize=24 is below"),
        ({"interpolation": "nearest"}, r"interpolation=nearest must be bilinear"),
        ({"crop_scale": [0.5, 1.5]}, r"transform\.crop_scale=\[0\.5, 1\.5\] is no range .* <= 1\."),
        ({"crop_scale": [0.5]}, r"must be a list of 2"),
        ({"aspect_ratio": [2.0, 1.0]}, r"transform\.aspect_ratio=\[2\.0, 1\.0\] is no range"),
    ],
)
def test_mistakes_are_named(settings, said):
    with pytest.raises(UserError, match=said):
        ImageTransform(**settings)


def test_strips_are_cut_before_they_are_enlarged(monkeypatch):
    strip = Image.fromarray(np.zeros((1, 8000, 3), dtype=np.uint8))
    sizes = []
    resize = image_module.F.resize
    monkeypatch.setattr(
        image_module.F, "resize", lambda i, *a, **k: sizes.append(i.size) or resize(i, *a, **k)
    )
    found = ImageTransform(size=32, resize=32, crop="centre").evaluate(strip)
    assert found.shape == (3, 32, 32)
    assert sizes == [(32, 1)]
