"""The two banks of InsCLR: negatives alone, and mined positives beside them."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from noisyml.checks import Count, Share
from noisyml.methods.metric_learning.neighbour_graph import NeighbourGraph
from noisyml.similarity.instance_bank import (
    InstanceBank,
    Mined,
    MiningRule,
    NeighbourLists,
    drawn,
    far_images,
    mine_bank,
)


class NegativeBank(InstanceBank):
    """Negatives from the whole training set, far from every image of the batch (``base`` stage).

    Args:
        num_samples: N, images of the training split.
        embedding_size: D.
        rows: negatives drawn for a batch.
        excluded_neighbours: so many neighbours of every image of the batch are no negatives.
        exclude_batch: nor is the batch itself; the released code lets an image meet its own fresh
            copy.
    """

    needs_plain: ClassVar[bool] = False

    def __init__(
        self,
        num_samples: Count,
        embedding_size: Count,
        rows: Count = 100_000,
        excluded_neighbours: Count = 50,
        exclude_batch: bool = False,
    ) -> None:
        super().__init__(num_samples, embedding_size)
        self.rows = rows
        self.excluded_neighbours = excluded_neighbours
        self.exclude_batch = exclude_batch

    def find(
        self, graph: NeighbourGraph, index: Tensor, labels: Tensor, generator: torch.Generator
    ) -> Mined:
        """Rows of the bank for a global batch, all of them negatives.

        Args:
            graph: neighbours of every image.
            index: [B] int64.
            labels: [B] int64.
            generator: the same on every rank.
        """
        far = far_images(
            self.written,
            graph.neighbours,
            index,
            excluded_neighbours=self.excluded_neighbours,
            exclude_batch=self.exclude_batch,
        )
        found = drawn(far, self.rows, generator)
        return Mined(found, torch.full_like(found, len(self.written) + 1))


class MiningBank(InstanceBank):
    """Positives mined from the whole training set, and negatives beside them (``impr`` stage).

    Args:
        num_samples: N, images of the training split.
        embedding_size: D.
        rows: rows of the bank for a batch; positives and far neighbours are never cut.
        mining: the rule by which candidates become positives, see `MiningRule.parse`.
        positive_threshold: neighbours from this similarity on are positives (tau+).
        negative_threshold: neighbours below it are negatives (tau-); between both are candidates.
        negatives: False: positives alone.
        exclude_batch: leave the batch's own images out; the released code does not.
        only_written: leave positives out that no batch has written yet.

    Raises:
        UserError: a rule in another notation, or thresholds in the wrong order.
    """

    needs_plain: ClassVar[bool] = True

    def __init__(
        self,
        num_samples: Count,
        embedding_size: Count,
        rows: Count = 100_000,
        mining: str = "b+i_tr4_avg0.60_k05",
        positive_threshold: Share = 0.75,
        negative_threshold: Share = 0.5,
        negatives: bool = True,
        exclude_batch: bool = False,
        only_written: bool = False,
    ) -> None:
        super().__init__(num_samples, embedding_size, plain=True)
        self.rows = rows
        self.rule = MiningRule.parse(mining)
        self.thresholds = (positive_threshold, negative_threshold)
        self.negatives = negatives
        self.exclude_batch = exclude_batch
        self.only_written = only_written
        self._lists: NeighbourLists | None = None
        nobody = torch.empty(0, 0)
        NeighbourLists.cut(nobody.long(), nobody, *self.thresholds)

    def find(
        self, graph: NeighbourGraph, index: Tensor, labels: Tensor, generator: torch.Generator
    ) -> Mined:
        """Rows of the bank for a global batch: positives with its labels, and negatives.

        Args:
            graph: neighbours of every image, the same until `forget_lists`.
            index: [B] int64.
            labels: [B] int64; rows with a label of 0 or less take no part.
            generator: the same on every rank.
        """
        if self._lists is None:
            self._lists = NeighbourLists.cut(graph.neighbours, graph.similarities, *self.thresholds)
        return mine_bank(
            self,
            self._lists,
            index,
            labels,
            self.rule,
            negative_label=len(self.written) + 1,
            size=self.rows,
            negatives=self.negatives,
            exclude_batch=self.exclude_batch,
            only_written=self.only_written,
            generator=generator,
        )

    def forget_lists(self) -> None:
        """The graph has changed: cut its lists anew at the next call."""
        self._lists = None
