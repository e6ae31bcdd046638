"""Two components of the losses: right labels have small ones.

Arazo et al., "Unsupervised Label Noise Modeling and Loss Correction", ICML 2019 (arXiv 1904.11238)
fit a mixture of two to the losses of an epoch; Li, Socher and Hoi, "DivideMix", ICLR 2020 (arXiv
2002.07394) take two Gaussians: the posterior of the one with the smaller mean is the trust.
"""

from __future__ import annotations

import torch
from torch import Tensor

from noisyml.checks import Count, Positive, checked

#: Smallest standard deviation of a component, on losses scaled to [0, 1].
_NARROWEST = 1e-9


@checked
@torch.no_grad()
def small_loss_posterior(
    losses: Tensor,
    iterations: Count = 100,
    tolerance: Positive = 1e-3,
    variance_floor: Positive = 5e-4,
) -> Tensor:
    """Posterior of the component of small losses, of a mixture of two Gaussians (EM).

    As DivideMix releases it (section 3.1): losses are brought to [0, 1], variances get
    `variance_floor` added, at most `iterations` steps are made, and none once the mean
    log-likelihood rises by less than `tolerance`. The steps start from the smaller and the larger
    half, which needs no chance.

    Args:
        losses: [N] float; NaN for those not known.
        iterations: of EM.
        tolerance: of the mean log-likelihood.
        variance_floor: added to both variances.

    Returns:
        [N] float64 in [0, 1], falling as the loss rises up to the point where the wider component
        takes over; NaN where the loss is; 1 where all losses are equal.

    Example:
        >>> losses = torch.tensor([0.1, 0.2, 0.15, 3.0, 3.2])
        >>> small_loss_posterior(losses).round().tolist()
        [1.0, 1.0, 1.0, 0.0, 0.0]
    """
    known = ~losses.isnan()
    values = losses[known].double()
    result = torch.full(losses.shape, torch.nan, dtype=torch.float64, device=losses.device)
    if not len(values):
        return result
    low, high = values.min(), values.max()
    if not high > low:
        result[known] = 1.0
        return result
    values = (values - low) / (high - low)
    upper = values > values.median()
    if not upper.any():
        upper = values > values.mean()
    duty = torch.stack([~upper, upper], dim=1).double()
    before = -torch.inf
    for _ in range(iterations):
        mass = duty.sum(dim=0) + 10 * torch.finfo(torch.float64).eps
        means = (duty * values[:, None]).sum(dim=0) / mass
        variances = (duty * (values[:, None] - means).square()).sum(dim=0) / mass + variance_floor
        log_joint = (
            (mass / mass.sum()).log()
            - 0.5 * (2 * torch.pi * variances).log()
            - 0.5 * (values[:, None] - means).square() / variances
        )
        total = log_joint.logsumexp(dim=1)
        duty = (log_joint - total[:, None]).exp()
        after = float(total.mean())
        if abs(after - before) < tolerance:
            break
        before = after
    result[known] = duty[:, int(means.argmin())]
    return result
