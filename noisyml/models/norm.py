"""Batch normalisation whose statistics come from the global batch on any backend."""

from __future__ import annotations

from torch import Tensor, nn

from noisyml import distributed


class GlobalBatchNorm1d(nn.BatchNorm1d):
    """`nn.BatchNorm1d` over the batches of all ranks; exact on gloo and NCCL, any shard sizes.

    PyTorch's `SyncBatchNorm` runs on accelerators only. This one gathers the [B, F] activations of
    an embedding head (small) and normalises the global batch, so that two processes with half a
    batch each compute what one process computes with the whole.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalise [B, F]; in evaluation or a single process this is plain batch norm."""
        if not (self.training and distributed.is_distributed()):
            return super().forward(x)
        sizes = distributed.shard_sizes(len(x), x.device)
        start = sum(sizes[: distributed.rank()])
        normalised: Tensor = super().forward(distributed.gather(x))
        return normalised[start : start + len(x)]
