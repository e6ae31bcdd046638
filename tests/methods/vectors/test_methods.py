"""Methods on vectors: principal components and agreeing pairs."""

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from noisyml.methods.vectors.pca import principal_map
from noisyml.methods.vectors.twins import agreeing_pairs


@pytest.mark.parametrize("whiten", [False, True])
def test_principal_components_are_those_of_scikit_learn(whiten):
    rows = np.random.default_rng(0).normal(size=(200, 7)) @ np.diag([3, 2.5, 2, 1.5, 1, 0.5, 0.1])
    reference = PCA(4, whiten=whiten, svd_solver="full").fit(rows)
    exact = torch.from_numpy(rows)
    centred = exact - exact.mean(0)
    # scikit-learn divides by N - 1.
    weight, bias = principal_map(exact.mean(0), centred.T @ centred / 199, 4, whiten)
    found, expected = (exact @ weight.T + bias).numpy(), reference.transform(rows)
    signs = np.sign((found * expected).sum(axis=0))
    np.testing.assert_allclose(found, expected * signs, atol=1e-10)


def test_agreeing_pairs_are_those_of_small_angles():
    first = torch.eye(4)
    second = torch.stack([first[0], first[0], -first[2], 9 * first[3] + first[0]])
    assert agreeing_pairs(first, second, 0.5).tolist() == [True, False, False, True]
    assert agreeing_pairs(first, second, 0.25).tolist() == [True, True, False, True]
