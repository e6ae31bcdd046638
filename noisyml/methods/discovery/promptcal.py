"""PromptCAL: contrastive affinity learning with prompts and a teacher, the second stage.

Zhang et al., "PromptCAL: Contrastive Affinity Learning via Auxiliary Prompts for Generalized Novel
Category Discovery", CVPR 2023 (arXiv 2212.05590). Begin with a run of
method=promptcal_contrast, the first stage: ``stages=promptcal`` trains both,
``init_from=RUN_DIR`` takes one that is there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from noisyml import distributed
from noisyml.checks import Count, NonNegative, Positive, Seed, Share, WholeNonNegative
from noisyml.data.views import Batch
from noisyml.losses.discovery.affinity import (
    Overdraft,
    PairMasks,
    affinity_weight,
    contrastive_affinity,
    edge_agreement,
    follow_labels,
    sample_negatives,
)
from noisyml.losses.discovery.contrast import other_view
from noisyml.methods.discovery.base import TwoViews
from noisyml.methods.discovery.gcd import GCD
from noisyml.methods.discovery.neighbours import MemoryNeighbours, written_slots
from noisyml.methods.parts import Parts
from noisyml.models.ema import EMATeacher
from noisyml.models.heads import unit_norm
from noisyml.similarity.diffusion import Edges, query_affinity
from noisyml.similarity.memory_bank import MemoryBank

#: The teacher's embedding that is a student's own positive.
OwnPositive = Literal["same_view", "other_view"]


class Graph(NamedTuple):
    """Memory and masks that one side of a batch is compared with.

    Attributes:
        memory: [M, D], unit norm.
        masks: see `PairMasks`.
        precision: share of the edges that two labels confirm, of those that two labels know; of
            the graph as it was before labels were followed.
    """

    memory: Tensor
    masks: PairMasks
    precision: Tensor


class PromptCAL(GCD):
    """The contrast of GCD with a teacher's columns, and affinity to a memory of the teacher.

    Args:
        parts: see `GCD`.
        projection: see `GCD`.
        supervised_weight: see `GCD`.
        unsupervised_temperature: see `GCD`.
        supervised_temperature: see `GCD`.
        prompt_weight: see `GCD`.
        supervised_prompts: see `GCD`.
        teacher: moving average of the student.
        bank: memory of the teacher's embeddings of the last batches; size in rows, two an image.
        affinity_weight: share of the affinity loss in the unsupervised part, after the ramp.
        ramp_epochs: over which it rises from 0.
        affinity_temperature: of the affinity loss.
        neighbours: k nearest nodes that make a neighbourhood.
        quantile: of the diffused weights above their mean, at which edges are cut.
        diffusion_steps: of the graph.
        edges: ``diffused``; or ``neighbours``, the k nearest alone, as a baseline.
        exclude_diagonal: leave the nodes' weight with themselves out of mean and quantile, which
            otherwise can leave no edge at all; the released code counts it.
        num_negatives: pairs of a row in all; None: every other row of the memory is a negative.
        overdraft: see `sample_negatives`.
        constraints: where two labels decide about an edge: ``after`` diffusion (authors, release),
            ``before`` it, or ``none``.
        own_positive_class: the teacher's view that is the own positive of a class token.
        own_positive_prompt: that of a prompt.
        prompt_head: of the first stage: ``restart`` at random (release), or ``keep``.
        seed: of the negatives.

    Raises:
        UserError: see `Discovery`.
    """

    def __init__(
        self,
        parts: Parts,
        *,
        projection: Any,
        teacher: Any,
        bank: Any,
        supervised_weight: Share = 0.35,
        unsupervised_temperature: Positive = 1.0,
        supervised_temperature: Positive = 0.07,
        prompt_weight: NonNegative = 0.35,
        supervised_prompts: WholeNonNegative = 2,
        affinity_weight: Share = 0.6,
        ramp_epochs: NonNegative = 2,
        affinity_temperature: Positive = 0.07,
        neighbours: Count = 10,
        quantile: Share = 0.5,
        diffusion_steps: WholeNonNegative = 1,
        edges: Edges = "diffused",
        exclude_diagonal: bool = False,
        num_negatives: Count | None = 1024,
        overdraft: Overdraft = "clamp",
        constraints: Literal["after", "before", "none"] = "after",
        own_positive_class: OwnPositive = "same_view",
        own_positive_prompt: OwnPositive = "other_view",
        prompt_head: Literal["restart", "keep"] = "restart",
        seed: Seed = 0,
    ) -> None:
        super().__init__(
            parts,
            projection=projection,
            supervised_weight=supervised_weight,
            unsupervised_temperature=unsupervised_temperature,
            supervised_temperature=supervised_temperature,
            prompt_weight=prompt_weight,
            supervised_prompts=supervised_prompts,
        )
        self.affinity_weight, self.ramp_epochs = affinity_weight, ramp_epochs
        self.affinity_temperature = affinity_temperature
        self.neighbours, self.quantile = neighbours, quantile
        self.diffusion_steps, self.edges = diffusion_steps, edges
        self.exclude_diagonal = exclude_diagonal
        self.num_negatives, self.overdraft = num_negatives, overdraft
        self.constraints = constraints
        self.own_positive = {"class": own_positive_class, "prompt": own_positive_prompt}
        self.prompt_head = prompt_head
        self.seed = seed
        self.teacher: EMATeacher = teacher(student=self._student())
        self.widths = {
            "class": self.encoder.out_features,
            "prompt": self.encoder.backbone.out_features,
        }
        # One ring for all sides; label 0 stands for none.
        self.bank: MemoryBank = bank(
            dim=sum(self.widths[side] for side in self.weights),
            num_classes=len(parts.sizes.class_names) + 1,
        )
        #: Neighbours within the memory by side; a rule that is no ring has its lists made anew.
        self.lists = nn.ModuleDict(
            {
                side: MemoryNeighbours(self.bank.size, neighbours, self.bank.embeddings.dtype)
                for side in self.weights
            }
        )
        self._taught_at: int | None = None
        self._to_store: tuple[Tensor, Tensor, Tensor] | None = None

    def _student(self) -> nn.ModuleDict:
        return nn.ModuleDict({"encoder": self.encoder, "projections": self.projections})

    # -- the step ----------------------------------------------------------------------------

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """One step: the teacher follows, both see the batch, the student learns from both."""
        self.move_teacher()
        seen = self.see(batch)
        taught, columns = self.teach(batch)
        projected = self.project(seen)
        self.watch(projected["class"])
        rows = self.supervised_rows(projected["class"], seen.labels, columns["class"])
        selection = self.judge(seen, rows)
        trusted = seen.trusting(selection)
        terms = self.contrasts(projected, columns, trusted)
        weight = self.weight_of_affinity()
        if weight > 0 and len(self.bank):
            terms |= self.affinities(trusted, taught)
        self._to_store = (
            torch.cat([taught[side] for side in self.weights], dim=1),
            trusted.labels + 1,
            seen.index.repeat(2),
        )
        return self.outcome(self.joined(terms, weight), seen, selection, terms)

    def move_teacher(self) -> None:
        """Follow the student once for each step of the optimiser."""
        if self._taught_at != self.global_step:
            self.teacher.update_parameters(self._student())
            self._taught_at = self.global_step

    @torch.no_grad()
    def teach(self, batch: Batch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The teacher's embeddings [2B, D] and projections [2B, K] by side, unit norm."""
        modules: Any = self.teacher.averages
        seen = self.see(batch, modules["encoder"])
        embeddings = {side: unit_norm(tokens) for side, tokens in seen.tokens.items()}
        return embeddings, self.project(seen, modules["projections"])

    def weight_of_affinity(self) -> float:
        """Share of the affinity loss in this step; counts the steps of this run."""
        trainer = self.trainer
        batches = float(trainer.num_training_batches) / trainer.accumulate_grad_batches
        ramp = round(self.ramp_epochs * batches)
        return affinity_weight(self.global_step, ramp, self.affinity_weight)

    def affinities(self, seen: TwoViews, taught: dict[str, Tensor]) -> dict[str, Tensor]:
        """The affinity loss of each side, and how its edges agree with labels, by name.

        Args:
            seen: with the labels that are trusted.
            taught: embeddings of the teacher by side.
        """
        terms = {}
        for number, side in enumerate(self.weights):
            graph = self.graph(number, side, taught[side], seen.labels)
            same = self.own_positive[side] == "same_view"
            own = taught[side] if same else other_view(taught[side])
            student = unit_norm(seen.tokens[side])
            losses = contrastive_affinity(
                student, own, graph.memory, graph.masks, self.affinity_temperature
            )
            terms[f"affinity_{side}"] = losses.mean()
            edges = graph.masks.positives
            terms[f"edges_{side}"] = edges.sum(dim=1).to(losses).mean()
            terms[f"edge_precision_{side}"] = graph.precision
        return terms

    @torch.no_grad()
    def graph(self, number: int, side: str, embeddings: Tensor, labels: Tensor) -> Graph:
        """Positives and negatives in the memory of each row of a side.

        Args:
            number: of the side, for its own draw of negatives.
            side: its name.
            embeddings: the teacher's [2B, D].
            labels: trusted ones [2B].
        """
        memory, memory_labels = self.stored(side), self.bank.filled().labels - 1
        lists: Any = self.lists[side]
        queries = other_view(embeddings).to(memory)
        k = min(self.neighbours, len(queries) + len(memory) - 1)
        before = torch.cat([labels, memory_labels]) if self.constraints == "before" else None
        found = query_affinity(
            queries,
            memory,
            k=k,
            quantile=self.quantile,
            steps=self.diffusion_steps,
            exclude_diagonal=self.exclude_diagonal,
            edges=self.edges,
            labels=before,
            index=lists.nearest(queries, memory, k),
        )
        draw = distributed.agreed_generator(
            self.seed, self.current_epoch, 2 * self.global_step + number
        )
        drawn = sample_negatives(found.edges, self.num_negatives, draw, self.overdraft)
        masks = PairMasks(found.edges, drawn)
        agreed = edge_agreement(found.edges, labels, memory_labels)
        if self.constraints == "after":
            masks = follow_labels(masks, labels, memory_labels)
        return Graph(memory.to(embeddings), masks, agreed.precision)

    def stored(self, side: str) -> Tensor:
        """Rows of a side in the memory [M, D], as they are stored."""
        sides = list(self.weights)
        start = sum(self.widths[name] for name in sides[: sides.index(side)])
        return self.bank.filled().embeddings[:, start : start + self.widths[side]]

    def joined(self, terms: dict[str, Tensor], weight: float) -> Tensor:
        """The sum of the terms by their weights, scalar.

        Args:
            terms: scalars by name.
            weight: of the affinity in the unsupervised part.
        """
        mixed = dict(terms)
        for side in self.weights:
            apart = (1 - weight) * terms[f"unsupervised_{side}"]
            if f"affinity_{side}" in terms:
                apart = apart + weight * terms[f"affinity_{side}"]
            mixed[f"unsupervised_{side}"] = apart
        return self.weighed(mixed)

    def after_backward(self) -> None:
        """Store what the teacher saw; the selector learns."""
        super().after_backward()
        if self._to_store is not None:
            ring = self.bank.wrap == "ring"
            slots = written_slots(self.bank, len(self._to_store[1]))
            self.bank.enqueue(*self._to_store)
            self._to_store = None
            if not ring:
                slots = torch.arange(len(self.bank), device=slots.device)
            for side in self.weights:
                lists: Any = self.lists[side]
                lists.renew(slots, self.stored(side))

    # -- checkpoints -------------------------------------------------------------------------

    def load_encoder(self, file: Path) -> None:
        """Take encoder and heads of the first stage; the teacher begins as their copy."""
        super().load_encoder(file)
        if self.prompt_head == "keep" and "prompt" in self.weights:
            self._load_projection(file, "prompt")
        self.teacher.restart(self._student())
