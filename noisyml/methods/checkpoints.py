"""Networks in checkpoints: frozen ones left out, encoders and classifiers read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from noisyml.errors import UserError
from noisyml.models.encoder import Encoder
from noisyml.storage.reading import reading


def leave_out_frozen_backbone(
    encoder: Encoder, checkpoint: dict[str, Any], prefix: str = "encoder."
) -> None:
    """Take the weights of the encoder's frozen network, if it is frozen, out of a checkpoint.

    Args:
        encoder: whose names in the checkpoint begin with `prefix`.
        checkpoint: about to be saved; its fingerprint of the network stays.
        prefix: see `encoder`.
    """
    if not encoder.backbone.frozen:
        return
    state = checkpoint["state_dict"]
    for name in [n for n in state if n.startswith(f"{prefix}backbone.body.")]:
        del state[name]
    checkpoint["frozen_backbone"] = encoder.backbone.fingerprint()


def restore_frozen_backbone(
    encoder: Encoder, checkpoint: dict[str, Any], prefix: str = "encoder."
) -> None:
    """Undo `leave_out_frozen_backbone`.

    Args:
        encoder: whose names in the checkpoint begin with `prefix`.
        checkpoint: was saved without the network's weights.
        prefix: see `encoder`.

    Raises:
        UserError: it was trained with another network, or with one that was not frozen.
    """
    backbone = encoder.backbone
    known = checkpoint.get("frozen_backbone")
    if backbone.frozen != (known is not None):
        raise UserError(
            "The checkpoint and the configuration differ in backbone.frozen; use the "
            "configuration the checkpoint was trained with."
        )
    if known is not None and known != backbone.fingerprint():
        raise UserError(
            "The frozen backbone differs from the one the checkpoint was trained with; use the "
            "same backbone and weights."
        )
    if known is not None:
        for name, tensor in backbone.body.state_dict().items():
            checkpoint["state_dict"][f"{prefix}backbone.body.{name}"] = tensor


#: What to do about a damaged checkpoint.
ADVICE = "use another checkpoint of the run (which=...), or train anew"


def read_checkpoint(file: Path) -> dict[str, Any]:
    """The content of a checkpoint of a run, on the CPU; opened without unpickling.

    Raises:
        DamagedFileError: it is cut off, empty, or no checkpoint.
    """
    with reading(file, ADVICE):
        found = torch.load(file, map_location="cpu", weights_only=True)
        if not isinstance(found, dict) or not isinstance(found.get("state_dict"), dict):
            raise ValueError("it is no checkpoint of a run")
        return found


def load_encoder(encoder: Encoder, file: Path, prefix: str = "encoder.") -> None:
    """Take the weights of an encoder from a checkpoint of a run.

    An encoder whose head has no weights takes the backbone alone, and the checkpoint's head is left
    out.

    Args:
        encoder: receives them.
        file: a checkpoint; opened without unpickling.
        prefix: of the names of its parameters in the checkpoint.

    Raises:
        UserError: it belongs to another architecture or frozen network.
    """
    checkpoint = read_checkpoint(file)
    restore_frozen_backbone(encoder, checkpoint, prefix)
    state = {
        name.removeprefix(prefix): tensor
        for name, tensor in checkpoint["state_dict"].items()
        if name.startswith(prefix)
    }
    if not encoder.head.state_dict():
        state = {name: t for name, t in state.items() if not name.startswith("head.")}
    try:
        encoder.load_state_dict(state)
    except RuntimeError as error:
        raise UserError(
            f"{file} holds another encoder than the configuration describes: keep backbone "
            f"and head as they were trained ({str(error).splitlines()[1].strip()})."
        ) from error


def load_classifier(
    file: Path, class_names: Sequence[str], prefix: str = "classifier."
) -> nn.Linear:
    """The classifier in a checkpoint of a run.

    Args:
        file: a checkpoint; opened without unpickling.
        class_names: the classes it has to tell apart, in the order of their numbers.
        prefix: of the names of its parameters in the checkpoint.

    Raises:
        UserError: there is none, or it was trained for other classes.
    """
    checkpoint = read_checkpoint(file)
    state = {
        name.removeprefix(prefix): tensor
        for name, tensor in checkpoint["state_dict"].items()
        if name.startswith(prefix)
    }
    if not state:
        raise UserError(
            f"{file} holds an encoder without a classifier: use a run of method=classification."
        )
    with reading(file, ADVICE):
        known, wanted = list(map(str, checkpoint["class_names"])), list(class_names)
    if known != wanted:
        raise UserError(
            f"The classifier in {file} knows {_described(known)}, but the data has "
            f"{_described(wanted)}: use data with the same classes, in the same order."
        )
    with reading(file, ADVICE):
        classifier = nn.Linear(state["weight"].shape[1], state["weight"].shape[0])
        classifier.load_state_dict(state)
    return classifier


def _described(names: Sequence[str]) -> str:
    """A number of classes and the first few of their names."""
    shown = ", ".join(f"'{name}'" for name in names[:3])
    return f"{len(names)} classes ({shown}{', ...' if len(names) > 3 else ''})"
