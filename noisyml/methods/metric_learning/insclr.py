"""InsCLR: instance retrieval from unlabelled images by mining neighbours.

Deng et al., "InsCLR: Improving Instance Retrieval with Self-Supervision", AAAI 2022 (arXiv
2112.01390). Every image is a class of its own at first. A batch holds anchors and the nearest
neighbours of each, found before training; neighbours that look wrong are rejected, and the others
are positives of their anchor. A bank with the last embedding of every image adds negatives
(``bank=negatives``, the ``base`` stages) or mined positives as well (``bank=mining``, the ``impr``
stage). Labels of the data set are never read in training.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from noisyml import distributed
from noisyml.checks import Count, NonNegative, Positive, Share, WholeNonNegative
from noisyml.data.samplers.groups import WithNeighbours
from noisyml.data.samplers.plans import BatchPlan
from noisyml.data.views import Batch
from noisyml.errors import UserError
from noisyml.losses.self_supervised.instance_contrast import (
    batch_instance_contrast,
    memory_instance_contrast,
)
from noisyml.methods.base import Method
from noisyml.methods.metric_learning.instance_banks import MiningBank, NegativeBank
from noisyml.methods.metric_learning.neighbour_graph import NeighbourGraph
from noisyml.methods.metric_learning.objectives import MakeObjective, terms_of
from noisyml.methods.parts import Parts
from noisyml.methods.passes import batches_on, evaluation_mode
from noisyml.models.multi_scale import multi_scale

#: Seeds the random transforms of the pass that fills the bank.
_FILLING_PASS = 0


class InsCLR(Method):
    """Anchors, their neighbours and a bank of all images; see the head of this module.

    Args:
        parts: no loss, selector or memory of the run is asked for.
        graph: makes the neighbours of every image from ``num_samples``.
        bank: makes the bank from ``num_samples`` and ``embedding_size``; None: the batch alone.
        pairs: positives of an anchor are its ``neighbours``, or further ``views`` of itself (the
            baseline of augmentation alone).
        objective: another loss on the batch: makes SimCLR's or MoCo's from ``encoder``; None:
            InsCLR's pair loss, to which `margin`, `positive_margin` and `hinge`
            belong.
        num_neighbours: K, so many rows of the batch belong to each anchor beside itself.
        selection: neighbours that are rejected: ``none``; ``fixed``: those less similar to the
            anchor than the threshold; ``dynamic``: than the threshold times the most similar one.
        selection_threshold: see above, in [0, 1].
        always_keep: so many nearest neighbours are never rejected.
        judge_by: similarities of images without augmentation (``plain``), or of the training views
            (``training``).
        rejected: rejected neighbours of one anchor ``attract`` each other in the batch loss, as in
            the released code, or are ``alone``.
        margin: negatives count above this similarity.
        positive_margin: positives count below 1 minus this.
        hinge: negatives add what exceeds the margin, in place of the whole similarity; the gradient
            is the same.
        memory_weight: w, weight of the loss against the bank.
        write_after: steps after which the bank is written.
        read_after: steps after which it is read.
        scales: image scales of evaluation, see `multi_scale`.
        seed: of the rows drawn from the bank.

    Raises:
        UserError: a bank that is read before it is written.
    """

    def __init__(
        self,
        parts: Parts,
        *,
        graph: Callable[..., NeighbourGraph],
        bank: Callable[..., NegativeBank | MiningBank] | None = None,
        pairs: Literal["neighbours", "views"] = "neighbours",
        objective: MakeObjective | None = None,
        num_neighbours: Count = 3,
        selection: Literal["none", "fixed", "dynamic"] = "none",
        selection_threshold: Share = 0.6,
        always_keep: WholeNonNegative = 0,
        judge_by: Literal["plain", "training"] = "plain",
        rejected: Literal["attract", "alone"] = "attract",
        margin: float = 0.4,
        positive_margin: NonNegative = 0.0,
        hinge: bool = False,
        memory_weight: NonNegative = 1.0,
        write_after: WholeNonNegative = 0,
        read_after: WholeNonNegative = 0,
        scales: Sequence[Positive] = (1.0,),
        seed: WholeNonNegative = 0,
    ) -> None:
        super().__init__(parts)
        sizes = parts.sizes
        self.graph = graph(num_samples=sizes.num_samples)
        self.bank = (
            None
            if bank is None
            else bank(num_samples=sizes.num_samples, embedding_size=sizes.embedding_size)
        )
        if bank is not None and read_after < write_after:
            raise UserError(
                f"method.read_after={read_after} lies before method.write_after={write_after}: the "
                f"bank would be read while it is empty."
            )
        self.pairs = pairs
        self.objective = None if objective is None else objective(encoder=self.encoder)
        self.num_neighbours = num_neighbours
        self.selection = selection
        self.selection_threshold = selection_threshold
        self.always_keep = always_keep
        self.judge_by = judge_by
        self.rejected = rejected
        self.loss_settings: dict[str, Any] = {
            "margin": margin,
            "positive_margin": positive_margin,
            "hinge": hinge,
        }
        self.memory_weight = memory_weight
        self.write_after = write_after
        self.read_after = read_after
        self.scales = scales
        self.seed = seed

    @classmethod
    def views_of(cls, settings: Mapping[str, Any]) -> Collection[int]:
        """The augmented view; and the plain one, which only some settings judge by."""
        judged = settings["selection"] != "none" and settings["judge_by"] == "plain"
        bank = settings["bank"] or {}
        mines = str(bank.get("_target_", "")).endswith(MiningBank.__name__)
        return (2,) if judged or mines else (1, 2)

    @property
    def needs_plain(self) -> bool:
        """True if images without augmentation are embedded too."""
        judged = self.selection != "none" and self.judge_by == "plain"
        return judged or (self.bank is not None and self.bank.needs_plain)

    # -- before training -----------------------------------------------------------------------

    def on_fit_start(self) -> None:
        """A resumed run goes on with the neighbours of its checkpoint."""
        if self.graph.known or not self._needs_graph:
            self._add_neighbours()
        if self.objective is not None:
            self.objective.begin()

    def on_train_epoch_start(self) -> None:
        """Find the neighbours, and fill the bank, where the schedule says so."""
        super().on_train_epoch_start()
        if not self._needs_graph or not self.graph.due(self.current_epoch):
            return
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        self.graph.refresh(self, data.predict_dataloader("train"))
        self._add_neighbours()
        if isinstance(self.bank, MiningBank):
            self.bank.forget_lists()
            self._fill(data.training_pass(_FILLING_PASS))

    @property
    def _needs_graph(self) -> bool:
        return self.pairs == "neighbours" or self.bank is not None

    def _add_neighbours(self) -> None:
        if self.pairs == "neighbours":
            self.graph.check(self.num_neighbours)
        near = self.graph.neighbours[:, : self.num_neighbours].cpu().long()
        if self.pairs == "views":
            itself = torch.arange(len(self.graph.neighbours))[:, None]
            near = itself.expand(-1, self.num_neighbours)
        neighbours = near.numpy()

        def with_neighbours(plan: BatchPlan) -> BatchPlan:
            return WithNeighbours(plan, neighbours)

        self.trainer.datamodule.extend_batches(with_neighbours)  # type: ignore[attr-defined]

    @torch.no_grad()
    def _fill(self, loader: Any) -> None:
        """Write every image once, in evaluation mode."""
        assert self.bank is not None
        rows: dict[str, list[Tensor]] = {"index": [], "training": [], "plain": []}
        with evaluation_mode(self.encoder):
            for batch in batches_on(self.device, loader):
                rows["index"].append(batch["index"])
                rows["training"].append(self.encoder(_view(batch, 0)))
                rows["plain"].append(self.encoder(_view(batch, 1)))
        empty = torch.empty(0, self.encoder.out_features, device=self.device)
        index = torch.cat([torch.empty(0, dtype=torch.int64, device=self.device), *rows["index"]])
        written, plain = (torch.cat([empty, *rows[name]]) for name in ("training", "plain"))
        self.bank.write(*(distributed.gather(part) for part in (index, written, plain)))

    # -- training ------------------------------------------------------------------------------

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """One step, in the order of the released code: the bank is written before it is read."""
        plain = self._plain(batch)
        embeddings = distributed.gather(self.encoder(_view(batch, 0)))
        index = distributed.gather(batch["index"])
        labels = self._labels(index)
        if self.selection != "none":
            judged = embeddings.detach() if plain is None or self.judge_by == "training" else plain
            labels = self._reject(labels, judged)
        batch_labels = _each_alone(labels) if self.rejected == "alone" else labels
        loss, terms = self._in_batch(_view(batch, 0), embeddings, batch_labels)
        step = self.global_step + 1
        if self.bank is not None and step > self.write_after:
            self.bank.write(index, embeddings.detach(), plain)
        if self.bank is not None and step > self.read_after:
            generator = distributed.agreed_generator(self.seed, 0, step)
            mined = self.bank.find(self.graph, index, labels, generator)
            against = memory_instance_contrast(
                embeddings,
                labels,
                self.bank.embeddings,
                mined.labels,
                index=mined.index,
                **self.loss_settings,
            )
            loss = loss + self.memory_weight * against.loss
            terms |= {
                "memory_loss": against.loss.detach(),
                "memory_positives": against.positives,
                "memory_negatives": against.negatives,
            }
        return {"loss": loss, "terms": terms}

    def _in_batch(
        self, batch: Batch, embeddings: Tensor, labels: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss on the global batch, and what is logged of it."""
        if self.objective is not None:
            anchors = len(labels) // (1 + self.num_neighbours)
            loss = self.objective.loss(batch, embeddings, labels, anchors)
            return loss, terms_of(loss)
        found = batch_instance_contrast(embeddings, labels, **self.loss_settings)
        return found.loss, {
            "batch_loss": found.loss.detach(),
            "batch_positives": found.positives,
            "batch_negatives": found.negatives,
        }

    def after_backward(self) -> None:
        """A queue of keys takes those of the step."""
        if self.objective is not None:
            self.objective.after_backward()

    @torch.no_grad()
    def _plain(self, batch: Batch) -> Tensor | None:
        """Embeddings [B, D] of the global batch without augmentation, None where nobody asks."""
        if not self.needs_plain:
            return None
        with evaluation_mode(self.encoder):
            return distributed.gather(self.encoder(_view(batch, 1)))

    def _labels(self, index: Tensor) -> Tensor:
        """Labels [B] int64 of a batch of anchors and then their neighbours: the anchor's place + 1.

        The released code numbers them so, and of two labels that claim an image the larger wins.

        Raises:
            UserError: images are missing from the batch.
        """
        anchors, rest = divmod(len(index), 1 + self.num_neighbours)
        if rest:
            raise UserError(
                "A batch lacks images that cannot be decoded, and InsCLR needs whole groups: "
                "remove those that `noisyml data check` lists from the data set."
            )
        numbers = index[:anchors] + 1
        return torch.cat([numbers, numbers.repeat_interleave(self.num_neighbours)])

    def _reject(self, labels: Tensor, judged: Tensor) -> Tensor:
        """Labels [B], those of rejected neighbours negated.

        Args:
            labels: [B] int64.
            judged: [B, D] embeddings by which neighbours are judged.
        """
        anchors = len(labels) // (1 + self.num_neighbours)
        near = judged[anchors:].unflatten(0, (anchors, self.num_neighbours))
        similarities = torch.einsum("ad,akd->ak", judged[:anchors], near)
        if self.selection == "dynamic":
            similarities = similarities / similarities.amax(dim=1, keepdim=True)
        keep = similarities >= self.selection_threshold
        keep[:, : self.always_keep] = True
        signs = torch.where(keep.flatten(), 1, -1)
        return labels * torch.cat([torch.ones_like(labels[:anchors]), signs])

    # -- evaluation ----------------------------------------------------------------------------

    def outputs(self, batch: Batch, wanted: Collection[str]) -> dict[str, Tensor]:
        """Embeddings [b, D] over the scales of evaluation."""
        return {"embeddings": self.embed(batch)}

    @torch.no_grad()
    def embed(self, batch: Batch) -> Tensor:
        """Embeddings [b, D] of a batch in evaluation mode, over the scales of evaluation."""
        return multi_scale(self.encoder, batch, self.scales)


def _view(batch: Batch, number: int) -> Batch:
    """One view of a batch; features of a frozen backbone have but one."""
    if "views" not in batch:
        return batch
    return {"image": batch["views"][:, number]}


def _each_alone(labels: Tensor) -> Tensor:
    """Labels [B] in which every rejected row has a number of its own."""
    rows = torch.arange(len(labels), device=labels.device)
    return torch.where(labels > 0, labels, -1 - rows)
