"""Principal components, plain or whitened: the baseline of dimensionality reduction."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from noisyml import distributed
from noisyml.checks import NonNegative
from noisyml.data.views import Batch
from noisyml.errors import UserError
from noisyml.methods.parts import Parts
from noisyml.methods.vectors.base import VectorMethod


def principal_map(
    mean: Tensor, covariance: Tensor, size: int, whiten: bool = False, eps: float = 1e-12
) -> tuple[Tensor, Tensor]:
    """The linear map onto the first principal components: weight [size, D], bias [size].

    Args:
        mean: [D] float64.
        covariance: [D, D] float64.
        size: components, at most D.
        whiten: divide each component by its standard deviation.
        eps: least variance that is divided by, as a share of the largest.
    """
    values, vectors = torch.linalg.eigh(covariance)
    values, weight = values.flip(0)[:size], vectors.T.flip(0)[:size]
    # The sign of a component is arbitrary: its largest entry is positive.
    weight = weight * torch.sign(weight.gather(1, weight.abs().argmax(dim=1, keepdim=True)))
    if whiten:
        weight = weight / values.clamp(min=eps * float(values[0])).sqrt()[:, None]
    return weight, -weight @ mean


class PCA(VectorMethod):
    """Principal component analysis of all batches seen, solved at the end of each epoch.

    A step adds its batch to mean and covariance; the optimiser has nothing to do. The loss is the
    share of the batch's variance that the components of the last epoch leave over.

    Args:
        parts: the head is one linear layer with a bias (``head=dense``).
        whiten: give every component the variance 1.
        whiten_eps: least variance that is divided by, as a share of the largest.

    Raises:
        UserError: another head, or more components than dimensions.
    """

    count: Tensor
    total: Tensor
    products: Tensor

    def __init__(
        self, parts: Parts, *, whiten: bool = False, whiten_eps: NonNegative = 1e-12
    ) -> None:
        super().__init__(parts)
        layers = list(self.encoder.head.layers)
        if len(layers) != 1 or not isinstance(layers[0], nn.Linear) or layers[0].bias is None:
            raise UserError("PCA finds one linear map with a bias: choose head=dense.")
        self.layer = layers[0]
        self.whiten = whiten
        self.whiten_eps = whiten_eps
        size = self.encoder.backbone.out_features
        if self.layer.out_features > size:
            raise UserError(
                f"head.out_features={self.layer.out_features} asks for more components than the "
                f"{size} dimensions of the vectors: lower it."
            )
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.register_buffer("total", torch.zeros(size, dtype=torch.float64))
        self.register_buffer("products", torch.zeros(size, size, dtype=torch.float64))

    def on_fit_start(self) -> None:
        """Refuse images."""
        self.rows(self.trainer.datamodule)  # type: ignore[attr-defined]

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """Add the batch to the sums."""
        rows = distributed.gather(self.inputs(batch)).detach()
        with torch.no_grad():
            exact = rows.double()
            self.count += len(rows)
            self.total += exact.sum(dim=0)
            self.products += exact.T @ exact
            left = self._left_over(exact)
        # The optimiser's step has a gradient of zero.
        idle = sum((0 * parameter.sum() for parameter in self.encoder.parameters()), left)
        return {"loss": idle}

    def on_train_epoch_end(self) -> None:
        """Solve for the components of everything seen so far."""
        mean = self.total / self.count
        covariance = self.products / self.count - torch.outer(mean, mean)
        weight, bias = principal_map(
            mean, covariance, self.layer.out_features, self.whiten, self.whiten_eps
        )
        with torch.no_grad():
            self.layer.weight.copy_(weight)
            assert self.layer.bias is not None
            self.layer.bias.copy_(bias)

    def _left_over(self, rows: Tensor) -> Tensor:
        """Share of the squared length of centred rows outside the span of the components."""
        centred = rows - self.total / self.count
        basis = torch.linalg.qr(self.layer.weight.double().T).Q
        length = centred.square().sum()
        return (length - (centred @ basis).square().sum()).clamp(min=0) / length.clamp(min=1e-300)
