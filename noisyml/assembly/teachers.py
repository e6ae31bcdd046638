"""Models of earlier runs that teach a student."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from noisyml.assembly.nodes import build
from noisyml.assembly.saved import saved_config
from noisyml.errors import UserError
from noisyml.methods.checkpoints import load_classifier, load_encoder
from noisyml.models.backbones.base import Backbone
from noisyml.models.encoder import Encoder
from noisyml.models.teacher import Teacher
from noisyml.runs.folder import locate_checkpoint, locate_run


def load_teacher(
    checkpoint: str | None,
    which: Literal["last", "best"],
    student: Backbone,
    class_names: Sequence[str] | None = None,
) -> Teacher:
    """The frozen model of an earlier run.

    Args:
        checkpoint: a run folder, or a checkpoint in it.
        which: checkpoint of a run folder.
        student: the backbone of the network it is to teach.
        class_names: the classes it must tell apart; None: its encoder is enough.

    Raises:
        UserError: no teacher is named, it is not there, has no such classifier, or cannot see what
            the student sees.
    """
    if checkpoint is None:
        raise UserError(
            "The student has no teacher: name a run by method.teacher.checkpoint=RUN_DIR, or train "
            "one first with stages=teacher (a classifier: stages=classification_teacher)."
        )
    path = Path(checkpoint)
    config = saved_config(locate_run(path), "train")
    file = locate_checkpoint(path, which)
    if config.backbone.get("weights") is not None and not config.backbone.get("frozen"):
        # The checkpoint has them all; the file they started from need not be here any more.
        config.backbone.weights = None
    backbone = build(config.backbone)
    encoder = Encoder(backbone, build(config.head, in_features=backbone.out_features))
    load_encoder(encoder, file)
    same = backbone.frozen and backbone.fingerprint() == student.fingerprint()
    if student.frozen and not same:
        raise UserError(
            "A frozen student hands on cached features, which mean nothing to a teacher with "
            "another backbone: say backbone.frozen=false."
        )
    classifier = None if class_names is None else load_classifier(file, class_names)
    return Teacher(encoder, classifier)
