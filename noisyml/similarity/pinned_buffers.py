"""A module whose buffers follow it to another device but never change their number format."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

from torch import Tensor, nn


class PinnedBuffers(nn.Module):
    """Base of modules that keep statistics: ``.half()`` of the model around must not round them."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        before = dict(self.named_buffers(recurse=False))
        super()._apply(fn, recurse)
        for name, buffer in before.items():
            moved = self.get_buffer(name)
            if moved.dtype != buffer.dtype:
                setattr(self, name, buffer.to(moved.device))
        return self
