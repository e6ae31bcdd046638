"""RKD: relational knowledge distillation, and the classical distillations beside it.

Park et al., "Relational Knowledge Distillation", CVPR 2019 (arXiv 1904.05068): a student learns the
distances and angles among a batch's embeddings from a trained teacher, of whatever size. Neither
loss reads a label, so wrong labels cannot reach the student through them. Teacher and student see
the same augmented view. A teacher comes from an earlier run (``teacher.checkpoint=RUN_DIR``) or is
trained first by the same command (``stages=teacher``, ``stages=generations``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F

from noisyml import distributed
from noisyml.data.views import Batch
from noisyml.errors import UserError
from noisyml.losses.base import EmbeddingLoss
from noisyml.losses.distillation.classical import DistillationSum, Features
from noisyml.methods.metric_learning.base import MetricLearning
from noisyml.metrics.base import Evaluator
from noisyml.models.encoder import Encoder
from noisyml.models.teacher import Teacher
from noisyml.optim import OptimizerFactory, SchedulerFactory
from noisyml.selectors.base import Selector
from noisyml.similarity.memory_bank import MemoryBank


class RKD(MetricLearning):
    """Distillation from a frozen teacher, with or without a loss on labels.

    Args:
        encoder: the student; its head does not normalise by default, as in the paper.
        loss: the task loss, on unit-norm embeddings; computed only if `task_weight` is not 0.
        selector: chooses what the task loss sees, and with `distill_kept_only` the distillation.
        memory, optimizer, scheduler, evaluator, param_groups: see `MetricLearning`.
        distillation: weighted sum of losses between student and teacher.
        teacher: the frozen teacher; None where nothing is to be trained (evaluation).
        task_weight: factor of the task loss; the paper trains metric learning without one.
        distill_kept_only: let the distillation see only what the selector keeps.
    """

    def __init__(
        self,
        encoder: Encoder,
        loss: EmbeddingLoss,
        selector: Selector,
        memory: MemoryBank,
        optimizer: OptimizerFactory,
        scheduler: SchedulerFactory | None,
        evaluator: Evaluator,
        distillation: DistillationSum,
        teacher: Teacher | None,
        task_weight: float = 0.0,
        distill_kept_only: bool = False,
        param_groups: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        super().__init__(
            encoder, loss, selector, memory, optimizer, scheduler, evaluator, param_groups
        )
        self.distillation = distillation
        self.teacher = teacher
        self.task_weight = task_weight
        self.distill_kept_only = distill_kept_only
        if task_weight == 0:
            # Proxies of a loss that is not computed would have no gradient to wait for.
            self.loss.requires_grad_(False)

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """One step: both networks see the batch, the student follows."""
        labels = distributed.gather(self.labels_of(batch))
        index = distributed.gather(batch["index"])
        student, teacher = self.both(batch)
        assert student.embedding is not None
        unit = F.normalize(student.embedding)
        selection = self.judge(unit, labels, index)

        if self.distill_kept_only:
            student, teacher = student.rows(selection.keep), teacher.rows(selection.keep)
        loss = self.distillation(student, teacher)
        if self.task_weight != 0:
            task = self.loss(unit, labels, memory=self.memory, keep=selection.keep)
            loss = loss + self.task_weight * task
        self.remember(unit, labels, index, selection)
        return self.outcome(loss, selection, index)

    def both(self, batch: Batch) -> tuple[Features, Features]:
        """What student and teacher say about the global batch; maps only if a loss reads them."""
        if self.teacher is None:
            raise ValueError("a student cannot be trained without its teacher")
        if self.distillation.needs_maps:
            if "image" not in batch:
                raise UserError(
                    "The distillation compares feature maps, and a frozen student hands on cached "
                    "features only: say backbone.frozen=false or choose another distillation=..."
                )
            seen = self.encoder.encode(batch), self.teacher.encode(batch)
            student, teacher = (
                Features(
                    embedding=distributed.gather(encoding.embeddings),
                    maps={name: distributed.gather(x) for name, x in encoding.maps.items()},
                )
                for encoding in seen
            )
            return student, teacher
        return (
            Features(embedding=distributed.gather(self.encoder(batch))),
            Features(embedding=distributed.gather(self.teacher(batch))),
        )

    # -- checkpoints -------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the student only; the teacher is known by its fingerprint."""
        super().on_save_checkpoint(checkpoint)
        if self.teacher is not None:
            self.teacher.leave_out(checkpoint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the teacher from the configuration, after checking that it is the same.

        Raises:
            UserError: the student was trained by another teacher.
        """
        super().on_load_checkpoint(checkpoint)
        if self.teacher is not None:
            self.teacher.put_back(checkpoint)
