"""The baseline without selection."""

from __future__ import annotations

import torch

from noisyml.selectors.base import Evidence, Selection, Selector


class KeepAll(Selector):
    """Trusts every sample and scores none."""

    @torch.no_grad()
    def select(self, evidence: Evidence) -> Selection:
        """Keep the whole batch; `p_clean` is NaN."""
        return Selection.keep_everything(evidence.labels)
