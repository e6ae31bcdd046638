"""Passes over a split outside of training: modes of the network, and batches on its device."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn

from noisyml import distributed
from noisyml.data.views import Batch
from noisyml.models.encoder import Encoder
from noisyml.selectors.base import Source, SplitRows


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


@torch.no_grad()
def split_rows(
    encoder: Encoder,
    device: torch.device,
    loader: Iterable[Batch],
    labels_of: Callable[[Batch], Tensor],
    source: Source,
) -> SplitRows:
    """Rows of all labelled samples that a loader gives, the encoder in evaluation mode.

    Args:
        encoder: of images or vectors.
        device: where it lies.
        loader: batches of this rank's share; images that cannot be decoded are not among them.
        labels_of: observed labels [b] of a batch, -1 for none.
        source: features of the backbone, or embeddings.
    """
    embed = encoder.features if source == "features" else encoder
    width = encoder.backbone.out_features if source == "features" else encoder.out_features
    rows = [torch.empty(0, width, device=device)]
    labels = [torch.empty(0, dtype=torch.int64, device=device)]
    index = [torch.empty(0, dtype=torch.int64, device=device)]
    with evaluation_mode(encoder):
        for batch in batches_on(device, loader):
            given = labels_of(batch)
            known = given >= 0
            rows.append(embed(batch)[known].float())
            labels.append(given[known])
            index.append(batch["index"][known])
    everybody = distributed.gather(torch.stack([torch.cat(labels), torch.cat(index)], dim=1))
    return SplitRows(torch.cat(rows), everybody[:, 0], everybody[:, 1])
