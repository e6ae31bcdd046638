"""Classes of a closed set kept apart for retrieval."""

import numpy as np
import pytest

from noisyml.data.datasets.embedded.digits import Digits
from noisyml.data.datasets.embedded.mosaic import Mosaic
from noisyml.data.datasets.retrieval.unseen_classes import UnseenClasses
from noisyml.errors import UserError


def test_classes_are_in_training_or_in_the_test():
    whole = Digits().splits()
    splits = UnseenClasses(Digits(), test_fraction=0.3, seed=1).splits()
    assert list(splits) == ["train", "val", "test"]
    learnt, tested = (splits[name].class_names for name in ("train", "test"))
    assert splits["val"].class_names == learnt
    assert sorted([*learnt, *tested]) == list(whole["train"].class_names)
    assert len(tested) == 3
    for name, split in splits.items():
        rows = {key: row for row, key in enumerate(whole[name].keys)}
        of_keys = [rows[key] for key in split.keys]
        names = [whole[name].class_names[label] for label in whole[name].labels[of_keys]]
        assert [split.class_names[label] for label in split.labels] == names
        expected = np.isin(whole[name].class_names, split.class_names)[whole[name].labels].sum()
        assert len(split) == expected
        assert split.fingerprint != whole[name].fingerprint
    np.testing.assert_array_equal(
        splits["test"].inputs.load(3),
        whole["test"].inputs.load(whole["test"].keys.index(splits["test"].keys[3])),
    )


def test_the_seed_chooses_the_classes():
    tested = {tuple(UnseenClasses(Digits(), seed=k).splits()["test"].class_names) for k in range(4)}
    assert len(tested) > 1


def test_images_of_several_classes_cannot_be_kept_apart():
    with pytest.raises(UserError, match="several"):
        UnseenClasses(Mosaic(Digits(), num_train=20, num_test=10)).splits()
    with pytest.raises(UserError, match="too few"):
        UnseenClasses(Digits(), test_fraction=0.9).splits()
