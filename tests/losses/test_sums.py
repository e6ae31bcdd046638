"""Weighted sums: values and gradients are those of the terms; needs and gifts are united."""

import pytest
import torch
from support import paths

from noisyml.command.config import compose
from noisyml.errors import UserError
from noisyml.losses.classification.base import CrossEntropy, GeneralisedCrossEntropy
from noisyml.losses.classification.loss_correction import ForwardCorrection
from noisyml.losses.classification.sat import SelfAdaptiveTraining
from noisyml.losses.metric_learning.contrastive import ContrastiveLoss, MemoryContrastiveLoss
from noisyml.losses.metric_learning.pair_losses import MultiSimilarityLoss
from noisyml.losses.metric_learning.pml import PMLLoss
from noisyml.losses.metric_learning.proxy_nca_pp import ProxyNCAPPLoss
from noisyml.losses.multilabel.base import BinaryCrossEntropy, Focal
from noisyml.losses.sums import ClassificationSum, EmbeddingSum, MultiLabelSum
from noisyml.similarity.memory_bank import MemoryBank

CLASSES, DIM = 4, 6


def batch(n=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.nn.functional.normalize(torch.randn(n, DIM, generator=generator).double(), dim=1)
    return rows, torch.arange(n) % CLASSES


def test_value_and_gradient_are_those_of_the_terms():
    embeddings, labels = batch()
    keep = torch.arange(len(labels)) != 3
    bank = MemoryBank(16, DIM, CLASSES, dtype=torch.float64)
    bank.enqueue(*batch(seed=1), torch.arange(16))
    terms = {"memory": MemoryContrastiveLoss(), "mined": MultiSimilarityLoss()}
    loss = EmbeddingSum(terms, {"mined": 0.25})
    leaf, other = embeddings.clone().requires_grad_(), embeddings.clone().requires_grad_()
    value = loss(leaf, labels, memory=bank, keep=keep)
    value.backward()
    alone = {name: term(other, labels, memory=bank, keep=keep) for name, term in terms.items()}
    expected = alone["memory"] + 0.25 * alone["mined"]
    expected.backward()
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(leaf.grad, other.grad)
    assert set(loss.last_terms) == set(terms)
    for name, term in loss.last_terms.items():
        assert torch.equal(term, alone[name].detach())
        assert not term.requires_grad


def test_needs_and_gifts_are_united():
    proxies = ProxyNCAPPLoss(CLASSES, DIM)
    loss = EmbeddingSum({"a": MemoryContrastiveLoss(), "b": proxies, "c": ContrastiveLoss()})
    assert loss.needs == {"memory"}
    assert loss.has_proxies
    assert torch.equal(loss.proxies(), proxies.proxies())
    assert list(loss.parameters()) == [proxies.weight]
    plain = EmbeddingSum({"a": ContrastiveLoss(), "b": proxies}, {"b": 0.0})
    assert not plain.needs
    assert not plain.has_proxies
    assert not list(plain.parameters())  # a term that is left out has nothing to train
    with pytest.raises(TypeError, match="no class proxies"):
        plain.proxies()
    adapter = EmbeddingSum({"a": PMLLoss("ProxyAnchorLoss", CLASSES, DIM)})
    assert adapter.has_proxies


NODES = {
    "bank": {"_target_": "noisyml.losses.metric_learning.contrastive.MemoryContrastiveLoss"},
    "anchor": {
        "_target_": "noisyml.losses.metric_learning.pml.PMLLoss",
        "name": "ProxyAnchorLoss",
    },
}


def test_a_configuration_declares_before_anything_is_built():
    declared = EmbeddingSum.declares({"terms": NODES})
    assert declared.needs == {"memory"}
    assert declared.gives == {"proxies"}
    declared = EmbeddingSum.declares({"terms": NODES, "weights": {"bank": 0}})
    assert not declared.needs
    nested = {"_target_": "noisyml.losses.sums.EmbeddingSum", "terms": NODES}
    assert EmbeddingSum.declares({"terms": {"inner": nested}}) == EmbeddingSum.declares(nested)


@pytest.mark.parametrize(
    ("terms", "said"),
    [
        ({"a": {"margin": 0.1}}, "The term 'a' .* names no loss by its _target_"),
        ({"a": {"_target_": "noisyml.losses.sums.Nothing"}}, "noisyml.losses.sums.Nothing"),
        ({"a": {"_target_": "nowhere.Loss"}}, "nowhere.Loss"),
    ],
)
def test_a_term_that_is_no_loss_is_refused(terms, said):
    with pytest.raises(UserError, match=said):
        EmbeddingSum.declares({"terms": terms})


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: EmbeddingSum({}), "has no terms"),
        (
            lambda: EmbeddingSum({"pairs": ContrastiveLoss()}, {"pair": 1.0}),
            "a term 'pair' it does not have: use pairs. Did you mean 'pairs'",
        ),
        (lambda: EmbeddingSum({"a": ContrastiveLoss()}, {"a": 0.0}), "all its weights are 0"),
        (lambda: EmbeddingSum({"a": CrossEntropy()}), "not a loss on embeddings"),
        (lambda: ClassificationSum({"a": BinaryCrossEntropy()}), "not a loss on class scores"),
        (lambda: EmbeddingSum({"a": ContrastiveLoss()}, {"a": "1"}), "weights.a=1 must be"),
    ],
)
def test_mistakes_are_named_in_a_sentence(make, said):
    with pytest.raises(UserError, match=said):
        make()


def test_losses_on_class_scores_keep_their_state_and_warm_up():
    logits = torch.randn(5, CLASSES, generator=torch.Generator().manual_seed(0))
    labels, index = torch.tensor([0, 1, 2, 3, 0]), torch.arange(5)
    adaptive = SelfAdaptiveTraining(5, CLASSES, warmup_epochs=2)
    loss = ClassificationSum({"gce": GeneralisedCrossEntropy(), "sat": adaptive}, {"gce": 2.0})
    assert loss.warmup_epochs == 2
    for epoch in (0, 3):
        twin = SelfAdaptiveTraining(5, CLASSES, warmup_epochs=2)
        expected = 2 * GeneralisedCrossEntropy()(logits, labels, index, epoch)
        expected = expected + twin(logits, labels, index, epoch)
        torch.testing.assert_close(loss(logits, labels, index, epoch), expected)
        assert torch.equal(adaptive.targets.rows, twin.targets.rows)
    assert {"terms.sat.targets.rows", "terms.sat.targets.seen"} <= set(loss.state_dict())
    with pytest.raises(UserError, match="plain loss for 2 epochs, and the run has 2"):
        loss.check_length(2)
    loss.check_length(3)


def test_only_the_term_that_asked_learns():
    early, late = ForwardCorrection(3, estimation_epoch=1), ForwardCorrection(3, estimation_epoch=2)
    loss = ClassificationSum({"early": early, "late": late})
    assert not loss.wants_predictions(0)
    assert loss.wants_predictions(1)
    loss.learn(torch.eye(3))
    assert bool(early.known)
    assert not bool(late.known)
    assert loss.wants_predictions(2)
    loss.learn(torch.eye(3))
    assert bool(late.known)
    assert not loss.wants_predictions(3)


def test_losses_on_several_labels_are_summed_entry_by_entry():
    logits = torch.randn(3, CLASSES, generator=torch.Generator().manual_seed(0))
    labels, index = (logits > 0).float(), torch.arange(3)
    loss = MultiLabelSum(
        {"bce": BinaryCrossEntropy(), "focal": Focal()}, {"focal": 3.0}, "class_sum"
    )
    entries = loss(logits, labels, index, 0)
    expected = BinaryCrossEntropy()(logits, labels, index, 0)
    torch.testing.assert_close(entries, expected + 3 * Focal()(logits, labels, index, 0))
    whole = loss.reduce(entries, torch.ones(3, dtype=torch.bool))
    torch.testing.assert_close(whole, entries.sum() / 3)


@pytest.mark.long
@pytest.mark.parametrize("name", ["sum", "classification_sum", "multilabel_sum"])
def test_terms_are_nodes_of_the_group(name, monkeypatch):
    """Another loss for a term, and a further term, are words of the command line."""
    monkeypatch.chdir(paths.ROOT)
    other = {"sum": "iaa_triplet", "classification_sum": "sat", "multilabel_sum": "bce"}[name]
    term = {"sum": "auxiliary", "classification_sum": "robust", "multilabel_sum": "focal"}[name]
    config = compose("train", [f"loss={name}", f"loss@loss.terms.{term}={other}"])
    alone = compose("train", [f"loss={other}"])
    assert config.loss.terms[term] == alone.loss
    assert set(config.loss.weights) == set(config.loss.terms)
    more = compose("train", [f"loss={name}", f"+loss@loss.terms.more={other}"])
    assert set(more.loss.terms) == {*config.loss.terms, "more"}


def test_a_sum_has_losses_of_samples_where_all_its_terms_do():
    embeddings, labels = batch()
    proxies = {
        name: ProxyNCAPPLoss(CLASSES, DIM, denominator=name) for name in ("all", "negatives")
    }
    loss = EmbeddingSum(proxies, {"negatives": 0.5})
    losses = loss.per_sample(embeddings, labels)
    torch.testing.assert_close(losses.mean(), loss(embeddings, labels).detach())
    assert torch.equal(loss.last_losses, losses)
    assert (
        EmbeddingSum({**proxies, "pairs": ContrastiveLoss()}).per_sample(embeddings, labels) is None
    )
