"""Views of InsCLR, and pictures of a retrieval benchmark."""

import numpy as np
import torch
from PIL import Image
from support import paths, vectors

from noisyml.data.transforms.image import ImageTransform
from noisyml.data.transforms.query import benchmark_picture
from noisyml.data.transforms.with_plain import WithPlain


def test_sizes_are_those_of_the_released_code():
    case = vectors.arrays(paths.GOLDEN / "insclr", "query_resize.npz")
    for numbers in case["rows"]:
        row = dict(zip(case["columns"].tolist(), numbers.tolist(), strict=True))
        box = None if row["bx0"] < 0 else tuple(row[edge] for edge in ("bx0", "by0", "bx1", "by1"))
        picture = Image.new("RGB", (row["img_w"], row["img_h"]))
        cut = picture if box is None else picture.crop(box)
        assert cut.size == (row["crop_w"], row["crop_h"])
        found = benchmark_picture(picture, row["img_size"], box)
        assert found.size == (row["out_w"], row["out_h"])


def test_the_second_view_is_plain():
    pixels = np.random.default_rng(0).integers(0, 256, (12, 12), np.uint8)
    transform = WithPlain(ImageTransform(size=8, crop="random", padding=2))
    random, plain = transform.views(Image.fromarray(pixels), seed=3)
    assert torch.equal(plain, transform.evaluate(Image.fromarray(pixels)))
    assert random.shape == plain.shape
    assert not torch.equal(random, plain)
