"""Two networks in one module: passes, parameters, and who answers."""

import copy

import pytest
import torch
import torch.nn.functional as F
from support.parts import parts_for
from torch import nn

from noisyml.errors import UserError
from noisyml.methods.classification.small_loss import mean_log_probability
from noisyml.methods.two_networks import TwoNetworks, better
from noisyml.metrics.retrieval_evaluator import RetrievalEvaluator
from noisyml.models.backbones.small import mlp, small_cnn
from noisyml.models.encoder import Encoder
from noisyml.models.heads import EmbeddingHead, IdentityHead

NAMES = ["ant", "bee", "cat"]
LABELS = torch.tensor([0, 1, 2, 0, 1, 2])


class Both(TwoNetworks):
    """Plain cross-entropy of both."""

    def average(self, first, second):
        return mean_log_probability(first, second)

    def training_step(self, batch, batch_idx):
        seen = self.see(batch)
        return {
            "loss": F.cross_entropy(seen.first.logits, seen.labels)
            + 2 * F.cross_entropy(seen.second.logits, seen.labels)
        }


def sgd(groups):
    return torch.optim.SGD(groups, lr=0.1, momentum=0.9, weight_decay=0.01)


def adam(groups):
    return torch.optim.Adam(groups, lr=0.01, weight_decay=0.01)


def encoder():
    backbone = mlp(image_size=4, hidden_features=[16])
    return Encoder(backbone, IdentityHead(backbone.out_features))


def both(seed=0, optimizer=sgd, evaluator=None, names=NAMES, **settings):
    torch.manual_seed(seed)
    groups = settings.pop("param_groups", {})
    parts = parts_for(
        encoder(),
        names,
        another=encoder,
        optimizer=optimizer,
        evaluator=evaluator,
        param_groups=groups,
    )
    return Both(parts, **settings)


def batch(seed=0):
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(0, 256, (6, 1, 4, 4), generator=generator, dtype=torch.uint8)
    return {"image": image, "label": LABELS, "index": torch.arange(6) + 40}


def scores(encoder, classifier):
    return classifier(encoder(batch()))


# -- training ----------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", [sgd, adam])
def test_one_optimiser_over_both_networks_is_two_optimisers(optimizer):
    joint = both(optimizer=optimizer)
    apart = copy.deepcopy(joint)
    one = joint.configure_optimizers()
    first = optimizer([*apart.encoder.parameters(), *apart.classifier.parameters()])
    second = optimizer(list(apart.peer.parameters()))
    for step in range(4):
        one.zero_grad()
        joint.training_step(batch(step), 0)["loss"].backward()
        one.step()
        # Both passes first: neither update may reach the other's gradient.
        seen = apart.see(batch(step))
        losses = (
            F.cross_entropy(seen.first.logits, LABELS),
            2 * F.cross_entropy(seen.second.logits, LABELS),
        )
        for own, loss in zip((first, second), losses, strict=True):
            own.zero_grad()
            loss.backward()
            own.step()
    for (name, a), (_, b) in zip(joint.named_parameters(), apart.named_parameters(), strict=True):
        assert torch.equal(a, b), name


def test_networks_differ_and_see_the_same_batch():
    method = both()
    seen = method.see(batch())
    assert not torch.equal(seen.first.logits, seen.second.logits)
    torch.testing.assert_close(seen.first.logits, scores(method.encoder, method.classifier))
    torch.testing.assert_close(
        seen.second.logits, scores(method.peer.encoder, method.peer.classifier)
    )
    assert torch.equal(seen.labels, LABELS)
    assert torch.equal(seen.index, torch.arange(6) + 40)
    assert seen.first.layers == {}


def test_early_layers_of_both_networks_keep_their_gradient():
    def network():
        backbone = small_cnn(widths=(4, 8))
        return Encoder(backbone, IdentityHead(backbone.out_features))

    torch.manual_seed(0)
    method = Both(parts_for(network(), NAMES, another=network))
    image = torch.randint(0, 256, (6, 1, 16, 16), dtype=torch.uint8)
    given = batch() | {"image": image}
    like = copy.deepcopy(method)
    seen = method.see(given, layers=["block1"])
    assert list(seen.first.layers) == list(seen.second.layers) == ["block1"]
    expected = like.peer.encoder.encode(given)
    torch.testing.assert_close(seen.second.layers["block1"], expected.maps["block1"])
    torch.testing.assert_close(seen.second.logits, like.peer.classifier(expected.embeddings))
    (seen.first.layers["block1"] - seen.second.layers["block1"]).square().sum().backward()
    first = next(method.encoder.parameters()).grad
    second = next(method.peer.encoder.parameters()).grad
    assert first.abs().sum() > 0
    assert second.abs().sum() > 0
    with pytest.raises(
        UserError, match="no layer 'blok1' to look into: it has block1, block2, last"
    ):
        method.see(given, layers=["blok1"])


def test_settings_of_parameters_hold_for_both_unless_said_otherwise():
    method = both(
        param_groups={"classifier": {"lr": 0.5}, "encoder": {"lr": 0.2}, "peer.encoder": {"lr": 0}}
    )
    groups = {g["name"]: g for g in method.configure_optimizers().param_groups}
    assert groups["classifier"]["lr"] == groups["peer.classifier"]["lr"] == 0.5
    assert groups["encoder"]["lr"] == 0.2
    assert groups["peer.encoder"]["lr"] == 0
    assert len(groups["peer.encoder"]["params"]) == len(groups["encoder"]["params"])
    assert sum(len(g["params"]) for g in groups.values()) == len(list(method.parameters()))


def test_scores_are_single_precision_under_autocast():
    with torch.autocast("cpu", torch.bfloat16):
        seen = both().see(batch())
    assert seen.second.logits.dtype == torch.float32


# -- who answers -------------------------------------------------------------------------------


def test_each_choice_answers_with_its_network():
    method = both().eval()
    first = scores(method.encoder, method.classifier)
    second = scores(method.peer.encoder, method.peer.classifier)
    mean = (first.softmax(dim=1) + second.softmax(dim=1)) / 2
    for predict, expected in (("first", first), ("second", second), ("mean", mean.log())):
        method.predict = predict
        torch.testing.assert_close(method.outputs(batch(), {"logits"})["logits"], expected)
        own = method.peer.encoder if predict == "second" else method.encoder
        assert torch.equal(method.embed(batch()), own(batch()))
        assert torch.equal(method.outputs(batch(), set())["embeddings"], own(batch()))
    method.predict = "best"
    with pytest.raises(UserError, match="no validation has compared"):
        method.outputs(batch(), {"logits"})
    for chosen, expected in ((0, first), (1, second)):
        method.chosen.fill_(chosen)
        torch.testing.assert_close(method.outputs(batch(), {"logits"})["logits"], expected)


def test_equal_scores_choose_the_second():
    assert [better(*pair) for pair in ((0.5, 0.4), (0.4, 0.5), (0.5, 0.5))] == [0, 1, 1]


def validate(method, prefix="val"):
    """What is logged of one pass over a split that is one batch."""
    logged = {}
    method.log = lambda name, value, **_: logged.update({name: float(value)})
    method.on_validation_epoch_start()
    with torch.no_grad():
        method._collect(prefix, batch(), "pool")
        assert method._report(prefix) == logged
    return logged


def rig(method, first, second):
    """Let each network name the right class of so many of the six images."""
    for encoder, classifier, right in (
        (method.encoder, method.classifier, first),
        (method.peer.encoder, method.peer.classifier, second),
    ):
        target = F.one_hot(torch.where(torch.arange(6) < right, LABELS, (LABELS + 1) % 3), 3)
        with torch.no_grad():
            classifier.bias.zero_()
            features = encoder(batch())
            solved = torch.linalg.lstsq(features.double(), target.double()).solution
            classifier.weight.copy_(solved.T)


@pytest.mark.parametrize(
    ("first", "second", "chosen"), [(5, 3, 0), (3, 5, 1), (4, 4, 1)], ids=["more", "less", "equal"]
)
def test_the_better_network_on_validation_answers(first, second, chosen):
    method = both(predict="best").eval()
    rig(method, first, second)
    logged = validate(method)
    assert int(method.chosen) == chosen
    assert logged["val/accuracy_first"] == pytest.approx(first / 6)
    assert logged["val/accuracy_second"] == pytest.approx(second / 6)
    assert logged["val/accuracy"] == pytest.approx(max(first, second) / 6)
    # Test labels may say otherwise: the choice stands.
    rig(method, second, first)
    logged = validate(method, "on_test/test")
    assert int(method.chosen) == chosen
    answer = (second, first)[chosen]
    assert logged["on_test/test/accuracy"] == pytest.approx(answer / 6)


def test_the_mean_is_scored_beside_both_networks():
    method = both(predict="mean").eval()
    logged = validate(method)
    expected = F.cross_entropy(method.outputs(batch(), {"logits"})["logits"], LABELS)
    assert logged["val/nll"] == pytest.approx(float(expected), abs=1e-6)
    assert {"val/nll_first", "val/nll_second"} <= logged.keys()


def test_a_search_is_made_once_unless_networks_are_compared():
    assert validate(both(evaluator=RetrievalEvaluator(), predict="second").eval()).keys() == {
        f"val/{name}" for name in once(RetrievalEvaluator())
    }
    with pytest.raises(UserError, match=r"method\.best_by=accuracy is not measured: use one of"):
        validate(both(evaluator=RetrievalEvaluator(), predict="best", best_by="accuracy").eval())
    method = both(evaluator=RetrievalEvaluator(), predict="best").eval()
    assert method.best_by == "map_at_r"
    assert "val/map_at_r_second" in validate(method)


def once(evaluator):
    evaluator.update({"embeddings": torch.eye(6)}, LABELS, torch.arange(6))
    return evaluator.compute()


def test_a_choice_that_does_not_exist_is_refused():
    with pytest.raises(UserError, match="predict=third must be first, second, mean or best"):
        both(predict="third")


# -- checkpoints -------------------------------------------------------------------------------


def save(method, file):
    checkpoint = {"state_dict": dict(method.state_dict())}
    method.on_save_checkpoint(checkpoint)
    torch.save(checkpoint, file)
    return checkpoint


@pytest.mark.parametrize("predict", ["first", "second", "mean", "best"])
def test_evaluation_takes_both_networks_and_the_choice(tmp_path, predict):
    trained = both(predict=predict).eval()
    trained.chosen.fill_(1)
    save(trained, tmp_path / "last.ckpt")
    fresh = both(seed=1, predict=predict).eval()
    fresh.load_trained(tmp_path / "last.ckpt")
    expected = trained.outputs(batch(), trained.gives)
    found = fresh.outputs(batch(), fresh.gives)
    assert expected.keys() == trained.gives
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    # `noisyml embed` takes the encoder alone.
    embedder = both(seed=1, predict=predict).eval()
    embedder.load_encoder(tmp_path / "last.ckpt")
    assert torch.equal(embedder.encoder(batch()), expected["embeddings"])


def test_one_network_or_other_classes_are_refused(tmp_path):
    method = both()
    saved = save(method, tmp_path / "last.ckpt")
    with pytest.raises(UserError, match="3 classes"):
        both(names=["ant", "bee"]).load_trained(tmp_path / "last.ckpt")
    state = saved["state_dict"]
    alone = {n: t for n, t in state.items() if n.startswith(("encoder.", "classifier."))}
    torch.save(saved | {"state_dict": alone}, tmp_path / "one.ckpt")
    with pytest.raises(UserError, match="holds one network, and Both has two"):
        method.load_trained(tmp_path / "one.ckpt")


def test_a_frozen_network_is_shared_and_left_out_of_checkpoints(tmp_path):
    def frozen(seed):
        torch.manual_seed(0)
        backbone = mlp(image_size=4, hidden_features=[16], frozen=True)
        torch.manual_seed(seed)
        heads = [EmbeddingHead(16, 8, normalise=False) for _ in range(2)]
        encoders = [Encoder(backbone, head) for head in heads]
        settings = {"encoder.head": {"lr": 0.3}, "encoder.backbone": {"lr": 0.0}}
        parts = parts_for(
            encoders[0], NAMES, another=lambda: encoders[1], optimizer=sgd, param_groups=settings
        )
        return Both(parts)

    method = frozen(1)
    complete = set(method.state_dict())
    names = {g["name"] for g in method.configure_optimizers().param_groups}
    assert names == {"default", "encoder.head", "peer.encoder.head"}
    saved = save(method, tmp_path / "last.ckpt")
    assert not any(".body." in name for name in saved["state_dict"])
    again = frozen(2)
    again.load_trained(tmp_path / "last.ckpt")
    torch.testing.assert_close(again.see(batch()).second.logits, method.see(batch()).second.logits)
    again.on_load_checkpoint(saved)
    assert set(saved["state_dict"]) == complete
    assert isinstance(again.peer.encoder.backbone, nn.Module)
    assert again.peer.encoder.backbone is again.encoder.backbone
