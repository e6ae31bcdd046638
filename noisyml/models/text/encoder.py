"""Texts to embeddings: a tokenizer, a network over tokens, mean pooling, a projection."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal, Self

import numpy as np
import torch
from torch import Tensor, nn

from noisyml.checks import Checked, Count
from noisyml.errors import UserError
from noisyml.models.text.pooling import masked_mean, project_pooled
from noisyml.storage import caches
from noisyml.targets.pairs import texts_of

#: Texts per pass where there is no batch to go by.
TEXTS_AT_ONCE = 512

Projection = Literal["auto", "linear"]
Progress = Callable[[int, int], None]


class Tokenizer:
    """Texts to numbers of tokens."""

    @abstractmethod
    def __call__(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Numbers [b, L] int64, padded to the longest text, and marks [b, L] of the tokens."""

    @property
    def ready(self) -> bool:
        """False until it has learnt its tokens."""
        return True

    def learn(self, texts: Sequence[str]) -> None:
        """Learn the tokens of a training split; nothing where they are known."""

    def state(self) -> str:
        """Everything it has learnt, for a checkpoint; empty if that comes with its files."""
        return ""

    def restore(self, state: str) -> None:
        """Undo `state`."""


class TextBody(nn.Module):
    """A network over tokens.

    Attributes:
        width: F, of the states it gives.
    """

    width: int

    @abstractmethod
    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """States [b, L, F] of tokens [b, L] with marks [b, L]."""


class TextEncoder(Checked, nn.Module):
    """Captions to embeddings [b, D] that are not normalised.

    A batch has the bytes of its captions (``caption``); `fields` adds what the network reads, on
    the host, before the batch goes to the device. Of a frozen network that is the pooled state of
    each caption, computed once for each different text.

    Args:
        body: tokens to states.
        tokenizer: texts to tokens.
        out_features: D.
        frozen: never train the network, only the projection.
        projection: ``auto``: none where the network's width is D already; ``linear``: always.

    Raises:
        UserError: a frozen network without a projection, which has nothing to train.
    """

    def __init__(
        self,
        body: TextBody,
        tokenizer: Tokenizer,
        out_features: Count,
        frozen: bool = False,
        projection: Projection = "auto",
    ) -> None:
        super().__init__()
        self.body = body
        self.tokenizer = tokenizer
        self.out_features = out_features
        self.frozen = frozen
        self.projection: nn.Linear | None = None
        if projection == "linear" or body.width != out_features:
            self.projection = nn.Linear(body.width, out_features)
        elif frozen:
            raise UserError(
                "The text encoder is frozen and has no projection, so that nothing of it can be "
                "trained: set method.text_encoder.projection=linear or another head.out_features."
            )
        if frozen:
            body.requires_grad_(False)
        self._fingerprint: str | None = None
        self._rows: dict[str, int] = {}
        self._pooled = np.empty((0, body.width), dtype=np.float32)
        self.train()

    def train(self, mode: bool = True) -> Self:
        """Set the mode; a frozen network stays in evaluation mode."""
        super().train(mode)
        if self.frozen:
            self.body.eval()
        return self

    # -- on the host -------------------------------------------------------------------------

    def fields(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """Fields of a batch for `forward`, on the host.

        Args:
            texts: b captions.

        Returns:
            ``tokens`` and ``token_mask`` [b, L], or of a frozen network ``text_features`` [b, F].
        """
        if not self.frozen:
            tokens, mask = self.tokenizer(texts)
            return {"tokens": tokens, "token_mask": mask}
        self.remember(texts)
        rows = np.array([self._rows[text] for text in texts], dtype=np.int64)
        return {"text_features": torch.from_numpy(self._pooled[rows])}

    def remember(
        self, texts: Sequence[str], cache_dir: Path | None = None, progress: Progress | None = None
    ) -> None:
        """Compute the pooled states of texts that are not known, of a frozen network.

        Args:
            texts: any number, perhaps with repetitions.
            cache_dir: folder of the feature cache, where they are looked up and left; None: none.
            progress: called with (texts done, texts in all).
        """
        new = sorted(set(texts) - self._rows.keys())
        if not self.frozen or not new:
            return
        found: np.ndarray
        if cache_dir is None:
            found = self._pool(new, progress)
        else:
            key = hashlib.sha256(self.fingerprint().encode() + "\0".join(new).encode()).hexdigest()
            file = cache_dir / "texts" / f"{key[:32]}.npy"
            kept = caches.read_array(file)
            if kept is None or kept.shape != (len(new), self.body.width):
                kept = self._pool(new, progress)
                caches.write(file, kept)
            found = kept
        start = len(self._pooled)
        self._rows |= {text: start + i for i, text in enumerate(new)}
        self._pooled = np.concatenate([self._pooled, found])

    @torch.no_grad()
    def _pool(self, texts: Sequence[str], progress: Progress | None) -> np.ndarray:
        device = next(self.body.parameters()).device
        pooled = []
        # Texts of one length go together: padding is work for nothing.
        order = sorted(range(len(texts)), key=lambda i: (len(texts[i]), i))
        for start in range(0, len(order), TEXTS_AT_ONCE):
            chosen = [texts[i] for i in order[start : start + TEXTS_AT_ONCE]]
            tokens, mask = (field.to(device) for field in self.tokenizer(chosen))
            pooled.append(masked_mean(self.body(tokens, mask), mask).float().cpu().numpy())
            if progress is not None:
                progress(min(start + TEXTS_AT_ONCE, len(order)), len(order))
        found = np.empty((len(texts), self.body.width), dtype=np.float32)
        found[order] = np.concatenate(pooled)
        return found

    # -- on the device -----------------------------------------------------------------------

    def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Embeddings [b, D], not normalised.

        Args:
            batch: with the result of `fields`, or with ``caption`` alone, which is then fetched
                from the device.
        """
        if "text_features" not in batch and "tokens" not in batch:
            captions = batch["caption"]
            given = self.fields(texts_of(captions))
            batch = {name: field.to(captions.device) for name, field in given.items()}
        if "text_features" in batch:
            pooled = batch["text_features"].to(self._dtype)
            any_token = torch.ones(len(pooled), dtype=torch.bool, device=pooled.device)
        else:
            tokens, mask = batch["tokens"], batch["token_mask"]
            if not len(tokens):
                # Nothing to read: a text of one token that is cut off, so that there is a graph.
                tokens, mask = tokens.new_zeros(1, 1), mask.new_ones(1, 1)
            pooled = masked_mean(self.body(tokens, mask), mask)[: len(batch["tokens"])]
            any_token = mask.any(1)[: len(batch["tokens"])]
        if self.projection is None:
            return pooled
        return project_pooled(pooled, self.projection.weight, self.projection.bias, any_token)

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    def fingerprint(self) -> str:
        """SHA-256 over the weights of the network and what its tokenizer has learnt."""
        if self.frozen and self._fingerprint is not None:
            return self._fingerprint
        digest = hashlib.sha256(self.tokenizer.state().encode())
        for name, tensor in sorted(self.body.state_dict().items()):
            digest.update(name.encode())
            flat = tensor.detach().cpu().float().contiguous().reshape(-1)
            digest.update(flat.view(torch.uint8).numpy().tobytes())
        self._fingerprint = digest.hexdigest()
        return self._fingerprint
