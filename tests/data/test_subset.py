"""A part of the training split, drawn class by class."""

import dataclasses

import numpy as np
import pytest

from noisyml.data.datasets.embedded.digits import Digits
from noisyml.data.subset import subset
from noisyml.errors import UserError


@pytest.fixture(scope="module")
def train():
    return Digits().splits()["train"]


def test_every_class_gives_its_share(train):
    small = subset(train, 300, 0)
    assert len(small) == 300
    share = np.bincount(small.labels) / np.bincount(train.labels)
    assert (
        np.abs(
            share * np.bincount(train.labels) - np.bincount(train.labels) * 300 / len(train)
        ).max()
        < 1
    )
    place = {key: row for row, key in enumerate(train.keys)}
    rows = [place[key] for key in small.keys]
    assert rows == sorted(rows)
    assert (train.labels[rows] == small.labels).all()
    for mine, row in zip(range(5), rows, strict=False):
        assert small.images.load(mine).tobytes() == train.images.load(row).tobytes()


def test_the_choice_hangs_on_names_and_seed_and_not_on_order(train):
    back = np.arange(len(train))[::-1]
    turned = dataclasses.replace(
        train, labels=train.labels[back], keys=[train.keys[i] for i in back], extras={}
    )
    assert set(subset(train, 101, 3).keys) == set(subset(turned, 101, 3).keys)
    assert set(subset(train, 101, 3).keys) != set(subset(train, 101, 4).keys)
    assert subset(train, 101, 3).fingerprint != subset(train, 102, 3).fingerprint


def test_all_of_it_is_the_split_itself_and_more_is_a_mistake(train):
    assert subset(train, len(train), 0) is train
    for size in (0, len(train) + 1):
        with pytest.raises(UserError, match=f"data.train_size={size} must lie between"):
            subset(train, size, 0)
