"""Values and gradients of the released losses."""

import functools

import pytest
import torch
from support import paths, vectors

from noisyml.losses.metric_learning.contrastive import (
    ContrastiveLoss,
    contrastive_loss,
    memory_contrastive_loss,
)
from noisyml.losses.metric_learning.pairs import Samples, cosine_pairs
from noisyml.losses.metric_learning.pml import PMLLoss

GOLDEN = paths.GOLDEN / "prism"
load = functools.partial(vectors.tensors, GOLDEN)
close = functools.partial(vectors.close, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    "case", ["bank", "bank_with_self", "no_active_pair", "positive_cutoff", "negative_margin"]
)
@pytest.mark.parametrize("block_bytes", [1, 700, 2**20])
def test_against_references(case, block_bytes):
    golden = load("contrastive_losses.npz")
    anchors = golden[f"{case}_feats"].requires_grad_()
    loss = memory_contrastive_loss(
        Samples(anchors, golden[f"{case}_targets"]),
        Samples(golden[f"{case}_ref_feats"], golden[f"{case}_ref_targets"]),
        block_bytes=block_bytes,
    )
    loss.backward()
    close(loss.detach(), golden[f"{case}_loss"])
    close(anchors.grad, golden[f"{case}_grad"])


@pytest.mark.parametrize("case", ["batch", "single_sample_batch"])
def test_within_the_batch(case):
    golden = load("contrastive_losses.npz")
    anchors = golden[f"{case}_feats"].requires_grad_()
    loss = ContrastiveLoss()(anchors, golden[f"{case}_targets"])
    loss.backward()
    close(loss.detach(), golden[f"{case}_loss"])
    close(anchors.grad, golden[f"{case}_grad"])


def test_the_cutoff_lies_between_the_recorded_cosines():
    golden = load("contrastive_losses.npz")
    anchor = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    for case, label in (("positive_cutoff", 0), ("negative_margin", 1)):
        sims = (golden[f"{case}_feats"] @ golden[f"{case}_ref_feats"].T).squeeze(0)
        torch.testing.assert_close(sims, golden["sims"], atol=1e-9, rtol=0)
        for sim in sims.tolist():
            other = torch.tensor([[sim, (1 - sim**2) ** 0.5]], dtype=torch.float64)
            batch = Samples(anchor, torch.tensor([0]))
            loss = memory_contrastive_loss(batch, Samples(other, torch.tensor([label])))
            costs = sim < 1 - 1e-5 if label == 0 else sim > 0.5
            assert bool(loss > 0) == costs
    pair = Samples(torch.cat([anchor, anchor]), torch.tensor([0, 0]))
    assert contrastive_loss(cosine_pairs(pair)) == 0


@pytest.mark.parametrize(
    ("key", "name", "params", "weight"),
    [
        (
            "softtriple",
            "SoftTripleLoss",
            {"centers_per_class": 10, "la": 20, "gamma": 0.1, "margin": 0.01},
            "fc",
        ),
        ("fastAP", "FastAPLoss", {"num_bins": 10}, None),
        ("nSoftmax", "NormalizedSoftmaxLoss", {"temperature": 0.05}, "W"),
        ("proxyNCA", "ProxyNCALoss", {"softmax_scale": 3}, "proxies"),
        ("circle", "CircleLoss", {"m": 0.4, "gamma": 80}, None),
    ],
)
@pytest.mark.parametrize("with_strangers", [False, True])
def test_library_losses(key, name, params, weight, with_strangers):
    golden = load("combined_losses.npz")
    embeddings, labels = golden["feats"], golden["targets"]
    keep = None
    if with_strangers:
        # Samples that are not kept must leave no trace in the value or the gradients.
        embeddings = torch.cat([embeddings, -embeddings[:5]])
        labels = torch.cat([labels, labels[:5]])
        keep = torch.arange(len(labels)) < len(golden["targets"])
    embeddings = embeddings.clone().requires_grad_()
    loss = PMLLoss(name, int(golden["num_classes"]), embeddings.shape[1], params)
    if weight is not None:
        getattr(loss.loss, weight).data = golden[f"{key}_loss_param"].clone()
    value = loss(embeddings, labels, keep=keep)
    value.backward()
    n = len(golden["targets"])
    close(value.detach(), golden[f"{key}_loss_value"], atol=1e-8)
    close(embeddings.grad[:n], golden[f"{key}_loss_grad_feats"], atol=1e-8)
    assert not embeddings.grad[n:].any()
    if weight is not None:
        gradient = getattr(loss.loss, weight).grad
        close(gradient, golden[f"{key}_loss_grad_param"], atol=1e-8)
