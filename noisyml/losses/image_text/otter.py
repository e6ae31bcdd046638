"""Soft targets between the images and the captions of a batch, from a teacher's embeddings.

Wu et al., "Data Efficient Language-Supervised Zero-Shot Recognition with Optimal Transport
Distillation", ICLR 2022 (arXiv 2112.09445): an image may match other captions of the batch than its
own. OTTER finds them by entropic optimal transport on similarities that also compare images with
images and captions with captions; plain distillation takes a softmax of similarities instead.

Rows are samples of this rank, columns the global batch. What is computed here has no gradient, and
single precision at least: exp(S / epsilon) does not fit into half precision.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from noisyml.checks import NonNegative, Positive, WholeNonNegative, checked
from noisyml.similarity.transport import Domain, sinkhorn

#: Taken off a similarity that must not be matched, before its factor.
REMOVED = 100.0


class Sides(NamedTuple):
    """Unit-norm embeddings of both sides of a batch.

    Attributes:
        image: [n, D].
        text: [n, D].
    """

    image: Tensor
    text: Tensor


class Scores(NamedTuple):
    """Matching scores of both sides' rows with the columns of the other side.

    Attributes:
        image: S_v [m, n], rows are images.
        text: S_t [m, n], rows are captions.
    """

    image: Tensor
    text: Tensor


@checked
def matching_scores(
    own: Sides,
    everyone: Sides,
    *,
    vv_coef: NonNegative = 1.0,
    tt_coef: NonNegative = 1.0,
    removed: Tensor | None = None,
) -> Scores:
    """Similarity of images and captions, raised where images, or captions, resemble each other.

    ``S_v = vv_coef (vv - 100 E) + tt_coef (tt - 100 E) + vt`` and S_t with tv, E marking a column
    in each row. As in the release the penalty is multiplied by the coefficients, so that with both
    of them 0 nothing is removed.

    Args:
        own: the teacher's embeddings of this rank, m rows.
        everyone: of the global batch, n rows.
        vv_coef: weight of the similarity of images.
        tt_coef: weight of the similarity of captions.
        removed: [m] int64, the column of each row that must not be matched; None: none.

    Example:
        >>> import torch
        >>> sides = Sides(torch.eye(2), torch.eye(2))
        >>> matching_scores(sides, sides).image.tolist()
        [[3.0, 0.0], [0.0, 3.0]]
        >>> matching_scores(sides, sides, removed=torch.arange(2)).image.tolist()
        [[-197.0, 0.0], [0.0, -197.0]]
    """
    with torch.no_grad(), torch.autocast(own.image.device.type, enabled=False):
        own, everyone = (Sides(*(_wide(x) for x in sides)) for sides in (own, everyone))
        shared = torch.zeros(len(own.image), len(everyone.image)).to(own.image)
        if vv_coef:
            shared += vv_coef * _penalised(own.image @ everyone.image.T, removed)
        if tt_coef:
            shared += tt_coef * _penalised(own.text @ everyone.text.T, removed)
        return Scores(
            shared + own.image @ everyone.text.T,
            shared + own.text @ everyone.image.T,
        )


def _penalised(similarity: Tensor, removed: Tensor | None) -> Tensor:
    if removed is None:
        return similarity
    return similarity.scatter_add(
        1, removed[:, None], similarity.new_full((len(similarity), 1), -REMOVED)
    )


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


@checked
def transport_targets(
    scores: Scores,
    *,
    epsilon: Positive = 0.15,
    n_iterations: WholeNonNegative = 5,
    domain: Domain = "log",
) -> Scores:
    """Targets of OTTER: the rows of the entropic transport plan of each side, scaled to sum 1.

    A few iterations do not converge, which is meant: the result depends on their number.

    Args:
        scores: [m, n] each; a square problem of the global batch, or a rectangular one of a rank.
        epsilon: weight of the entropy.
        n_iterations: K, scalings of rows and columns.
        domain: see `noisyml.similarity.transport.sinkhorn`.

    Example:
        >>> import torch
        >>> scores = torch.tensor([[1.0, 0.0], [0.9, 0.8]]).double()
        >>> targets = transport_targets(Scores(scores, scores.T), epsilon=0.5)
        >>> targets.image.round(decimals=2).tolist()
        [[0.71, 0.29], [0.29, 0.71]]
    """
    with torch.no_grad():
        return Scores(
            *(
                sinkhorn(
                    -side, epsilon, n_iterations=n_iterations, domain=domain, validate=False
                ).row_conditional()
                for side in scores
            )
        )


@checked
def similarity_targets(scores: Scores, scale: Positive = 100.0) -> Scores:
    """Targets of plain distillation: a softmax of scaled similarities over each row.

    Args:
        scores: [m, n] each.
        scale: T_t, the teacher's factor.

    Example:
        >>> import torch
        >>> similarity_targets(Scores(torch.eye(2), torch.eye(2)), scale=1.0).image[0].tolist()
        [0.7310585975646973, 0.2689414322376251]
    """
    with torch.no_grad():
        return Scores(*((scale * side).softmax(1) for side in scores))


@checked
def given_pair_mass(
    everyone: Sides,
    *,
    epsilon: Positive = 0.15,
    n_iterations: WholeNonNegative = 5,
    domain: Domain = "log",
) -> Tensor:
    """Share of its mass that a transport plan leaves on each given pair: trust in the pair.

    The plan matches images with captions by their similarity alone: every image is most like
    itself, so the other terms of `matching_scores` say nothing about the given pair. The shares of
    the image's mass and of the caption's are averaged.

    Args:
        everyone: embeddings of the global batch, n rows.
        epsilon, n_iterations, domain: see `transport_targets`.

    Returns:
        [n] in [0, 1].

    Example:
        >>> import torch
        >>> images, texts = torch.eye(3), torch.eye(3)[[0, 2, 1]]
        >>> sides = Sides(images, texts)
        >>> given_pair_mass(sides).round(decimals=2).tolist()
        [1.0, 0.0, 0.0]
    """
    with torch.no_grad(), torch.autocast(everyone.image.device.type, enabled=False):
        plan = sinkhorn(
            -_wide(everyone.image) @ _wide(everyone.text).T,
            epsilon,
            n_iterations=n_iterations,
            domain=domain,
            validate=False,
        )
        return (plan.row_conditional().diagonal() + plan.column_conditional().diagonal()) / 2
