"""OTTER: captions as loose labels, matched within a batch by optimal transport; its baselines.

Wu et al., "Data Efficient Language-Supervised Zero-Shot Recognition with Optimal Transport
Distillation", ICLR 2022 (arXiv 2112.09445). InfoNCE takes the given pair for the only match of an
image; OTTER replaces part of that target by the plan that transports the batch's images to its
captions at least cost, with similarities by a moving average of the model itself.

Points in which the released code differs, each an option: under several processes it removes the
wrong pairs (``diagonal=released``) and passes no gradient through gathered embeddings
(``gather_grad=none``); the teacher of plain distillation adds the similarities within each side
(``kd_terms=all``), which makes its targets practically one-hot.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from noisyml import distributed
from noisyml.checks import NonNegative, OpenShare, Positive, Share, WholeNonNegative
from noisyml.data.views import Batch
from noisyml.losses.image_text.contrastive import (
    INITIAL_LOG_TEMPERATURE,
    LogTemperature,
    contrastive_losses,
    distillation_losses,
)
from noisyml.losses.image_text.otter import (
    Scores,
    Sides,
    given_pair_mass,
    matching_scores,
    similarity_targets,
    transport_targets,
)
from noisyml.methods.checkpoints import leave_out_frozen_backbone, restore_frozen_backbone
from noisyml.methods.image_text.base import Decay, ImageText, Place
from noisyml.methods.parts import Parts
from noisyml.models.ema import EMATeacher
from noisyml.models.encoder import Encoder
from noisyml.models.text.encoder import TextEncoder
from noisyml.similarity.transport import Domain

Objective = Literal["infonce", "label_smoothing", "distillation", "otter"]
#: Smoothing of ``objective=label_smoothing`` where none is given; the paper's value is not known.
DEFAULT_SMOOTHING = 0.1


class Terms(NamedTuple):
    """Losses of this rank's pairs, both directions added.

    Attributes:
        contrastive: [m].
        distillation: [m], or None without a teacher.
    """

    contrastive: Tensor
    distillation: Tensor | None


class Otter(ImageText):
    """InfoNCE and, mixed with it, the divergence from a teacher's soft matching of the batch.

    Args:
        parts, text_encoder, decay: see `ImageText`.
        objective: ``infonce``; ``label_smoothing``: the same with smoothed targets;
            ``distillation``: mixed with a softmax of the teacher's similarities; ``otter``: mixed
            with the teacher's transport plan.
        alpha: weight of InfoNCE in a mixture; the other part has the rest.
        smoothing: share of InfoNCE's target spread over other pairs; None: `DEFAULT_SMOOTHING` for
            ``label_smoothing``, else 0.
        epsilon: weight of the entropy of the plan.
        n_iterations: K, scalings of the plan.
        domain: arithmetic of the plan, see `noisyml.similarity.transport.sinkhorn`.
        plan: one for the ``global`` batch, or a rectangular one of each process (``local``).
        vv_coef: weight of the similarity of images in the teacher's scores.
        tt_coef: weight of the similarity of captions in them.
        remove_diagonal: let the plan match other pairs only; the given one is InfoNCE's.
        diagonal: where given pairs stand in the rows of a process: where they do (``global``), or
            in its first columns (``released``).
        kd_terms: scores of plain distillation: ``vt``, images with captions, or ``all``.
        kd_scale: T_t, factor of these scores.
        kd_remove_diagonal: let plain distillation match other pairs only.
        gather_grad: gradient through the gathered columns of the logits: ``full``, that of the
            whole batch, or ``none``.
        initial_log_temperature: of InfoNCE and distillation, each a parameter of its own.
        teacher: makes the moving average, from ``student``.
    """

    #: Objectives that ask a teacher.
    taught: ClassVar[frozenset[str]] = frozenset({"distillation", "otter"})

    def __init__(
        self,
        parts: Parts,
        *,
        text_encoder: Callable[..., TextEncoder],
        objective: Objective = "otter",
        alpha: Share = 0.5,
        smoothing: OpenShare | None = None,
        epsilon: Positive = 0.15,
        n_iterations: WholeNonNegative = 5,
        domain: Domain = "log",
        plan: Literal["global", "local"] = "global",
        vv_coef: NonNegative = 1.0,
        tt_coef: NonNegative = 1.0,
        remove_diagonal: bool = True,
        diagonal: Literal["global", "released"] = "global",
        kd_terms: Literal["vt", "all"] = "vt",
        kd_scale: Positive = 100.0,
        kd_remove_diagonal: bool = False,
        gather_grad: Literal["full", "none"] = "full",
        initial_log_temperature: float = INITIAL_LOG_TEMPERATURE,
        teacher: Callable[..., EMATeacher] = EMATeacher,
        decay: Decay = "all",
    ) -> None:
        super().__init__(parts, text_encoder=text_encoder, decay=decay)
        self.objective = objective
        self.alpha = alpha
        if smoothing is None:
            smoothing = DEFAULT_SMOOTHING if objective == "label_smoothing" else 0.0
        self.smoothing = smoothing
        self.epsilon, self.n_iterations, self.domain = epsilon, n_iterations, domain
        self.plan = plan
        self.vv_coef, self.tt_coef = vv_coef, tt_coef
        self.remove_diagonal, self.diagonal = remove_diagonal, diagonal
        self.kd_terms, self.kd_scale = kd_terms, kd_scale
        self.kd_remove_diagonal = kd_remove_diagonal
        self.gather_grad = gather_grad
        self.temperature = LogTemperature(initial_log_temperature)
        self.teacher: EMATeacher | None = None
        if objective in self.taught:
            self.distillation_temperature = LogTemperature(initial_log_temperature)
            if parts.training:
                self.teacher = teacher(student=self._student())

    def _student(self) -> nn.ModuleDict:
        return nn.ModuleDict({"encoder": self.encoder, "text_encoder": self.text_encoder})

    def on_fit_start(self) -> None:
        """Prepare captions; the teacher standardises features as the student does."""
        super().on_fit_start()
        if self.teacher is not None and isinstance(self.encoder, Encoder):
            mine = self.encoder.backbone
            theirs: Any = self.teacher.averages["encoder"].backbone
            theirs.feature_mean.copy_(mine.feature_mean)
            theirs.feature_std.copy_(mine.feature_std)

    # -- the step ----------------------------------------------------------------------------

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """One step: the teacher moves, both see the batch, the student follows pair and plan."""
        if self.teacher is not None:
            self.teacher.update_parameters(self._student())
        place = self.place(batch)
        own = self.embed_sides(batch)
        everyone = gathered(own)
        taught, all_taught = self.taught_sides(batch, own, everyone)

        terms = self.pair_losses(own, everyone, taught, all_taught, place)
        index = distributed.gather(batch["index"])
        sample_loss = distributed.gather(terms.contrastive.detach() / 2)
        selection = self.judge(
            index, everyone.image, sample_loss, lambda: self.pair_mass(all_taught)
        )
        losses = terms.contrastive
        if terms.distillation is not None:
            losses = self.alpha * losses + (1 - self.alpha) * terms.distillation
        loss = self.global_mean(losses, selection.keep, place)
        shown = {
            name: self.global_mean(term.detach(), selection.keep, place)
            for name, term in terms._asdict().items()
            if term is not None
        }
        return self.outcome(loss, selection, index, sample_loss, shown)

    @torch.no_grad()
    def taught_sides(self, batch: Batch, own: Sides, everyone: Sides) -> tuple[Sides, Sides]:
        """The teacher's embeddings of this rank and of the global batch; without one the student's.

        Args:
            batch: this rank's share.
            own, everyone: the student's.
        """
        if self.teacher is None:
            return Sides(own.image.detach(), own.text.detach()), Sides(
                everyone.image.detach(), everyone.text.detach()
            )
        modules = self.teacher.averages
        taught = self.embed_sides(batch, modules["encoder"], modules["text_encoder"])
        return taught, gathered(taught)

    def pair_losses(
        self, own: Sides, everyone: Sides, taught: Sides, all_taught: Sides, place: Place
    ) -> Terms:
        """Losses of this rank's rows against the global batch.

        Args:
            own, everyone: the student's unit-norm embeddings, m and n rows.
            taught, all_taught: the teacher's.
            place: of this rank's rows among all.
        """
        if self.gather_grad == "none":
            everyone = Sides(everyone.image.detach(), everyone.text.detach())
        # Logits are cosines times 50 or more: half precision would leave them a digit.
        with torch.autocast(own.image.device.type, enabled=False):
            logits = Scores(own.image @ everyone.text.T, own.text @ everyone.image.T)
        columns = place.columns(own.image.device)
        scaled = [self.temperature(side) for side in logits]
        contrastive = [contrastive_losses(side, columns, self.smoothing) for side in scaled]
        if self.objective not in self.taught:
            return Terms(contrastive[0] + contrastive[1], None)
        targets = self.targets(taught, all_taught, place)
        image, text = (
            distillation_losses(self.distillation_temperature(side), target)
            for side, target in zip(logits, targets, strict=True)
        )
        return Terms(contrastive[0] + contrastive[1], image + text)

    def targets(self, taught: Sides, all_taught: Sides, place: Place) -> Scores:
        """The teacher's soft matching of this rank's rows with the global batch, [m, n] each."""
        device = taught.image.device
        if self.objective == "distillation":
            coefs = (1.0, 1.0) if self.kd_terms == "all" else (0.0, 0.0)
            removed = self._removed(self.kd_remove_diagonal, place, device)
            scores = matching_scores(
                taught, all_taught, vv_coef=coefs[0], tt_coef=coefs[1], removed=removed
            )
            return similarity_targets(scores, self.kd_scale)
        whole = self.plan == "global"
        removed = self._removed(self.remove_diagonal, place, device, whole)
        scores = matching_scores(
            all_taught if whole else taught,
            all_taught,
            vv_coef=self.vv_coef,
            tt_coef=self.tt_coef,
            removed=removed,
        )
        targets = transport_targets(
            scores, epsilon=self.epsilon, n_iterations=self.n_iterations, domain=self.domain
        )
        return Scores(*(side[place.rows] for side in targets)) if whole else targets

    def _removed(
        self, remove: bool, place: Place, device: torch.device, whole: bool = False
    ) -> Tensor | None:
        """Column that each row must not match, of this rank's rows or of all."""
        if not remove:
            return None
        if self.diagonal == "global":
            if whole:
                return torch.arange(sum(place.sizes), device=device)
            return place.columns(device)
        if whole:
            return torch.cat([torch.arange(size, device=device) for size in place.sizes])
        return torch.arange(place.sizes[place.rank], device=device)

    def pair_mass(self, sides: Sides) -> Tensor:
        """The plan's mass [n] on each given pair of the global batch."""
        return given_pair_mass(
            sides, epsilon=self.epsilon, n_iterations=self.n_iterations, domain=self.domain
        )

    # -- checkpoints -------------------------------------------------------------------------

    def text_encoders(self) -> dict[str, nn.Module]:
        """The student's and the teacher's encoders of captions."""
        found = super().text_encoders()
        if self.teacher is not None:
            found["teacher.module.text_encoder."] = self.teacher.averages["text_encoder"]
        return found

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave the teacher's frozen networks out as well."""
        super().on_save_checkpoint(checkpoint)
        if self.teacher is not None:
            encoder: Any = self.teacher.averages["encoder"]
            leave_out_frozen_backbone(encoder, checkpoint, "teacher.module.encoder.")

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the teacher's frozen networks from the configuration."""
        super().on_load_checkpoint(checkpoint)
        if self.teacher is not None:
            encoder: Any = self.teacher.averages["encoder"]
            restore_frozen_backbone(encoder, checkpoint, "teacher.module.encoder.")


def gathered(own: Sides) -> Sides:
    """Both sides of the global batch in rank order, with gradient."""
    return Sides(distributed.gather(own.image), distributed.gather(own.text))
