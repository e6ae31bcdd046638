"""Plans of batches: pure functions of (labels, seed, epoch).

A plan is made for the *global* batch on every rank from the same numbers, and each rank takes its
slice, so two ranks with half a batch each see what one process with a whole batch sees. A batch
also carries one seed per drawn sample for its random augmentation, which therefore depends neither
on the number of workers nor on where a run was interrupted.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from noisyml.checks import Checked, Count, WholeNonNegative
from noisyml.errors import UserError
from noisyml.targets import Labels, target_of


class DrawnBatch(NamedTuple):
    """Positions in the training split [b] int64 and augmentation seeds [b] uint64."""

    index: NDArray[np.int64]  # type: ignore[assignment]  # hides tuple.index, which nobody needs
    seed: NDArray[np.uint64]


class BatchPlan(Protocol):
    """The batches of an epoch."""

    @property
    def batch_size(self) -> int:
        """Global batch size."""
        ...

    def __len__(self) -> int:
        """Number of batches in an epoch."""
        ...

    def epoch(self, epoch: int) -> NDArray[np.int64]:
        """Positions [number of batches, batch_size] of one epoch; short rows end in `EMPTY`."""
        ...


@runtime_checkable
class ResumablePlan(Protocol):
    """A plan whose epochs depend on those before them, and which can go on from a state."""

    def begin(self, epoch: int) -> None:
        """Begin with that epoch instead of the first."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """The state in which the last epoch asked for began."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> bool:
        """Go on from a state; False if it is not one of this plan."""
        ...


#: Fills the rows of batches that hold fewer samples than the others.
EMPTY = -1


def check_batch(samples: int, batch_size: int) -> None:
    """Raise `UserError` unless a batch fits into the split."""
    if batch_size > samples:
        raise UserError(
            f"sampler.batch_size={batch_size} exceeds the {samples} training samples; lower it."
        )


def check_one_label(labels: Labels) -> None:
    """Raise `UserError` unless every sample has one label, by which a batch can be drawn."""
    target = target_of(labels)
    if not target.exclusive:
        raise UserError(
            f"The sampler draws batches by class, but this data set gives {target.words}: use "
            "sampler=shuffle."
        )
    if not target.labelled(labels).all():
        raise UserError(
            "The sampler draws batches by class, but some samples have no label: use "
            "sampler=mixture."
        )


class MPerClass(Checked):
    """P x K batches: P distinct classes, K samples of each.

    Each class's samples are padded to a multiple of K with random repeats, shuffled and cut into
    chunks of K. A batch draws P distinct classes without replacement, with probability proportional
    to the chunks they have left, and takes one chunk of each; when fewer than P classes have chunks
    left, all are refilled. (The sampler of the released PRISM code.)

    Args:
        labels: observed labels [N] int64.
        seed: seed of the plan.
        batch_size: global batch size B, a multiple of `samples_per_class`.
        samples_per_class: K; None: the smallest divisor of B from 4 up with which the classes of
            the split can fill a batch.
        batches_per_epoch: length of an epoch; None: as many as there are.

    Raises:
        UserError: B exceeds N or is not a multiple of K, there are fewer than B/K classes, or
            samples have several labels.
    """

    def __init__(
        self,
        labels: NDArray[np.int64],
        seed: WholeNonNegative,
        batch_size: Count,
        samples_per_class: Count | None = None,
        batches_per_epoch: Count | None = None,
    ) -> None:
        check_one_label(labels)
        check_batch(len(labels), batch_size)
        if samples_per_class is None:
            classes = len(np.unique(labels))
            fitting = (k for k in range(4, batch_size) if batch_size % k == 0)
            samples_per_class = next((k for k in fitting if batch_size // k <= classes), batch_size)
        if batch_size % samples_per_class:
            raise UserError(
                f"sampler.batch_size={batch_size} is not a multiple of "
                f"sampler.samples_per_class={samples_per_class}; change one of them."
            )
        self.batch_size = batch_size
        self.samples_per_class = samples_per_class
        self.classes_per_batch = batch_size // samples_per_class
        self.seed = seed
        order = np.argsort(labels, kind="stable")
        _, starts, counts = np.unique(labels[order], return_index=True, return_counts=True)
        if len(counts) < self.classes_per_batch:
            raise UserError(
                f"A batch of {batch_size} with {samples_per_class} samples per class needs "
                f"{self.classes_per_batch} classes, but the training split has {len(counts)}; "
                f"lower sampler.batch_size or raise sampler.samples_per_class."
            )
        self._members = order
        self._starts = starts
        self._counts = counts
        self._length = batches_per_epoch or len(labels) // batch_size

    def __len__(self) -> int:
        return self._length

    def epoch(self, epoch: int) -> NDArray[np.int64]:
        """Positions [number of batches, B]; rows list their classes chunk after chunk."""
        rng = np.random.default_rng([self.seed, epoch, 0x5A3])
        batches = np.empty((self._length, self.batch_size), dtype=np.int64)
        left = np.zeros(len(self._counts), dtype=np.int64)
        for row in batches:
            if np.count_nonzero(left) < self.classes_per_batch:
                chunks, first, left = self._fill(rng)
            chosen = self._draw_classes(left, rng)
            left[chosen] -= 1
            row[:] = chunks[first[chosen] + left[chosen]].reshape(-1)
        return batches

    def _draw_classes(
        self, weight: NDArray[np.int64], rng: np.random.Generator
    ) -> NDArray[np.int64]:
        """P distinct classes, successive draws proportional to `weight` (exponential races)."""
        with np.errstate(divide="ignore"):
            arrival = rng.standard_exponential(len(weight)) / weight
        p = self.classes_per_batch
        return np.argpartition(arrival, p - 1)[:p] if p < len(weight) else np.argsort(arrival)

    def _fill(
        self, rng: np.random.Generator
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Chunks [n, K], the first chunk of each class, and the chunks per class."""
        k = self.samples_per_class
        chunk_counts = -(-self._counts // k)
        slots = chunk_counts * k
        class_of_slot = np.repeat(np.arange(len(slots)), slots)
        first_slot = np.cumsum(slots) - slots
        position = np.arange(len(class_of_slot)) - first_slot[class_of_slot]
        count = self._counts[class_of_slot]
        extra = position >= count
        position[extra] = (rng.random(int(extra.sum())) * count[extra]).astype(np.int64)
        members = self._members[self._starts[class_of_slot] + position]
        shuffled = np.lexsort((rng.random(len(members)), class_of_slot))
        return members[shuffled].reshape(-1, k), first_slot // k, chunk_counts


class Shuffle(Checked):
    """Every sample once per epoch in random order.

    Args:
        labels: observed labels [N] or [N, C]; only N matters.
        seed: seed of the plan.
        batch_size: global batch size.
        batches_per_epoch: length of an epoch, at most that; None: as many batches as there are.
        drop_last: leave an incomplete last batch out.

    Raises:
        UserError: fewer samples than a batch holds.
    """

    def __init__(
        self,
        labels: Labels,
        seed: WholeNonNegative,
        batch_size: Count,
        batches_per_epoch: Count | None = None,
        drop_last: bool = True,
    ) -> None:
        check_batch(len(labels), batch_size)
        self.batch_size = batch_size
        self.seed = seed
        self._n = len(labels)
        most = self._n // batch_size if drop_last else -(-self._n // batch_size)
        self._length = min(batches_per_epoch or most, most)

    def __len__(self) -> int:
        return self._length

    def epoch(self, epoch: int) -> NDArray[np.int64]:
        """Positions [number of batches, batch_size]."""
        order = np.random.default_rng([self.seed, epoch, 0x5A4]).permutation(self._n)
        drawn = np.full(self._length * self.batch_size, EMPTY, dtype=np.int64)
        drawn[: self._n] = order[: len(drawn)]
        return drawn.reshape(self._length, self.batch_size)


class Cycle(Checked):
    """Epochs of one length, whatever the number of samples: one shuffled pass after the other.

    Args:
        labels: observed labels of N samples; only N matters.
        seed: seed of the plan.
        batch_size: global batch size; may exceed N, samples then occur more than once in a batch.
        batches_per_epoch: length of an epoch.
    """

    def __init__(
        self,
        labels: Labels,
        seed: WholeNonNegative,
        batch_size: Count,
        batches_per_epoch: Count,
    ) -> None:
        self.batch_size = batch_size
        self.seed = seed
        self._n = len(labels)
        self._length = batches_per_epoch

    def __len__(self) -> int:
        return self._length

    def epoch(self, epoch: int) -> NDArray[np.int64]:
        """Positions [number of batches, batch_size]; epochs go on where the last one ended."""
        drawn = self._length * self.batch_size
        first, last = epoch * drawn // self._n, -(-(epoch + 1) * drawn // self._n)
        passes = [
            np.random.default_rng([self.seed, number, 0x5A6]).permutation(self._n)
            for number in range(first, last)
        ]
        start = epoch * drawn - first * self._n
        whole = np.concatenate(passes)[start : start + drawn]
        return whole.reshape(self._length, self.batch_size)


@dataclass(frozen=True)
class OnSubset:
    """A plan whose positions refer to a subset of the split.

    Attributes:
        plan: of the subset.
        usable: positions of the subset in the split.
    """

    plan: BatchPlan
    usable: NDArray[np.int64]

    @property
    def batch_size(self) -> int:
        """Of the plan."""
        return self.plan.batch_size

    def __len__(self) -> int:
        return len(self.plan)

    def epoch(self, epoch: int) -> NDArray[np.int64]:
        """Positions in the split [number of batches, batch_size]."""
        batches = self.plan.epoch(epoch)
        return np.where(batches == EMPTY, EMPTY, self.usable[batches])


class PlannedBatches(Sampler[DrawnBatch]):
    """This rank's part of a plan, restartable at any batch of any epoch.

    Where a batch is short, ranks hold different numbers of its samples, and perhaps none.

    Args:
        plan: the global plan.
        seed: seed of the augmentation seeds.
        rank: this process.
        world_size: number of processes; must divide the global batch size.
        epoch: the epoch to start in.
        start: batches of that epoch to skip (they were consumed before an interruption).

    Raises:
        UserError: the batch cannot be divided among the processes.
    """

    def __init__(
        self,
        plan: BatchPlan,
        seed: WholeNonNegative,
        rank: int = 0,
        world_size: int = 1,
        epoch: int = 0,
        start: int = 0,
    ) -> None:
        if plan.batch_size % world_size:
            raise UserError(
                f"sampler.batch_size={plan.batch_size} (the global batch) cannot be divided among "
                f"{world_size} processes; make it a multiple."
            )
        #: May be exchanged for one of the same length; holds from the next iteration on.
        self.plan = plan
        self._seed = seed
        self._rank = rank
        self._world_size = world_size
        self._epoch = epoch
        self._start = start

    @property
    def sampler(self) -> PlannedBatches:
        """Lightning looks here for `set_epoch`."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration; another epoch starts at its first batch."""
        if epoch != self._epoch:
            self._epoch, self._start = epoch, 0

    def __len__(self) -> int:
        return len(self.plan)

    def __iter__(self) -> Iterator[DrawnBatch]:
        epoch, start = self._epoch, self._start
        batches = self.plan.epoch(epoch)
        for number in range(start, len(batches)):
            entropy = np.random.SeedSequence([self._seed, epoch, number])
            seeds = entropy.generate_state(self.plan.batch_size, np.uint64).astype(np.uint64)
            drawn = batches[number][batches[number] != EMPTY]
            # The first ranks get one more of a short batch; the last may get nothing.
            yield DrawnBatch(self._share(drawn), self._share(seeds[: len(drawn)]))

    def _share(self, rows: NDArray[Any]) -> NDArray[Any]:
        return np.array_split(rows, self._world_size)[self._rank]
