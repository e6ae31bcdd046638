"""Losses on anchors and columns: against their definitions and the library's."""

import inspect

import pytest
import torch
from hydra.utils import instantiate
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from support import paths

from noisyml.errors import UserError
from noisyml.losses.metric_learning.cbml import CBMLLoss
from noisyml.losses.metric_learning.pair_losses import (
    HardestNegativeTripletLoss,
    MultiSimilarityLoss,
    TwoMarginContrastiveLoss,
    multi_similarity_loss,
)
from noisyml.losses.metric_learning.pairs import (
    Pairs,
    Samples,
    cosine_pairs,
    log1p_sum_exp,
    row_max,
    row_mean,
    row_min,
    unit_rows,
)
from noisyml.losses.metric_learning.pml import PMLLoss

CONF = paths.CONF / "loss"
LOSSES = [
    CBMLLoss(),
    CBMLLoss(adaptive_negatives=False, fixed_negatives=3),
    MultiSimilarityLoss(),
    TwoMarginContrastiveLoss(),
    HardestNegativeTripletLoss(),
]
IDS = ["cbml", "cbml_fixed", "multi_similarity", "contrastive", "triplet"]


def batch(seed, n=24, dim=6, classes=4, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(n, dim, generator=generator, dtype=dtype)
    labels = torch.randint(classes, (n,), generator=generator)
    return torch.nn.functional.normalize(rows, dim=1), labels, torch.rand(n, generator=generator)


def definition(loss, anchor_side, column_side):
    """Anchor by anchor, from lists of its cosines."""
    anchors, labels, anchor_id = anchor_side
    columns, column_labels, column_id = column_side
    total = (anchors * 0).sum() + (columns * 0).sum()
    for anchor, label, number in zip(anchors, labels, anchor_id, strict=True):
        cosines = columns @ anchor
        positives = cosines[(column_labels == label) & (column_id != number)]
        negatives = cosines[column_labels != label]
        if isinstance(loss, TwoMarginContrastiveLoss):
            total = total + (0.8 - positives[positives < 0.8]).sum()
            total = total + (negatives[negatives > 0.5] - 0.5).sum()
            continue
        if len(positives) == 0 or len(negatives) == 0:
            continue
        if isinstance(loss, HardestNegativeTripletLoss):
            nearest = (2 - 2 * negatives).sqrt().min()
            total = total + ((2 - 2 * positives).sqrt() - nearest + 0.2).clamp(min=0).sum()
            continue
        least, most = positives.min(), negatives.max()
        positives, negatives = positives[positives - 0.1 < most], negatives[negatives + 0.1 > least]
        if len(positives) and len(negatives):
            total = total + torch.log1p(torch.exp(-2 * (positives - 0.5)).sum()) / 2
            total = total + torch.log1p(torch.exp(40 * (negatives - 0.5)).sum()) / 40
    return total / max(1, len(anchors))


@pytest.mark.long
@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    n=st.integers(1, 14),
    copies=st.integers(0, 2),
    loss=st.sampled_from(LOSSES[2:]),
)
def test_equals_its_definition(seed, n, copies, loss):
    """Columns in any order: instance numbers alone tell own copies."""
    generator = torch.Generator().manual_seed(seed)
    originals, labels, _ = batch(seed, n)
    shifted = originals.repeat(copies, 1)
    shifted = shifted + 0.5 * torch.randn(shifted.shape, generator=generator).double()
    order = torch.randperm(n * (copies + 1), generator=generator)
    columns = torch.nn.functional.normalize(torch.cat([originals, shifted]), dim=1)[order]
    number = torch.arange(n)
    numbers, column_labels = number.repeat(copies + 1)[order], labels.repeat(copies + 1)[order]

    gradients, values = [], []
    for function in (
        lambda *sides: loss.of(cosine_pairs(*sides)),
        lambda *sides: definition(loss, *sides),
    ):
        anchors, others = originals.clone().requires_grad_(), columns.clone().requires_grad_()
        value = function(Samples(anchors, labels, number), Samples(others, column_labels, numbers))
        value.backward()
        values.append(value.detach())
        gradients.append((anchors.grad, others.grad))
    torch.testing.assert_close(values[0], values[1])
    torch.testing.assert_close(gradients[0], gradients[1])


@pytest.mark.long
@pytest.mark.parametrize("loss", LOSSES, ids=IDS)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**16), n=st.integers(1, 24))
def test_dropped_samples_leave_no_trace(loss, seed, n):
    embeddings, labels, draw = batch(seed, n)
    keep = draw < 0.6
    alone = embeddings[keep].requires_grad_()
    expected = loss(alone, labels[keep])
    expected.backward()
    whole = torch.where(keep[:, None], embeddings, torch.nan).requires_grad_()
    value = loss(whole, labels, keep=keep)
    value.backward()
    assert torch.equal(value, expected)
    assert torch.equal(whole.grad[keep], alone.grad)
    assert not whole.grad[~keep].any()


@pytest.mark.parametrize("loss", LOSSES, ids=IDS)
def test_parts_of_the_anchors_add_up(loss):
    """Anchors of two processes against all columns: the same loss as in one."""
    embeddings, labels, _ = batch(1)
    whole = Samples.of_batch(embeddings, labels)
    parts = [loss.of(cosine_pairs(part, whole)) for part in whole.blocks(12)]
    torch.testing.assert_close(sum(parts) / 2, loss(embeddings, labels))


@pytest.mark.parametrize("loss", LOSSES, ids=IDS)
def test_coinciding_rows_have_finite_gradients(loss):
    embeddings, _, _ = batch(2, n=8)
    leaf = embeddings.repeat_interleave(2, dim=0).requires_grad_()
    for labels in (torch.arange(8).repeat_interleave(2) % 4, torch.arange(16) % 2):
        value = loss(leaf, labels)
        value.backward()
        assert value.isfinite()
        assert leaf.grad.isfinite().all()


@pytest.mark.parametrize("loss", LOSSES, ids=IDS)
def test_autocast_changes_nothing(loss):
    embeddings, labels, _ = batch(3, dtype=torch.float32)
    expected = loss(embeddings, labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(loss(embeddings, labels), expected)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**16))
def test_multi_similarity_of_the_library(seed):
    """Same loss as pytorch-metric-learning's with its miner, once beta is the same."""
    embeddings, labels, _ = batch(seed)
    library = PMLLoss(
        "MultiSimilarityLoss",
        num_classes=4,
        embedding_size=6,
        params={"alpha": 2, "beta": 40, "base": 0.5},
        miner="MultiSimilarityMiner",
        miner_params={"epsilon": 0.1},
    )
    torch.testing.assert_close(
        MultiSimilarityLoss()(embeddings, labels), library(embeddings, labels)
    )


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**16), n=st.integers(0, 9))
def test_row_functions(seed, n):
    generator = torch.Generator().manual_seed(seed)
    x = 200 * torch.randn(5, n, generator=generator).double()
    mask = torch.rand(5, n, generator=generator) < 0.5
    for i in range(5):
        chosen = x[i][mask[i]]
        some = len(chosen) > 0
        assert row_min(x, mask, 7.0)[i] == (chosen.min() if some else 7.0)
        assert row_max(x, mask, 7.0)[i] == (chosen.max() if some else 7.0)
        torch.testing.assert_close(row_mean(x, mask)[i], chosen.mean() if some else x.sum() * 0)
        with_one = torch.cat([chosen, torch.zeros(1, dtype=x.dtype)])
        torch.testing.assert_close(log1p_sum_exp(x, mask)[i], with_one.logsumexp(0))


def test_columns_come_whole():
    embeddings, labels, _ = batch(0)
    whole = Samples.of_batch(embeddings, labels)
    with pytest.raises(ValueError, match="go together"):
        cosine_pairs(whole, Samples(embeddings, labels))
    with pytest.raises(ValueError, match="anchors"):
        cosine_pairs(whole._replace(labels=labels[:3]), whole)
    with pytest.raises(ValueError, match="columns"):
        cosine_pairs(whole, Samples(embeddings, labels[:3]))


@pytest.mark.parametrize(
    ("kind", "wrong", "sentence"),
    [
        (MultiSimilarityLoss, {"alpha": 0.0}, "alpha"),
        (MultiSimilarityLoss, {"beta": -1.0}, "beta"),
        (MultiSimilarityLoss, {"positive_cutoff": -1.0}, "positive_cutoff"),
        (TwoMarginContrastiveLoss, {"positive_margin": 1.5}, "positive_margin"),
        (TwoMarginContrastiveLoss, {"negative_margin": -2.0}, "negative_margin"),
        (HardestNegativeTripletLoss, {"margin": -0.1}, "margin"),
    ],
)
def test_mistakes(kind, wrong, sentence):
    with pytest.raises(UserError, match=sentence):
        kind(**wrong)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("iaa_multi_similarity", MultiSimilarityLoss),
        ("iaa_contrastive", TwoMarginContrastiveLoss),
        ("iaa_triplet", HardestNegativeTripletLoss),
    ],
)
def test_configs_state_the_defaults_of_the_code(name, kind):
    node = OmegaConf.load(CONF / f"{name}.yaml")
    built = instantiate(node)
    assert type(built) is kind
    written = {key: value for key, value in node.items() if key != "_target_"}
    assert written == {n: p.default for n, p in inspect.signature(kind).parameters.items()}


@pytest.mark.long
def test_second_derivatives_are_right():
    rows = torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    assert torch.autograd.gradgradcheck(unit_rows, rows.clone().requires_grad_())
    loss = MultiSimilarityLoss()
    assert torch.autograd.gradgradcheck(
        lambda x: loss(unit_rows(x), labels), rows.requires_grad_(), atol=1e-4
    )


def test_rows_too_short_to_be_brought_to_norm_1_keep_a_gradient():
    rows = torch.tensor([[3.0, 4.0], [0.0, 0.0], [1e-13, 0.0]], dtype=torch.float64)
    ours, theirs = rows.clone().requires_grad_(), rows.clone().requires_grad_()
    weight = torch.arange(6.0, dtype=torch.float64).view(3, 2)
    (unit_rows(ours) * weight).sum().backward()
    (torch.nn.functional.normalize(theirs, dim=1) * weight).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_cosines_far_apart_give_zero_and_no_denormal_slope():
    similarity = torch.tensor([[1.0, 0.2, 0.9, -1.0]], requires_grad=True)
    positive = torch.tensor([[False, True, False, False]])
    pairs = Pairs(similarity, positive, torch.tensor([[False, False, True, True]]), 1)
    multi_similarity_loss(pairs, beta=80.0, epsilon=3.0).backward()
    assert similarity.grad[0, 2] > 0.9
    assert similarity.grad[0, 3] == 0
