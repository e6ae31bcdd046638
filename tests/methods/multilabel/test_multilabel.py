"""One step of a multi-label classifier: what teaches, what a selector sees, what is evaluated."""

import copy

import pytest
import torch
import torch.nn.functional as F
from support.parts import parts_for

from noisyml.losses.multilabel.base import BinaryCrossEntropy, Focal
from noisyml.methods.multilabel.base import MultiLabel
from noisyml.metrics.multilabel import MultiLabelEvaluator
from noisyml.models.backbones.small import mlp
from noisyml.models.encoder import Encoder
from noisyml.models.heads import IdentityHead
from noisyml.selectors.base import Facts, Selection, Selector
from noisyml.selectors.keep_all import KeepAll

NAMES = ["ant", "bee", "cat"]
LABELS = torch.tensor([[1, 0, 0], [1, 1, 0], [0, 0, 0], [1, 1, 1], [0, 1, 0], [0, 0, 1]]).float()
SAMPLES = torch.tensor([True, False, True, True, False, False])
ENTRIES = torch.rand(6, 3, generator=torch.Generator().manual_seed(0)) < 0.6


class Fixed(Selector):
    """Keeps what it is told and notes what it was shown."""

    def __init__(self, keep):
        super().__init__()
        self.keep = keep

    def select(self, evidence):
        self.evidence = evidence
        return Selection(self.keep, self.keep.float())


def method(selector, loss=None):
    torch.manual_seed(0)
    backbone = mlp(image_size=(2, 8), hidden_features=[16])
    parts = parts_for(
        Encoder(backbone, IdentityHead(backbone.out_features)),
        NAMES,
        selector=selector,
        evaluator=MultiLabelEvaluator(),
        loss=loss or BinaryCrossEntropy(),
    )
    return MultiLabel(parts)


def batch():
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (6, 1, 2, 8), generator=generator, dtype=torch.uint8)
    return {"image": image, "labels": LABELS, "index": torch.arange(6) + 40}


def gradients(trained):
    return {name: p.grad for name, p in trained.named_parameters()}


@pytest.mark.parametrize("keep", [SAMPLES, ENTRIES], ids=["samples", "entries"])
def test_what_is_kept_teaches_by_its_mean_cross_entropy(keep):
    trained = method(Fixed(keep))
    outcome = trained.training_step(batch(), 0)
    outcome["loss"].backward()
    assert torch.equal(outcome["selection"].keep, keep)
    assert torch.equal(outcome["index"], torch.arange(6) + 40)

    alone = copy.deepcopy(trained)
    alone.zero_grad()
    logits = alone.classifier(alone.encoder(batch()))
    expected = F.binary_cross_entropy_with_logits(logits[keep], LABELS[keep])
    expected.backward()
    torch.testing.assert_close(outcome["loss"], expected)
    for name, gradient in gradients(alone).items():
        torch.testing.assert_close(gradients(trained)[name], gradient, rtol=1e-4, atol=1e-7)


def test_the_baseline_keeps_samples_and_not_entries():
    outcome = method(KeepAll()).training_step(batch(), 0)
    assert outcome["selection"].keep.tolist() == [True] * 6


def test_reduction_and_focal_loss_are_options():
    plain = method(KeepAll()).training_step(batch(), 0)["loss"]
    summed = method(KeepAll(), BinaryCrossEntropy("class_sum")).training_step(batch(), 0)["loss"]
    torch.testing.assert_close(summed, 3 * plain)
    focal = method(KeepAll(), Focal(alpha=0.5, gamma=0.0)).training_step(batch(), 0)["loss"]
    torch.testing.assert_close(focal, plain / 2)


def test_a_selector_is_shown_all_that_is_promised_and_no_gradient():
    trained = method(Fixed(SAMPLES))
    trained.training_step(batch(), 0)
    evidence = trained.selector.evidence
    logits = trained.classifier(trained.encoder(batch()))
    entry_loss = F.binary_cross_entropy_with_logits(logits, LABELS, reduction="none")
    expected = {"logits": logits, "entry_loss": entry_loss, "sample_loss": entry_loss.mean(dim=1)}
    for name in MultiLabel.evidence:
        shown = getattr(evidence, name)
        assert shown is not None
        assert not shown.requires_grad
        if name in expected:
            torch.testing.assert_close(shown, expected[name].detach())
    assert torch.equal(evidence.labels, LABELS)
    trained.on_after_backward()


def test_a_step_follows_the_precision_of_autocast_but_not_in_its_loss():
    with torch.autocast("cpu", torch.bfloat16):
        loss = method(KeepAll()).training_step(batch(), 0)["loss"]
    assert loss.dtype == torch.float32


def test_without_a_selector_a_sample_counts_by_its_least_likely_entry():
    trained = method(KeepAll())
    seen = trained.classify_globally(batch())
    entry_loss = trained.loss(seen.logits, seen.labels, seen.index, 0)
    outcome = trained.training_step(batch(), 0)
    assert outcome["selection"].keep.shape == seen.index.shape
    noted = Facts.columns([outcome["facts"]])
    torch.testing.assert_close(noted["loss"], trained.loss.per_sample(entry_loss).detach())
    torch.testing.assert_close(noted["p_clean"], (-entry_loss).exp().amin(dim=1).detach())
    assert torch.equal(noted["suspected"], entry_loss.argmax(dim=1))
    right = ((seen.logits > 0) == (seen.labels > 0)).all(dim=1)
    assert torch.equal(noted["margin"] > 0, right)
