"""EAC step by step: two passes, one learns from labels; trained as the released code trains."""

import copy
import functools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from methods.classification.test_classification import Fixed, gradients
from support import paths, vectors
from support.parts import parts_for
from torch import nn

from noisyml.errors import UserError
from noisyml.losses.classification.eac import attention_consistency
from noisyml.losses.classification.elr import EarlyLearningRegularisation
from noisyml.losses.classification.sat import SelfAdaptiveTraining
from noisyml.losses.links import SOFTMAX
from noisyml.methods.classification.eac import EAC
from noisyml.models.backbones.base import Backbone
from noisyml.models.backbones.from_timm import timm_model
from noisyml.models.backbones.from_torchvision import resnet
from noisyml.models.backbones.small import mlp, small_cnn
from noisyml.models.class_maps import obstacle_to_class_maps
from noisyml.models.encoder import Encoder
from noisyml.models.heads import EmbeddingHead, IdentityHead
from noisyml.models.pooling import GeneralisedMean
from noisyml.selectors.keep_all import KeepAll

GOLDEN = paths.GOLDEN / "eac"
LABELS = torch.tensor([0, 1, 2, 0, 1, 2])


def encoder(backbone=None, normalise=False):
    backbone = backbone or small_cnn(widths=(4, 8), halve_after=[1])
    return Encoder(backbone, IdentityHead(backbone.out_features, normalise))


def eac(network=None, keep=(True,) * 6, classes=3, selector=None, **settings):
    torch.manual_seed(0)
    names = [f"class {i}" for i in range(classes)]
    # What is no part is a setting.
    others = {"loss": settings.pop("loss")} if "loss" in settings else {}
    parts = parts_for(network or encoder(), names, selector=selector or Fixed(keep), **others)
    return EAC(parts, **settings)


def batch():
    generator = torch.Generator().manual_seed(0)
    views = torch.randint(0, 256, (6, 2, 1, 8, 8), generator=generator, dtype=torch.uint8)
    return {"views": views, "label": LABELS, "index": torch.arange(6) + 40}


load = functools.partial(vectors.tensors, GOLDEN)


def raw(body, out_features, in_channels):
    """A backbone that passes inputs on as they are, but for the factor of 255 of grey levels."""
    convention = {"mean": (0.0,) * in_channels, "std": (1.0,) * in_channels}
    return Backbone(
        body, out_features, in_channels=in_channels, pool=str(len(body) - 2), **convention
    )


# -- against the release -----------------------------------------------------------------------


def test_a_step_is_the_released_one():
    golden = load("forward_small_f64")
    body = nn.Sequential(nn.Identity(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    method = eac(encoder(raw(body, 16, 16)), classes=5, consistency_weight=5.0).double()
    method.classifier.weight.data = golden["fc_weight"]
    method.classifier.bias.data = golden["fc_bias"]
    views = torch.stack([golden["feat1"], golden["feat2"]], dim=1).requires_grad_()
    given = {"views": 255 * views, "label": golden["labels"], "index": torch.arange(6)}
    loss = method.training_step(given, 0)["loss"]
    loss.backward()
    for found, key in (
        (loss, "total"),
        (views.grad[:, 0], "grad_feat1"),
        (views.grad[:, 1], "grad_feat2"),
        (method.classifier.weight.grad, "grad_fc_weight"),
        (method.classifier.bias.grad, "grad_fc_bias"),
    ):
        torch.testing.assert_close(found.detach(), golden[key], rtol=0, atol=1e-12)


def test_two_epochs_are_the_released_ones():
    """Weights, statistics and losses of batch-norm training with Adam, step by step."""
    golden = load("train_two_epochs_f32")

    def block(inside, outside):
        convolution = nn.Conv2d(inside, outside, 3, stride=2, padding=1, bias=False)
        return [convolution, nn.BatchNorm2d(outside), nn.ReLU()]

    body = nn.Sequential(*block(1, 8), *block(8, 16), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    method = eac(
        encoder(raw(body, 16, 1)),
        classes=5,
        selector=KeepAll(),
        consistency_weight=float(golden["lam"]),
    )
    places = {"features.": "encoder.backbone.body.", "fc.": "classifier."}

    def state(prefix):
        found = {}
        for key, tensor in golden.items():
            if key.startswith(prefix):
                name = key.removeprefix(prefix)
                for theirs, ours in places.items():
                    name = ours + name.removeprefix(theirs) if name.startswith(theirs) else name
                found[name] = tensor
        return found

    own = method.state_dict()
    method.load_state_dict(own | state("init/"))
    adam = torch.optim.Adam(method.parameters(), lr=1.0, weight_decay=float(golden["weight_decay"]))
    close = {"rtol": 0, "atol": 1e-5}
    number = 0
    for epoch in range(2):
        adam.param_groups[0]["lr"] = float(golden["lr_per_epoch"][epoch])
        method.train()
        right, losses = 0, []
        for batch_number in range(3):
            x1, x2, y = (golden[f"batch{batch_number}/{key}"] for key in ("x1", "x2", "y"))
            given = {"views": 255 * torch.stack([x1, x2], 1), "label": y, "index": torch.arange(6)}
            outcome = method.training_step(given, 0)
            loss, rows = outcome["loss"], outcome["facts"].rows
            ce = rows["sample_loss"].mean()
            consistency = (loss.detach() - ce) / golden["lam"]
            torch.testing.assert_close(ce.double(), golden["step_ce"][number], **close)
            torch.testing.assert_close(consistency, golden["step_consistency"][number], **close)
            right += int((rows["logits"].argmax(1) == y).sum())
            losses.append(float(loss.detach()))
            adam.zero_grad()
            loss.backward()
            adam.step()
            number += 1
        trained = method.state_dict()
        expected = state(f"epoch{epoch + 1}/")
        assert len(expected) == 14
        for name, tensor in expected.items():
            torch.testing.assert_close(trained[name], tensor, **close, msg=name)
        assert right / 18 == pytest.approx(float(golden["epoch_train_acc"][epoch]))
        assert np.mean(losses) == pytest.approx(float(golden["epoch_mean_loss"][epoch]), abs=1e-5)
        method.eval()
        with torch.no_grad():
            logits = method.outputs({"image": 255 * golden["test_x"]}, {"logits"})["logits"]
        test_loss = torch.stack(
            [
                F.cross_entropy(*part)
                for part in zip(logits.split(4), golden["test_y"].split(4), strict=True)
            ]
        ).mean()
        accuracy = (logits.argmax(1) == golden["test_y"]).double().mean()
        torch.testing.assert_close(test_loss.double(), golden["epoch_test_loss"][epoch], **close)
        torch.testing.assert_close(accuracy, golden["epoch_test_acc"][epoch], **close)


# -- what teaches ------------------------------------------------------------------------------


@pytest.mark.parametrize("ce_on_both", [False, True])
@pytest.mark.parametrize("detach", [True, False])
def test_the_kept_teach_by_labels_and_all_by_consistency(ce_on_both, detach):
    keep = torch.tensor([True, False, True, True, False, False])
    method = eac(
        keep=keep.tolist(), consistency_weight=2.0, ce_on_both=ce_on_both, detach_classifier=detach
    )
    like = copy.deepcopy(method)
    outcome = method.training_step(batch(), 0)
    outcome["loss"].backward()
    assert torch.equal(outcome["selection"].keep, keep)

    views = batch()["views"]
    one, two = (like.encoder.encode({"image": views[:, v]}) for v in (0, 1))
    losses = [
        F.cross_entropy(like.classifier(view.embeddings), LABELS, reduction="none")
        for view in (one, two)
    ]
    supervised = (losses[0] + losses[1]) / 2 if ce_on_both else losses[0]
    torch.testing.assert_close(method.selector.evidence.sample_loss, supervised.detach())
    consistency = attention_consistency(
        one.maps["last"],
        two.maps["last"],
        like.classifier.weight,
        detach_classifier=detach,
    )
    expected = supervised[keep].mean() + 2.0 * consistency.mean()
    expected.backward()
    torch.testing.assert_close(outcome["loss"], expected)
    assert not any(term.requires_grad for term in outcome["terms"].values())
    terms = {"classification": supervised[keep].mean(), "consistency": consistency.mean()}
    torch.testing.assert_close(outcome["terms"], {k: v.detach() for k, v in terms.items()})
    for name, gradient in gradients(like).items():
        torch.testing.assert_close(gradients(method)[name], gradient, rtol=1e-4, atol=1e-7)
    # Each view is normalised by itself, and both enter the statistics.
    for name, tensor in like.state_dict().items():
        torch.testing.assert_close(method.state_dict()[name], tensor)
    assert method.encoder.backbone.body[1].num_batches_tracked == 2


@pytest.mark.parametrize("kind", ["elr", "sat"])
def test_where_both_views_teach_a_memory_moves_once_and_by_the_unmirrored(kind):
    def loss():
        if kind == "elr":
            return EarlyLearningRegularisation(50, 3)
        return SelfAdaptiveTraining(50, 3, warmup_epochs=0)

    method = eac(ce_on_both=True, loss=loss())
    plain = eac(loss=loss())
    plain.load_state_dict(method.state_dict())
    for step in range(2):
        before = copy.deepcopy(method)
        found = method.training_step(batch(), 0)["terms"]["classification"]
        plain.training_step(batch(), 0)
        assert torch.equal(method.loss.targets.rows, plain.loss.targets.rows), step
        rows = method.loss.targets.rows[batch()["index"]]
        assert (rows > 0).all()
        # Both views are held against the same rows.
        each = []
        for view in range(2):
            shown = copy.deepcopy(before)
            image = batch()["views"][:, view]
            logits = shown.classifier(shown.encoder({"image": image})).detach()
            if kind == "elr":
                pull = torch.log1p(-SOFTMAX.overlap(rows, SOFTMAX.clamped(logits)))
                each.append(F.cross_entropy(logits, LABELS) + shown.loss.weight * pull.mean())
            else:
                each.append(SOFTMAX.soft_entropy(logits, rows).mean())
        torch.testing.assert_close(found, sum(each) / 2)


def test_with_nothing_kept_maps_still_teach():
    method = eac(keep=[False] * 6)
    method.training_step(batch(), 0)["loss"].backward()
    assert (method.classifier.weight.grad == 0).all()
    assert method.encoder.backbone.body[0].weight.grad.abs().sum() > 0


def test_the_mirrored_view_reads_no_label():
    method = eac(consistency_weight=1e-9)
    views = batch()["views"].clone()
    loss = copy.deepcopy(method).training_step(batch() | {"views": views}, 0)["loss"]
    views[:, 1] = 255 - views[:, 1]
    other = copy.deepcopy(method).training_step(batch() | {"views": views}, 0)["loss"]
    torch.testing.assert_close(loss, other, rtol=0, atol=1e-7)


def test_without_weight_one_pass_is_enough():
    method = eac(consistency_weight=0.0)
    loss = method.training_step(batch(), 0)["loss"]
    assert method.encoder.backbone.body[1].num_batches_tracked == 1
    torch.testing.assert_close(loss.detach(), method.selector.evidence.sample_loss.mean())


def test_a_classifier_without_bias_is_found_too():
    """The release takes the last parameter but one for the classifier's weight."""
    method = eac()
    method.classifier = nn.Linear(method.encoder.out_features, 3, bias=False)
    method.training_step(batch(), 0)["loss"].backward()
    assert method.classifier.weight.grad.shape == (3, 8)


def test_evaluation_sees_one_view():
    method = eac().eval()
    image = batch()["views"][:, 0]
    outputs = method.outputs({"image": image}, {"logits"})
    assert torch.equal(outputs["logits"], method.classifier(method.encoder({"image": image})))


# -- which networks ----------------------------------------------------------------------------


def test_networks_with_class_maps_are_known():
    network = encoder()
    training = network.backbone.training
    assert obstacle_to_class_maps(network) is None
    assert network.backbone.training == training
    assert network.backbone.body[1].num_batches_tracked == 0
    assert obstacle_to_class_maps(encoder(resnet("resnet18"))) is None
    assert obstacle_to_class_maps(encoder(timm_model("test_resnet"))) is None


@pytest.mark.parametrize(
    ("network", "sentence"),
    [
        (lambda: encoder(mlp(8, hidden_features=[4])), "Sequential has no feature maps: choose a"),
        (lambda: encoder(small_cnn(frozen=True)), "frozen backbone .* backbone.frozen=false"),
        (lambda: encoder(normalise=True), "use head=identity head.normalise=false"),
        (
            lambda: Encoder(small_cnn(), EmbeddingHead(128, 16)),
            "does not read the pooled features themselves",
        ),
        (lambda: encoder(small_cnn(pooling="max")), "use backbone.pooling=avg"),
        (lambda: encoder(small_cnn(pooling=GeneralisedMean())), "use backbone.pooling=avg"),
        # A normalisation, or a whole layer, between pooling and classifier.
        (lambda: encoder(timm_model("mobilenetv3_small_050")), "not the average of the last map"),
        (lambda: encoder(timm_model("test_vit")), "has no feature maps"),
    ],
    ids=["mlp", "frozen", "normalised", "head", "max", "gem", "mobilenet", "transformer"],
)
def test_networks_without_class_maps_are_refused(network, sentence):
    with pytest.raises(UserError, match=f"EAC compares class activation maps, and .*{sentence}"):
        eac(network())


def test_a_negative_weight_is_refused():
    with pytest.raises(UserError, match="consistency_weight=-1 must be a number of at least 0"):
        eac(consistency_weight=-1)
