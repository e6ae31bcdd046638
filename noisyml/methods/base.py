"""Base of all methods: an encoder, an optimiser, and evaluation on whole splits."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from lightning import LightningModule
from torch import Tensor

from noisyml import distributed
from noisyml.checks import Checked
from noisyml.data.base import DEFAULT_TEST_SET
from noisyml.data.labelled import Pool
from noisyml.data.views import Batch
from noisyml.errors import UserError
from noisyml.losses.base import EmbeddingLoss, Loss
from noisyml.methods.checkpoints import (
    leave_out_frozen_backbone,
    load_encoder,
    restore_frozen_backbone,
)
from noisyml.methods.parts import Parts, Sizes
from noisyml.methods.passes import split_rows
from noisyml.metrics.base import Evaluation, SplitRole, headline, needed_outputs
from noisyml.optim import Plateau, parameter_groups
from noisyml.runs.artefacts import Artefact
from noisyml.selectors.base import Selector, Source, SplitRows
from noisyml.targets import TargetKind, labels_of

if TYPE_CHECKING:
    import pandas as pd

    from noisyml.data.datamodule import DataModule

#: Prefix of metrics of the test split when a run may choose its model by them.
ON_TEST = "on_test"


class Method(Checked, LightningModule):
    """Base of all methods; a subclass writes `training_step` and, if it must, `after_backward`.

    A constructor takes the parts and keyword-only settings of its own, whose annotations are
    checked.

    Args:
        parts: encoder, optimiser, evaluators and what else `needs_parts` names.
    """

    #: Parts beyond encoder, optimiser and evaluators: ``loss selector memory another_encoder``.
    needs_parts: ClassVar[frozenset[str]] = frozenset()
    #: Fields of `Evidence` this method fills for a selector.
    evidence: ClassVar[frozenset[str]] = frozenset()
    #: Kind of loss it takes, if it needs one.
    takes_loss: ClassVar[type[Loss]] = EmbeddingLoss
    #: Views of each image that a training batch holds, see `ViewMaker`.
    n_views: ClassVar[int] = 1
    #: Outputs that it gives an evaluator, see `Evaluator.needs`.
    gives: ClassVar[frozenset[str]] = frozenset({"embeddings"})
    #: Kinds of labels it learns from.
    target_kinds: ClassVar[frozenset[TargetKind]] = frozenset({"single"})
    #: Kinds of labels that its selector judges; None: those it learns from.
    judged_kinds: ClassVar[frozenset[TargetKind] | None] = None
    #: False of a baseline that trains nothing.
    learns: ClassVar[bool] = True
    #: True if it also learns from the validation split, whose labels must be official and clean.
    trains_on_val: ClassVar[bool] = False

    def __init__(self, parts: Parts) -> None:
        super().__init__()
        self.encoder = parts.encoder
        self.evaluators = dict(parts.evaluators)
        self._evaluations: dict[tuple[str, str], Evaluation] = {}
        self.param_groups = dict(parts.param_groups)
        self._make_optimizer = parts.optimizer
        self._make_scheduler = parts.scheduler
        self._plateau: Plateau | None = None
        self.evaluation_artefacts: list[Artefact] = []

    @classmethod
    def adapt_sizes(cls, sizes: Sizes, settings: Mapping[str, Any]) -> Sizes:
        """Sizes for all other parts, where the method's own settings change those of the data.

        Args:
            sizes: of data and encoder.
            settings: the method's, as configured.
        """
        return sizes

    @classmethod
    def views_of(cls, settings: Mapping[str, Any]) -> Collection[int]:
        """Numbers of views of each image that it can train on, the one it needs first.

        Args:
            settings: the method's, as configured.
        """
        return (cls.n_views,)

    @classmethod
    def pool(cls, settings: Mapping[str, Any]) -> Pool:
        """Samples of the training split that its batches are drawn from: those with a label.

        Args:
            settings: the method's, as configured.
        """
        return "labelled"

    # -- training ----------------------------------------------------------------------------

    def run_length(self) -> tuple[int | None, int | None]:
        """Training batches and epochs of the whole run; None where no end is set."""
        trainer = self.trainer
        steps = trainer.estimated_stepping_batches
        batches = None if steps == float("inf") else int(steps) * trainer.accumulate_grad_batches
        epochs = trainer.max_epochs
        return batches, None if epochs is None or epochs < 0 else epochs

    def embed_globally(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Encode this rank's share and gather the global batch in rank order.

        Returns:
            Embeddings [B, D] with gradient, observed labels [B] or [B, C], positions [B].
        """
        embeddings = distributed.gather(self.encoder(batch))
        labels = distributed.gather(labels_of(batch))
        return embeddings, labels, distributed.gather(batch["index"])

    def labels_of(self, batch: Batch) -> Tensor:
        """The labels of a batch that teach: those that are observed."""
        return labels_of(batch)

    def on_train_epoch_start(self) -> None:
        """Let the selector look at the whole training split, if it asks to."""
        self.show_selector()

    def show_selector(self, changed: bool = False) -> None:
        """Let the selector, if there is one, look at the training split before an epoch.

        Args:
            changed: labels are others than in the epoch before.
        """
        selector = getattr(self, "selector", None)
        if isinstance(selector, Selector):
            selector.begin_epoch(self.current_epoch, self._split_rows, changed)

    def _split_rows(self, source: Source) -> SplitRows:
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        loader = data.predict_dataloader("train")
        return split_rows(self.encoder, self.device, loader, self.labels_of, source)

    def after_backward(self) -> None:
        """Hook for state that must change after the gradients are computed (memories)."""

    def on_after_backward(self) -> None:
        """Lightning's hook for `after_backward`."""
        self.after_backward()

    def optimizer_groups(self) -> list[dict[str, Any]]:
        """The trainable parameters, in groups with settings of their own."""
        return parameter_groups(self, self.param_groups)

    def configure_optimizers(self) -> Any:
        """The optimiser and the schedule of the configuration."""
        try:
            optimizer = self._make_optimizer(self.optimizer_groups())
        except ValueError as error:
            raise UserError(f"The optimiser refuses its settings: {error}.") from error
        if self._make_scheduler is None:
            return optimizer
        steps = int(self.trainer.estimated_stepping_batches)
        scheduler = self._make_scheduler(optimizer, total_steps=steps)
        if isinstance(scheduler, Plateau):
            if "val" not in self.trainer.datamodule.splits:  # type: ignore[attr-defined]
                raise UserError(
                    "scheduler=plateau watches the validation split, and the data set has none: "
                    "choose another scheduler=..."
                )
            self._plateau = scheduler
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    def follow_plateau(self, plateau: Plateau, metrics: Mapping[str, float]) -> None:
        """Tell a `Plateau` the metrics of a validation; called before a checkpoint is written."""
        plateau.observe(metrics)

    # -- evaluation --------------------------------------------------------------------------

    @property
    def wanted_outputs(self) -> frozenset[str]:
        """Names of the outputs that the evaluators look at."""
        return needed_outputs(self.evaluators)

    @property
    def headline(self) -> str:
        """Name of the metric that checkpoints and progress go by unless told otherwise."""
        return headline(self.evaluators)

    def outputs(self, batch: Batch, wanted: Collection[str]) -> dict[str, Tensor]:
        """Outputs for this rank's batch in evaluation mode, by name.

        Args:
            batch: this rank's share.
            wanted: names out of `gives`; others need not be computed.
        """
        return {"embeddings": self.encoder(batch)}

    def artefacts(self, data: DataModule, trust: pd.Series | None) -> Iterable[Artefact]:
        """Pictures and tables for the run folder and its report; here none.

        Called after training, on the first rank alone.

        Args:
            data: of the run.
            trust: the selector's mean ``p_clean`` by position in the training split, the lowest
                first; None where no samples were judged.
        """
        return ()

    def on_validation_start(self) -> None:
        """Evaluate with the statistics that a checkpoint holds."""
        distributed.agree_on_statistics(self)

    def on_test_start(self) -> None:
        """Evaluate with the statistics that a checkpoint holds."""
        distributed.agree_on_statistics(self)

    def on_validation_epoch_start(self) -> None:
        """Forget the last evaluation."""
        self._evaluations.clear()

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Evaluate a batch of the validation split, or of a test set where a run watches it."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        first_test_loader = int("val" in data.splits)
        if dataloader_idx < first_test_loader:
            self._collect("val", batch, "pool")
        else:
            for prefix, role in test_loaders(data)[dataloader_idx - first_test_loader]:
                self._collect(f"{ON_TEST}/{prefix}", batch, role)

    def on_validation_epoch_end(self) -> None:
        """Compute and log the metrics."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if "val" in data.splits:
            metrics = self._report("val")
            if self._plateau is not None and not self.trainer.sanity_checking:
                self.follow_plateau(self._plateau, metrics)
        if data.validate_on_test:
            for prefix in test_prefixes(data):
                self._report(f"{ON_TEST}/{prefix}")
        self._evaluations.clear()

    def on_test_epoch_start(self) -> None:
        """Forget the last evaluation."""
        self._evaluations.clear()

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Evaluate a batch of one part of a test set."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        for prefix, role in test_loaders(data)[dataloader_idx]:
            self._collect(prefix, batch, role)

    def on_test_epoch_end(self) -> None:
        """Compute and log the metrics of every test set."""
        for prefix in test_prefixes(self.trainer.datamodule):  # type: ignore[attr-defined]
            self._report(prefix)
        self._evaluations.clear()

    def evaluation(self, prefix: str, network: str = "") -> Evaluation:
        """The evaluators at work on one set of samples.

        Args:
            prefix: of the names of its metrics: ``val``, ``test``.
            network: of several, the one whose outputs are evaluated.
        """
        key = (prefix, network)
        if key not in self._evaluations:
            self._evaluations[key] = Evaluation(self.evaluators)
        return self._evaluations[key]

    def _collect(self, prefix: str, batch: Batch, role: SplitRole) -> None:
        if len(batch["index"]):
            outputs = self.outputs(batch, self.wanted_outputs)
            self.evaluation(prefix).update(outputs, labels_of(batch), batch["index"], role)

    def _report(self, prefix: str) -> dict[str, float]:
        evaluation = self.evaluation(prefix)
        values = evaluation.compute()
        self._keep_artefacts(evaluation, prefix)
        return self._log_metrics(values, prefix)

    def _keep_artefacts(self, evaluation: Evaluation, prefix: str) -> None:
        if prefix == "test":
            # Of several models tested, the first counts: it is the one reported by default.
            known = {artefact.file for artefact in self.evaluation_artefacts}
            offered = evaluation.artefacts()
            self.evaluation_artefacts += [a for a in offered if a.file not in known]

    def _log_metrics(self, values: Mapping[str, float], prefix: str) -> dict[str, float]:
        metrics = {f"{prefix}/{name}": value for name, value in values.items()}
        for name, value in metrics.items():
            # Every rank computed the same number from the whole split: nothing to reduce. Rows for
            # loggers are written by the history callback.
            self.log(name, torch.tensor(value, dtype=torch.float64), logger=False)
        return metrics

    # -- checkpoints -------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave a frozen network out: its weights come from elsewhere and never change."""
        leave_out_frozen_backbone(self.encoder, checkpoint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take a frozen network from the configuration, after checking that it is the same."""
        restore_frozen_backbone(self.encoder, checkpoint)

    def load_encoder(self, file: Path) -> None:
        """Take the encoder, and only the encoder, from a checkpoint of a run."""
        load_encoder(self.encoder, file)

    def load_trained(self, file: Path) -> None:
        """Take all that evaluation uses from a checkpoint of a run; here that is the encoder."""
        self.load_encoder(file)

    @torch.no_grad()
    def embed(self, batch: Batch) -> Tensor:
        """Embeddings [b, D] of a batch in evaluation mode."""
        embeddings: Tensor = self.encoder(batch)
        return embeddings


def test_prefix(test_set: str) -> str:
    """Prefix of the metrics of a test set: ``test`` of the default one, ``test/NAME`` of others."""
    return test_set if test_set == DEFAULT_TEST_SET else f"{DEFAULT_TEST_SET}/{test_set}"


def test_prefixes(data: DataModule) -> list[str]:
    """Prefixes of the metrics of all test sets, the default one first."""
    return [test_prefix(name) for name in data.test_sets]


def test_loaders(data: DataModule) -> list[list[tuple[str, SplitRole]]]:
    """Prefix of metrics and role that each loader of the test serves, in their order."""
    return [
        [(test_prefix(test_set), role) for test_set, role in served]
        for served in data.test_splits.values()
    ]
