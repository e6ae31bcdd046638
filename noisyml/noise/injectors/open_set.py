"""Open-set noise: a foreign image behind a label of the data set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np

from noisyml.checks import Share, WholeNonNegative
from noisyml.errors import UserError
from noisyml.noise.base import Outcome, Samples, SeededInjector
from noisyml.noise.released import single_label as legacy


@dataclass(frozen=True, kw_only=True)
class OpenSet(SeededInjector):
    """A mixture of closed-set and open-set noise (EvidentialMix, Sachdeva et al., WACV 2021).

    Open-set samples keep their label and get an image of another data set (`source_index` of the
    manifest); they have no true class. Closed-set samples redraw their label.

    Args:
        rate: fraction of noisy samples, ``floor(rate N)`` of them.
        open_share: fraction of the noisy samples that are open-set.
        source_size: number of images in the open-set source (50000 for CIFAR-100); None: to be
            replaced by its size before `inject` is called.
        include_true: closed-set samples redraw over all classes (the release) instead of over the
            wrong ones.
        count: ``exact`` or ``legacy`` (Python's generator, label files of the release).
        seed: the noise seed.

    Example:
        >>> import numpy as np
        >>> from noisyml.noise import OpenSet
        >>> noise = OpenSet(rate=0.5, open_share=1.0, source_size=9)
        >>> manifest = noise.inject(np.repeat([0, 1, 2], 4), 3)
        >>> int((manifest.source_index >= 0).sum()), manifest.actual_rate
        (6, 0.5)
    """

    name: ClassVar[str] = "open_set"
    training_only: ClassVar[bool] = True

    rate: Share
    open_share: Share = 0.5
    source_size: WholeNonNegative | None = None
    include_true: bool = True
    count: Literal["exact", "legacy"] = "exact"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.count == "legacy" and not self.include_true:
            raise UserError(
                "The released open-set recipe redraws over all classes; set "
                "noise.include_true=true or noise.count=exact."
            )

    def sized(self, foreign_images: Callable[[], int]) -> OpenSet:
        """As many foreign images as there are, where no number was given."""
        if self.source_size is not None or self.rate == 0:
            return self
        return replace(self, source_size=foreign_images())

    def corrupt(self, samples: Samples) -> Outcome:
        """Choose noisy samples, split them into open and closed, pair and redraw."""
        n, labels = len(samples), samples.labels
        noisy = int(np.floor(self.rate * n + 1e-9))
        wanted = int(np.floor(self.open_share * noisy + 1e-9))
        if self.source_size is None:
            raise UserError(
                "Open-set noise has to know how many foreign images there are: set "
                "noise.source_size."
            )
        if wanted > self.source_size:
            raise UserError(
                f"Open-set noise needs {wanted} foreign images but the source has "
                f"{self.source_size} (noise.source_size); lower noise.rate or noise.open_share."
            )
        if samples.num_classes < 2 and wanted < noisy and not self.include_true:
            raise UserError("Closed-set noise needs two classes; set noise.open_share=1.")
        source = np.full(n, -1, dtype=np.int64)
        if self.count == "legacy":
            observed, pairs, closed = legacy.evidentialmix(
                labels, self.rate, self.open_share, self.source_size, samples.num_classes, self.seed
            )
            source[pairs[:, 0]] = pairs[:, 1]
        else:
            order = np.argsort(self.draws.bits(samples.ids, "noisy"))
            opened, closed = order[:wanted], order[wanted:noisy]
            images = np.arange(self.source_size, dtype=np.uint64)
            source[opened] = np.argsort(self.draws.bits(images, "image"))[:wanted]
            observed = labels.copy()
            classes, ids = samples.class_order(), samples.ids[closed]
            if self.include_true:
                which = self.draws.below(samples.num_classes, ids, "target")
                observed[closed] = classes.classes[which]
            else:
                which = self.draws.below(samples.num_classes - 1, ids, "target")
                observed[closed] = classes.other(labels[closed], which)
        is_open = source >= 0
        return Outcome(
            observed=observed,
            nominal_rate=self.rate,
            clean=np.where(is_open, -1, labels),
            changed=is_open | (observed != labels),
            source_index=source,
            details={"open": int(is_open.sum()), "closed_redrawn": len(closed)},
        )
