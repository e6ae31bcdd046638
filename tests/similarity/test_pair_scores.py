"""How far scores may be from the exact ones: bounds that every case must keep."""

from __future__ import annotations

import pytest
import torch

from noisyml.similarity.exact import kernels
from noisyml.similarity.ranks.scores import PairScores, Rows, checked_norms


def pair_scores(x: torch.Tensor, metric: str) -> PairScores:
    norms = checked_norms(x, "test")
    scale = 2.0 ** float(norms.max().log2().ceil())
    rows = Rows(x, norms, metric, scale)
    return PairScores(rows, rows)


def awkward_rows(kind: str, dim: int) -> torch.Tensor:
    rows = torch.randn(60, dim, generator=torch.Generator().manual_seed(dim))
    if kind == "one sign":  # partial sums grow, and so does what each loses
        rows = rows.abs() + 1
    elif kind == "one large":
        rows[:, 0] += 1000
    elif kind == "all alike":
        rows = 1 + 2.0**-20 * rows
    return rows


@pytest.mark.skipif(not kernels.available(), reason="no compiled loops here")
@pytest.mark.parametrize("metric", ["cosine", "l2"])
@pytest.mark.parametrize("kind", ["normal", "one sign", "one large", "all alike"])
@pytest.mark.parametrize("dim", [1, 7, 31, 40, 512, 2050])
def test_compiled_products_keep_the_bound_of_pairs(metric: str, kind: str, dim: int) -> None:
    x = awkward_rows(kind, dim)
    scores = pair_scores(x, metric)
    everyone = torch.arange(len(x))
    rows, columns = (part.flatten() for part in torch.meshgrid(everyone, everyone, indexing="ij"))
    exact = scores.exact(rows, columns)
    error = scores.pair_error(everyone, everyone)[rows]
    prepared = [scores.filtered(role, everyone) for role in ("left", "right")]
    found = [kernels.products(*prepared, rows, columns)]
    lying = [scores.where_they_lie(role, everyone) for role in ("left", "right")]
    assert (lying[0] is None) == (metric == "l2")
    if metric == "cosine":
        factors = [part.factor[index] for part, index in zip(lying, (rows, columns), strict=True)]
        found.append(kernels.products(x, x, rows, columns) * factors[0] * factors[1])
    for one in found:
        assert ((one.double() - exact).abs() <= error).all()
    # It is what a loop's order gains on one that may add up everything in turn.
    general = scores.filter_error(everyone, everyone)[rows]
    assert (error <= general).all()
    if dim >= 512:
        assert (error < general / 5).all()
