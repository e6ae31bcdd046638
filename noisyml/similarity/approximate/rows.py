"""Rows of either side of an approximate search, and how many lists they are put into."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from noisyml.errors import UserError
from noisyml.similarity.exact.sources import Array, RowSource

#: Searches a block of queries [Nq, D] float32 for n candidates: scores [Nq, n], larger for nearer,
#: and gallery rows [Nq, n], -1 where fewer were found.
Find = Callable[[Tensor, int], tuple[Tensor, Tensor]]

#: Centroids learn from so many rows each at most; with fewer than the second number, faiss warns.
_TRAIN_ROWS_PER_CENTROID, _FEWEST_ROWS_PER_CENTROID = 256, 39


class Rows:
    """Blocks of one side: float32, contiguous, of unit norm for cosine."""

    def __init__(self, array: Array, what: str, cosine: bool) -> None:
        self._source = RowSource(array, what, torch.device("cpu"))
        self._cosine = cosine
        self._what = what

    def __len__(self) -> int:
        return len(self._source)

    @property
    def dim(self) -> int:
        """D."""
        return self._source.dim

    def block(self, start: int, stop: int) -> Tensor:
        """Rows start .. stop - 1 as [stop - start, D]."""
        return self._prepared(self._source.block(start, stop), start)

    def take(self, index: Tensor) -> Tensor:
        """Rows `index` [n] int64 as [n, D]."""
        return self._prepared(self._source.take(index), None)

    def _prepared(self, rows: Tensor, start: int | None) -> Tensor:
        rows = rows.to(torch.float32)
        # A sum tells at a third of the cost; only where it is not finite are all numbers looked at.
        sound = rows.sum(1).isfinite()
        if not bool(sound.all()):
            sound = rows.isfinite().all(1)
        if not bool(sound.all()):
            place = int((~sound).nonzero()[0])
            where = f" (first: row {start + place})" if start is not None else ""
            raise UserError(
                f"The {self._what} embeddings hold NaN or infinite values{where}; look for a "
                "diverged loss, lower the learning rate or use an earlier checkpoint."
            )
        return torch.nn.functional.normalize(rows, dim=1) if self._cosine else rows.contiguous()


@dataclass(frozen=True)
class ListPlan:
    """Sizes of inverted lists.

    Attributes:
        n_lists: lists that the gallery is divided into.
        n_probes: lists searched per query.
        n_train: gallery rows from which centroids are learnt.
    """

    n_lists: int
    n_probes: int
    n_train: int

    @classmethod
    def of(
        cls,
        n: int,
        n_lists: int | None,
        n_probes: int | None,
        train_size: int | None,
        n_codes: int = 1,
    ) -> ListPlan:
        """The plan for `n` gallery rows; None stands for a default.

        Raises:
            UserError: too few rows to learn from.
            ValueError: more lists to be searched than there are.
        """
        if n_lists is None:
            n_lists = max(1, min(round(4 * math.sqrt(n)), n // _FEWEST_ROWS_PER_CENTROID))
        if n_probes is None:
            n_probes = min(n_lists, max(8, n_lists // 16))
        if not 1 <= n_probes <= n_lists:
            raise ValueError(f"n_probes={n_probes} must be in 1..n_lists={n_lists}")
        n_train = min(n, train_size or _TRAIN_ROWS_PER_CENTROID * max(n_lists, n_codes))
        if n_train < n_lists:
            raise UserError(
                f"{n_train} training rows cannot fill {n_lists} inverted lists: lower n_lists, "
                "raise train_size or search exactly."
            )
        return cls(n_lists, n_probes, n_train)

    def training_rows(self, gallery: Rows, seed: int) -> Tensor:
        """Gallery rows [n_train, D] float32, drawn at random."""
        drawn = np.random.default_rng(seed).choice(len(gallery), self.n_train, replace=False)
        return gallery.take(torch.from_numpy(np.sort(drawn)))
