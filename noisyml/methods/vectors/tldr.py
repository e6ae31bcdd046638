"""TLDR: dimensionality reduction from pairs of neighbours (Kalantidis et al., TMLR 2022).

arXiv 2110.09455. Neighbours among the input vectors get codes that agree and whose dimensions tell
different things; there are no negatives and no labels.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from noisyml import distributed
from noisyml.checks import NonNegative, OpenShare, Positive, Seed
from noisyml.data.views import PARTNER, Batch
from noisyml.losses.self_supervised.redundancy import LAMBD, SCALE, gaussian_partners
from noisyml.methods.parts import Parts
from noisyml.methods.vectors.base import VectorMethod
from noisyml.methods.vectors.graph import PairGraph
from noisyml.methods.vectors.training import lack_of_steps
from noisyml.methods.vectors.twins import PairLoss, Twins, agreeing_pairs
from noisyml.models.dense import HiddenNorm

log = logging.getLogger(__name__)

Partners = Literal["neighbours", "gaussian"]


class TLDR(VectorMethod):
    """Twin learning for dimensionality reduction.

    Args:
        parts: the head is the encoder that is kept (``head=dense``).
        graph: makes the pairs, see `PairGraph`.
        partners: ``neighbours`` in the graph, or ``gaussian``: the row with noise (an ablation).
        projector: a word such as ``mlp-2-2048``, see `noisyml.models.dense`; None: none.
        norm: of its hidden layers: ``batch`` (over the global batch) or ``layer``.
        loss: ``redundancy``, or ``autoencoder``: the projector gives the inputs back.
        lambd: weight of the entries off the diagonal of the cross-correlation.
        scale_loss: factor of the loss.
        pair_noise_rate: share of each batch whose pairs agree least and teach nothing, once the
            rate's warm-up is over; 0: all teach.
        seed: of Gaussian partners.
    """

    def __init__(
        self,
        parts: Parts,
        *,
        graph: Callable[[], PairGraph],
        partners: Partners = "neighbours",
        projector: str | None = "mlp-2-2048",
        norm: HiddenNorm = "batch",
        loss: PairLoss = "redundancy",
        lambd: NonNegative = LAMBD,
        scale_loss: Positive = SCALE,
        pair_noise_rate: OpenShare = 0.0,
        seed: Seed = 0,
    ) -> None:
        super().__init__(parts)
        self.graph = graph()
        self.partners = partners
        self.pair_noise_rate = pair_noise_rate
        self.seed = seed
        self.twins = Twins(
            self.encoder.out_features,
            self.encoder.backbone.out_features,
            projector,
            norm,
            loss,
            lambd,
            scale_loss,
        )

    def setup(self, stage: str) -> None:
        """Find every row's neighbours, from which the loader draws a partner at each visit."""
        if stage != "fit":
            return
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        rows = self.rows(data)
        if self.partners == "gaussian":
            return
        on_gpu = self.trainer.strategy.root_device.type == "cuda"
        pairs, said = self.graph.of(rows, "cuda" if on_gpu else "cpu")
        for sentence in said:
            log.info(sentence)
        data.use_partners(pairs.partners)

    def on_fit_start(self) -> None:
        """Warn of a run whose steps are too few for its rate."""
        group = self.trainer.optimizers[0].param_groups[0]
        if "trust_coeff" in group:
            steps, rate = int(self.trainer.estimated_stepping_batches), float(group["initial_lr"])
            if advice := lack_of_steps(steps, rate, group["momentum"], group["trust_coeff"]):
                log.warning(advice)

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """One step of TLDR (section 3 of the paper)."""
        other = self.partner(batch)
        first, second = self.encoder(batch), self.encoder(other)
        keep = agreeing_pairs(first, second, self.pair_noise_rate) if self._selects() else None
        loss = self.twins(first, second, lambda: self._both(batch, other), keep)
        return {"loss": loss}

    def partner(self, batch: Batch) -> Batch:
        """The other side of the pairs, as a batch that the encoder reads."""
        if self.partners == "neighbours":
            return {name: batch[PARTNER + name] for name in ROWS if PARTNER + name in batch}
        rows = distributed.gather(self.inputs(batch))
        generator = distributed.agreed_generator(self.seed, self.current_epoch, self.global_step)
        noise = torch.randn(rows.shape, generator=generator).to(rows)
        made = gaussian_partners(rows, noise)
        sizes = distributed.shard_sizes(len(batch["index"]), rows.device)
        start = sum(sizes[: distributed.rank()])
        return {"prepared": made[start : start + len(batch["index"])]}

    def _selects(self) -> bool:
        return self.pair_noise_rate > 0 and self.current_epoch > 0

    def _both(self, batch: Batch, other: Batch) -> Tensor:
        return torch.cat([self.inputs(batch), self.inputs(other)])


#: Names under which a batch holds rows for the encoder.
ROWS = ("vector", "features")
