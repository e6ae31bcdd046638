"""Semi-supervised k-means on features as they are: the baseline of category discovery."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import nn

from noisyml.data.labelled import Pool
from noisyml.data.views import Batch
from noisyml.methods.base import Method
from noisyml.methods.parts import Parts
from noisyml.targets import TargetKind


class FeaturesAsTheyAre(Method):
    """No training: `evaluator=discovery` clusters what the network gives.

    The baseline "k-means" of Vaze et al., "Generalized Category Discovery", CVPR 2022. Labels hold
    their images in the cluster of their class there. A network may be frozen and its features
    cached.

    Args:
        parts: encoder and evaluators.
    """

    target_kinds: ClassVar[frozenset[TargetKind]] = frozenset({"partial"})
    learns: ClassVar[bool] = False

    @classmethod
    def pool(cls, settings: Mapping[str, Any]) -> Pool:
        """All samples, as of the methods that it is compared with."""
        return "all"

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        self.encoder.requires_grad_(False)
        #: What the optimiser of the run has to hold.
        self.nothing = nn.Parameter(torch.zeros(()))

    def optimizer_groups(self) -> list[dict[str, Any]]:
        """Nothing of the encoder."""
        return [{"params": [self.nothing]}]

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """A step that changes nothing."""
        return {"loss": 0 * self.nothing}
