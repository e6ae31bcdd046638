"""Whitening as the published library of TLDR offers it beside its class."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from noisyml.checks import NonNegative, checked


@checked
def whiten(X: Any, fudge: NonNegative = 1e-18) -> tuple[NDArray[Any], NDArray[Any]]:
    """Rows without second moments of their own: ``X W`` with ``W = V (E + fudge)^(-1/2) V^T``.

    E and V are the eigenvalues and vectors of ``X^T X``; nothing is centred or divided by N, as
    released.

    Args:
        X: [N, D] floats, N at least D for all of D to be whitened.
        fudge: added to the eigenvalues.

    Returns:
        ``X W`` [N, D] and W [D, D].

    Example:
        >>> rows, _ = whiten(np.array([[3.0, 0.0], [0.0, 4.0]]))
        >>> np.round(rows, 6).tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """
    values, vectors = np.linalg.eigh(X.T @ X)
    matrix = vectors @ np.diag(1 / np.sqrt(values + fudge)) @ vectors.T
    return X @ matrix, matrix
