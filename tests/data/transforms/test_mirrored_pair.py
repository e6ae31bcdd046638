"""The two views of EAC, as the released data set builds them, and how they reach a batch."""

import numpy as np
import pytest
import torch
from PIL import Image
from support import paths, vectors

from noisyml.data.base import Split
from noisyml.data.inputs import ArrayImages, BrokenImage
from noisyml.data.samplers.plans import DrawnBatch
from noisyml.data.transforms.image import ImageTransform
from noisyml.data.transforms.mirrored_pair import MirroredPair, add_noise, erase, random_box
from noisyml.data.views import EvaluationView, TrainingView
from noisyml.errors import UserError
from noisyml.models.backbones.base import Backbone

GOLDEN = vectors.arrays(paths.GOLDEN / "eac", "input_pair")
RGB = np.ascontiguousarray(GOLDEN["image_bgr"][:, :, ::-1])
FACE = Image.fromarray(RGB)
GREY = FACE.convert("L")
#: ImageNet's constants, as in the release.
BACKBONE = Backbone(torch.nn.Identity(), 1)


def pair(**settings):
    return MirroredPair(ImageTransform(), mean_colour=BACKBONE.mean_colour, **settings)


def tensor(pixels):
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(pixels, 2, 0)))


def released_noise(seed):
    return np.random.RandomState(int(seed)).normal(0, 30**0.5, RGB.shape)


def box_of(view):
    """The box of a released view: pixels that are 0 in all channels after normalisation."""
    rows, columns = np.nonzero((view == 0).all(axis=0))
    top, left = int(rows.min()), int(columns.min())
    return top, left, int(rows.max()) - top + 1, int(columns.max()) - left + 1


# -- against the release -----------------------------------------------------------------------


def test_pixel_noise_is_clipped_and_truncated_as_released():
    noisy = add_noise(RGB, released_noise(GOLDEN["gauss_seed"]))
    assert np.array_equal(noisy, GOLDEN["gauss_of_rgb"])


def test_without_chance_view_2_mirrors_view_1():
    first, second = pair(erase_probability=0.0).views(FACE, 1)
    expected = GOLDEN["no_erase_no_gauss/branch1"], GOLDEN["no_erase_no_gauss/branch2"]
    for view, released in zip((first, second), expected, strict=True):
        np.testing.assert_allclose(BACKBONE.normalise(view[None])[0], released, atol=1e-6)
    assert torch.equal(second, first.flip(-1))


@pytest.mark.parametrize("mode", ["noisy_mode", "clean_mode"])
@pytest.mark.parametrize("branch", [1, 2])
def test_pixels_and_boxes_are_the_released_ones(mode, branch):
    """Noise, mirroring and erasing with the draws of the release give its pixels."""
    pixels = RGB
    if (mode, branch) == ("noisy_mode", 1):
        pixels = add_noise(RGB, released_noise(GOLDEN["noisy_mode/seed"]))
    view = tensor(pixels if branch == 1 else pixels[:, ::-1])
    released = GOLDEN[f"{mode}/branch{branch}"]
    top, left, height, width = box = box_of(released)
    erased = BACKBONE.normalise(erase(view, box, BACKBONE.mean_colour)[None])[0].numpy()
    inside = np.zeros(released.shape, dtype=bool)
    inside[:, top : top + height, left : left + width] = True
    np.testing.assert_allclose(erased[~inside], released[~inside], atol=1e-6)
    # A whole grey level is not quite the mean: half a level is 0.009 after normalisation.
    assert np.abs(erased[inside]).max() < 0.5 / 255 / 0.224
    # A black box would be at -2.1.
    assert (released[inside] == 0).all()


# -- the two modes -----------------------------------------------------------------------------


def test_independent_views_have_their_own_box_and_only_the_first_has_noise():
    noisy = pair(noise_probability=1.0, erase_probability=0.0)
    first, second = noisy.views(FACE, 3)
    plain = tensor(RGB)
    assert torch.equal(second, plain.flip(-1))
    # Truncation lowers the mean by half a level; the variance is 30.
    inner = (plain > 25) & (plain < 230)
    difference = (first.int() - plain.int())[inner].double()
    assert abs(float(difference.mean()) + 0.5) < 0.5
    assert abs(float(difference.var()) - 30.1) < 4

    erasing = pair(erase_probability=1.0)
    boxes = []
    for seed in range(20):
        first, second = erasing.views(FACE, seed)
        boxes.append((first != plain).any(0).flip(-1).ne((second != plain.flip(-1)).any(0)).any())
    assert sum(map(bool, boxes)) == 20


def test_mirrored_views_share_noise_and_box():
    both = pair(pair_mode="mirrored", noise_probability=1.0, erase_probability=1.0)
    for seed in range(5):
        first, second = both.views(FACE, seed)
        assert torch.equal(second, first.flip(-1))
        assert not torch.equal(first, tensor(RGB))


def test_both_views_are_cut_from_one_window():
    shifted = MirroredPair(
        ImageTransform(size=16, crop="random", padding=2), noise_std=0.0, noise_probability=0.5
    )
    shifted.erase_probability = 0.0
    seen = set()
    for seed in range(12):
        first, second = shifted.views(FACE, seed)
        assert torch.equal(second, first.flip(-1))
        seen.add(first.numpy().tobytes())
    assert len(seen) > 8


def test_chances_are_as_configured():
    made = [pair(noise_probability=0.3, erase_probability=0.5).views(GREY, s) for s in range(400)]
    plain = torch.from_numpy(np.array(GREY))[None]
    noisy = np.mean([float((first != plain).float().mean()) > 0.5 for first, _ in made])
    erased = np.mean([bool((second != plain.flip(-1)).any()) for _, second in made])
    assert abs(noisy - 0.3) < 4 * np.sqrt(0.21 / 400)
    assert abs(erased - 0.5) < 4 * np.sqrt(0.25 / 400)
    # In a grey image the box is the mean of the colour: 124, 116, 104.
    box = next(s for f, s in made if bool((s != plain.flip(-1)).any()))
    assert set(box[box != plain.flip(-1)].tolist()) == {115}


def test_boxes_stay_inside_and_keep_their_range():
    rng = np.random.default_rng(0)
    shares, ratios = [], []
    for _ in range(500):
        top, left, height, width = random_box(224, 100, (0.02, 0.25), (0.3, 3.3), rng)
        assert 0 <= top <= 224 - height
        assert 0 <= left <= 100 - width
        shares.append(height * width / 22400)
        ratios.append(height / width)
    assert 0.015 < min(shares) < 0.04
    assert 0.2 < max(shares) < 0.26
    assert 0.28 < min(ratios) < 0.5
    assert 2 < max(ratios) < 3.5
    assert random_box(8, 8, (1.0, 1.0), (1.0, 1.0), rng) is None


def test_views_depend_on_image_and_seed_alone():
    views = pair(noise_probability=0.5).views
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    again = [torch.stack(views(FACE, seed)) for seed in (7, 7, 2**64 - 1)]
    assert torch.equal(again[0], again[1])
    assert not torch.equal(again[0], again[2])
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])  # noqa: NPY002


def test_evaluation_sees_the_whole_image_unmirrored():
    made = MirroredPair(ImageTransform(size=12), erase_probability=1.0, noise_probability=1.0)
    assert torch.equal(made.evaluate(FACE), ImageTransform(size=12).evaluate(FACE))
    assert made.fingerprint() == ImageTransform(size=12).fingerprint()


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"pair_mode": "both"}, "pair_mode=both must be independent or mirrored"),
        ({"noise_probability": 1.5}, "noise_probability=1.5 must be a number from 0 to 1"),
        ({"erase_probability": -1}, "erase_probability=-1 must be a number from 0 to 1"),
        ({"noise_std": -1.0}, "noise_std=-1.0 must be a number of at least 0"),
        ({"erase_scale": [0.3, 0.2]}, "erase_scale=.* is no range"),
        ({"erase_ratio": [0.0, 2.0]}, "erase_ratio\\[0\\]=0.0 must be a number above 0"),
    ],
)
def test_mistakes_are_named(settings, sentence):
    with pytest.raises(UserError, match=sentence):
        pair(**settings)


# -- in a batch --------------------------------------------------------------------------------


class Faces(ArrayImages):
    def load(self, index):
        if index == 2:
            raise BrokenImage("c")
        return super().load(index)


def test_a_batch_holds_all_views_and_leaves_broken_images_out():
    split = Split("train", Faces(np.stack([RGB] * 4)), np.arange(4), list("wxyz"), list("abcd"), "")
    transform = pair(noise_probability=0.5)
    view = TrainingView(split, split.labels, transform, on_broken="skip")
    drawn = DrawnBatch(np.array([3, 2, 0]), np.array([5, 6, 7], dtype=np.uint64))
    batch = view.__getitems__(drawn)
    assert batch.keys() == {"index", "label", "views", "broken"}
    assert batch["views"].shape == (2, 2, 3, 24, 20)
    assert batch["views"].dtype == torch.uint8
    for row, seed in enumerate((5, 7)):
        assert torch.equal(batch["views"][row], torch.stack(transform.views(FACE, seed)))
    assert batch["index"].tolist() == batch["label"].tolist() == [3, 0]
    assert batch["broken"].tolist() == [2]
    # Evaluation is of single images.
    shown = EvaluationView(split, transform, on_broken="skip").__getitems__([0, 1])
    assert torch.equal(shown["image"][0], tensor(RGB))
    assert "views" not in shown


@pytest.mark.parametrize("n_views", [1, 2])
def test_a_process_without_a_sample_gets_nothing_in_the_right_shape(n_views):
    class FirstTwoBroken(Faces):
        def load(self, index):
            return super().load(max(index, 2) if index < 2 else 0)

    images = FirstTwoBroken(np.stack([RGB] * 4))
    split = Split("train", images, np.arange(4), list("wxyz"), list("abcd"), "")
    transform = pair() if n_views == 2 else ImageTransform()
    view = TrainingView(split, split.labels, transform, on_broken="skip")
    some = view.__getitems__(DrawnBatch(np.array([3]), np.array([5], dtype=np.uint64)))
    nothing = DrawnBatch(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.uint64))
    empty = view.__getitems__(nothing)
    assert empty.keys() == some.keys()
    for key, rows in some.items():
        assert empty[key].shape == (0, *rows.shape[1:])
        assert empty[key].dtype == rows.dtype
