"""A trained model that teaches: it never changes, whatever happens to the model around it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn

from noisyml.errors import UserError
from noisyml.models.encoder import Encoder, Encoding


class Teacher(nn.Module):
    """A frozen encoder, always in evaluation mode and without gradients.

    Args:
        encoder: trained; frozen by this.
        classifier: trained on its embeddings, for losses that compare class scores; frozen too.
    """

    def __init__(self, encoder: Encoder, classifier: nn.Linear | None = None) -> None:
        super().__init__()
        self.encoder = encoder.requires_grad_(False)
        self.classifier = None if classifier is None else classifier.requires_grad_(False)
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

    @torch.no_grad()
    def logits(self, embeddings: Tensor) -> Tensor:
        """Class scores [B, C] of this teacher's embeddings [B, D].

        Raises:
            ValueError: it has no classifier.
        """
        if self.classifier is None:
            raise ValueError("this teacher has no classifier")
        scores: Tensor = self.classifier(embeddings)
        return scores

    def fingerprint(self) -> str:
        """SHA-256 of all weights and buffers, names included."""
        digest = hashlib.sha256()
        state = self.encoder.state_dict()
        if self.classifier is not None:
            state |= self.classifier.state_dict(prefix="classifier.")
        for name, tensor in sorted(state.items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        return digest.hexdigest()

    def leave_out(self, checkpoint: dict[str, Any]) -> None:
        """Take the teacher's weights out of a student's checkpoint; its fingerprint stays."""
        state = checkpoint["state_dict"]
        for name in [n for n in state if n.startswith("teacher.")]:
            del state[name]
        checkpoint["teacher"] = self.fingerprint()

    def put_back(self, checkpoint: dict[str, Any]) -> None:
        """Undo `leave_out`.

        Raises:
            UserError: the student was trained by another teacher.
        """
        if checkpoint.get("teacher") != self.fingerprint():
            raise UserError(
                "The teacher has changed since the checkpoint was written: restore "
                "method.teacher.checkpoint, or start a new run."
            )
        for name, tensor in self.state_dict().items():
            checkpoint["state_dict"][f"teacher.{name}"] = tensor
