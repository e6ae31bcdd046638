"""Image resolution and input resolution: the reference's arithmetic."""

import numpy as np
import pytest
import torch
from PIL import Image
from support import paths

from noisyml.data.transforms.image import ImageTransform
from noisyml.data.transforms.resolution import AtResolution, resized

V = dict(np.load(paths.GOLDEN / "ael" / "resolution.npz"))


@pytest.mark.parametrize("side", V["sizes"].tolist())
def test_resizing_is_bilinear_with_half_pixel_centres(side):
    image = torch.from_numpy(V["image"]).movedim(2, 0)
    found = resized(image, side).movedim(0, 2)
    np.testing.assert_allclose(found, V[f"resized_{side}"], rtol=1e-9)


def test_an_image_is_degraded_before_it_is_enlarged():
    image = torch.from_numpy(V["image"]).movedim(2, 0)
    low, high = int(V["image_resolution"]), int(V["input_resolution"])
    found = resized(resized(image, low), high).movedim(0, 2)
    np.testing.assert_allclose(found, V["degraded_then_input"], rtol=1e-9)
    picture = Image.fromarray((V["image"] * 255).round().astype(np.uint8))
    transform = AtResolution(ImageTransform(), high, low, antialias=False)
    seen = transform.evaluate(picture)
    assert seen.shape == (3, high, high)
    expected = (V["degraded_then_input"] * 255).transpose(2, 0, 1)
    assert np.abs(seen.numpy() - expected).max() < 1.5
    assert torch.equal(transform.views(picture, 0)[0], seen)
    assert transform.fingerprint() != AtResolution(ImageTransform(), high).fingerprint()


def test_grey_pictures_stay_grey():
    picture = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8))
    assert AtResolution(ImageTransform(), 4).evaluate(picture).shape == (1, 4, 4)
