"""Scikit-learn's digits."""

import numpy as np

from noisyml.data.datasets.embedded.digits import Digits


def test_digits():
    splits = Digits().splits()
    assert sum(map(len, splits.values())) == 1797
    assert splits["train"].images.pixels.max() == 255
    assert splits["test"].class_names == [str(i) for i in range(10)]
    assert Digits().splits()["train"].fingerprint == splits["train"].fingerprint
    assert Digits(seed=1).splits()["train"].fingerprint != splits["train"].fingerprint
    apart = Digits(split="zero_shot", val_fraction=0.0, test_fraction=0.5).splits()
    assert not set(apart["train"].class_names) & set(apart["test"].class_names)
    assert np.unique(apart["test"].labels).tolist() == list(range(5))
