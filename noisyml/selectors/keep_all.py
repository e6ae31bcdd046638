"""The baseline without selection."""

from __future__ import annotations

from typing import ClassVar

import torch

from noisyml.selectors.base import Evidence, Selection, Selector
from noisyml.targets import TARGETS, TargetKind


class KeepAll(Selector):
    """Trusts every sample and scores none."""

    target_kinds: ClassVar[frozenset[TargetKind]] = frozenset(TARGETS)
    gives_scores: ClassVar[bool] = False

    @torch.no_grad()
    def select(self, evidence: Evidence) -> Selection:
        """Keep the whole batch; `p_clean` is NaN."""
        return Selection.keep_everything(evidence.labels)
