"""Batches balanced over classes as released training codes draw them.

`ClassBalanced` is the sampler of ProxyNCA++ (Teh, DeVries and Taylor, ECCV 2020, arXiv 2004.01113),
draw for draw; `RandomClasses` follows that of RKD (Park et al., CVPR 2019, arXiv 1904.05068).
`noisyml.data.samplers.plans.MPerClass` shows every sample of an epoch more evenly.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from noisyml.checks import Checked, Count, WholeNonNegative
from noisyml.data.samplers.plans import EMPTY, check_batch, check_one_label
from noisyml.errors import UserError


class ClassBalanced(Checked):
    """P distinct classes, all equally likely, and the next K samples of each.

    Every class keeps a shuffled list and a cursor, which move on from epoch to epoch; where fewer
    than K samples are left, the list is shuffled anew and the rest is skipped. A class with fewer
    than K samples contributes all it has, so batches may be short.

    Args:
        labels: observed labels [N] int64.
        seed: seed of the plan; of the generator and in the order of the released code.
        batch_size: global batch size B, a multiple of `samples_per_class`; short batches hold less.
        samples_per_class: K.
        batches_per_epoch: length of an epoch; None: as many as keep below N samples counted at B
            each, as released: ``N // B``, or one fewer if B divides N.

    Raises:
        UserError: B is not below N or not a multiple of K, or there are fewer than B/K classes.
    """

    _kept: dict[str, Any]

    def __init__(
        self,
        labels: NDArray[np.int64],
        seed: WholeNonNegative,
        batch_size: Count,
        samples_per_class: Count = 4,
        batches_per_epoch: Count | None = None,
    ) -> None:
        check_one_label(labels)
        check_batch(len(labels), batch_size)
        if batch_size % samples_per_class:
            raise UserError(
                f"sampler.batch_size={batch_size} is not a multiple of "
                f"sampler.samples_per_class={samples_per_class}; change one of them."
            )
        if batches_per_epoch is None and batch_size == len(labels):
            raise UserError(
                f"sampler.batch_size={batch_size} takes all training samples, and this sampler "
                f"stops before the last: lower it or set sampler.batches_per_epoch."
            )
        self.batch_size = batch_size
        self.samples_per_class = samples_per_class
        self.classes_per_batch = batch_size // samples_per_class
        self.seed = seed
        self._members, self._ends = _by_class(labels)
        self._digest = hashlib.sha256(labels.astype("<i8").tobytes()).hexdigest()
        if len(self._ends) < self.classes_per_batch:
            raise UserError(
                f"A batch of {batch_size} with {samples_per_class} samples per class needs "
                f"{self.classes_per_batch} classes, but the training split has {len(self._ends)}; "
                f"lower sampler.batch_size or raise sampler.samples_per_class."
            )
        self._length = batches_per_epoch or (len(labels) - 1) // batch_size
        self._restart()

    def __len__(self) -> int:
        return self._length

    def epoch(self, epoch: int) -> NDArray[np.int64]:
        """Positions [number of batches, B]; short rows end in `EMPTY`.

        A function of the epoch alone (after `begin` of that epoch and the first one): the epochs
        before it are replayed where neither was asked for nor a state taken over.
        """
        if epoch < self._epochs_drawn and self._kept["epoch"] <= epoch:
            self._take(self._kept)
        elif epoch < self._epochs_drawn:
            self._restart()
        while self._epochs_drawn < epoch:
            self._draw()
        self._kept = self._state()
        return self._draw()

    def begin(self, epoch: int) -> None:
        """Begin with that epoch instead of the first, with draws of its own: none to replay."""
        self._restart(epoch)

    def state_dict(self) -> dict[str, Any]:
        """The state in which the last epoch asked for began: tensors and plain numbers."""
        return {**self._kept, "labels": self._digest, "seed": self.seed}

    def load_state_dict(self, state: dict[str, Any]) -> bool:
        """Go on from a state; one of other labels or of another seed is left aside.

        Returns:
            True if it was taken.
        """
        if (state.get("labels"), state.get("seed")) != (self._digest, self.seed):
            return False
        self._kept = {name: state[name] for name in self._kept}
        self._take(self._kept)
        return True

    def _restart(self, epoch: int = 0) -> None:
        self._rng = np.random.RandomState([self.seed, epoch] if epoch else self.seed)
        self._epochs_drawn = epoch
        self._shuffled = self._members.copy()
        self._lists = np.split(self._shuffled, self._ends[:-1])
        for members in self._lists:
            self._rng.shuffle(members)
        self._cursors = [0] * len(self._lists)
        self._kept = self._state()

    def _state(self) -> dict[str, Any]:
        _, key, position, *_ = self._rng.get_state()
        return {
            "epoch": self._epochs_drawn,
            "members": torch.from_numpy(self._shuffled.copy()),
            "cursors": torch.tensor(self._cursors),
            "generator": torch.from_numpy(np.asarray(key, dtype=np.int64)),
            "position": int(position),
        }

    def _take(self, state: dict[str, Any]) -> None:
        key = state["generator"].numpy().astype(np.uint32)
        self._rng.set_state(("MT19937", key, state["position"], 0, 0.0))
        self._epochs_drawn = state["epoch"]
        self._shuffled = state["members"].numpy().copy()
        self._lists = np.split(self._shuffled, self._ends[:-1])
        self._cursors = state["cursors"].tolist()

    def _draw(self) -> NDArray[np.int64]:
        """One more epoch, class by class: the generator's draws come in this order."""
        k = self.samples_per_class
        batches = np.full((self._length, self.batch_size), EMPTY, dtype=np.int64)
        for row in batches:
            taken = []
            classes = self._rng.choice(len(self._lists), self.classes_per_batch, replace=False)
            for label in classes.tolist():
                members, at = self._lists[label], self._cursors[label]
                taken.append(members[at : at + k].copy())
                self._cursors[label] = at + k
                if at + 2 * k > len(members):
                    self._rng.shuffle(members)
                    self._cursors[label] = 0
            drawn = np.concatenate(taken)
            row[: len(drawn)] = drawn
        self._epochs_drawn += 1
        return batches


class RandomClasses(Checked):
    """Classes in random order, up to K random samples of each, until the batch is full.

    The last class of a batch is cut, so B need not be a multiple of K. Batches do not depend on
    each other.

    Args:
        labels: observed labels [N] int64.
        seed: seed of the plan.
        batch_size: global batch size B.
        samples_per_class: K.
        batches_per_epoch: length of an epoch; None: ``N // B``.

    Raises:
        UserError: B exceeds N, or K samples of every class do not fill a batch.
    """

    def __init__(
        self,
        labels: NDArray[np.int64],
        seed: WholeNonNegative,
        batch_size: Count,
        samples_per_class: Count = 5,
        batches_per_epoch: Count | None = None,
    ) -> None:
        check_one_label(labels)
        check_batch(len(labels), batch_size)
        self.batch_size = batch_size
        self.samples_per_class = samples_per_class
        self.seed = seed
        self._members, self._ends = _by_class(labels)
        self._counts = np.diff(self._ends, prepend=0)
        self._shares = np.minimum(self._counts, samples_per_class)
        if self._shares.sum() < batch_size:
            raise UserError(
                f"{samples_per_class} samples of each of the {len(self._ends)} classes make "
                f"{self._shares.sum()}, fewer than sampler.batch_size={batch_size}; lower it or "
                f"raise sampler.samples_per_class."
            )
        self._length = batches_per_epoch or len(labels) // batch_size

    def __len__(self) -> int:
        return self._length

    def epoch(self, epoch: int) -> NDArray[np.int64]:
        """Positions [number of batches, B]; rows list their classes one after the other."""
        rng = np.random.default_rng([self.seed, epoch, 0x5A6])
        return np.stack([self._batch(rng) for _ in range(self._length)])

    def _batch(self, rng: np.random.Generator) -> NDArray[np.int64]:
        order = rng.permutation(len(self._ends))
        needed = np.searchsorted(np.cumsum(self._shares[order]), self.batch_size) + 1
        chosen = order[:needed]
        counts = self._counts[chosen]
        turn = np.repeat(np.arange(needed), counts)
        place = np.arange(len(turn)) - np.repeat(np.cumsum(counts) - counts, counts)
        members = self._members[(self._ends[chosen] - counts)[turn] + place]
        # Shuffled within each class, the first K places are K samples without replacement.
        shuffled = members[np.lexsort((rng.random(len(turn)), turn))]
        return shuffled[place < self.samples_per_class][: self.batch_size]


def _by_class(labels: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Positions [N] ordered by class, and where each class ends [C]."""
    counts = np.unique(labels, return_counts=True)[1]
    return np.argsort(labels, kind="stable"), np.cumsum(counts)
