"""Caption noise: captions exchanged between images, words lost, texts that say nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from noisyml.checks import Count, Share
from noisyml.errors import UserError
from noisyml.noise.base import Outcome, Samples, SeededInjector
from noisyml.targets import Labels, TargetKind

PAIRS: frozenset[TargetKind] = frozenset({"pairs"})

#: Attempts to give a caption to somebody whom it does not fit.
_ROUNDS = 200


@dataclass(frozen=True, kw_only=True)
class _CaptionNoise(SeededInjector):
    """Base of noise that changes a share of the captions.

    Args:
        rate: P(a caption is chosen).
        seed: the noise seed.
    """

    target_kinds: ClassVar[frozenset[TargetKind]] = PAIRS

    rate: Share

    def chosen(self, samples: Samples) -> NDArray[np.bool_]:
        """Samples whose caption is to change, bool [N]; a smaller rate chooses some of them."""
        return self.draws.uniform(samples.ids, "choose") < self.rate


@dataclass(frozen=True, kw_only=True)
class CaptionShuffle(_CaptionNoise):
    """Captions of a share of the images are exchanged among them, none keeps its own.

    Every caption stays as frequent as it was. Captions that nobody else can take, as when nearly
    all are the same, stay where they are; the realised rate says so.

    Args:
        rate: P(a caption takes part).
        scope: among ``all``; ``within`` a class, where wrong captions are nearly right; or
            ``across`` classes.
        class_words: captions that begin with the same so many words are one class; for `scope`.
        seed: the noise seed.

    Raises:
        UserError: `scope` is ``within`` or ``across``, and no caption can be exchanged so.

    Example:
        >>> from noisyml.noise import CaptionShuffle
        >>> manifest = CaptionShuffle(rate=1.0).inject(["an ant", "a bee", "a cat", "a dog"], 0)
        >>> sorted(manifest.observed.tolist()), manifest.actual_rate
        (['a bee', 'a cat', 'a dog', 'an ant'], 1.0)
    """

    name: ClassVar[str] = "caption_shuffle"

    scope: Literal["all", "within", "across"] = "all"
    class_words: Count = 1

    def corrupt(self, samples: Samples) -> Outcome:
        """Choose, exchange, and exchange again what came back to its own text."""
        rows = np.flatnonzero(self.chosen(samples))
        texts, ids = samples.labels[rows], samples.ids[rows]
        classes = _numbers(texts, self.class_words)
        #: Who may exchange, and who must not.
        place = classes if self.scope == "within" else np.zeros_like(classes)
        apart = classes if self.scope == "across" else _numbers(texts, None)
        donor = np.empty(len(rows), dtype=np.int64)
        givers, takers = (np.lexsort((self.draws.bits(ids, f"order{i}"), place)) for i in (0, 1))
        donor[takers] = givers
        for attempt in range(_ROUNDS):
            same = np.flatnonzero(apart[donor] == apart)
            if not len(same):
                break
            partner = self.draws.below(len(rows), ids[same], f"partner{attempt}")
            _swap(donor, same, partner, place, apart)
        observed = samples.labels.copy()
        observed[rows] = texts[donor]
        if len(rows) and self.scope != "all" and (apart[donor] == apart).all():
            raise UserError(
                f"noise.scope={self.scope}: no caption has one to be exchanged with; choose "
                f"noise.scope=all or another noise.class_words."
            )
        return Outcome(observed=observed, nominal_rate=self.rate)


def _numbers(texts: Labels, words: int | None) -> NDArray[np.int64]:
    """A number for each text, equal ones where the first `words` of them are (None: all)."""
    keys = [" ".join(text.split()[:words]).casefold() if words else text for text in texts]
    return np.unique(np.array(keys, dtype=str), return_inverse=True)[1].reshape(-1)


def _swap(
    donor: NDArray[np.int64],
    rows: NDArray[np.int64],
    partner: NDArray[np.int64],
    place: NDArray[np.int64],
    apart: NDArray[np.int64],
) -> None:
    """Let rows exchange their donors with partners where that suits both; in place."""
    suits = (
        (place[partner] == place[rows])
        & (apart[donor[partner]] != apart[rows])
        & (apart[donor[rows]] != apart[partner])
    )
    rows, partner = rows[suits], partner[suits]
    # A row takes part in one exchange only.
    both = np.concatenate([rows, partner])
    first = np.zeros(len(both), dtype=bool)
    first[np.unique(both, return_index=True)[1]] = True
    once = first[: len(rows)] & first[len(rows) :]
    rows, partner = rows[once], partner[once]
    donor[rows], donor[partner] = donor[partner], donor[rows]


@dataclass(frozen=True, kw_only=True)
class CaptionDropWords(_CaptionNoise):
    """A share of the captions lose words, at least one, and keep at least one.

    Captions of a single word stay as they are; the realised rate says so.

    Args:
        rate: P(a caption loses words).
        share: P(a word of such a caption is lost).
        seed: the noise seed.

    Example:
        >>> from noisyml.noise import CaptionDropWords
        >>> texts = ["latin small letter e with acute", "digit one"]
        >>> CaptionDropWords(rate=1.0, share=0.5).inject(texts, 0).observed.tolist()
        ['with acute', 'digit']
    """

    name: ClassVar[str] = "caption_drop_words"

    share: Share = 0.5

    def corrupt(self, samples: Samples) -> Outcome:
        """Choose captions, then words."""
        observed = samples.labels.copy()
        rows = np.flatnonzero(self.chosen(samples))
        words = [text.split() for text in samples.labels[rows]]
        ids = samples.ids[rows]
        draws = np.stack(
            [self.draws.uniform(ids, f"word{k}") for k in range(max(map(len, words), default=0))]
            or [np.empty(len(rows))],
            axis=1,
        )
        for row, own, drawn in zip(rows.tolist(), words, draws, strict=True):
            if len(own) < 2:
                continue
            drawn = drawn[: len(own)]
            kept = drawn >= self.share
            kept[drawn.argmin()] = False
            kept[drawn.argmax()] = True
            observed[row] = " ".join(
                w for w, stays in zip(own, kept.tolist(), strict=True) if stays
            )
        return Outcome(observed=observed, nominal_rate=self.rate)


@dataclass(frozen=True, kw_only=True)
class CaptionGeneric(_CaptionNoise):
    """A share of the captions are replaced by texts that would fit any image.

    Args:
        rate: P(a caption is replaced).
        texts: of which one is drawn for each.
        seed: the noise seed.

    Example:
        >>> from noisyml.noise import CaptionGeneric
        >>> CaptionGeneric(rate=1.0, texts=["an image"]).inject(["a cat"], 0).observed.tolist()
        ['an image']
    """

    name: ClassVar[str] = "caption_generic"

    texts: Sequence[str] = ("a photo", "an image", "a picture")

    def corrupt(self, samples: Samples) -> Outcome:
        """Choose captions, then texts."""
        if not self.texts or not all(text.strip() for text in self.texts):
            raise UserError("noise.texts must hold a text at least, and no empty one.")
        observed = samples.labels.copy()
        rows = np.flatnonzero(self.chosen(samples))
        which = self.draws.below(len(self.texts), samples.ids[rows], "text")
        observed[rows] = np.array(list(self.texts), dtype=object)[which]
        return Outcome(observed=observed, nominal_rate=self.rate)
