"""Zero-shot recognition: images compared with the embeddings of class prompts.

* ``accuracy``, ``accuracy_topK``: share of images whose class is the first, or among the K first.
* ``fh_at_K`` (flat hit): share of images of which any of the K nearest classes is among their true
  classes; images without any count as misses.
* ``image_to_text_recall_at_K``: share of images whose caption is among the K nearest of all
  different captions; ``text_to_image_recall_at_K``: share of the different captions of which one of
  the K nearest images has that caption.

Equal scores go to the lower class number.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from noisyml.checks import Count, checked
from noisyml.errors import UserError
from noisyml.similarity.search import topk

#: Prompts of a class: their mean direction, the nearest of them, or each for itself.
Ensemble = Literal["mean", "max", "none"]
DEFAULT_TEMPLATES = ("a photo of {}.",)
#: Texts to embeddings [P, D].
EmbedTexts = Callable[[Sequence[str]], Tensor]
#: Prompts that are embedded before the next classes are turned to.
PROMPTS_AT_ONCE = 8192


def prompts(
    class_names: Sequence[str | Sequence[str]], templates: Sequence[str] = DEFAULT_TEMPLATES
) -> tuple[list[str], Tensor]:
    """The texts that stand for classes, and their classes.

    Args:
        class_names: a name each, or several synonyms.
        templates: texts with ``{}`` where the name goes.

    Returns:
        P texts, and the number of their class [P] int64: class by class, name by name.

    Raises:
        UserError: no class, no template, or one without ``{}``.

    Example:
        >>> texts, classes = prompts([["dog", "hound"], "cat"], ["a photo of {}."])
        >>> texts, classes.tolist()
        (['a photo of dog.', 'a photo of hound.', 'a photo of cat.'], [0, 0, 1])
    """
    if not class_names or not templates:
        raise UserError("Zero-shot recognition needs a class name and a prompt template at least.")
    for template in templates:
        if "{}" not in template:
            raise UserError(
                f"The prompt template '{template}' has no {{}} where the class name goes."
            )
    texts, numbers = [], []
    for number, names in enumerate(class_names):
        for name in [names] if isinstance(names, str) else names:
            texts += [template.replace("{}", str(name)) for template in templates]
            numbers += [number] * len(templates)
    return texts, torch.tensor(numbers)


@dataclass(frozen=True)
class PromptBank:
    """Embeddings of the prompts of C classes.

    Attributes:
        embeddings: [P, D] unit norm.
        classes: [P] int64, ascending.
        ensemble: see `Ensemble`.
    """

    embeddings: Tensor
    classes: Tensor
    ensemble: Ensemble = "mean"

    @classmethod
    def of(cls, embeddings: Tensor, classes: Tensor, ensemble: Ensemble = "mean") -> PromptBank:
        """A bank; the prompts of a class become their mean direction if that is asked for.

        Args:
            embeddings: [P, D].
            classes: [P] int64, every class from 0 to C - 1.
            ensemble: see `Ensemble`.

        Example:
            >>> import torch
            >>> two = PromptBank.of(torch.eye(2).double(), torch.tensor([0, 0]))
            >>> two.embeddings.round(decimals=4).tolist()
            [[0.7071, 0.7071]]
        """
        unit = F.normalize(embeddings.to(torch.promote_types(embeddings.dtype, torch.float32)))
        if ensemble == "mean" and len(unit) > int(classes.max()) + 1:
            sums = unit.new_zeros(int(classes.max()) + 1, unit.shape[1])
            unit = F.normalize(sums.index_add_(0, classes, unit))
            classes = torch.arange(len(unit), device=classes.device)
        return cls(unit, classes, ensemble)

    @classmethod
    def embed(
        cls,
        class_names: Sequence[str | Sequence[str]],
        templates: Sequence[str],
        embed_texts: EmbedTexts,
        ensemble: Ensemble = "mean",
    ) -> PromptBank:
        """The bank of classes; for mean directions no more than `PROMPTS_AT_ONCE` texts at a time.

        Args:
            class_names, templates: see `prompts`.
            embed_texts: texts to embeddings [P, D].
            ensemble: see `Ensemble`; all but ``mean`` keep every prompt.
        """
        if ensemble != "mean":
            texts, numbers = prompts(class_names, templates)
            embedded = embed_texts(texts)
            return cls.of(embedded, numbers.to(embedded.device), ensemble)
        together = max(PROMPTS_AT_ONCE // max(len(templates), 1), 1)
        parts = []
        for at in range(0, max(len(class_names), 1), together):
            texts, numbers = prompts(class_names[at : at + together], templates)
            embedded = embed_texts(texts)
            parts.append(cls.of(embedded, numbers.to(embedded.device)).embeddings)
        unit = torch.cat(parts)
        return cls(unit, torch.arange(len(unit), device=unit.device))

    @property
    def num_classes(self) -> int:
        """C."""
        return int(self.classes.max()) + 1

    def among(self, chosen: Tensor) -> PromptBank:
        """The bank of some classes alone, which keep their numbers.

        Args:
            chosen: [c] int64, different classes.

        Example:
            >>> import torch
            >>> bank = PromptBank.of(torch.eye(3), torch.arange(3)).among(torch.tensor([0, 2]))
            >>> bank.nearest(torch.tensor([[0.1, 1.0, 0.2]]), 5)[0].tolist()
            [[2, 0]]
        """
        kept = torch.isin(self.classes, chosen.to(self.classes))
        return PromptBank(self.embeddings[kept], self.classes[kept], self.ensemble)

    def scores(self, images: Tensor) -> Tensor:
        """Similarity [b, C] of unit-norm images [b, D] with each class, that of its best prompt."""
        similarity = images.to(self.embeddings) @ self.embeddings.T
        if len(self.classes) == self.num_classes:
            return similarity
        best = similarity.new_full((len(similarity), self.num_classes), -torch.inf)
        index = self.classes.expand(len(similarity), -1)
        return best.scatter_reduce_(1, index, similarity, reduce="amax")

    def nearest(self, images: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Classes [b, K] and scores [b, K] of the nearest, best first.

        With ``ensemble=none`` K counts prompts, as in the release of OTTER, so that a class may
        come repeatedly.

        Args:
            images: [b, D], unit norm.
            k: K; cut to what there is.
        """
        there = self.classes.unique_consecutive()
        if self.ensemble == "none" or len(self.classes) == len(there):
            found = topk(images.to(self.embeddings), self.embeddings, min(k, len(self.classes)))
            return self.classes[found.index], found.scores
        scores, index = self.scores(images)[:, there].sort(dim=1, descending=True, stable=True)
        return there[index[:, :k]], scores[:, :k]


@checked
def flat_hits(predicted: Tensor, targets: Tensor, ks: Sequence[Count]) -> Tensor:
    """Images of which one of the first K predicted classes is true.

    Args:
        predicted: [N, most] int64, best first.
        targets: [N, T] int64, true classes, filled up with -1.
        ks: values of K.

    Returns:
        [N, len(ks)] bool; its mean over images is FH@K.

    Example:
        >>> import torch
        >>> predicted, targets = torch.tensor([[3, 1], [0, 2]]), torch.tensor([[1, -1], [-1, -1]])
        >>> flat_hits(predicted, targets, [1, 2]).tolist()
        [[False, True], [False, False]]
    """
    known = (targets >= 0)[:, None, :]
    right = ((predicted[:, :, None] == targets[:, None, :]) & known).any(dim=2)
    return torch.stack([right[:, :k].any(dim=1) for k in ks], dim=1)
