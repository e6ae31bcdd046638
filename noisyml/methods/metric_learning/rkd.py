"""RKD: relational knowledge distillation, and the classical distillations beside it.

Park et al., "Relational Knowledge Distillation", CVPR 2019 (arXiv 1904.05068): a student learns the
distances and angles among a batch's embeddings from a trained teacher, of whatever size. Neither
loss reads a label, so wrong labels cannot reach the student through them. Teacher and student see
the same augmented view. A teacher comes from an earlier run (``method.teacher.checkpoint=RUN_DIR``)
or is trained first by the same command (``stages=teacher``, ``stages=generations``).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from noisyml import distributed
from noisyml.checks import NonNegative
from noisyml.data.views import Batch
from noisyml.errors import UserError
from noisyml.losses.distillation.classical import DistillationSum, Features
from noisyml.methods.metric_learning.base import MetricLearning
from noisyml.methods.parts import Parts
from noisyml.methods.students import Student, TeacherFactory, gathered_maps, teacher_of
from noisyml.models.heads import unit_norm


class RKD(Student, MetricLearning):
    """Distillation from a frozen teacher, with or without a loss on labels.

    Args:
        parts: the encoder is the student; its head does not normalise by default, as in the paper.
            The loss, on unit-norm embeddings, is computed only if `task_weight` is not 0; the
            selector chooses what it sees, and with `distill_kept_only` what the distillation sees.
        distillation: weighted sum of losses between student and teacher.
        teacher: makes the frozen teacher.
        task_weight: factor of the loss; the paper trains metric learning without one.
        distill_kept_only: let the distillation see only what the selector keeps.

    Raises:
        UserError: a distillation of class scores.
    """

    def __init__(
        self,
        parts: Parts,
        *,
        distillation: DistillationSum,
        teacher: TeacherFactory,
        task_weight: NonNegative = 0.0,
        distill_kept_only: bool = False,
    ) -> None:
        if distillation.needs_logits:
            raise UserError(
                "The distillation compares class scores, and RKD gives none: choose another "
                "distillation=... or method=rkd_classification."
            )
        theirs = teacher_of(teacher, parts, distillation)
        super().__init__(parts)
        self.distillation = distillation
        self.teacher = theirs
        self.task_weight = task_weight
        self.distill_kept_only = distill_kept_only
        if task_weight == 0:
            # Proxies of a loss that is not computed would have no gradient to wait for.
            self.loss.requires_grad_(False)

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """One step: both networks see the batch, the student follows."""
        labels = distributed.gather(self.labels_of(batch))
        index = distributed.gather(batch["index"])
        student, teacher = self.student_features(batch), self.teacher_features(batch)
        unit = unit_norm(student.need_embedding())
        selection = self.judge(unit, labels, index)

        if self.distill_kept_only:
            student, teacher = student.rows(selection.keep), teacher.rows(selection.keep)
        loss = self.distillation(student, teacher)
        if self.task_weight != 0:
            task = self.loss(unit, labels, memory=self.memory, keep=selection.mask)
            loss = loss + self.task_weight * task
        self.remember(unit, labels, index, selection)
        return self.outcome(loss, selection, index, self.distillation.last_terms)

    def sample_losses(self, embeddings: Tensor, labels: Tensor) -> Tensor | None:
        """See `MetricLearning.sample_losses`; there is none where no labels teach."""
        return None if self.task_weight == 0 else super().sample_losses(embeddings, labels)

    def student_features(self, batch: Batch) -> Features:
        """The student's outputs [B, ...] for the global batch; maps only if a loss reads them."""
        if not self.distillation.needs_maps:
            return Features(embedding=distributed.gather(self.encoder(batch)))
        if "image" not in batch:
            raise UserError(
                "The distillation compares feature maps, and a frozen student hands on cached "
                "features only: say backbone.frozen=false or choose another distillation=..."
            )
        encoding = self.encoder.encode(batch)
        return Features(
            embedding=distributed.gather(encoding.embeddings), maps=gathered_maps(encoding)
        )
