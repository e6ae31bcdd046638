"""Base of methods whose network learns from a frozen teacher."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from noisyml import distributed
from noisyml.data.views import Batch
from noisyml.losses.distillation.classical import DistillationSum, Features
from noisyml.methods.base import Method
from noisyml.methods.parts import Parts
from noisyml.models.encoder import Encoding
from noisyml.models.teacher import Teacher

#: Makes the teacher of an earlier run: ``(student=Backbone, class_names=Sequence[str] | None)``.
TeacherFactory = Callable[..., Teacher]


def teacher_of(
    teacher: TeacherFactory, parts: Parts, distillation: DistillationSum
) -> Teacher | None:
    """The teacher that a distillation asks; None where nothing is to be trained.

    Args:
        teacher: makes it.
        parts: of the student.
        distillation: where it compares class scores the teacher must have the student's classes.
    """
    if not parts.training:
        return None
    classes = parts.sizes.class_names if distillation.needs_logits else None
    return teacher(student=parts.encoder.backbone, class_names=classes)


class Student(Method):
    """Adds a teacher to another base class; goes before it in the list of bases.

    A subclass sets `distillation` and `teacher` in its constructor.
    """

    distillation: DistillationSum
    teacher: Teacher | None

    def teacher_features(self, batch: Batch) -> Features:
        """The teacher's outputs [B, ...] for the same images, augmented alike."""
        if self.teacher is None:
            raise ValueError("a student cannot be trained without its teacher")
        if self.distillation.needs_maps:
            encoding = self.teacher.encode(batch)
            embeddings, maps = encoding.embeddings, gathered_maps(encoding)
        else:
            embeddings, maps = self.teacher(batch), {}
        logits = None
        if self.distillation.needs_logits:
            logits = distributed.gather(self.teacher.logits(embeddings))
        return Features(distributed.gather(embeddings), logits, maps)

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


def gathered_maps(encoding: Encoding) -> dict[str, Tensor]:
    """Feature maps [B, C, H, W] of the global batch by name."""
    return {name: distributed.gather(maps) for name, maps in encoding.maps.items()}
