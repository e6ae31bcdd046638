"""Composed pages with masks, and groups of classes."""

import numpy as np
import pytest

from noisyml.data.datasets.embedded.digits import Digits
from noisyml.data.datasets.embedded.glyph_pages import GlyphPages
from noisyml.data.datasets.embedded.grouped import Grouped
from noisyml.errors import UserError
from noisyml.targets.masks import decode_mask


def pages(cache=None, **settings):
    sizes = {"side": 24, "letter_side": (8, 12), "num_train": 12, "num_val": 4, "num_test": 5}
    return GlyphPages(Digits(), cache_dir=cache, **sizes | settings).splits()


def test_pages_depend_on_their_number_alone(tmp_path):
    found, more = pages(), pages(num_train=20)
    assert {name: len(split) for name, split in found.items()} == {"train": 12, "val": 4, "test": 5}
    for row in range(12):
        a, b = (np.asarray(s["train"].images.load(row)) for s in (found, more))
        assert np.array_equal(a, b)
    assert found["train"].labels.tolist() == more["train"].labels[:12].tolist()
    kept = [pages(str(tmp_path)) for _ in range(2)]
    for split in ("train", "test"):
        assert {k[split].fingerprint for k in kept} == {found[split].fingerprint}
    assert len(list((tmp_path / "glyph_pages").iterdir())) == 3
    assert pages(seed=1)["train"].fingerprint != found["train"].fingerprint


def test_masks_mark_what_is_bright():
    train = pages(clutter=0, grain=0.0, letters=(1, 1))["train"]
    assert train.class_names == ["ground", *map(str, range(10))]
    bright = []
    for row, content in enumerate(train.labels):
        mask = decode_mask(content)
        image = np.asarray(train.images.load(row), dtype=float)
        assert len(np.unique(mask)) == 2
        bright.append(image[mask > 0].mean() - image[mask == 0].mean())
    assert np.mean(bright) > 20


def test_ranges_that_do_not_fit_are_refused():
    with pytest.raises(UserError, match="letter_side"):
        pages(letter_side=(20, 40))


def test_groups_join_classes():
    groups = {"round": [0, 6, 8, 9], "straight": [1, 4, 7], "open": [2, 3, 5]}
    found, source = Grouped(Digits(), groups).splits(), Digits().splits()
    for name, split in found.items():
        for label, digit in zip(split.labels[:50], source[name].labels[:50], strict=True):
            assert digit in list(groups.values())[label]
    with pytest.raises(UserError, match="every class number"):
        Grouped(Digits(), {"a": [0, 1], "b": [1, 2]})
    with pytest.raises(UserError, match="is for 3 classes"):
        Grouped(Digits(), {"a": [0], "b": [1, 2]}).splits()
