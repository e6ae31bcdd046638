"""Weights learnt from trusted samples equal their literal definitions."""

import copy

import pytest
import torch
import torch.nn.functional as F
from support.parts import parts_for
from torch import nn
from torch.func import functional_call

from noisyml.errors import UserError
from noisyml.methods.classification.meta_reweighting import MetaReweighting, positive_shares
from noisyml.methods.classification.meta_weight_net import MetaWeightNet
from noisyml.models.backbones.base import Backbone
from noisyml.models.backbones.small import small_cnn
from noisyml.models.encoder import Encoder
from noisyml.models.heads import EmbeddingHead


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


class Attention(nn.Module):
    """Rows of pixels look at each other."""

    def forward(self, images):
        rows = images[:, :1]
        return F.scaled_dot_product_attention(rows, rows.sin(), rows)[:, 0].mean(dim=1)


def make(kind, backbone=None, norm="none", **settings):
    torch.manual_seed(0)
    backbone = backbone or small_cnn(widths=(4, 8))
    head = EmbeddingHead(backbone.out_features, 8, hidden_features=[8], norm=norm)
    encoder = Encoder(backbone, head)
    method = kind(parts_for(encoder), **settings)
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
    method = make(MetaWeightNet, virtual_lr=0.5, weight_lr=1.0, momentum=0.9)
    net = copy.deepcopy(method.weight_net).requires_grad_(True)
    network = Whole(method)
    real = [torch.optim.SGD(m.parameters(), lr=0.1) for m in (method, network)]
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0, momentum=0.9)
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
    # The trusted have nothing to ask for.
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
    with pytest.raises(UserError, match="null takes all trusted samples"):
        make(MetaReweighting, trusted_batch_size=0)
    wrong = {"virtual_lr": 0.0, "weight_lr": -1.0, "momentum": 1.0, "hidden_features": 0}
    for name, value in wrong.items():
        with pytest.raises(UserError, match=f"{name}=.* must be"):
            make(MetaWeightNet, **{name: value})


@pytest.mark.parametrize("kind", [MetaReweighting, MetaWeightNet])
def test_attention_can_be_differentiated_twice(kind):
    body = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), Attention())
    backbone = Backbone(body, 8, in_channels=1, mean=[0.5], std=[0.5])
    method = make(kind, backbone)
    method.training_step(BATCH, 0)["loss"].backward()
    assert all(p.grad is not None for p in method.encoder.backbone.parameters())


def test_batch_norm_across_processes_is_refused(monkeypatch):
    method = make(MetaReweighting, norm="batch")
    monkeypatch.setattr("noisyml.distributed.is_distributed", lambda: True)
    with pytest.raises(UserError, match="head=identity"):
        method.on_fit_start()
