"""Embeddings of earlier steps, with the sum of every class kept up to date as rows come and go.

XBM (Wang et al., "Cross-Batch Memory for Embedding Learning", CVPR 2020) feeds losses with it;
PRISM (Liu et al., "Noise-resistant Deep Metric Learning with Ranking-based Instance Selection",
CVPR 2021) scores samples by its class means.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Literal, NamedTuple, Self

import torch
from torch import Tensor

from noisyml.checks import Count, checked
from noisyml.errors import UserError
from noisyml.similarity.pinned_buffers import PinnedBuffers


class Rows(NamedTuple):
    """Rows of a bank: embeddings [M, D], labels [M] int64, index [M] int64."""

    embeddings: Tensor
    labels: Tensor
    index: Tensor  # type: ignore[assignment]  # hides tuple.index, which nobody needs here


@checked
class MemoryBank(PinnedBuffers):
    """The last `size` embeddings, their labels and sample indices, and the sums of their classes.

    Args:
        size: rows K the bank can hold.
        dim: embedding size D.
        num_classes: C; labels lie in ``0 .. C - 1``.
        wrap: what is overwritten when the end is reached. ``ring``: always the oldest rows
            (exact first in, first out). ``released``: the rule of the code released with PRISM; a
            batch that does not fit overwrites the *last* rows and the pointer returns to 0.
        dtype: number format of the stored embeddings; ``.half()`` and the like do not change it.

    Attributes:
        embeddings: [K, D], zero where empty.
        labels: [K] int64, -1 where empty.
        index: [K] int64, positions in the training split, -1 where empty.
        class_sums: [C, D] float64, sum of the stored rows of each class; rows of less than float64
            enter it as multiples of 2^-32, so that it is exact (below 2^21) and the same bits on
            every rank, whatever the order of summation.
        class_counts: [C] int64, number of stored rows of each class.

    Example:
        >>> bank = MemoryBank(size=2, dim=1, num_classes=3)
        >>> rows = torch.tensor([[1.0], [-1.0], [1.0]])
        >>> for i in range(3):
        ...     bank.enqueue(rows[i : i + 1], torch.tensor([i]), torch.tensor([i]))
        >>> bank.filled().labels.tolist(), bank.class_counts.tolist()
        ([2, 1], [0, 1, 1])
    """

    embeddings: Tensor
    labels: Tensor
    index: Tensor
    class_sums: Tensor
    class_counts: Tensor

    def __init__(
        self,
        size: Count,
        dim: Count,
        num_classes: Count,
        wrap: Literal["ring", "released"] = "ring",
        dtype: torch.dtype | Literal["float16", "float32", "float64"] = torch.float32,
    ) -> None:
        super().__init__()
        self.size = size
        self.wrap = wrap
        stored = getattr(torch, dtype) if isinstance(dtype, str) else dtype
        self.register_buffer("embeddings", torch.zeros(size, dim, dtype=stored))
        self.register_buffer("labels", torch.full((size,), -1, dtype=torch.int64))
        self.register_buffer("index", torch.full((size,), -1, dtype=torch.int64))
        self.register_buffer("class_sums", torch.zeros(num_classes, dim, dtype=torch.float64))
        self.register_buffer("class_counts", torch.zeros(num_classes, dtype=torch.int64))
        # Python integers, so that no step waits for the device to learn where to write.
        self._pointer = 0
        self._length = 0
        self._version = 0
        self._changes: deque[tuple[int, Tensor]] = deque()
        self._changes_known_from = 0

    @property
    def dim(self) -> int:
        """Embedding size D."""
        return self.embeddings.shape[1]

    @property
    def num_classes(self) -> int:
        """Number of classes C."""
        return len(self.class_counts)

    @property
    def pointer(self) -> int:
        """The row where the next batch begins; `size` if the released rule is about to wrap."""
        return self._pointer

    @property
    def is_full(self) -> bool:
        """True once every row is occupied."""
        return self._length == self.size

    @property
    def version(self) -> int:
        """A number that grows with every change; see `changed_since`."""
        return self._version

    def __len__(self) -> int:
        return self._length

    def filled(self) -> Rows:
        """The occupied rows, as views: embeddings [M, D], labels [M] and index [M]."""
        return Rows(
            self.embeddings[: self._length],
            self.labels[: self._length],
            self.index[: self._length],
        )

    def changed_since(self, version: int) -> Tensor | None:
        """The classes whose rows changed after `version` was current.

        Args:
            version: an earlier value of `version`.

        Returns:
            [n] int64 with repetitions, possibly empty; None if it lies too far back (or the bank
            was loaded or moved since) and every class must be taken as changed.
        """
        if version < self._changes_known_from:
            return None
        later = [labels for at, labels in self._changes if at > version]
        return torch.cat(later) if later else self.labels.new_empty(0)

    @torch.no_grad()
    def enqueue(self, embeddings: Tensor, labels: Tensor, index: Tensor) -> None:
        """Store a batch; costs O(q D) whatever the bank's size.

        Args:
            embeddings: [q, D], unit norm; of more than `size` rows the last `size` stay.
            labels: [q] int64.
            index: [q] int64, positions in the training split.

        Raises:
            ValueError: shapes that do not fit.
            UserError: a label outside ``0 .. num_classes - 1`` (on an accelerator, where reading
                it would stall every step, a device-side assertion instead).
        """
        q = len(embeddings)
        if embeddings.shape != (q, self.dim) or labels.shape != (q,) or index.shape != (q,):
            raise ValueError(
                f"expected embeddings [q, {self.dim}], labels [q] and index [q], got "
                f"{tuple(embeddings.shape)}, {tuple(labels.shape)} and {tuple(index.shape)}"
            )
        if q == 0:
            return
        self._check_labels(labels)
        stored = min(q, self.size)
        rows = Rows(
            embeddings[-stored:].to(self.embeddings),
            labels[-stored:].to(self.labels),
            index[-stored:].to(self.index),
        )
        if self.wrap == "ring":
            start = self._pointer if q < self.size else 0
            fits = min(stored, self.size - start)
            touched = self._write(start, Rows(*(field[:fits] for field in rows)))
            if fits < stored:
                touched += self._write(0, Rows(*(field[fits:] for field in rows)))
            self._pointer = (start + stored) % self.size
        elif self._pointer + q > self.size:
            touched = self._write(self.size - stored, rows)
            self._pointer = 0
        else:
            touched = self._write(self._pointer, rows)
            self._pointer += q
        self._remember_change(torch.cat(touched))

    def get_extra_state(self) -> dict[str, int]:
        """Pointer and length, for the state dict."""
        return {"pointer": self._pointer, "length": self._length}

    def set_extra_state(self, state: dict[str, int]) -> None:
        """Take over pointer and length from a state dict."""
        self._pointer = int(state["pointer"])
        self._length = int(state["length"])
        self._forget_changes()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        self._forget_changes()
        return self

    def _check_labels(self, labels: Tensor) -> None:
        inside = ((labels >= 0) & (labels < self.num_classes)).all()
        if labels.device.type != "cpu":
            torch._assert_async(inside, "a label lies outside the memory bank's classes")
        elif not inside:
            raise UserError(
                f"The memory bank was built for labels 0 to {self.num_classes - 1} but was handed "
                f"labels {int(labels.min())} to {int(labels.max())}: number the classes from 0 "
                "without gaps, or set num_classes to the largest label plus 1."
            )

    def _write(self, start: int, rows: Rows) -> list[Tensor]:
        """Put `rows` at ``start``; returns the labels of the evicted and of the new rows."""
        stop = start + len(rows.labels)
        occupied = slice(start, max(start, min(stop, self._length)))
        evicted = self.labels[occupied].clone()
        self._add(evicted, self.embeddings[occupied], sign=-1)
        # A class that lost its last row is exactly empty again: no rounding may survive in its sum.
        gone = self.class_counts[evicted] == 0
        self.class_sums[evicted] = self.class_sums[evicted].masked_fill(gone[:, None], 0.0)

        self.embeddings[start:stop] = rows.embeddings
        self.labels[start:stop] = rows.labels
        self.index[start:stop] = rows.index
        self._add(rows.labels, rows.embeddings, sign=1)
        self._length = max(self._length, stop)
        return [evicted, rows.labels]

    def _add(self, labels: Tensor, embeddings: Tensor, sign: int) -> None:
        addends = embeddings.to(torch.float64)
        if embeddings.dtype != torch.float64:
            # Accelerators add in any order; without rounding no order can make ranks differ.
            addends = addends.mul_(2.0**32).round_().mul_(2.0**-32)
        self.class_sums.index_add_(0, labels, addends, alpha=sign)
        self.class_counts.index_add_(0, labels, torch.ones_like(labels), alpha=sign)

    def _remember_change(self, classes: Tensor) -> None:
        self._version += 1
        self._changes.append((self._version, classes))
        # Beyond one entry per class, recomputing every class is no dearer than the record.
        while sum(len(labels) for _, labels in self._changes) > self.num_classes:
            self._changes_known_from, _ = self._changes.popleft()

    def _forget_changes(self) -> None:
        self._version += 1
        self._changes.clear()
        self._changes_known_from = self._version
