"""Passes over a split outside of training: modes of the network, and batches on its device."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

import torch
from torch import nn

from noisyml.data.views import Batch


@contextlib.contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Context in which a module is in evaluation mode."""
    with _modes_restored(module):
        module.eval()
        yield


@contextlib.contextmanager
def training_mode_with_fixed_norms(module: nn.Module) -> Iterator[None]:
    """Context in which a module is in training mode, and its batch norms in evaluation mode."""
    with _modes_restored(module):
        module.train()
        for part in module.modules():
            if isinstance(part, nn.modules.batchnorm._BatchNorm):
                part.eval()
        yield


@contextlib.contextmanager
def _modes_restored(module: nn.Module) -> Iterator[None]:
    """Context after which every part of a module is in the mode it was in."""
    before = [(part, part.training) for part in module.modules()]
    try:
        yield
    finally:
        for part, training in before:
            part.training = training


def batches_on(device: torch.device, loader: Iterable[Batch]) -> Iterator[Batch]:
    """Batches of a loader on a device; those without samples are left out.

    Args:
        device: of the network.
        loader: of mappings of tensors with ``index`` [b].
    """
    for batch in loader:
        if len(batch["index"]):
            yield {key: value.to(device) for key, value in batch.items()}
