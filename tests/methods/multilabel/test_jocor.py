"""One step of JoCoR for several labels: what teaches, what is logged, what is refused."""

from types import SimpleNamespace

import pytest
import torch
from support.parts import parts_for

from noisyml.errors import UserError
from noisyml.losses.multilabel.jocor import joint_losses
from noisyml.methods.multilabel.jocor import JoCoRMultiLabel
from noisyml.metrics.multilabel import MultiLabelEvaluator
from noisyml.models.backbones.small import mlp
from noisyml.models.encoder import Encoder
from noisyml.models.heads import IdentityHead


def encoder(seed):
    torch.manual_seed(seed)
    backbone = mlp(image_size=4, hidden_features=[8])
    return Encoder(backbone, IdentityHead(backbone.out_features))


def jocor(epoch=0, **settings):
    parts = parts_for(encoder(0), another=lambda: encoder(1), evaluator=MultiLabelEvaluator())
    method = JoCoRMultiLabel(parts, **settings)
    method._trainer = SimpleNamespace(current_epoch=epoch)
    return method


def batch(size=8):
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (size, 1, 4, 4), generator=generator, dtype=torch.uint8)
    labels = (torch.rand(size, 3, generator=generator) < 0.4).float()
    return {"image": image, "labels": labels, "index": torch.arange(size) + 40}


@pytest.mark.parametrize(("unit", "kept"), [("entry", 12), ("class", 12), ("sample", 4)])
def test_half_of_the_entries_or_samples_teach(unit, kept):
    method = jocor(epoch=10, tau=0.5, unit=unit)
    outcome = method.training_step(batch(), 0)
    outcome["loss"].backward()
    assert all(p.grad is not None for p in method.parameters())
    selection = outcome["selection"]
    assert selection.keep.sum() == kept
    assert selection.keep.shape == selection.p_clean.shape
    assert selection.keep.shape == ((8,) if unit == "sample" else (8, 3))
    seen = method.see(batch())
    losses = joint_losses(seen.first.logits, seen.second.logits, seen.labels, 0.6)
    if unit == "sample":
        losses = losses.mean(dim=1)
    torch.testing.assert_close(outcome["loss"], losses[selection.keep].mean())
    torch.testing.assert_close(selection.p_clean, (-losses).exp().detach())


def test_everything_teaches_at_first():
    assert jocor(tau=0.5).training_step(batch(), 0)["selection"].keep.all()


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"tau": 1.0}, r"tau=1\.0 must be a number from 0 to below 1"),
        ({"co_lambda": 1.5}, r"co_lambda=1\.5 must be a number from 0 to 1"),
        ({"gradual_epochs": -1}, "gradual_epochs=-1 must be a whole number of at least 0"),
        ({"unit": "batch"}, "unit=batch must be entry, sample or class"),
        ({"divergence": "js"}, "divergence=js must be symmetric_kl or released"),
    ],
)
def test_mistakes_are_one_sentence(settings, sentence):
    with pytest.raises(UserError, match=sentence):
        jocor(**settings)
