"""Self-training: a stage that learns from human labels, from pseudo-labels, or from a mixture.

A stage starts from the model of an earlier run. Where it learns from pseudo-labels, that model
labels the unlabelled samples once, before the first step, in evaluation mode and without
augmentation; they lie in the run's folder and do not change during the stage (GIST and RIST: Teh et
al., "The GIST and RIST of Iterative Self-Training for Semi-Supervised Segmentation", CRV 2022,
arXiv 2103.17105).
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from noisyml import distributed
from noisyml.checks import Interval, Share, check_fields
from noisyml.data.labelled import Pool
from noisyml.data.samplers.plans import Cycle, Shuffle
from noisyml.data.views import Batch
from noisyml.errors import UserError
from noisyml.losses.segmentation.pixels import PseudoLabels
from noisyml.methods.base import Method
from noisyml.methods.checkpoints import read_checkpoint
from noisyml.methods.passes import batches_on, evaluation_mode
from noisyml.methods.pseudo_label_files import PseudoLabelFolder, StoredLabels
from noisyml.runs.artefacts import Artefact
from noisyml.runs.folder import locate_checkpoint
from noisyml.runs.progress import announce

if TYPE_CHECKING:
    from noisyml.data.datamodule import DataModule


@dataclass(frozen=True, kw_only=True)
class PseudoLabelling:
    """Settings of the pseudo-labels of a stage.

    Attributes:
        source: run folder or checkpoint of the model that gives them; null: there is none.
        folder: receives them.
        init: weights that the stage starts from: those of the ``previous`` model, or the
            ``pretrained`` ones that the run would start from without it.
        threshold: least confidence of a label; null: all are kept.
        share: of the labels of each class, the most confident, that teach (class-balanced
            self-training, Zou et al., ECCV 2018); null: all do. The files hold all of them.
        soft: learn from the probabilities of all classes in place of one class.

    Raises:
        ArgumentError: a value out of range.
    """

    source: str | None = None
    folder: str = "pseudo_labels"
    init: Literal["previous", "pretrained"] = "previous"
    threshold: Share | None = None
    share: Annotated[float, Interval(gt=0, le=1)] | None = None
    soft: bool = False

    def __post_init__(self) -> None:
        check_fields(self)

    def checkpoint(self) -> Path:
        """The checkpoint of the model.

        Raises:
            UserError: there is none.
        """
        if self.source is None:
            raise UserError(
                "method.alpha > 0 learns from pseudo-labels, and no model gives any: use stages, "
                "e.g. stages=rist, or name a run by method.pseudo.source."
            )
        return locate_checkpoint(Path(self.source), "last")


class SelfTraining(Method):
    """Adds stages of self-training to another base class; goes before it in the list of bases.

    A subclass sets `alpha` and `pseudo` in its constructor, and writes `labels_of_scores` and
    `stored_labels`.
    """

    #: Prefixes of the parameters that a stage takes over.
    taught: ClassVar[tuple[str, ...]]
    alpha: float
    pseudo: PseudoLabelling
    _pseudo_metrics: dict[str, float]

    @classmethod
    def pool(cls, settings: Mapping[str, Any]) -> Pool:
        """Samples with a label, those without, or as many of either."""
        alpha = float(settings.get("alpha", 0.0))
        return "labelled" if alpha == 0 else "unlabelled" if alpha == 1 else "both"

    # -- what a subclass says ------------------------------------------------------------------

    @abstractmethod
    def pseudo_labels_of(self, batch: Batch, threshold: float | None) -> PseudoLabels:
        """Labels that the network gives a batch, in evaluation mode."""

    @abstractmethod
    def stored_labels(self, data: DataModule, found: PseudoLabels, index: Tensor) -> StoredLabels:
        """Labels of a batch as they are written, at the size in which training reads them."""

    # -- before training -----------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Start from the model of the stage before; a checkpoint of this run comes later."""
        super().setup(stage)
        if stage == "fit" and self.pseudo.source is not None and self.pseudo.init == "previous":
            self.load_whole(self.pseudo.checkpoint())

    def on_fit_start(self) -> None:
        """Give the unlabelled samples their pseudo-labels, made now or before an interruption."""
        super().on_fit_start()
        if self.alpha == 0:
            return
        data: DataModule = self.trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(data.plan, Shuffle | Cycle):
            raise UserError(
                "The sampler draws batches by class, and unlabelled samples have none: use "
                "sampler=shuffle or sampler=cycle."
            )
        marks = data.splits["train"].labelled
        assert marks is not None  # the plan has found unlabelled samples
        positions = np.flatnonzero(~marks)
        folder = PseudoLabelFolder(Path(self.pseudo.folder), data.target, len(data.class_names))
        if not folder.complete:
            self._label(data, folder, positions)
            self._wait()
        found = folder.read(positions)
        if self.pseudo.share is not None:
            found = folder.most_confident(found, self.pseudo.share)
        data.teach(positions, found.labels)
        if found.soft_masks:
            data.soft_masks.classes = len(data.class_names)
            data.soft_masks.files = dict(found.soft_masks)
        self.take_probabilities(positions, found.probabilities, len(marks))
        self._pseudo_metrics = pseudo_metrics(data, positions, found)

    def take_probabilities(
        self, positions: np.ndarray, probabilities: np.ndarray | None, samples: int
    ) -> None:
        """Keep the class probabilities of whole samples where they teach; here nothing is."""

    def _wait(self) -> None:
        if distributed.is_distributed():
            torch.distributed.barrier()

    @torch.no_grad()
    def _label(self, data: DataModule, folder: PseudoLabelFolder, positions: np.ndarray) -> None:
        """Label the samples at `positions`, each rank its share; the last act is the manifest."""
        own = {name: tensor.clone() for name, tensor in self.state_dict().items()}
        file = self.pseudo.checkpoint()
        self.load_whole(file)
        shard = positions[distributed.shard_slice(len(positions))]
        report = announce("pseudo-labels") if distributed.rank() == 0 else None
        done = 0
        with evaluation_mode(self):
            for batch in batches_on(self.device, data.predict_dataloader("train", shard)):
                index = batch["index"]
                # The same batches whatever is there already: rounding depends on them.
                if not folder.holds(index.tolist(), self.pseudo.soft):
                    found = self.pseudo_labels_of(batch, self.pseudo.threshold)
                    folder.write(self.stored_labels(data, found, index), self.pseudo.soft)
                done += len(index)
                if report is not None:
                    report(done, len(shard))
        self.load_state_dict(own)
        self._wait()
        if distributed.rank() == 0:
            split = data.splits["train"]
            settings = {"threshold": self.pseudo.threshold, "soft": self.pseudo.soft}
            keys = [split.keys[position] for position in positions.tolist()]
            folder.finish(file, settings, positions, keys)

    def load_whole(self, file: Path) -> None:
        """Take encoder and classifier or segmenter from a checkpoint, in place.

        Raises:
            UserError: the checkpoint is of another architecture or of other classes.
        """
        state = read_checkpoint(file)["state_dict"]
        own = self.state_dict()
        frozen = self.encoder.backbone.frozen
        wanted = [
            name
            for name in own
            if name.startswith(self.taught)
            and not (frozen and name.startswith("encoder.backbone.body."))
        ]
        wrong = next((n for n in wanted if n not in state or state[n].shape != own[n].shape), None)
        if wrong is not None:
            raise UserError(
                f"{file} is no model that this stage can start from ({wrong} is missing or of "
                f"another shape): all stages need the same backbone, head and classes."
            )
        self.load_state_dict({**own, **{name: state[name] for name in wanted}})

    # -- what is told about it -----------------------------------------------------------------

    @property
    def stage_metrics(self) -> dict[str, float]:
        """Figures about the pseudo-labels of this stage, by name; none where there are none."""
        return copy.copy(getattr(self, "_pseudo_metrics", {}))

    def pseudo_artefacts(self, data: DataModule) -> Iterable[Artefact]:
        """A table of the classes among human and pseudo-labels."""
        if self.alpha == 0:
            return
        marks = data.splits["train"].labelled
        assert marks is not None
        import pandas as pd

        shares = {
            "human labels": class_shares(data, data.teaching[marks]),
            "pseudo-labels": class_shares(data, data.teaching[~marks]),
        }
        table = pd.DataFrame({"class": list(data.class_names), **shares})
        yield Artefact(
            "pseudo_labels.csv",
            table,
            "Classes of human labels and pseudo-labels",
            "Share of the labelled pixels (or samples) that each class has.",
        )


def class_shares(data: DataModule, labels: Any) -> np.ndarray:
    """Share of each class among labels [n]: of samples, or of the pixels of masks; [C] float."""
    counts = data.target.sizes(labels, len(data.class_names)).astype(float)
    return counts / max(counts.sum(), 1.0)


def pseudo_metrics(
    data: DataModule, positions: np.ndarray, found: StoredLabels
) -> dict[str, float]:
    """Figures about pseudo-labels: agreement with the truth where known, ignored, confidence.

    The truth enters here and nowhere in training.
    """
    right, labelled, total = data.target.agreement(
        found.labels, data.manifest.clean[positions], len(data.class_names)
    )
    metrics = {
        "pseudo/ignored": 1 - labelled / max(total, 1),
        "pseudo/confidence": float(found.confidence.mean()),
        "pseudo/samples": float(len(positions)),
    }
    if data.manifest.truth_known and labelled:
        metrics["pseudo/accuracy"] = right / labelled
    return metrics
