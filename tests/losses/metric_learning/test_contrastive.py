import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from noisyml.errors import UserError
from noisyml.losses.metric_learning.contrastive import (
    ContrastiveLoss,
    MemoryContrastiveLoss,
    contrastive_loss,
    memory_contrastive_loss,
)
from noisyml.losses.metric_learning.pairs import Samples, cosine_pairs
from noisyml.similarity.memory_bank import MemoryBank


def batch(n, seed, dim=5, classes=3):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(n, dim, dtype=torch.float64, generator=generator)
    labels = torch.randint(classes, (n,), generator=generator)
    return torch.nn.functional.normalize(rows, dim=1), labels, torch.rand(n, generator=generator)


def plain_sum(anchors, labels, references, reference_labels, relu_form):
    """The definition, pair by pair, with a graph through the anchors alone."""
    total = (anchors * 0).sum()
    for a, y in zip(anchors, labels.tolist(), strict=True):
        for b, z in zip(references, reference_labels.tolist(), strict=True):
            s = a @ b
            if y == z and s < 1 - 1e-5:
                total = total + 1 - s
            elif y != z and s > 0.5:
                total = total + s - (0.5 if relu_form else 0.0)
    return total


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    n=st.integers(1, 8),
    m=st.integers(0, 12),
    relu_form=st.booleans(),
    block_bytes=st.sampled_from([1, 200, 2**20]),
)
def test_bank_term_equals_its_definition(seed, n, m, relu_form, block_bytes):
    anchors, labels, draw = batch(n, seed)
    references, reference_labels, _ = batch(m, seed + 1)
    keep = draw < 0.6
    expected_at = anchors.clone().requires_grad_()
    expected = plain_sum(
        expected_at[keep], labels[keep], references, reference_labels, relu_form
    ) / max(n, 1)
    expected.backward()
    anchors.requires_grad_()
    actual = memory_contrastive_loss(
        Samples(anchors, labels),
        Samples(references, reference_labels),
        keep=keep,
        relu_form=relu_form,
        block_bytes=block_bytes,
    )
    actual.backward()
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(anchors.grad, expected_at.grad)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**16), n=st.integers(1, 8), relu_form=st.booleans())
def test_batch_term_equals_its_definition(seed, n, relu_form):
    embeddings, labels, draw = batch(n, seed)
    keep = draw < 0.6
    expected_at = embeddings.clone().requires_grad_()
    kept = expected_at[keep]
    expected = plain_sum(kept, labels[keep], kept, labels[keep], relu_form) / max(1, len(kept))
    expected.backward()
    embeddings.requires_grad_()
    pairs = cosine_pairs(Samples(embeddings, labels)).among(keep)
    actual = contrastive_loss(pairs, relu_form=relu_form)
    actual.backward()
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(embeddings.grad, expected_at.grad)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**16))
def test_permutation_of_batch_and_bank(seed):
    embeddings, labels, draw = batch(10, seed)
    stored, stored_labels, _ = batch(20, seed + 1)
    generator = torch.Generator().manual_seed(seed)
    order, bank_order = (torch.randperm(n, generator=generator) for n in (10, 20))
    values, gradients = [], []
    for rows, bank_rows in (
        (torch.arange(10), torch.arange(20)),
        (order, bank_order),
    ):
        bank = MemoryBank(20, 5, 3, dtype=torch.float64)
        bank.enqueue(stored[bank_rows], stored_labels[bank_rows], bank_rows)
        leaf = embeddings[rows].requires_grad_()
        value = MemoryContrastiveLoss()(leaf, labels[rows], memory=bank, keep=(draw < 0.7)[rows])
        value.backward()
        values.append(value.detach())
        gradients.append(leaf.grad)
    torch.testing.assert_close(values[0], values[1])
    torch.testing.assert_close(gradients[0][order], gradients[1])


def test_weights_and_an_empty_bank():
    embeddings, labels, _ = batch(8, 0)
    stored, stored_labels, _ = batch(9, 1)
    empty = MemoryBank(9, 5, 3, dtype=torch.float64)
    alone = ContrastiveLoss()(embeddings, labels)
    assert MemoryContrastiveLoss()(embeddings, labels, memory=empty) == alone
    bank = MemoryBank(9, 5, 3, dtype=torch.float64)
    bank.enqueue(stored, stored_labels, stored_labels)
    memory_term = memory_contrastive_loss(
        Samples(embeddings, labels), Samples(stored, stored_labels)
    )
    weighted = MemoryContrastiveLoss(batch_weight=2.0, memory_weight=0.5)
    torch.testing.assert_close(
        weighted(embeddings, labels, memory=bank), 2 * alone + 0.5 * memory_term
    )


def test_nothing_kept_is_zero_with_a_gradient():
    embeddings, labels, _ = batch(6, 0)
    bank = MemoryBank(6, 5, 3, dtype=torch.float64)
    bank.enqueue(embeddings, labels, labels)
    leaf = embeddings.clone().requires_grad_()
    value = MemoryContrastiveLoss()(
        leaf, labels, memory=bank, keep=torch.zeros(6, dtype=torch.bool)
    )
    value.backward()
    assert value == 0
    assert not leaf.grad.any()


def test_autocast_does_not_move_the_cutoff():
    """In bfloat16 a sample's cosine to itself would fall below the cut-off."""
    embeddings, labels, _ = batch(16, 0, dim=64)
    embeddings = embeddings.float()
    bank = MemoryBank(16, 64, 3)
    bank.enqueue(embeddings, labels, labels)
    expected = MemoryContrastiveLoss()(embeddings, labels, memory=bank)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = MemoryContrastiveLoss()(embeddings, labels, memory=bank)
    assert torch.equal(actual, expected)


def test_memory_is_required():
    embeddings, labels, _ = batch(3, 0)
    with pytest.raises(ValueError, match="memory bank"):
        MemoryContrastiveLoss()(embeddings, labels)
    assert MemoryContrastiveLoss.needs == {"memory"}
    assert not ContrastiveLoss.needs


@pytest.mark.parametrize(
    "arguments", [{"margin": 1.5}, {"positive_cutoff": -1.0}, {"block_bytes": 0}], ids=str
)
def test_bad_arguments_are_refused(arguments):
    with pytest.raises(UserError):
        MemoryContrastiveLoss(**arguments)
