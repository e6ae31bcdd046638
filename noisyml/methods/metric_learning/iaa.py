"""IAA: intra-class adaptive augmentation with neighbour correction.

Fu et al., "Intra-class Adaptive Augmentation with Neighbor Correction for Deep Metric Learning",
IEEE TMM 2022 (arXiv 2211.16264). Every few epochs a pass over the training split measures the
covariance of each class in the space of raw embeddings; each batch then gains synthetic copies
drawn around its samples. The copies are further positives and negatives of the real samples in pair
losses, further samples in any other loss. Nothing is added at test time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor

from noisyml import distributed
from noisyml.checks import Count, Hint, NonNegative, OpenShare, WholeNonNegative
from noisyml.data.views import Batch
from noisyml.errors import UserError
from noisyml.losses.metric_learning.class_covariance import ClassCovariance, full_class_moments
from noisyml.losses.metric_learning.iaa import AugmentationSchedule, augmented_loss
from noisyml.methods.metric_learning.base import MetricLearning
from noisyml.methods.metric_learning.pseudo_labels import PseudoLabels
from noisyml.methods.parts import Parts
from noisyml.methods.passes import batches_on, training_mode_with_fixed_norms
from noisyml.models.heads import unit_norm
from noisyml.similarity.class_moments import ClassMoments


class IAA(MetricLearning):
    """Metric learning on a batch and on copies drawn from the covariance of their class.

    Args:
        parts, pseudo_labels: see `MetricLearning`.
        statistics: makes the class statistics from ``num_classes`` and ``embedding_size``.
        copies: M, synthetic embeddings per sample.
        strength: lambda, share of the covariance that the noise has.
        start: share of the epochs before the first statistics, in [0, 1) (paper's code: 30 of 100).
        warmup_epochs: epochs with statistics and without copies.
        update_every: epochs between two passes over the training split.
        decay: let the strength fall towards the end, as the released code does.
    """

    updated_at: Tensor

    def __init__(
        self,
        parts: Parts,
        *,
        statistics: Callable[..., ClassCovariance],
        copies: Annotated[Count, Hint("strength=0 switches them off.")] = 3,
        strength: NonNegative = 0.8,
        start: OpenShare = 0.3,
        warmup_epochs: WholeNonNegative = 0,
        update_every: Count = 2,
        decay: bool = True,
        pseudo_labels: Callable[..., PseudoLabels] | None = None,
    ) -> None:
        super().__init__(parts, pseudo_labels=pseudo_labels)
        sizes = parts.sizes
        self.statistics = statistics(
            num_classes=sizes.num_classes, embedding_size=sizes.embedding_size
        )
        self.copies = copies
        self.start = start
        self._schedule_settings: dict[str, Any] = {
            "strength": strength,
            "warmup_epochs": warmup_epochs,
            "update_every": update_every,
            "decay": decay,
        }
        self.register_buffer("updated_at", torch.tensor(-1))

    @property
    def schedule(self) -> AugmentationSchedule:
        """Epochs in which classes are measured and copies made, counted from 1.

        Raises:
            UserError: the run has no number of epochs, or the copies would never begin.
        """
        epochs = self.trainer.max_epochs
        if epochs is None or epochs < 1:
            raise UserError("IAA goes by epochs: set trainer.max_epochs.")
        start = round(self.start * epochs)
        if start + self._schedule_settings["warmup_epochs"] >= epochs:
            raise UserError(
                f"IAA would begin after epoch {start + self._schedule_settings['warmup_epochs']} "
                f"of {epochs}: lower method.start or method.warmup_epochs."
            )
        return AugmentationSchedule(epochs=epochs, start_epoch=start, **self._schedule_settings)

    def on_fit_start(self) -> None:
        """Refuse a schedule that cannot work before the first step."""
        super().on_fit_start()
        _ = self.schedule

    def on_train_epoch_start(self) -> None:
        """Measure the classes where the schedule says so, unless a resumed run did already."""
        super().on_train_epoch_start()
        epoch = self.current_epoch + 1
        due = self.statistics.needs_pass and self.schedule.updates_at(epoch)
        if due and int(self.updated_at) != epoch:
            self.statistics.update(*self.measure())
            self.updated_at.fill_(epoch)

    @torch.no_grad()
    def measure(self) -> tuple[Tensor, Tensor, Tensor]:
        """Moments of the raw embeddings of each class, over all ranks.

        The training split in order, under the random transforms of training, the network in
        training mode but for its batch norms.

        Returns:
            Samples [C], means [C, A] and covariances [C, A] (or [C, A, A]) of the classes.
        """
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        classes, width = self.statistics.mean.shape
        moments = ClassMoments(classes, width, self.device)
        full = self.statistics.kind == "full"
        seen: list[tuple[Tensor, Tensor]] = []
        with training_mode_with_fixed_norms(self.encoder):
            for batch in batches_on(self.device, data.training_pass(self.current_epoch)):
                raw, labels = self.encoder.raw(batch), self.labels_of(batch)
                if full:
                    seen.append((raw, labels))
                else:
                    moments.update(raw, labels)
        if full:
            rows = torch.cat([torch.empty(0, width, device=self.device), *(r for r, _ in seen)])
            none = torch.empty(0, dtype=torch.int64, device=self.device)
            labels = torch.cat([none, *(own for _, own in seen)])
            return full_class_moments(distributed.gather(rows), distributed.gather(labels), classes)
        moments = moments.all_reduced()
        return moments.counts, moments.means, moments.variances()

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """One step: raw embeddings, copies of them, the loss on both."""
        raw = distributed.gather(self.encoder.raw(batch))
        labels = distributed.gather(self.labels_of(batch))
        index = distributed.gather(batch["index"])
        unit = unit_norm(raw)
        selection = self.judge(unit, labels, index)

        loss = augmented_loss(
            self.loss,
            raw,
            labels,
            shifts=self.shifts(raw, labels),
            memory=self.memory,
            keep=selection.mask,
        )
        self.remember(unit, labels, index, selection)
        return self.outcome(loss, selection, index)

    def shifts(self, raw: Tensor, labels: Tensor) -> Tensor | None:
        """Noise [M, B, A] of copies of the global batch, alike on every rank; None before they
        begin."""
        epoch = self.current_epoch + 1
        schedule = self.schedule
        if not schedule.synthesises_at(epoch):
            return None
        seed: int = self.trainer.datamodule.seed  # type: ignore[attr-defined]
        entropy = np.random.SeedSequence([seed, self.global_step, 0x1AA])
        generator = torch.Generator(raw.device).manual_seed(int(entropy.generate_state(1)[0]))
        return self.statistics.shifts(
            raw,
            labels,
            copies=self.copies,
            strength=schedule.strength_at(epoch),
            generator=generator,
        )
