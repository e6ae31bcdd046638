"""A teacher that is the moving average of its student."""

from __future__ import annotations

from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from noisyml.checks import Checked, OpenShare

#: Buffers of a teacher (running statistics of batch norm): its own, from the batches it sees;
#: those of the student; or their moving average.
Buffers = Literal["own", "copied", "averaged"]


def ema_decay(updates: Tensor, decay: float = 0.999, warmup: bool = True) -> Tensor:
    """Share of the average that an update keeps: min(decay, (1 + k) / (10 + k)).

    Args:
        updates: k [] int64, this one included.
        decay: the most.
        warmup: let it rise; False: `decay` from the start.

    Example:
        >>> import torch
        >>> [round(float(ema_decay(torch.tensor(k))), 4) for k in (1, 2, 10_000)]
        [0.1818, 0.25, 0.999]
    """
    k = updates.double()
    return ((1 + k) / (10 + k)).clamp(max=decay) if warmup else torch.full_like(k, decay)


class EMATeacher(Checked, AveragedModel):
    """Copies of a student's modules whose parameters are moving averages of the student's.

    An `AveragedModel` of PyTorch, so that checkpoints carry the averages and the number of updates;
    unlike that class it begins with the student as it was at first, takes a decay that rises, and
    may keep buffers of its own. Frozen parameters that are the student's already are left alone,
    which changes no bit.

    Args:
        student: modules by name; copied.
        decay: share of the average that an update keeps at most.
        warmup: begin with a smaller share, see `ema_decay`.
        buffers: running statistics of the teacher: its ``own``, as in the release of OTTER,
            ``copied`` from the student, or ``averaged``.
        mode: ``train``: batch norm by the statistics of the batch, dropout at work, as in the
            release; ``eval``: neither.
    """

    def __init__(
        self,
        student: nn.ModuleDict,
        decay: OpenShare = 0.999,
        warmup: bool = True,
        buffers: Buffers = "own",
        mode: Literal["train", "eval"] = "train",
    ) -> None:
        super().__init__(student)
        self.decay, self.warmup = decay, warmup
        self.kept_buffers, self.mode = buffers, mode
        #: Places of the frozen parameters that equal the student's; None: not looked yet.
        self._equal: frozenset[int] | None = None
        self.requires_grad_(False)
        self.train()

    @property
    def averages(self) -> nn.ModuleDict:
        """The averaged modules by name."""
        modules: Any = self.module
        return modules

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Move towards the student, before it sees the next batch."""
        self.n_averaged += 1
        share = 1 - ema_decay(self.n_averaged, self.decay, self.warmup)
        everything = list(zip(self.module.parameters(), model.parameters(), strict=True))
        if self._equal is None:
            self._equal = frozenset(
                place
                for place, (mine, theirs) in enumerate(everything)
                if not theirs.requires_grad and torch.equal(mine, theirs)
            )
        pairs: list[tuple[Tensor, Tensor]] = [
            pair
            for place, pair in enumerate(everything)
            if pair[1].requires_grad or place not in self._equal
        ]
        if self.kept_buffers != "own":
            pairs += zip(self.module.buffers(), model.buffers(), strict=True)
        for mine, theirs in pairs:
            if isinstance(mine, nn.Parameter) or (
                self.kept_buffers == "averaged" and mine.is_floating_point()
            ):
                mine.lerp_(theirs, share.to(mine))
            else:
                mine.copy_(theirs)

    @torch.no_grad()
    def restart(self, model: nn.Module) -> None:
        """Begin again as a copy of the student, whose weights came from elsewhere."""
        self.module.load_state_dict(model.state_dict())
        self.n_averaged.zero_()
        self._equal = None

    def _load_from_state_dict(self, *args: Any) -> None:
        """Look anew which frozen parameters are the student's."""
        self._equal = None
        super()._load_from_state_dict(*args)

    def train(self, mode: bool = True) -> Self:
        """Set the mode, unless the teacher stays in evaluation mode."""
        return super().train(mode and self.mode == "train")
