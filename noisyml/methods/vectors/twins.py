"""The part of TLDR that only trains, shared by the method and the estimator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from noisyml import distributed
from noisyml.checks import Checked, Count, NonNegative, Positive
from noisyml.errors import UserError
from noisyml.losses.self_supervised.redundancy import (
    LAMBD,
    SCALE,
    reconstruction_error,
    redundancy_reduction,
)
from noisyml.models.dense import HiddenNorm, projector_layers
from noisyml.selectors.small_loss import quota, small_loss

#: ``redundancy``: redundancy reduction; ``autoencoder``: the projector gives the inputs back.
PairLoss = Literal["redundancy", "autoencoder"]


class Twins(Checked, nn.Module):
    """Projector, normalisation over the batch and loss; thrown away after training.

    Both sides pass one after the other, never stacked: batch norms see each with its own
    statistics, and update their running values twice.

    Args:
        in_features: width of the codes.
        input_size: columns of the inputs, which an autoencoder gives back.
        projector: a word, see `noisyml.models.dense`; None: the loss looks at the codes.
        norm: of its hidden layers: ``batch`` or ``layer``.
        loss: see `PairLoss`.
        lambd: weight of the entries off the diagonal of the cross-correlation.
        scale_loss: factor of the loss.

    Raises:
        UserError: an autoencoder whose projector has another width than its inputs.
    """

    def __init__(
        self,
        in_features: Count,
        input_size: Count,
        projector: str | None = "mlp-2-2048",
        norm: HiddenNorm = "batch",
        loss: PairLoss = "redundancy",
        lambd: NonNegative = LAMBD,
        scale_loss: Positive = SCALE,
    ) -> None:
        super().__init__()
        self.projector, width = projector_layers(projector, in_features, norm)
        if loss == "autoencoder" and width != input_size:
            raise UserError(
                f"An autoencoder's projector gives the inputs back, which have {input_size} "
                f"columns, but projector={projector} gives {width}: write e.g. "
                f"mlp-1-{input_size}."
            )
        self.bn = nn.BatchNorm1d(width, affine=False)
        self.loss = loss
        self.lambd = lambd
        self.scale_loss = scale_loss

    def project(self, codes: Tensor) -> Tensor:
        """Codes [b, d] of one side to what the loss compares, [b, d']."""
        if self.projector is None:
            return codes
        projected: Tensor = self.projector(codes)
        return projected

    def forward(
        self,
        first: Tensor,
        second: Tensor,
        inputs: Callable[[], Tensor],
        keep: Tensor | None = None,
    ) -> Tensor:
        """The loss of the global batch; all arguments are this rank's share.

        Args:
            first: codes [b, d] of one side, with gradient.
            second: codes of the other side.
            inputs: gives both sides' inputs [2 b, D], one after the other.
            keep: pairs [B] bool of the global batch that teach; None: all.
        """
        ours, theirs = self.project(first), self.project(second)
        if self.loss == "autoencoder":
            return self._reconstruction(ours, theirs, inputs(), keep)
        ours, theirs = distributed.gather(ours), distributed.gather(theirs)
        if keep is not None:
            ours, theirs = ours[keep], theirs[keep]
        return redundancy_reduction(
            self.bn(ours), self.bn(theirs), lambd=self.lambd, scale=self.scale_loss
        )

    def _reconstruction(
        self, ours: Tensor, theirs: Tensor, inputs: Tensor, keep: Tensor | None
    ) -> Tensor:
        outputs = torch.cat([distributed.gather(side) for side in (ours, theirs)])
        wanted = torch.cat([distributed.gather(side) for side in inputs.chunk(2)])
        if keep is not None:
            both = torch.cat([keep, keep])
            outputs, wanted = outputs[both], wanted[both]
        return reconstruction_error(wanted, outputs, scale=self.scale_loss)


@torch.no_grad()
def agreeing_pairs(first: Tensor, second: Tensor, noise_rate: float) -> Tensor:
    """Pairs of the global batch whose codes agree most, bool [B]; a selector of pairs.

    As small losses tell true labels early on, small angles between codes tell true pairs.

    Args:
        first: this rank's codes [b, d] of one side.
        second: those of the other side.
        noise_rate: share of the pairs to leave out.
    """
    angles = F.cosine_similarity(
        distributed.gather(first.detach()), distributed.gather(second.detach()), dim=1
    )
    return small_loss(-angles, quota(len(angles), noise_rate))
