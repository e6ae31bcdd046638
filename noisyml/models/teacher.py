"""A trained encoder that teaches: it never changes, whatever happens to the model around it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Self

import torch
from torch import Tensor, nn

from noisyml.models.encoder import Encoder, Encoding


class Teacher(nn.Module):
    """A frozen encoder, always in evaluation mode and without gradients.

    Args:
        encoder: trained; frozen by this.
    """

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder.requires_grad_(False)
        self.eval()

    @property
    def out_features(self) -> int:
        """Embedding dimension D."""
        return self.encoder.out_features

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode: the statistics of a student's batches are not its own."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Embeddings [B, D] of a batch, as the teacher was trained to emit them."""
        embeddings: Tensor = self.encoder(batch)
        return embeddings

    @torch.no_grad()
    def encode(self, batch: Mapping[str, Tensor]) -> Encoding:
        """Embeddings and feature maps of a batch of images."""
        return self.encoder.encode(batch)

    def fingerprint(self) -> str:
        """SHA-256 of all weights and buffers, names included."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.encoder.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        return digest.hexdigest()
