"""Distillation for classification: cross-entropy beside what a teacher hands on.

Park et al., "Relational Knowledge Distillation", CVPR 2019 (arXiv 1904.05068), section 4.2: in
classification, distances and angles are distilled where the classifier reads them, at the last
pooling layer, and always beside the cross-entropy. Other terms (``distillation=hinton``, attention,
FitNet) stand in the same place. The authors released no code for it. A teacher comes from an
earlier run (``method.teacher.checkpoint=RUN_DIR``) or is trained first by the same command
(``stages=classification_teacher``).
"""

from __future__ import annotations

from typing import Any

from noisyml.checks import NonNegative
from noisyml.data.views import Batch
from noisyml.errors import UserError
from noisyml.losses.distillation.classical import DistillationSum, Features
from noisyml.methods.classification.base import Classification, Classified, OnEmpty
from noisyml.methods.parts import Parts
from noisyml.methods.students import Student, TeacherFactory, gathered_maps, teacher_of


class RKDClassification(Student, Classification):
    """A classifier that also learns from a frozen teacher.

    Args:
        parts: the encoder is the student's; the selector chooses what the loss on labels sees, and
            with `distill_kept_only` what the distillation sees.
        distillation: weighted sum of losses between student and teacher: of the embeddings that
            the classifiers read, of their class scores, of feature maps.
        teacher: makes the frozen teacher, with a classifier if a loss compares class scores.
        task_weight: factor of the loss on labels.
        distill_kept_only: let the distillation see only what the selector keeps.
        on_empty: see `Classification`.

    Raises:
        UserError: no loss trains the classifier.
    """

    def __init__(
        self,
        parts: Parts,
        *,
        distillation: DistillationSum,
        teacher: TeacherFactory,
        task_weight: NonNegative = 1.0,
        distill_kept_only: bool = False,
        on_empty: OnEmpty = "skip",
    ) -> None:
        if task_weight == 0 and not distillation.needs_logits:
            raise UserError(
                "Nothing trains the classifier with method.task_weight=0: raise it, or use a "
                "distillation of class scores (distillation=hinton)."
            )
        theirs = teacher_of(teacher, parts, distillation)
        super().__init__(parts, on_empty=on_empty)
        self.distillation = distillation
        self.teacher = theirs
        self.task_weight = task_weight
        self.distill_kept_only = distill_kept_only

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """One step: both networks see the batch, the student follows labels and teacher."""
        seen, student = self.student_features(batch)
        teacher = self.teacher_features(batch)
        sample_loss = self.sample_loss(seen)
        selection = self.judge(seen, sample_loss)

        if self.distill_kept_only:
            student, teacher = student.rows(selection.keep), teacher.rows(selection.keep)
        loss = self.distillation(student, teacher)
        if self.task_weight != 0:
            loss = loss + self.task_weight * self.mean_loss(sample_loss, selection)
        return self.outcome(loss, selection, seen.index, self.distillation.last_terms)

    def student_features(self, batch: Batch) -> tuple[Classified, Features]:
        """The global batch as the student sees it; maps only if a loss reads them."""
        if not self.distillation.needs_maps:
            seen = self.classify_globally(batch)
            return seen, Features(seen.embeddings, seen.logits)
        encoding = self.encoder.encode(batch)
        seen = self.classify_globally(batch, encoding.embeddings)
        return seen, Features(seen.embeddings, seen.logits, gathered_maps(encoding))
