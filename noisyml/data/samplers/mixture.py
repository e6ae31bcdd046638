"""Batches of labelled and unlabelled samples by share."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from noisyml.checks import Checked, Count, Share, WholeNonNegative
from noisyml.data.samplers.plans import check_batch
from noisyml.errors import UserError
from noisyml.targets import target_of


class Mixture(Checked):
    """A share of labelled samples in every batch, drawn with replacement or from shuffled rounds.

    Args:
        labels: observed labels [N] int64, some of them missing.
        seed: seed of the plan.
        batch_size: global batch size B.
        labelled_share: of the samples of a batch.
        draw: ``weighted``: every sample with replacement, labelled with that probability, as in the
            released codes of GCD, SimGCD and PromptCAL; ``exact``: in every batch that share,
            rounded, each half in rounds without repeats.
        batches_per_epoch: length of an epoch; None: N // B.

    Raises:
        UserError: a batch of more samples than there are, or labels of which all or none are there.
    """

    def __init__(
        self,
        labels: NDArray[np.int64],
        seed: WholeNonNegative,
        batch_size: Count,
        labelled_share: Share = 0.5,
        draw: Literal["weighted", "exact"] = "weighted",
        batches_per_epoch: Count | None = None,
    ) -> None:
        check_batch(len(labels), batch_size)
        marks = target_of(labels).labelled(labels)
        self._halves = (np.flatnonzero(marks), np.flatnonzero(~marks))
        if not all(map(len, self._halves)):
            raise UserError(
                "sampler=mixture mixes labelled and unlabelled samples, and there are "
                f"{len(self._halves[0])} and {len(self._halves[1])}: use sampler=shuffle."
            )
        self.batch_size = batch_size
        self.labelled_share = labelled_share
        self.draw = draw
        self.seed = seed
        self._length = batches_per_epoch or len(labels) // batch_size

    def __len__(self) -> int:
        return self._length

    def epoch(self, epoch: int) -> NDArray[np.int64]:
        """Positions [number of batches, B]."""
        rng = np.random.default_rng([self.seed, epoch, 0x5A6])
        shape = (self._length, self.batch_size)
        if self.draw == "weighted":
            first, second = (rng.integers(len(half), size=shape) for half in self._halves)
            labelled = rng.random(shape) < self.labelled_share
            return np.where(labelled, self._halves[0][first], self._halves[1][second])
        many = round(self.labelled_share * self.batch_size)
        parts = [
            _rounds(half, self._length * width, rng).reshape(self._length, width)
            for half, width in zip(self._halves, (many, self.batch_size - many), strict=True)
        ]
        return rng.permuted(np.concatenate(parts, axis=1), axis=1)


def _rounds(members: NDArray[np.int64], number: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """So many of the members, each as often as any other or once more, in shuffled rounds."""
    times = -(-number // len(members))
    shuffled = [rng.permutation(members) for _ in range(times)]
    return np.concatenate([*shuffled, members[:0]])[:number]
