"""Base of methods on images and captions: two encoders into one space, zero-shot evaluation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from noisyml import distributed
from noisyml.data.base import DEFAULT_TEST_SET
from noisyml.data.views import Batch
from noisyml.errors import UserError
from noisyml.losses.image_text.otter import Sides
from noisyml.methods.base import ON_TEST, Method, test_prefix
from noisyml.methods.parts import Parts
from noisyml.methods.passes import evaluation_mode
from noisyml.metrics.base import Evaluation
from noisyml.metrics.zero_shot_evaluator import ZeroShotEvaluator
from noisyml.models.heads import unit_norm
from noisyml.models.text.encoder import TEXTS_AT_ONCE, TextEncoder
from noisyml.runs.progress import announce
from noisyml.selectors.base import Evidence, Facts, Selection
from noisyml.selectors.keep_all import KeepAll
from noisyml.targets import TargetKind, texts_of

#: Parameters under weight decay: as the optimiser says; without biases, norms and temperatures; or
#: without biases and norms, as the release of OTTER does, which forgets the temperatures.
Decay = Literal["all", "weights", "released"]

#: Names in a checkpoint, beside the state of the modules.
_TOKENIZER, _FROZEN_TEXT = "tokenizer", "frozen_text"


class Place(NamedTuple):
    """Part of the global batch that this rank holds.

    Attributes:
        sizes: samples of every rank.
        rank: this one.
    """

    sizes: list[int]
    rank: int

    @property
    def rows(self) -> slice:
        """Rows of this rank in the global batch."""
        start = sum(self.sizes[: self.rank])
        return slice(start, start + self.sizes[self.rank])

    def columns(self, device: torch.device) -> Tensor:
        """Column of each row's own pair, [m] int64."""
        return torch.arange(self.rows.start, self.rows.stop, device=device)


class ImageText(Method):
    """Base of methods that bring images and captions into one space.

    A subclass writes `training_step` from `embed_sides`, `judge` and `outcome`.

    Args:
        parts: the encoder is that of the images; the selector judges pairs.
        text_encoder: makes the encoder of captions, from ``embedding_size``.
        decay: parameters that weight decay holds for: ``all``; ``weights``: no biases, norms and
            temperatures; ``released``: no biases and norms.
    """

    needs_parts: ClassVar[frozenset[str]] = frozenset({"selector"})
    evidence: ClassVar[frozenset[str]] = frozenset({"embeddings", "sample_loss", "pair_mass"})
    target_kinds: ClassVar[frozenset[TargetKind]] = frozenset({"pairs"})

    def __init__(
        self, parts: Parts, *, text_encoder: Callable[..., TextEncoder], decay: Decay = "all"
    ) -> None:
        super().__init__(parts)
        self.text_encoder = text_encoder(embedding_size=self.encoder.out_features)
        self.selector = KeepAll() if parts.selector is None else parts.selector
        self.decay = decay
        self._judged: tuple[Evidence, Selection] | None = None

    # -- captions ----------------------------------------------------------------------------

    def on_fit_start(self) -> None:
        """Let the tokenizer learn, unless a checkpoint brought it, and read captions once.

        What teaches is what is observed: no true caption is looked at.
        """
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        captions = data.manifest.observed.tolist()
        if not self.text_encoder.tokenizer.ready:
            self.text_encoder.tokenizer.learn(captions)
        shown = announce("captions") if distributed.rank() == 0 else None
        self.text_encoder.remember(captions, data.cache_dir, shown)

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Tokens of the captions, on the host, before the batch goes to the device."""
        if "caption" not in batch:
            return batch
        return {**batch, **self.text_encoder.fields(texts_of(batch["caption"]))}

    # -- training ----------------------------------------------------------------------------

    def embed_sides(
        self,
        batch: Batch,
        encoder: Callable[[Batch], Tensor] | None = None,
        text_encoder: Callable[[Batch], Tensor] | None = None,
    ) -> Sides:
        """Unit-norm embeddings of this rank's images and captions.

        Args:
            batch: this rank's share.
            encoder, text_encoder: the method's own, or those of a teacher.
        """
        return Sides(
            unit_norm((encoder or self.encoder)(batch)),
            unit_norm((text_encoder or self.text_encoder)(batch)),
        )

    def place(self, batch: Batch) -> Place:
        """The part of the global batch in `batch`."""
        index = batch["index"]
        return Place(distributed.shard_sizes(len(index), index.device), distributed.rank())

    def judge(
        self,
        index: Tensor,
        embeddings: Tensor,
        sample_loss: Tensor,
        pair_mass: Callable[[], Tensor],
    ) -> Selection:
        """The selector's answer for a global batch.

        Args:
            index: positions [n].
            embeddings: of the images [n, D].
            sample_loss: loss of each pair [n].
            pair_mass: gives the plan's mass on each given pair [n]; called if a selector asks.
        """
        evidence = Evidence(
            labels=index,
            index=index,
            embeddings=embeddings.detach(),
            sample_loss=sample_loss.detach(),
            pair_mass=pair_mass() if "pair_mass" in self.selector.needs else None,
            step=self.global_step,
            epoch=self.current_epoch,
        )
        selection = self.selector.select(evidence)
        if not self.selector.gives_scores:
            # Suspects of a run without a selector that scores: pairs of the largest loss.
            trust = -sample_loss.detach()
            selection = replace(selection, p_clean=trust.exp().clamp(max=1), log_odds=trust)
        self._judged = (evidence, selection)
        return selection

    def global_mean(self, losses: Tensor, keep: Tensor, place: Place) -> Tensor:
        """Mean of the losses of kept pairs over all ranks.

        Its value is that of the global batch on every rank. Its gradient is this rank's part of the
        global one, times the number of ranks, which the averaging of gradients takes out again.

        Args:
            losses: [m], of this rank's rows.
            keep: [n] bool, of the global batch.
            place: of this rank in it.
        """
        kept = torch.where(keep[place.rows], losses, torch.zeros_like(losses)).sum()
        number = keep.sum().clamp(min=1)
        mine = kept * (len(place.sizes) / number)
        value = distributed.all_reduce_sum(kept.detach()) / number
        return mine + (value - mine.detach())

    def outcome(
        self,
        loss: Tensor,
        selection: Selection,
        index: Tensor,
        sample_loss: Tensor,
        terms: Mapping[str, Tensor],
    ) -> dict[str, Any]:
        """Result of `training_step`, which the logs read.

        Args:
            loss: scalar with gradient.
            selection: of the global batch.
            index: [n], its positions in the training split.
            sample_loss: loss of each pair [n], for the ledger.
            terms: scalars that the loss is made of, by name.
        """
        return {
            "loss": loss,
            "selection": selection,
            "index": index,
            "terms": {name: term.detach() for name, term in terms.items()},
            "facts": Facts({"loss": sample_loss.detach().float()}),
        }

    def after_backward(self) -> None:
        """The selector learns from what it has judged."""
        if self._judged is not None:
            self.selector.update(*self._judged)
            self._judged = None

    def optimizer_groups(self) -> list[dict[str, Any]]:
        """Parameter groups, those without weight decay apart."""
        groups = super().optimizer_groups()
        if self.decay == "all":
            return groups
        most = 1 if self.decay == "weights" else None
        free = {
            id(p)
            for name, p in self.named_parameters()
            if p.ndim == 1 or name.endswith(".bias") or (most is not None and p.ndim == 0)
        }
        split = []
        for group in groups:
            decayed = [p for p in group["params"] if id(p) not in free]
            spared = [p for p in group["params"] if id(p) in free]
            split.append({**group, "params": decayed})
            name = f"{group['name']}_no_decay"
            split.append({**group, "params": spared, "name": name, "weight_decay": 0.0})
        return [group for group in split if group["params"]]

    # -- evaluation --------------------------------------------------------------------------

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Unit-norm embeddings [P, D] of texts, in evaluation mode, on the method's device."""
        found = []
        with evaluation_mode(self.text_encoder):
            for start in range(0, len(texts), TEXTS_AT_ONCE):
                fields = self.text_encoder.fields(texts[start : start + TEXTS_AT_ONCE])
                batch = {name: field.to(self.device) for name, field in fields.items()}
                found.append(unit_norm(self.text_encoder(batch)))
        return torch.cat(found)

    def evaluation(self, prefix: str, network: str = "") -> Evaluation:
        """See `Method.evaluation`; zero-shot evaluators are told the classes of the split."""
        begun = (prefix, network) in self._evaluations
        evaluation = super().evaluation(prefix, network)
        if not begun:
            for evaluator in evaluation.evaluators:
                if isinstance(evaluator, ZeroShotEvaluator):
                    evaluator.begin(self._captions_of(prefix), self.embed_texts)
        return evaluation

    def _captions_of(self, prefix: str) -> list[str]:
        """The different captions of the samples that an evaluation sees, sorted."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if prefix == "val":
            return sorted(set(data.val_labels))
        bare = prefix.removeprefix(f"{ON_TEST}/")
        parts = next(p for name, p in data.test_sets.items() if test_prefix(name) == bare)
        if "pool" not in parts:
            raise UserError(
                f"Zero-shot recognition needs one test split, and the test set "
                f"'{bare.removeprefix(DEFAULT_TEST_SET + '/')}' has queries and a gallery: choose "
                f"evaluator=retrieval."
            )
        return sorted(set(data.splits[parts["pool"]].labels))

    # -- checkpoints -------------------------------------------------------------------------

    def text_encoders(self) -> dict[str, nn.Module]:
        """Encoders of captions by the prefix of their names in a checkpoint."""
        return {"text_encoder.": self.text_encoder}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what the tokenizer has learnt; leave a frozen network of captions out."""
        super().on_save_checkpoint(checkpoint)
        checkpoint[_TOKENIZER] = self.text_encoder.tokenizer.state()
        if self.text_encoder.frozen:
            checkpoint[_FROZEN_TEXT] = self.text_encoder.fingerprint()
            state = checkpoint["state_dict"]
            for prefix in self.text_encoders():
                for name in [n for n in state if n.startswith(f"{prefix}body.")]:
                    del state[name]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the tokens from the checkpoint, and a frozen network from the configuration."""
        super().on_load_checkpoint(checkpoint)
        self._restore_text(checkpoint)

    def _restore_text(self, checkpoint: dict[str, Any]) -> None:
        """Undo what `on_save_checkpoint` does with captions.

        Raises:
            UserError: trained with another text encoder, or one that was not frozen.
        """
        known = checkpoint.get(_FROZEN_TEXT)
        if checkpoint.get(_TOKENIZER) is None or self.text_encoder.frozen != (known is not None):
            raise UserError(
                "The checkpoint holds another text encoder than the configuration describes: keep "
                "method.text_encoder as it was trained."
            )
        if checkpoint[_TOKENIZER]:
            self.text_encoder.tokenizer.restore(checkpoint[_TOKENIZER])
        if known is None:
            return
        if known != self.text_encoder.fingerprint():
            raise UserError(
                "The frozen text encoder differs from the one the checkpoint was trained with; use "
                "the same weights."
            )
        for prefix in self.text_encoders():
            for name, tensor in self.text_encoder.body.state_dict().items():
                checkpoint["state_dict"][f"{prefix}body.{name}"] = tensor

    def load_trained(self, file: Path) -> None:
        """Take both encoders and the tokens.

        Raises:
            UserError: the checkpoint belongs to other encoders.
        """
        super().load_trained(file)
        checkpoint = torch.load(file, map_location="cpu", weights_only=True)
        self._restore_text(checkpoint)
        prefix = "text_encoder."
        state = {
            name.removeprefix(prefix): tensor
            for name, tensor in checkpoint["state_dict"].items()
            if name.startswith(prefix)
        }
        try:
            self.text_encoder.load_state_dict(state)
        except RuntimeError as error:
            raise UserError(
                f"{file} holds another text encoder than the configuration describes: keep "
                f"method.text_encoder as it was trained ({str(error).splitlines()[1].strip()})."
            ) from error
