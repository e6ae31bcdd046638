"""Interface of selectors: the evidence they judge by, and their answer."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor, nn

from noisyml.checks import Checked
from noisyml.targets import TargetKind

if TYPE_CHECKING:
    from noisyml.similarity.memory_bank import MemoryBank


@dataclass(frozen=True)
class Evidence:
    """All a selector may look at for one global batch; never a clean label.

    Attributes:
        labels: observed labels [B] int64; several per sample: zeros and ones [B, C] float.
        index: positions in the training split [B] int64.
        embeddings: unit-norm, detached [B, D] or None.
        memory: the bank as it was before this batch, or None.
        proxies: the loss's class proxies [C, D], detached and unit-norm, or None.
        logits: detached class scores [B, C], or None.
        sample_loss: per-sample loss [B], detached, or None.
        entry_loss: loss of each entry of multi-label samples [B, C], detached, or None.
        pair_mass: share of a transport plan's mass on each given pair of image and caption [B], or
            None.
        step: optimiser steps done so far.
        epoch: epochs done so far.
    """

    labels: Tensor
    index: Tensor
    embeddings: Tensor | None = None
    memory: MemoryBank | None = None
    proxies: Tensor | None = None
    logits: Tensor | None = None
    sample_loss: Tensor | None = None
    entry_loss: Tensor | None = None
    pair_mass: Tensor | None = None
    step: int = 0
    epoch: int = 0


@dataclass(frozen=True)
class Selection:
    """A selector's answer for one global batch.

    Attributes:
        keep: [B] bool, True for samples that may teach; a selector of multi-label data may judge
            every entry instead: [B, C].
        p_clean: float like `keep`, the score behind the decision in [0, 1], NaN where none was
            computed.
        extras: what else is said of each sample, [B] by name; logged beside the rest. Two kinds of
            names are scored against the truth: ``suspected`` int64, of multi-label samples the
            class whose entry is most likely wrong; ``kept_NETWORK`` bool, where several networks
            judge, what each of them trusts.
        log_odds: float like `keep`, increasing with `p_clean` and telling samples apart where that
            is 0 or 1 to the last digit: mostly its log-odds. NaN where the score says nothing. None
            where `p_clean` itself tells them apart.
        keeps_all: nothing was left out, as a rule and not by chance: known without looking at
            `keep`, and the same on every rank.
    """

    keep: Tensor
    p_clean: Tensor
    extras: Mapping[str, Tensor] = field(default_factory=dict)
    log_odds: Tensor | None = None
    keeps_all: bool = False

    @classmethod
    def keep_everything(cls, labels: Tensor) -> Selection:
        """All samples kept, none scored; labels [B] or [B, C]."""
        return cls(
            keep=torch.ones(len(labels), dtype=torch.bool, device=labels.device),
            p_clean=torch.full((len(labels),), torch.nan, device=labels.device),
            keeps_all=True,
        )

    @property
    def mask(self) -> Tensor | None:
        """`keep` for a loss; None where nothing is left out, which spares it the masking."""
        return None if self.keeps_all else self.keep


#: Pairs of samples in a batch whose columns are worked out in one go: 16 MiB of numbers.
MOST_PAIRS = 2**22


@dataclass(frozen=True)
class Facts:
    """Entries of a run's ledger for the samples of a batch, beside their selection.

    Training keeps `rows` as they are; columns are worked out for many batches at once, since for a
    small network a dozen operations on every batch would be a tenth of a step.

    Attributes:
        rows: tensors [B, ...] by name, detached.
        then: makes columns [n] or [n, C] of such rows of n samples, each for itself, given by name;
            None: the rows are the columns. Columns take the place of those of the selection.
        by_batch: a sample's columns depend on its batch: `then` takes the rows [k, B, ...] of k
            batches and makes columns [k, B].
    """

    rows: Mapping[str, Tensor]
    then: Callable[..., Mapping[str, Tensor]] | None = None
    by_batch: bool = False

    @staticmethod
    @torch.no_grad()
    def columns(several: Sequence[Facts]) -> dict[str, Tensor]:
        """The columns of batches of one kind, in their order.

        Args:
            several: with rows of the same names and the same `then`; one at least.
        """
        first = several[0]
        if first.then is not None and first.by_batch:
            return _columns_by_batch(several, first.then)
        rows = {name: torch.cat([facts.rows[name] for facts in several]) for name in first.rows}
        return dict(rows if first.then is None else first.then(**rows))


def _columns_by_batch(
    several: Sequence[Facts], then: Callable[..., Mapping[str, Tensor]]
) -> dict[str, Tensor]:
    """See `Facts.columns`; batches of one size stand together, as many as `MOST_PAIRS` lets."""
    made: list[Mapping[str, Tensor]] = []
    for size, like in groupby(several, key=_batch_size):
        alike = list(like)
        together = max(1, MOST_PAIRS // max(1, size * size))
        for start in range(0, len(alike), together):
            part = alike[start : start + together]
            rows = {
                name: torch.stack([facts.rows[name] for facts in part]) for name in part[0].rows
            }
            made.append(then(**rows))
    return {name: torch.cat([columns[name].flatten(0, 1) for columns in made]) for name in made[0]}


def _batch_size(facts: Facts) -> int:
    return len(next(iter(facts.rows.values())))


#: What rows of a split are made of: ``features`` of the backbone, or the head's ``embeddings``.
Source = Literal["features", "embeddings"]


@dataclass(frozen=True)
class SplitRows:
    """All labelled samples of the training split, as the network sees them between two epochs.

    Attributes:
        rows: of this rank's share [n_r, D] float32; n_r may be 0.
        labels: observed labels of all ranks' rows [N] int64, in rank order.
        index: their positions in the training split [N] int64.
    """

    rows: Tensor
    labels: Tensor
    index: Tensor


class Selector(Checked, nn.Module):
    """Decides which samples of a batch to trust; what it remembers lives in buffers.

    Under DDP every rank calls `select` with the same gathered batch and thus holds the same state.
    """

    #: Fields of `Evidence` (beyond labels and index) that must not be None.
    needs: ClassVar[frozenset[str]] = frozenset()
    #: Kinds of labels it can judge.
    target_kinds: ClassVar[frozenset[TargetKind]] = frozenset({"single"})
    #: False for a selector that never computes a score.
    gives_scores: ClassVar[bool] = True

    def begin(self, steps: int | None, epochs: int | None) -> None:
        """Learn how long the run is, before its first step; default: it does not matter.

        Args:
            steps: calls of `select` in the whole run; None: no end is set.
            epochs: of the whole run, or None.

        Raises:
            UserError: nothing would ever be judged.
        """

    @torch.no_grad()
    def begin_epoch(self, epoch: int, see: Callable[[Source], SplitRows], changed: bool) -> None:
        """Look at the whole training split before an epoch; default: nobody looks.

        Every rank calls it, and `see` is a collective call.

        Args:
            epoch: from 0.
            see: passes the split through the network.
            changed: labels are others than in the epoch before.
        """

    @torch.no_grad()
    @abstractmethod
    def select(self, evidence: Evidence) -> Selection:
        """Judge one global batch."""

    @torch.no_grad()
    def update(self, evidence: Evidence, selection: Selection) -> None:
        """Learn from the batch after the optimiser step; default: nothing to learn."""
