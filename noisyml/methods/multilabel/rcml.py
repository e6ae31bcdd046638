"""RCML and CCML: two networks rank the samples, exchange what they trust, and are kept apart.

Aksoy, Ravanbakhsh and Demir, "Multi-Label Noise Robust Collaborative Learning for Remote Sensing
Image Classification", IEEE TNNLS 2022 (arXiv 2012.10715), and its predecessor CCML (Aksoy et al.,
ICIP 2021, arXiv 2105.05496). Each network ranks the samples of a batch by how badly it contradicts
their labels, and its peer learns from those it ranks best. A discrepancy between the networks'
early activations is made larger, so that they do not make the same mistakes, and one between their
class scores smaller. CCML ranks by losses too, and late in the run corrects labels that both
networks suspect.
"""

from __future__ import annotations

import copy
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from noisyml import distributed
from noisyml.checks import Interval, NonNegative, Positive, Seed, Share, WholeNonNegative
from noisyml.data.views import Batch
from noisyml.errors import UserError
from noisyml.losses.base import Loss
from noisyml.losses.multilabel.base import MultiLabelLoss
from noisyml.losses.multilabel.rcml import (
    Ranking,
    flip_agreed,
    kept_count,
    ranking_errors,
    squared_mmd,
    swap_rate,
)
from noisyml.methods.multilabel.two_networks import MultiLabelTwoNetworks
from noisyml.methods.parts import Parts
from noisyml.methods.two_networks import NETWORKS, Predict, Seen
from noisyml.selectors.base import Facts, Selection
from noisyml.selectors.small_loss import small_loss
from noisyml.selectors.training_dynamics import entry_facts


class Exchange(NamedTuple):
    """Choices of two networks about a batch and about each other.

    Attributes:
        loss: scalar, the sum of both networks' losses with the shared terms once.
        taught: mean loss of each network over what it learns from.
        disparity: lambda_2 MMD of the early activations, or 0.
        consistency: lambda_3 MMD of the class scores, or 0.
        keep: [B] bool for each network: what *it* trusts, and without a swap learns from.
        rankings: of each network.
        labels: [B, C] that teach, corrected by CCML.
        losses: [B] of each network, of every sample under these labels, detached.
    """

    loss: Tensor
    taught: tuple[Tensor, Tensor]
    disparity: Tensor
    consistency: Tensor
    keep: tuple[Tensor, Tensor]
    rankings: tuple[Ranking, Ranking]
    labels: Tensor
    losses: tuple[Tensor, Tensor]


class RCML(MultiLabelTwoNetworks):
    """Two networks that exchange the samples they rank best.

    The ranking, the share kept and both discrepancies see the global batch.

    Args:
        parts: the loss is of each entry and says how a sample's entries add up (released: the sum
            over classes with bce and focal, their mean with sat and elr); each network has its own
            copy.
        seed: of the run, for random exclusion.
        variant: ``rcml`` ranks by soft probabilities; ``ccml`` by the loss plus `rank_alpha` times
            the errors of hard decisions, and corrects labels.
        ranking: ``group_lasso``, or ``random`` exclusion for comparison.
        miss_alpha: alpha, factor of the groups of absent classes, not negative.
        extra_beta: beta, factor of the groups of present classes, not negative.
        swap: each network learns from what its peer trusts; False: from what it trusts itself.
        swap_start: share of the batch that is trusted in the first epoch, in (0, 1].
        swap_end: the same in the last tenth of the run; between them a line.
        final_full: trust everything in the last tenth.
        warmup_epochs: first epochs that trust everything.
        share_memory: one copy of the loss for both networks, the first using it first (released).
        discrepancy: ``mmd`` or ``none``.
        feature_layer: what is kept apart: ``block1``, ... or ``embedding``, see
            `Encoder.activations`.
        bandwidth: sigma of the kernel in units of squared distance (paper: 10,000 for its layer) or
            the ``median`` of the batch, of activations and class scores each.
        lambda2: factor of the discrepancy of activations, which grows.
        lambda3: factor of the discrepancy of class scores, which shrinks.
        threshold: ccml: probability from which a class is decided to be present.
        rank_alpha: ccml: factor of the errors beside the loss.
        flip_bound: ccml: share of the run after which labels are corrected; 1: never.
        flip_share: ccml: share of the commonly suspected samples that are corrected.
        flipped_ranking: ccml: after corrections each network is ranked by its ``own`` decisions, or
            both by the ``first`` network's (released).
        predict, best_by: see `TwoNetworks`.
    """

    needs_parts: ClassVar[frozenset[str]] = frozenset({"another_encoder", "loss"})
    takes_loss: ClassVar[type[Loss]] = MultiLabelLoss

    def __init__(
        self,
        parts: Parts,
        *,
        seed: Seed = 0,
        variant: Literal["rcml", "ccml"] = "rcml",
        ranking: Literal["group_lasso", "random"] = "group_lasso",
        miss_alpha: NonNegative = 0.2,
        extra_beta: NonNegative = 0.8,
        swap: bool = True,
        swap_start: Annotated[float, Interval(gt=0, le=1)] = 0.6,
        swap_end: Annotated[float, Interval(gt=0, le=1)] = 0.6,
        final_full: bool = False,
        warmup_epochs: WholeNonNegative = 0,
        share_memory: bool = False,
        discrepancy: Literal["mmd", "none"] = "mmd",
        feature_layer: str = "block1",
        bandwidth: Positive | Literal["median"] = "median",
        lambda2: NonNegative = 1.0,
        lambda3: NonNegative = 0.1,
        threshold: Share = 0.5,
        rank_alpha: NonNegative = 0.0,
        flip_bound: Share = 0.9,
        flip_share: Share = 0.01,
        flipped_ranking: Literal["own", "first"] = "own",
        predict: Predict = "best",
        best_by: str | None = None,
    ) -> None:
        super().__init__(parts, predict=predict, best_by=best_by)
        self.loss = parts.need("loss", MultiLabelLoss)
        self.peer_loss = None if share_memory else copy.deepcopy(self.loss)
        self.seed = seed
        self.variant = variant
        self.ranking = ranking
        self.miss_alpha = miss_alpha
        self.extra_beta = extra_beta
        self.swap = swap
        self.swap_start = swap_start
        self.swap_end = swap_end
        self.final_full = final_full
        self.warmup_epochs = warmup_epochs
        self.discrepancy = discrepancy
        self.feature_layer = feature_layer
        self.bandwidth = bandwidth
        self.lambda2 = lambda2
        self.lambda3 = lambda3
        self.threshold = threshold
        self.rank_alpha = rank_alpha
        self.flip_bound = flip_bound
        self.flip_share = flip_share
        self.flipped_ranking = flipped_ranking

    def on_fit_start(self) -> None:
        """Refuse a warm-up of the loss, or of the method, that never ends."""
        super().on_fit_start()
        epochs = self.trainer.max_epochs
        self.loss.check_length(epochs)
        if epochs is not None and 0 < epochs <= self.warmup_epochs:
            raise UserError(
                f"method.warmup_epochs={self.warmup_epochs} trusts everything for the whole run of "
                f"{epochs} epochs: lower it, or raise trainer.max_epochs."
            )

    # -- the step ----------------------------------------------------------------------------

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """One step: both networks see the batch, rank it, exchange it and learn."""
        seen = self.see(batch, [self.feature_layer] if self.discrepancy == "mmd" else [])
        epoch, epochs = self.current_epoch + 1, self.trainer.max_epochs or 1
        share = swap_rate(epoch, epochs, self.swap_start, self.swap_end, self.final_full)
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        found = self.exchange(
            seen,
            len(seen.index)
            if epoch <= self.warmup_epochs
            else kept_count(share, data.plan.batch_size),
            flip=self.variant == "ccml" and epoch / epochs > self.flip_bound,
        )
        return self.outcome(found, seen)

    def exchange(self, seen: Seen, count: int, flip: bool = False) -> Exchange:
        """Rank, correct, select and compare.

        Args:
            seen: the global batch.
            count: K, how many samples each network trusts.
            flip: correct labels that both networks suspect.
        """
        labels = seen.labels
        rankings = self.rank(seen, labels)
        if flip:
            labels = flip_agreed(labels, *rankings, self.flip_share)
            rankings = self.rank(seen, labels)
            if self.flipped_ranking == "first":
                rankings = rankings[0], rankings[0]
        entries = self.entry_losses(seen, labels)
        scores = self.scores(rankings, entries)
        keep = small_loss(scores[0], count), small_loss(scores[1], count)
        for_first, for_second = keep[::-1] if self.swap else keep
        first = self.loss.reduce(entries[0], for_first)
        second = self.loss.reduce(entries[1], for_second)
        disparity = consistency = first.new_zeros(())
        if self.discrepancy == "mmd":
            apart = [view.layers[self.feature_layer] for view in (seen.first, seen.second)]
            disparity = self.lambda2 * squared_mmd(apart[0], apart[1], self.bandwidth)
            consistency = self.lambda3 * squared_mmd(
                seen.first.logits, seen.second.logits, self.bandwidth
            )
        # One backward pass through this sum is one through each network's own loss, to its own
        # parameters: the shared terms stand in both and must not be counted twice.
        loss = first + second + consistency - disparity
        losses = (
            self.loss.per_sample(entries[0].detach()),
            self.loss.per_sample(entries[1].detach()),
        )
        return Exchange(
            loss, (first, second), disparity, consistency, keep, rankings, labels, losses
        )

    @torch.no_grad()
    def rank(self, seen: Seen, labels: Tensor) -> tuple[Ranking, Ranking]:
        """Both networks' rankings of the samples under some labels [B, C]."""
        first, second = (
            ranking_errors(
                (p >= self.threshold).to(p.dtype) if self.variant == "ccml" else p,
                labels,
                self.miss_alpha,
                self.extra_beta,
            )
            for p in (seen.first.logits.sigmoid(), seen.second.logits.sigmoid())
        )
        return first, second

    def entry_losses(self, seen: Seen, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Each network's losses [B, C]; what the losses remember of samples moves on."""
        first = self.loss(seen.first.logits, labels, seen.index, self.current_epoch)
        peer_loss = self.loss if self.peer_loss is None else self.peer_loss
        return first, peer_loss(seen.second.logits, labels, seen.index, self.current_epoch)

    @torch.no_grad()
    def scores(
        self, rankings: tuple[Ranking, Ranking], entries: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """By what each network orders the samples, [B] each; the smallest are trusted."""
        first, second = (ranking.errors for ranking in rankings)
        if self.ranking == "random":
            draw = distributed.agreed_generator(self.seed, self.current_epoch, self.global_step)
            chance = torch.rand(2, len(first), generator=draw).to(first.device)
            return chance[0], chance[1]
        if self.variant == "ccml":
            losses = [self.loss.per_sample(loss) for loss in entries]
            return losses[0] + self.rank_alpha * first, losses[1] + self.rank_alpha * second
        return first, second

    def outcome(self, found: Exchange, seen: Seen) -> dict[str, Any]:
        """Result of `training_step`; the log reads what the first network learns from."""
        judge = 1 if self.swap else 0
        ranking = found.rankings[judge]
        p_clean = 1 / (1 + ranking.errors)
        if self.ranking == "random":
            p_clean = torch.full_like(p_clean, torch.nan)
        selection = Selection(
            found.keep[judge],
            p_clean,
            {
                "suspected": ranking.suspected,
                **{f"kept_{name}": keep for name, keep in zip(NETWORKS, found.keep, strict=True)},
            },
        )
        rows = {
            "logits": (seen.first, seen.second)[judge].logits.detach(),
            "labels": seen.labels,
            "sample_loss": found.losses[judge],
        }
        names = (*NETWORKS, "disparity", "consistency")
        terms = zip(names, (*found.taught, found.disparity, found.consistency), strict=True)
        return {
            "loss": found.loss,
            "selection": selection,
            "index": seen.index,
            "terms": {name: term.detach() for name, term in terms},
            "facts": Facts(rows, entry_facts),
        }
