"""Zero-shot recognition over whole splits, exact under DDP; see `noisyml.metrics.zero_shot`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from noisyml.checks import Count
from noisyml.distributed import collective_device, gather
from noisyml.errors import UserError, did_you_mean
from noisyml.metrics.base import Evaluator, SplitRole
from noisyml.metrics.classification import TopK, class_ranks
from noisyml.metrics.zero_shot import EmbedTexts, Ensemble, PromptBank, prompts
from noisyml.similarity.search import topk
from noisyml.storage.class_lists import read_class_names, read_templates
from noisyml.targets import TargetKind, texts_of


class ZeroShotEvaluator(Evaluator):
    """Accuracy of the nearest class prompt, and recall of captions by images and of images by them.

    The caption of a test sample is the name of its class. Classes are embedded once for each
    evaluation; for accuracies a number per sample is kept, for recalls its embedding.

    Args:
        templates: prompts of a class, ``{}`` is its name; or a file of them, see `read_templates`.
        template_set: of which data set, in a JSON file of templates.
        ensemble: see `noisyml.metrics.zero_shot.Ensemble`.
        classes: class names to choose from, or a file of them, see `read_class_names`; None: the
            different captions of the split.
        top_k: every K adds ``accuracy_topK`` where there are more than K classes.
        recall_at: every K adds ``image_to_text_recall_at_K`` and ``text_to_image_recall_at_K``,
            of the captions as they are; empty: no embeddings are kept.
        headline: the metric that checkpoints and progress go by unless told otherwise.
    """

    target_kinds: ClassVar[frozenset[TargetKind]] = frozenset({"pairs"})

    def __init__(
        self,
        templates: Sequence[str] | str = ("{}",),
        ensemble: Ensemble = "mean",
        classes: Sequence[str] | str | None = None,
        top_k: Sequence[TopK] = (5,),
        recall_at: Sequence[Count] = (1, 5),
        headline: str = "accuracy",
        template_set: str = "",
    ) -> None:
        if isinstance(templates, str) and "{}" not in templates:
            templates = read_templates(Path(templates).expanduser(), template_set)
        if isinstance(classes, str):
            classes = read_class_names(Path(classes).expanduser())
        self.templates = [templates] if isinstance(templates, str) else list(templates)
        prompts(["class"], self.templates)
        self.ensemble = ensemble
        self.classes = None if classes is None else list(classes)
        self.top_k, self.recall_at = list(top_k), list(recall_at)
        self.headline = headline
        self.reset()

    def reset(self) -> None:
        """Forget all batches and classes."""
        self._bank: PromptBank | None = None
        self._texts: PromptBank | None = None
        self._index: list[Tensor] = []
        self._labels: list[Tensor] = []
        self._ranks: list[Tensor] = []
        self._text_ranks: list[Tensor] = []
        self._embeddings: list[Tensor] = []

    @torch.no_grad()
    def begin(self, captions: Sequence[str], embed_texts: EmbedTexts) -> None:
        """Embed the classes; before the first batch, on every rank.

        Args:
            captions: the different captions of the split.
            embed_texts: of the model.

        Raises:
            UserError: a caption that is none of the classes.
        """
        names = self.classes or list(captions)
        self._number = {name: i for i, name in enumerate(names)}
        if unknown := [text for text in captions if text not in self._number]:
            raise UserError(
                f"The split has the caption '{unknown[0]}', which is none of the "
                f"{len(names)} names in evaluators.zero_shot.classes."
                f"{did_you_mean(unknown[0], names)}"
            )
        self._bank = PromptBank.embed(names, self.templates, embed_texts, self.ensemble)
        if self.recall_at:
            own = embed_texts(captions)
            numbers = torch.tensor([self._number[text] for text in captions])
            self._caption_class = numbers.to(own.device)
            self._texts = PromptBank.of(own, torch.arange(len(own), device=own.device))

    @torch.no_grad()
    def update(
        self,
        outputs: Mapping[str, Tensor],
        targets: Tensor,
        index: Tensor,
        role: SplitRole = "pool",
    ) -> None:
        """Take in one batch: ``embeddings`` [b, D], captions as bytes [b, L], `index` [b].

        Raises:
            UserError: no embeddings, or a model that does not embed texts.
        """
        if self._bank is None:
            raise UserError(
                "Zero-shot recognition needs a model that embeds texts: choose method=otter, or "
                "another evaluator=..."
            )
        images = torch.nn.functional.normalize(self.needed(outputs, "embeddings"))
        labels = torch.tensor(
            [self._number[text] for text in texts_of(targets)], device=images.device
        ).long()
        self._index.append(index.to(torch.int64))
        self._labels.append(labels)
        self._ranks.append(class_ranks(self._bank.scores(images), labels))
        if self._texts is not None:
            own = (self._caption_class == labels[:, None]).to(torch.uint8).argmax(dim=1)
            self._text_ranks.append(class_ranks(self._texts.scores(images), own))
            self._embeddings.append(images)

    @torch.no_grad()
    def compute(self) -> dict[str, float]:
        """The metrics over all batches of all ranks, each sample counted once.

        Raises:
            UserError: nothing taken in.
        """
        bank, device = self._bank, self._index[0].device if self._index else collective_device()
        nothing = torch.empty(0, dtype=torch.int64, device=device)
        index, labels, ranks = (
            gather(torch.cat([nothing, *part])) for part in (self._index, self._labels, self._ranks)
        )
        if not len(index) or bank is None:
            raise UserError(
                "The zero-shot evaluator has seen no sample; check the splits that the data set "
                "names."
            )
        index, order = index.sort(stable=True)
        first = torch.ones_like(index, dtype=torch.bool)
        first[1:] = index[1:] != index[:-1]
        kept = order[first]
        labels, ranks = labels[kept], ranks[kept]
        correct = (ranks == 0).double()
        sizes = torch.bincount(labels, minlength=bank.num_classes)
        right = torch.bincount(labels, weights=correct, minlength=bank.num_classes)
        metrics = {
            "accuracy": correct.mean(),
            **{
                f"accuracy_top{k}": (ranks < k).double().mean()
                for k in self.top_k
                if k < bank.num_classes
            },
            "accuracy_per_class": (right / sizes)[sizes > 0].mean(),
        }
        if self._texts is not None:
            metrics |= self._recalls(self._texts, labels, kept, nothing)
        return {name: float(value) for name, value in metrics.items()}

    def _recalls(
        self, texts: PromptBank, labels: Tensor, kept: Tensor, nothing: Tensor
    ) -> dict[str, Tensor]:
        """Recalls both ways, of the samples `kept` of those gathered."""
        ranks = gather(torch.cat([nothing, *self._text_ranks]))[kept]
        empty = texts.embeddings.new_empty(0, texts.embeddings.shape[1])
        images = gather(torch.cat([empty, *(e.to(empty) for e in self._embeddings)]))[kept]
        most = min(max(self.recall_at), len(images))
        nearest = labels[topk(texts.embeddings, images, most).index]
        hits = nearest == self._caption_class[:, None]
        found = {}
        for k in self.recall_at:
            found[f"image_to_text_recall_at_{k}"] = (ranks < k).double().mean()
            found[f"text_to_image_recall_at_{k}"] = hits[:, :k].any(1).double().mean()
        return found
