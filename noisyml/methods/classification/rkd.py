"""Distillation for classification: cross-entropy beside what a teacher hands on.

Park et al., "Relational Knowledge Distillation", CVPR 2019 (arXiv 1904.05068), section 4.2: in
classification, distances and angles are distilled where the classifier reads them, at the last
pooling layer, and always beside the cross-entropy. Other terms (``distillation=hinton``, attention,
FitNet) stand in the same place. The authors released no code for it. A teacher comes from an
earlier run (``teacher.checkpoint=RUN_DIR``) or is trained first by the same command
(``stages=classification_teacher``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from noisyml import distributed
from noisyml.data.views import Batch
from noisyml.errors import UserError
from noisyml.losses.classification.base import ClassificationLoss
from noisyml.losses.distillation.classical import DistillationSum, Features
from noisyml.methods.classification.base import Classification, Classified, OnEmpty
from noisyml.metrics.base import Evaluator
from noisyml.models.encoder import Encoder
from noisyml.models.teacher import Teacher
from noisyml.optim import OptimizerFactory, SchedulerFactory
from noisyml.selectors.base import Selector


class RKDClassification(Classification):
    """A classifier that also learns from a frozen teacher.

    Args:
        encoder: the student's.
        selector: chooses what the loss on labels sees, and with `distill_kept_only` what the
            distillation sees.
        optimizer, scheduler, evaluator, class_names, param_groups, loss, on_empty: see
            `Classification`.
        distillation: weighted sum of losses between student and teacher: of the embeddings that
            the classifiers read, of their class scores, of feature maps.
        teacher: the frozen teacher, with a classifier if a loss compares class scores; None where
            nothing is to be trained (evaluation).
        task_weight: factor of the loss on labels.
        distill_kept_only: let the distillation see only what the selector keeps.

    Raises:
        UserError: no loss trains the classifier.
    """

    def __init__(
        self,
        encoder: Encoder,
        selector: Selector,
        optimizer: OptimizerFactory,
        scheduler: SchedulerFactory | None,
        evaluator: Evaluator,
        class_names: Sequence[str],
        distillation: DistillationSum,
        teacher: Teacher | None,
        task_weight: float = 1.0,
        distill_kept_only: bool = False,
        param_groups: Mapping[str, Mapping[str, Any]] | None = None,
        loss: ClassificationLoss | None = None,
        on_empty: OnEmpty = "skip",
    ) -> None:
        super().__init__(
            encoder,
            selector,
            optimizer,
            scheduler,
            evaluator,
            class_names,
            param_groups,
            loss,
            on_empty,
        )
        if task_weight == 0 and not distillation.needs_logits:
            raise UserError(
                "Nothing trains the classifier with method.task_weight=0: raise it, or use a "
                "distillation of class scores (distillation=hinton)."
            )
        self.distillation = distillation
        self.teacher = teacher
        self.task_weight = task_weight
        self.distill_kept_only = distill_kept_only

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """One step: both networks see the batch, the student follows labels and teacher."""
        seen, student = self.study(batch)
        teacher = self.lesson(batch)
        sample_loss = self.sample_loss(seen)
        selection = self.judge(seen, sample_loss)

        if self.distill_kept_only:
            student, teacher = student.rows(selection.keep), teacher.rows(selection.keep)
        loss = self.distillation(student, teacher)
        if self.task_weight != 0:
            loss = loss + self.task_weight * self.mean_loss(sample_loss, selection)
        return self.outcome(loss, selection, seen.index)

    def study(self, batch: Batch) -> tuple[Classified, Features]:
        """The global batch as the student sees it; maps only if a loss reads them."""
        if not self.distillation.needs_maps:
            seen = self.classify_globally(batch)
            return seen, Features(seen.embeddings, seen.logits)
        encoding = self.encoder.encode(batch)
        seen = self.classify_globally(batch, encoding.embeddings)
        maps = {name: distributed.gather(x) for name, x in encoding.maps.items()}
        return seen, Features(seen.embeddings, seen.logits, maps)

    def lesson(self, batch: Batch) -> Features:
        """What the teacher says about the same images, augmented alike."""
        if self.teacher is None:
            raise ValueError("a student cannot be trained without its teacher")
        maps = {}
        if self.distillation.needs_maps:
            encoding = self.teacher.encode(batch)
            embeddings = encoding.embeddings
            maps = {name: distributed.gather(x) for name, x in encoding.maps.items()}
        else:
            embeddings = self.teacher(batch)
        logits = None
        if self.distillation.needs_logits:
            logits = distributed.gather(self.teacher.logits(embeddings))
        return Features(distributed.gather(embeddings), logits, maps)

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
