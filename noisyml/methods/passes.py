"""Passes over a split in evaluation mode."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

import torch
from torch import nn

from noisyml.data.views import Batch


@contextlib.contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Context in which a module is in evaluation mode; afterwards it is in the mode it was in."""
    training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(training)


def batches_on(device: torch.device, loader: Iterable[Batch]) -> Iterator[Batch]:
    """Batches of a loader on a device; those without samples are left out.

    Args:
        device: of the network.
        loader: of mappings of tensors with ``index`` [b].
    """
    for batch in loader:
        if len(batch["index"]):
            yield {key: value.to(device) for key, value in batch.items()}
