"""Co-teaching, co-teaching+ and JoCoR: one step each, by hand and by the release's vectors."""

import copy
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from support import paths, vectors
from support.parts import parts_for

from noisyml.errors import UserError
from noisyml.losses.links import joint_loss
from noisyml.methods.classification.base import kept_mean
from noisyml.methods.classification.co_teaching import CoTeaching, CoTeachingPlus, disagreement
from noisyml.methods.classification.jocor import JoCoR
from noisyml.methods.classification.small_loss import SmallLoss
from noisyml.models.backbones.small import mlp
from noisyml.models.encoder import Encoder
from noisyml.models.heads import IdentityHead
from noisyml.selectors.small_loss import quota, small_loss

ORIGINALS = paths.GOLDEN / "mlnoise" / "single_label_originals.npz"
LABELS = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1, 2, 0])


def encoder():
    backbone = mlp(image_size=4, hidden_features=[16])
    return Encoder(backbone, IdentityHead(backbone.out_features))


def method(kind, epoch=0, noise_rate=0.4, **settings):
    torch.manual_seed(0)
    made = kind(parts_for(encoder(), another=encoder), noise_rate=noise_rate, **settings)
    made._trainer = SimpleNamespace(current_epoch=epoch)
    return made


def batch():
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (10, 1, 4, 4), generator=generator, dtype=torch.uint8)
    return {"image": image, "label": LABELS, "index": torch.arange(10) + 40}


def sorted_rows(losses, count):
    losses = losses.tolist()
    return sorted(range(len(losses)), key=lambda i: (losses[i], i))[:count]


def check_step(made, expected, keep):
    """The loss and its gradients in every parameter, against a loss made by hand."""
    outcome = made.training_step(batch(), 0)
    torch.testing.assert_close(outcome["loss"], expected)
    assert outcome["selection"].keep.nonzero()[:, 0].tolist() == sorted(keep)
    assert torch.equal(outcome["index"], torch.arange(10) + 40)
    assert ((outcome["selection"].p_clean > 0) & (outcome["selection"].p_clean <= 1)).all()
    parameters = list(made.parameters())
    wanted = torch.autograd.grad(expected, parameters)
    for found, gradient in zip(
        torch.autograd.grad(outcome["loss"], parameters), wanted, strict=True
    ):
        torch.testing.assert_close(found, gradient, rtol=1e-4, atol=1e-7)
    return outcome


def losses_of(made):
    seen = made.see(batch())
    views = (seen.first, seen.second)
    return views, [F.cross_entropy(v.logits, LABELS, reduction="none") for v in views]


# -- co-teaching -------------------------------------------------------------------------------


@pytest.mark.parametrize(("epoch", "kept"), [(0, 10), (1, 8), (2, 6), (9, 6)])
def test_each_learns_from_the_others_small_losses(epoch, kept):
    made = method(CoTeaching, epoch, num_gradual=3)
    _, (first, second) = losses_of(made)
    for_first, for_second = sorted_rows(second, kept), sorted_rows(first, kept)
    if kept < 10:
        assert for_first != for_second
    outcome = check_step(made, first[for_first].mean() + second[for_second].mean(), for_first)
    torch.testing.assert_close(outcome["selection"].p_clean, torch.exp(-second.detach()))


# -- co-teaching+ ------------------------------------------------------------------------------


def test_disagreement_counts_after_the_warm_up():
    made = method(CoTeachingPlus, 3, num_gradual=1, warmup_epochs=3)
    views, (first, second) = losses_of(made)
    differ = (views[0].logits.argmax(1) != views[1].logits.argmax(1)).nonzero()[:, 0].tolist()
    kept = quota(len(differ), 0.4)
    assert 1 < kept < len(differ) < 10
    for_first, for_second = (
        [differ[i] for i in sorted_rows(losses[differ], kept)] for losses in (second, first)
    )
    check_step(made, first[for_first].mean() + second[for_second].mean(), for_first)

    early = method(CoTeachingPlus, 2, num_gradual=1, warmup_epochs=3)
    plain = method(CoTeaching, 2, num_gradual=1)
    assert torch.equal(
        early.training_step(batch(), 0)["selection"].keep,
        plain.training_step(batch(), 0)["selection"].keep,
    )


def test_networks_that_agree_co_teach():
    plus = method(CoTeachingPlus, 5, num_gradual=1, warmup_epochs=0)
    plus.peer.load_state_dict(
        {f"encoder.{k}": v for k, v in plus.encoder.state_dict().items()}
        | {f"classifier.{k}": v for k, v in plus.classifier.state_dict().items()}
    )
    # Other scores, same classes.
    with torch.no_grad():
        plus.peer.classifier.weight *= 2
        plus.peer.classifier.bias *= 2
    plain = method(CoTeaching, 5, num_gradual=1)
    plain.load_state_dict(plus.state_dict())
    found, expected = (m.training_step(batch(), 0) for m in (plus, plain))
    assert torch.equal(found["loss"], expected["loss"])
    assert int(found["selection"].keep.sum()) == 6


def test_the_sample_at_position_0_may_be_learnt_from():
    first = torch.eye(3)
    second = torch.eye(3)[[1, 1, 2]]
    assert disagreement(first, second).tolist() == [True, False, False]
    assert disagreement(first, first).tolist() == [True, True, True]
    made = method(CoTeachingPlus, 5, noise_rate=0.0, warmup_epochs=0)
    given = batch() | {"index": torch.arange(10)}
    seen = made.see(given)
    differ = disagreement(seen.first.logits, seen.second.logits)
    assert torch.equal(made.training_step(given, 0)["selection"].keep, differ)


# -- JoCoR -------------------------------------------------------------------------------------


def test_the_joint_loss_of_the_release_with_its_gradients():
    stored = vectors.tensors(ORIGINALS.parent, ORIGINALS.name)
    forget, weight = float(stored["forget_rate"]), float(stored["co_lambda"])
    for step in range(len(stored["index"])):
        labels = stored["labels"][stored["index"][step]]
        first = stored["logits"][step].clone().requires_grad_()
        second = stored["logits_b"][step].clone().requires_grad_()
        joint = joint_loss(first, second, labels, weight)
        loss = kept_mean(joint, small_loss(joint, quota(len(labels), forget)))
        loss.backward()
        exact = {"rtol": 1e-9, "atol": 1e-11}
        torch.testing.assert_close(loss.detach(), stored["jocor_loss"][step], **exact)
        torch.testing.assert_close(first.grad, stored["jocor_grad_a"][step], **exact)
        torch.testing.assert_close(second.grad, stored["jocor_grad_b"][step], **exact)


def test_both_learn_from_the_same_small_joint_losses():
    made = method(JoCoR, 4, num_gradual=2, co_lambda=0.7)
    views, (first, second) = losses_of(made)
    p, q = (view.logits.softmax(dim=1) for view in views)
    apart = (p * (p / q).log() + q * (q / p).log()).sum(dim=1)
    joint = 0.3 * (first + second) + 0.7 * apart
    kept = sorted_rows(joint, 6)
    check_step(made, joint[kept].mean(), kept)


def test_agreement_is_worth_its_weight():
    alone = method(JoCoR, co_lambda=0.0)
    _, (first, second) = losses_of(alone)
    torch.testing.assert_close(
        alone.training_step(batch(), 0)["loss"], first.mean() + second.mean()
    )
    same = method(JoCoR, co_lambda=1.0)
    same.peer.encoder.load_state_dict(same.encoder.state_dict())
    same.peer.classifier.load_state_dict(copy.deepcopy(same.classifier.state_dict()))
    assert float(same.training_step(batch(), 0)["loss"].detach()) == pytest.approx(0, abs=1e-6)


# -- settings ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "settings", "sentence"),
    [
        (SmallLoss, {"noise_rate": None}, r"set method\.noise_rate to the share"),
        (SmallLoss, {"noise_rate": 1.0}, r"noise_rate=1\.0 must be a number from 0 to below 1"),
        (SmallLoss, {"num_gradual": 0}, "num_gradual=0 must be"),
        (SmallLoss, {"exponent": 0.0}, r"exponent=0\.0 must be"),
        (CoTeachingPlus, {"warmup_epochs": -1}, "warmup_epochs=-1 must be"),
        (JoCoR, {"co_lambda": 1.5}, r"co_lambda=1\.5 must be"),
    ],
)
def test_values_that_cannot_be_are_refused(kind, settings, sentence):
    with pytest.raises(UserError, match=sentence):
        method(kind, **settings)
