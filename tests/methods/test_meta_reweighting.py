"""Weights from trusted samples: equal to their literal definitions, and only where labels are."""

import copy

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from noisyml.data.datamodule import DataModule
from noisyml.errors import UserError
from noisyml.methods.meta_reweighting import MetaReweighting, positive_shares
from noisyml.methods.meta_weight_net import MetaWeightNet
from noisyml.metrics.classification import ClassificationEvaluator
from noisyml.models.backbones import small_cnn
from noisyml.models.encoder import Encoder
from noisyml.models.heads import IdentityHead


class Whole(nn.Module):
    """Encoder and classifier as one module, for virtual steps as the papers write them."""

    def __init__(self, method):
        super().__init__()
        self.encoder, self.classifier = copy.deepcopy((method.encoder, method.classifier))

    def forward(self, batch):
        return self.classifier(self.encoder(batch))


def pictures(number, seed):
    draw = torch.Generator().manual_seed(seed)
    image = torch.randint(0, 256, (number, 1, 8, 8), generator=draw, dtype=torch.uint8)
    label = torch.randint(0, 3, (number,), generator=draw)
    return {"image": image, "label": label, "index": torch.arange(number)}


TRUSTED, BATCH = pictures(6, 1), pictures(8, 2)


def make(kind, **settings):
    torch.manual_seed(0)
    backbone = small_cnn(widths=(4, 8))
    encoder = Encoder(backbone, IdentityHead(backbone.out_features))
    evaluator = ClassificationEvaluator()
    method = kind(encoder, torch.optim.SGD, None, evaluator, ["ant", "bee", "cat"], **settings)
    method.trusted = TRUSTED
    return method.double()


def losses(logits, batch):
    return F.cross_entropy(logits, batch["label"], reduction="none")


def trusted_loss_after(network, weighted_loss, size):
    """The trusted loss behind a virtual step on a loss, differentiable through that step."""
    parameters = dict(network.named_parameters())
    gradient = torch.autograd.grad(weighted_loss, list(parameters.values()), create_graph=True)
    moved = {n: p - size * g for (n, p), g in zip(parameters.items(), gradient, strict=True)}
    return losses(functional_call(network, moved, (TRUSTED,)), TRUSTED).mean()


@pytest.mark.parametrize("size", [2e-3, 1.0])
def test_weights_are_the_clipped_gradient_through_a_virtual_step_of_any_size(size):
    method = make(MetaReweighting)
    network = Whole(method)
    outcome = method.training_step(BATCH, 0)
    outcome["loss"].backward()

    sample_loss = losses(network(BATCH), BATCH)
    zero = torch.zeros(8, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(
        trusted_loss_after(network, (zero * sample_loss).sum(), size), zero
    )
    weights = (-gradient).clamp(min=0)
    weights /= weights.sum()
    assert 0 < int((weights > 0).sum()) < 8
    assert torch.equal(outcome["selection"].keep, weights > 0)
    torch.testing.assert_close(outcome["selection"].p_clean, weights / weights.max())

    expected = (weights * losses(network(BATCH), BATCH)).sum()
    expected.backward()
    torch.testing.assert_close(outcome["loss"], expected)
    assert outcome["loss"].requires_grad
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(method.get_parameter(name).grad, parameter.grad, msg=name)


def test_the_weight_network_learns_through_the_virtual_step():
    method = make(MetaWeightNet, virtual_lr=0.5, weight_lr=20.0, momentum=0.9)
    net = copy.deepcopy(method.weight_net).requires_grad_(True)
    network = Whole(method)
    real = [torch.optim.SGD(m.parameters(), lr=0.1) for m in (method, network)]
    optimizer = torch.optim.SGD(net.parameters(), lr=20.0, momentum=0.9)
    weights = []
    for step in range(3):
        outcome = method.training_step(BATCH, step)
        real[0].zero_grad()
        outcome["loss"].backward()
        real[0].step()

        sample_loss = losses(network(BATCH), BATCH)
        values = sample_loss.detach()[:, None]
        optimizer.zero_grad()
        loss = (net(values)[:, 0] * sample_loss).mean()
        trusted_loss_after(network, loss, 0.5).backward(inputs=list(net.parameters()))
        optimizer.step()
        weights.append(net(values)[:, 0].detach())
        expected = (weights[-1] * losses(network(BATCH), BATCH)).mean()
        real[1].zero_grad()
        expected.backward()
        real[1].step()

        torch.testing.assert_close(outcome["loss"], expected)
        torch.testing.assert_close(outcome["selection"].p_clean, weights[-1])
        for mine, reference in zip(method.weight_net.parameters(), net.parameters(), strict=True):
            torch.testing.assert_close(mine, reference.detach())
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(method.get_parameter(name), parameter, msg=name)
    assert (weights[2] - weights[0]).abs().max() > 1e-3


@pytest.mark.parametrize("kind", [MetaReweighting, MetaWeightNet])
def test_running_statistics_see_the_batch_once_and_the_trusted_never(kind):
    method = make(kind)
    network = Whole(method)
    network(BATCH)
    method.training_step(BATCH, 0)
    for name, buffer in network.encoder.named_buffers():
        assert torch.equal(method.encoder.get_buffer(name), buffer), name


def test_without_agreement_the_loss_is_zero():
    assert positive_shares(torch.tensor([-1.0, 0.0])).tolist() == [0.0, 0.0]
    assert positive_shares(torch.tensor([-1.0, 1.0, 3.0])).tolist() == [0.0, 0.25, 0.75]
    method = make(MetaReweighting)
    # The trusted say the opposite of every gradient.
    method.trusted_gradient = lambda parameters: [torch.zeros_like(p) for p in parameters.values()]
    outcome = method.training_step(BATCH, 0)
    outcome["loss"].backward()
    assert outcome["loss"].item() == 0
    assert not outcome["selection"].keep.any()
    assert all((method.get_parameter(name).grad == 0).all() for name in method.trained())


def test_trusted_samples_are_drawn_anew_for_each_step(monkeypatch):
    method = make(MetaReweighting)
    assert method.trusted_batch()["index"].tolist() == list(range(6))
    method = make(MetaReweighting, trusted_batch_size=4)
    drawn = []
    for step in (0, 1, 0):
        monkeypatch.setattr(MetaReweighting, "global_step", step)
        batch = method.trusted_batch()
        assert torch.equal(batch["label"], TRUSTED["label"][batch["index"]])
        drawn.append(batch["index"].tolist())
    assert len(set(drawn[0])) == 4
    assert drawn[0] == drawn[2] != drawn[1]


def test_settings_out_of_range_are_refused():
    with pytest.raises(UserError, match=r"method\.trusted_batch_size"):
        make(MetaReweighting, trusted_batch_size=0)
    wrong = {"virtual_lr": 0.0, "weight_lr": -1.0, "momentum": 1.0, "hidden_features": 0}
    for name, value in wrong.items():
        with pytest.raises(UserError, match=f"method.{name}"):
            make(MetaWeightNet, **{name: value})


# -- as typed ----------------------------------------------------------------------------------

GLYPHS = [
    "dataset=glyphs",
    "dataset.split=closed_set",
    "dataset.num_train_classes=8",
    "dataset.min_faces=16",
    "noise=symmetric",
    "noise.rate=0.4",
    "backbone=mlp",
    "backbone.image_size=32",
    "report=false",
]


def test_trusted_labels_tell_right_from_wrong(shell):
    typed = ["method=meta_reweighting", "method.trusted_batch_size=32", "trainer.max_epochs=8"]
    status, said = shell("train", *GLYPHS, *typed)
    assert status == 0, said
    (run,) = shell.runs()
    history = pd.read_csv(run / "history.csv")
    # A weight above 0 says more than chance, which is the share of right labels, about 0.6.
    assert history["selection/precision"].max() > 0.75
    assert not (run / "checkpoints" / "best.ckpt").exists()


@pytest.mark.parametrize(
    ("typed", "sentence"),
    [
        (["dataset=digits", "backbone.image_size=8"], "Digits brings no clean validation split"),
        ([*GLYPHS, "data.noisy_val=true"], "data.noisy_val=true makes"),
        ([*GLYPHS, "dataset.val_fraction=0"], "Glyphs brings no clean validation split"),
        ([*GLYPHS, "model_choice=[last,best]"], "leave best out of model_choice"),
        ([*GLYPHS, "dataset.split=zero_shot", "evaluator=retrieval"], "are not those of training"),
        ([*GLYPHS, "method.trusted_batch_size=5000"], "trusted samples"),
        ([*GLYPHS, "selector=bare"], "asks no selector"),
    ],
)
def test_what_cannot_be_trusted_is_refused_in_a_sentence(shell, typed, sentence):
    status, said = shell("train", "backbone=mlp", "method=meta_weight_net", *typed)
    assert status != 0
    assert sentence in said
    assert "Traceback" not in said


def test_trusted_labels_come_from_the_validation_split(shell, monkeypatch):
    asked = []
    original = DataModule.predict_dataloader

    def spy(self, name="train", positions=None):
        asked.append(name)
        return original(self, name, positions)

    monkeypatch.setattr(DataModule, "predict_dataloader", spy)
    typed = ["method=meta_weight_net", "trainer.max_epochs=1", "trainer.limit_train_batches=2"]
    status, said = shell("train", *GLYPHS, *typed, "method.trusted_batch_size=null")
    assert status == 0, said
    assert asked == ["val"]
