"""A fit of the estimator: batches of pairs, an epoch at a time, and what a snapshot holds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from noisyml.data.samplers.plans import PlannedBatches, Shuffle
from noisyml.errors import UserError
from noisyml.estimators.files import LATEST, Snapshots, read_model
from noisyml.losses.self_supervised.redundancy import gaussian_partners
from noisyml.methods.vectors.pairs import Pairs
from noisyml.methods.vectors.training import train_on_pairs
from noisyml.optim import adam, lars, twin_cosine

if TYPE_CHECKING:
    from noisyml.estimators.tldr import TLDR

#: Of the released LARS.
MOMENTUM, TRUST = 0.9, 1e-3
#: Rows of a batch that the published learning rate is for.
ROWS_OF_RATE = 256


class Fit:
    """A fit of `noisyml.estimators.tldr.TLDR` under way.

    Args:
        model: receives networks and losses.
        rows: [N, D], read batch by batch.
        settings: ``epochs``, ``warmup_epochs`` and ``batch_size``.
        pairs: of which partners are drawn; None: Gaussian ones.
        seed: of weights, batches and partners.
    """

    def __init__(
        self,
        model: TLDR,
        rows: NDArray[Any],
        settings: dict[str, Any],
        pairs: Pairs | None,
        seed: int,
    ) -> None:
        self.model, self.rows, self.pairs, self.seed = model, rows, pairs, seed
        self.epochs, self.batch = settings["epochs"], settings["batch_size"]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            model.build(model.projector, rows.shape[1])
        assert model.twins_ is not None
        self.twins = model.twins_
        rate = model.learning_rate * self.batch / ROWS_OF_RATE
        trained = list(model.parameters())
        if model.optimizer == "adam":
            self.optimizer = adam(trained, lr=rate)
        else:
            self.optimizer = lars(trained, lr=rate, momentum=MOMENTUM, trust=TRUST)
        self.schedule = twin_cosine(
            self.optimizer,
            total_steps=self.epochs * (len(rows) // self.batch),
            epochs=self.epochs,
            warmup_epochs=settings["warmup_epochs"],
            num_samples=len(rows),
            batch_size=self.batch,
        )
        plan = Shuffle(np.zeros(len(rows), dtype=np.int64), self.seed, self.batch)
        self.batches = PlannedBatches(plan, self.seed)
        self.noise = torch.Generator(device=model.device)
        self.pinned: Tensor | None = None
        if model.pin_memory:
            self.pinned = torch.tensor(np.asarray(rows, np.float32), device=model.device)
        model.loss_curve_ = []

    def epoch(self, epoch: int) -> float:
        """Train for an epoch; its mean loss, read from the device once."""
        model = self.model
        self.batches.set_epoch(epoch)
        self.noise.manual_seed(self.seed + epoch)
        model.encoder_.train()
        self.twins.train()
        losses = list(
            train_on_pairs(model.encoder_, self.twins, self.optimizer, self.schedule, self._sides())
        )
        mean = float(torch.stack(losses).mean())
        if not np.isfinite(mean):
            raise UserError(
                f"The loss became {mean} in epoch {epoch + 1}: lower learning_rate or check the "
                f"rows."
            )
        model.loss_curve_.append(mean)
        model.encoder_.eval()
        return mean

    def _sides(self) -> Iterator[tuple[Tensor, Tensor]]:
        for drawn in self.batches:
            first = self._taken(drawn.index)
            if self.pairs is None:
                noise = torch.randn(first.shape, generator=self.noise, device=first.device)
                yield first, gaussian_partners(first, noise)
            else:
                yield first, self._taken(self.pairs.partners(drawn.index, drawn.seed))

    def _taken(self, index: NDArray[np.int64]) -> Tensor:
        """Rows by number, as float32 on the device."""
        if self.pinned is not None:
            return self.pinned[torch.from_numpy(index).to(self.pinned.device)]
        part = np.ascontiguousarray(self.rows[index], dtype=np.float32)
        return torch.from_numpy(part).to(self.model.device)

    def content(self, epoch: int) -> dict[str, Any]:
        """All that a snapshot needs to go on after `epoch` epochs."""
        return self.model.content() | {
            "epoch": epoch,
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "seed": self.seed,
            "losses": list(self.model.loss_curve_),
        }

    def restore(self, snapshots: Snapshots) -> int:
        """Take up the latest snapshot, if there is one; the epochs that it has done."""
        if snapshots.folder is None:
            raise UserError("resume=True needs the output_folder of the interrupted fit.")
        file = snapshots.folder / LATEST
        if not file.is_file():
            return 0
        content = read_model(file)
        if "optimizer" not in content:
            raise UserError(f"{file} holds no momentum to go on with: fit anew.")
        self.model.take(content["state_dict"], strict=True)
        self.optimizer.load_state_dict(content["optimizer"])
        self.schedule.load_state_dict(content["schedule"])
        self.seed = content["seed"]
        plan = Shuffle(np.zeros(len(self.rows), dtype=np.int64), self.seed, self.batch)
        self.batches = PlannedBatches(plan, self.seed)
        self.model.loss_curve_ = content["losses"]
        return int(content["epoch"])
