"""Scores of labels by watching a classifier learn them: margins, forgetting, losses.

A linear classifier on the features is trained by stochastic gradient descent on the labels as they
are, every row included, and what it says of each row is counted at every visit.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from noisyml.audit.scores.folds import Progress, projected_rows
from noisyml.checks import Count, Positive, Seed, checked
from noisyml.selectors.loss_mixture import small_loss_posterior
from noisyml.selectors.training_dynamics import Dynamics

#: Rows of a step.
BATCH = 128


@checked
def watched_scores(
    features: Any,
    labels: NDArray[Any],
    num_classes: Count,
    *,
    epochs: Count = 20,
    rate: Positive = 0.5,
    components: Count = 256,
    seed: Seed = 0,
    progress: Progress | None = None,
) -> dict[str, NDArray[np.float64]]:
    """Scores [N] of a training on all rows, each larger for labels believed right.

    Args:
        features: [N, D], read in blocks.
        labels: [N] int64, observed.
        num_classes: C.
        epochs: of the training.
        rate: learning rate at its beginning; it falls to nothing along half a cosine.
        components: principal directions kept of the features.
        seed: of the order of rows.
        progress: called after each epoch.

    Returns:
        ``aum``: area under the margin, the mean logit margin over all epochs (arXiv 2001.10528);
        ``learnt``: share of the epochs in which the row was right (arXiv 2210.15031);
        ``forgetting``: minus the times it was right and then wrong, minus infinity for rows that
        never were right (arXiv 1812.05159); ``loss_mixture``: posterior of the lower of two
        Gaussians fitted to the mean losses (DivideMix, arXiv 2002.07394).
    """
    n = len(labels)
    rows = projected_rows(features, components, seed)
    given = torch.from_numpy(np.asarray(labels, dtype=np.int64))
    weight = torch.zeros(rows.shape[1], num_classes)
    bias = torch.zeros(num_classes)
    seen = Dynamics.begin(n)
    losses = torch.zeros(n, dtype=torch.float64)
    steps = epochs * -(-n // BATCH)
    step = 0
    for epoch in range(epochs):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        for part in torch.randperm(n, generator=generator).split(BATCH):
            inputs, target = rows[part], given[part]
            logits = inputs @ weight + bias
            seen.update(part, logits, target)
            log_p = logits.log_softmax(dim=1)
            losses[part] -= log_p.gather(1, target[:, None])[:, 0].double()
            error = log_p.exp()
            error[torch.arange(len(part)), target] -= 1
            size = rate * 0.5 * (1 + np.cos(np.pi * step / steps)) / len(part)
            weight -= size * (inputs.T @ error)
            bias -= size * error.sum(dim=0)
            step += 1
        if progress is not None:
            progress(epoch + 1, epochs)
    return {
        "aum": seen.area_under_margin.numpy(),
        "learnt": seen.hit_share.numpy(),
        "forgetting": -seen.forgetting.numpy(),
        "loss_mixture": small_loss_posterior(losses / epochs).numpy(),
    }
