"""Two networks trained at once: the base of methods in which they select for or follow each other.

Both have the same configuration and see the same batches; they differ by their initial weights. A
subclass writes `training_step`: it lets both networks `see` the batch once, chooses what each is to
learn from, and returns *one* loss, the sum of the two networks' losses. One backward pass through
that sum and one optimiser over both sets of parameters is what two passes and two optimisers
compute: no parameter belongs to both networks, so the gradient of one network's loss is zero
elsewhere, and optimisers treat every parameter by itself. A term that both networks share (an
agreement, a discrepancy) enters the sum once. Only clipping gradients by their norm
(``trainer.gradient_clip_val``) would see the two networks as one.

Nothing here knows what the loss is, or whether classes exclude each other.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from noisyml import distributed
from noisyml.data.views import Batch
from noisyml.errors import UserError
from noisyml.methods.base import Method
from noisyml.methods.checkpoints import (
    leave_out_frozen_backbone,
    load_classifier,
    load_encoder,
    read_checkpoint,
    restore_frozen_backbone,
)
from noisyml.methods.parts import Parts
from noisyml.metrics.base import SplitRole
from noisyml.models.encoder import Encoder
from noisyml.models.heads import class_scores
from noisyml.targets import labels_of

Predict = Literal["first", "second", "mean", "best"]
#: The two networks' names, in metrics and settings.
NETWORKS = ("first", "second")
#: Names of the peer's encoder in a checkpoint begin with this.
_PEER_ENCODER = "peer.encoder."
#: `TwoNetworks.chosen` before any validation.
_UNKNOWN = -1


@dataclass(frozen=True)
class View:
    """A global batch as one network sees it, in rank order on every rank.

    Attributes:
        logits: class scores [B, C] with gradient, float32 or better.
        layers: outputs [B, ...] of layers with gradient by name, those that were asked for.
    """

    logits: Tensor
    layers: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Seen:
    """A global batch as both networks see it.

    Attributes:
        first: by the network that the checkpoint calls ``encoder`` and ``classifier``.
        second: by its peer.
        labels: observed [B] int64, or multi-hot [B, C].
        index: positions in the training split [B] int64.
    """

    first: View
    second: View
    labels: Tensor
    index: Tensor


class Network(nn.Module):
    """An encoder and the linear classifier that reads its embeddings.

    Args:
        encoder: images or features to embeddings.
        num_classes: C.
    """

    def __init__(self, encoder: Encoder, num_classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.classifier = nn.Linear(encoder.out_features, num_classes)


class TwoNetworks(Method):
    """Two networks and the choice of who answers; a subclass writes what they learn.

    One optimiser trains both networks. A prefix of `Parts.param_groups` that names parameters of
    the first network (``encoder.head``, ``classifier``) holds for the peer too, unless
    ``peer.encoder.head`` says otherwise.

    Args:
        parts: the second network is `Parts.another_encoder`.
        predict: who answers when the model is evaluated: the ``first`` network, the ``second``,
            their ``mean`` probability (embeddings are then the first network's), or the ``best``,
            the network that did better in the last validation.
        best_by: the validation metric that ``best`` goes by, larger is better; None: the headline
            of the run.
    """

    needs_parts: ClassVar[frozenset[str]] = frozenset({"another_encoder"})

    gives: ClassVar[frozenset[str]] = frozenset({"embeddings", "logits"})
    #: 0: the first network did better in the last validation that compared them, 1: the second.
    chosen: Tensor

    def __init__(
        self, parts: Parts, *, predict: Predict = "first", best_by: str | None = None
    ) -> None:
        super().__init__(parts)
        another = parts.another_encoder()
        self.class_names = list(parts.sizes.class_names)
        self.classifier = nn.Linear(self.encoder.out_features, len(self.class_names))
        self.peer = Network(another, len(self.class_names))
        self.predict = predict
        self.best_by = self.headline if best_by is None else best_by
        self.register_buffer("chosen", torch.tensor(_UNKNOWN))
        names = [name for name, _ in self.named_parameters()]
        for prefix, settings in list(self.param_groups.items()):
            if any(name.startswith(f"peer.{prefix}") for name in names):
                self.param_groups.setdefault(f"peer.{prefix}", settings)

    # -- training ----------------------------------------------------------------------------

    def see(self, batch: Batch, layers: Sequence[str] = ()) -> Seen:
        """Pass this rank's share once through both networks and gather the global batch.

        Args:
            batch: this rank's share.
            layers: whose outputs to keep, see `Encoder.activations`.

        Raises:
            UserError: the networks have no such layers.
        """
        first, second = (
            _view(encoder, classifier, batch, layers)
            for encoder, classifier in self.networks().values()
        )
        return Seen(
            first, second, distributed.gather(labels_of(batch)), distributed.gather(batch["index"])
        )

    def networks(self) -> dict[str, tuple[Encoder, nn.Linear]]:
        """Encoder and classifier of each network, by its name."""
        parts = (self.encoder, self.classifier), (self.peer.encoder, self.peer.classifier)
        return dict(zip(NETWORKS, parts, strict=True))

    def on_fit_start(self) -> None:
        """Refuse a choice that nothing could inform.

        Raises:
            UserError: ``predict=best`` without a validation.
        """
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if self.predict == "best" and (
            "val" not in data.splits or self.trainer.limit_val_batches == 0
        ):
            raise UserError(
                "method.predict=best compares the networks on a validation split, and there is "
                "none: choose method.predict=first, second or mean."
            )

    # -- evaluation --------------------------------------------------------------------------

    @abstractmethod
    def average(self, first: Tensor, second: Tensor) -> Tensor:
        """Class scores [b, C] that stand for the mean of both networks' probabilities.

        Args:
            first: class scores [b, C] of the first network.
            second: of the second.
        """

    @property
    def answering(self) -> str:
        """The network that answers now: ``first``, ``second`` or ``mean``.

        Raises:
            UserError: the better network is to answer, and no validation has compared them.
        """
        if self.predict != "best":
            return self.predict
        chosen = int(self.chosen)
        if chosen == _UNKNOWN:
            raise UserError(
                "method.predict=best: no validation has compared the two networks yet; choose "
                "method.predict=first, second or mean."
            )
        return NETWORKS[chosen]

    def outputs(self, batch: Batch, wanted: Collection[str]) -> dict[str, Tensor]:
        """Outputs of the answering network, or of the mean of both, for this rank's batch."""
        name = self.answering
        return self._answers(batch, [name], wanted)[name]

    @torch.no_grad()
    def embed(self, batch: Batch) -> Tensor:
        """Embeddings [b, D] by the network that answers; the first one's for the mean."""
        name = self.answering
        encoder, _ = self.networks()[NETWORKS[0] if name == "mean" else name]
        embeddings: Tensor = encoder(batch)
        return embeddings

    def _answers(
        self, batch: Batch, names: Collection[str], wanted: Collection[str]
    ) -> dict[str, dict[str, Tensor]]:
        """Outputs of each of `names` for this rank's batch; each network sees it once."""
        first, second = NETWORKS
        score = "logits" in wanted
        given: dict[str, dict[str, Tensor]] = {}
        for name, (encoder, classifier) in self.networks().items():
            if name in names or ("mean" in names and (score or name == first)):
                given[name] = {"embeddings": encoder(batch)}
                if score:
                    given[name]["logits"] = class_scores(classifier, given[name]["embeddings"])
        if "mean" in names:
            given["mean"] = {"embeddings": given[first]["embeddings"]}
            if score:
                scores = given[first]["logits"], given[second]["logits"]
                given["mean"]["logits"] = self.average(*scores)
        return given

    def _scored(self) -> list[str]:
        """Networks whose metrics are computed: for class scores all, else those that answer."""
        if self.predict == "best":
            return list(NETWORKS)
        if "logits" in self.wanted_outputs:
            return list(dict.fromkeys((*NETWORKS, self.predict)))
        return [self.predict]

    def _collect(self, prefix: str, batch: Batch, role: SplitRole) -> None:
        if len(batch["index"]):
            scored = self._scored()
            answers = self._answers(batch, scored, self.wanted_outputs)
            for name in scored:
                self.evaluation(prefix, name).update(
                    answers[name], labels_of(batch), batch["index"], role
                )

    def _report(self, prefix: str) -> dict[str, float]:
        found = {name: self.evaluation(prefix, name).compute() for name in self._scored()}
        if prefix == "val":
            self._choose(found)
        self._keep_artefacts(self.evaluation(prefix, self.answering), prefix)
        metrics = dict(found[self.answering])
        if set(NETWORKS) <= found.keys():
            for name in NETWORKS:
                metrics |= {f"{metric}_{name}": value for metric, value in found[name].items()}
        return self._log_metrics(metrics, prefix)

    def _choose(self, found: Mapping[str, Mapping[str, float]]) -> None:
        """Remember who did better in a validation, with noisy labels if it has such."""
        if not set(NETWORKS) <= found.keys():
            return
        first, second = (found[name] for name in NETWORKS)
        if self.best_by in first:
            self.chosen.fill_(better(first[self.best_by], second[self.best_by]))
        elif self.predict == "best":
            raise UserError(
                f"method.best_by={self.best_by} is not measured: use one of {', '.join(first)}."
            )

    # -- checkpoints -------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave a frozen network out, and write down what the classes are called."""
        super().on_save_checkpoint(checkpoint)
        leave_out_frozen_backbone(self.peer.encoder, checkpoint, _PEER_ENCODER)
        checkpoint["class_names"] = self.class_names

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take a frozen network from the configuration, after checking that it is the same."""
        super().on_load_checkpoint(checkpoint)
        restore_frozen_backbone(self.peer.encoder, checkpoint, _PEER_ENCODER)

    def load_encoder(self, file: Path) -> None:
        """Take the encoder of the network that answers; the first one's for the mean."""
        self._load_chosen(file)
        load_encoder(
            self.encoder, file, _PEER_ENCODER if self.answering == "second" else "encoder."
        )

    def load_trained(self, file: Path) -> None:
        """Take both encoders and, if class scores are evaluated, both classifiers.

        Raises:
            UserError: the checkpoint belongs to another architecture or to other classes.
        """
        self._load_chosen(file)
        load_encoder(self.encoder, file)
        load_encoder(self.peer.encoder, file, _PEER_ENCODER)
        if "logits" in self.wanted_outputs:
            self.classifier = load_classifier(file, self.class_names)
            self.peer.classifier = load_classifier(file, self.class_names, "peer.classifier.")

    def _load_chosen(self, file: Path) -> None:
        state = read_checkpoint(file)["state_dict"]
        if "chosen" not in state:
            raise UserError(
                f"{file} holds one network, and {type(self).__name__} has two: use a run of such a "
                f"method."
            )
        self.chosen.copy_(state["chosen"])


def better(first: float, second: float) -> int:
    """The network with the larger of two scores, 0 or 1; equal ones: 1 (rcml's release)."""
    return 0 if first > second else 1


def _view(encoder: Encoder, classifier: nn.Linear, batch: Batch, layers: Sequence[str]) -> View:
    """The gathered batch as one network sees it."""
    embeddings, seen = encoder.activations(batch, layers)
    return View(
        distributed.gather(class_scores(classifier, embeddings)),
        {name: distributed.gather(output) for name, output in seen.items()},
    )
