"""Noise of masks: what it does to objects, realised rates, and independence of the order."""

import numpy as np
import pytest
from scipy import ndimage

from noisyml.errors import UserError
from noisyml.noise import Composed, MaskBoundary, MaskClassSwap, MaskMissing, MaskScribbles
from noisyml.noise.injectors.masks import longest_path, objects, scribbles, skeleton
from noisyml.targets.masks import IGNORE, as_labels, decode_mask, encode_mask

CLASSES = 5


def pages(n=60, seed=0):
    """Pages of up to four squares, with a border that belongs to no class."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(n):
        page = np.zeros((24, 24), dtype=np.uint8)
        for top, left in ((3, 3), (3, 14), (14, 3), (14, 14)):
            if rng.random() < 0.8:
                side = int(rng.integers(4, 8))
                page[top : top + side, left : left + side] = rng.integers(1, CLASSES)
        page[0] = IGNORE
        found.append(page)
    return found


PAGES = pages()
LABELS = as_labels([encode_mask(page) for page in PAGES])
KEYS = [f"page{i}" for i in range(len(PAGES))]
NOISES = [
    MaskBoundary(rate=0.4, pixels=2),
    MaskClassSwap(rate=0.4),
    MaskMissing(rate=0.4),
    MaskMissing(rate=0.4, fill="ignore"),
]


@pytest.mark.long
@pytest.mark.parametrize("noise", NOISES, ids=lambda noise: noise.name)
def test_the_realised_share_of_objects_is_near_the_rate(noise):
    made = noise.inject(LABELS, CLASSES, keys=KEYS)
    count = sum(1 for page in PAGES for _ in objects(page, 0))
    assert made.details["objects"] == count
    assert abs(made.details["changed_objects"] / count - 0.4) < 0.1
    assert made.nominal_rate is None
    observed = [decode_mask(content) for content in made.observed]
    for page, seen, kept in zip(PAGES, observed, made.changed, strict=True):
        assert (seen[page == IGNORE] == IGNORE).all()
        assert np.array_equal(page, seen) != kept
    wrong = sum(int(((p != IGNORE) & (p != o)).sum()) for p, o in zip(PAGES, observed, strict=True))
    total = sum(int((page != IGNORE).sum()) for page in PAGES)
    rates = made.rates()
    assert rates["wrong_pixels"] + rates["unlabelled_pixels"] == pytest.approx(wrong / total)


@pytest.mark.parametrize("noise", NOISES, ids=lambda noise: noise.name)
def test_a_page_is_changed_alike_wherever_it_stands(noise):
    made = noise.inject(LABELS, CLASSES, keys=KEYS)
    order = np.random.default_rng(1).permutation(len(KEYS))[:20]
    again = noise.inject(LABELS[order], CLASSES, keys=[KEYS[i] for i in order])
    assert again.observed.tolist() == made.observed[order].tolist()


def test_a_larger_rate_changes_more_of_the_same_objects():
    less = MaskMissing(rate=0.2).inject(LABELS, CLASSES, keys=KEYS)
    more = MaskMissing(rate=0.6).inject(LABELS, CLASSES, keys=KEYS)
    for a, b in zip(less.observed, more.observed, strict=True):
        gone = (decode_mask(a) == 0) & (decode_mask(b) != 0)
        assert not gone.any()


def test_swapped_objects_keep_their_place_and_lose_their_class():
    made = MaskClassSwap(rate=1.0).inject(LABELS, CLASSES, keys=KEYS)
    for page, content in zip(PAGES, made.observed, strict=True):
        seen = decode_mask(content)
        ground = (page == 0) | (page == IGNORE)
        assert np.array_equal(seen[ground], page[ground])
        assert (seen[~ground] != page[~ground]).all()
        assert (seen[~ground] != 0).all()


def test_shifted_borders_stay_within_the_shift():
    made = MaskBoundary(rate=1.0, pixels=2).inject(LABELS, CLASSES, keys=KEYS)
    for page, content in zip(PAGES, made.observed, strict=True):
        seen = decode_mask(content)
        for label, region in objects(page, 0):
            # A border moves by two pixels at most, and no object goes away.
            near = ndimage.distance_transform_edt(~region) <= 2
            assert (seen[region] == label).any()
            assert not ((seen == label) & ~near & (page == 0)).any() or (page == label).sum() > (
                region.sum()
            )


def test_without_a_background_nothing_can_take_the_place_of_an_object():
    with pytest.raises(UserError, match=r"noise\.fill=ignore"):
        MaskMissing(rate=0.5, background=None)


def test_noises_follow_each_other():
    both = Composed(steps={"shift": MaskBoundary(rate=0.5), "swap": MaskClassSwap(rate=0.5)})
    made = both.inject(LABELS, CLASSES, keys=KEYS)
    assert made.rates()["wrong_pixels"] > 0
    assert made.details["steps"]["swap"]["details"]["changed_objects"] > 0


@pytest.mark.long
def test_scribbles_lie_inside_their_regions_and_are_few():
    made = MaskScribbles().inject(LABELS, CLASSES, keys=KEYS)
    for page, content in zip(PAGES, made.observed, strict=True):
        seen = decode_mask(content)
        drawn = seen != IGNORE
        assert np.array_equal(seen[drawn], page[drawn])
        assert set(np.unique(seen[drawn])) == set(np.unique(page[page != IGNORE]))
    rates = made.rates()
    assert rates["wrong_pixels"] == 0
    assert rates["unlabelled_pixels"] > 0.6


def test_the_skeleton_of_a_bar_is_a_line_and_its_longest_path_goes_along_it():
    bar = np.zeros((9, 30), dtype=bool)
    bar[2:7, 2:28] = True
    lines = skeleton(bar)
    assert (lines & ~bar).sum() == 0
    assert lines.sum() < 35
    path = longest_path(lines)
    assert 18 <= path.sum() <= 30
    cross = np.zeros((21, 21), dtype=bool)
    cross[10, 1:20] = cross[8:14, 10] = True
    along = longest_path(cross)
    assert along[10].sum() == 19
    assert along.sum() == 19


def test_small_regions_have_a_scribble_too():
    square = np.zeros((6, 6), dtype=np.uint8)
    square[2:4, 2:4] = 1
    assert (scribbles(square, width=0) == 1).sum() >= 1
