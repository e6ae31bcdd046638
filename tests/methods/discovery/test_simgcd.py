"""SimGCD: its loss by hand, and what it writes down."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from support.parts import parts_for
from support.vectors import close

from noisyml.errors import UserError
from noisyml.methods.discovery.simgcd import SimGCD
from noisyml.metrics.discovery.evaluator import ParametricDiscoveryEvaluator
from noisyml.models.backbones.small import mlp
from noisyml.models.encoder import Encoder
from noisyml.models.heads import IdentityHead


def simgcd(**settings):
    torch.manual_seed(0)
    encoder = Encoder(mlp(4, hidden_features=[6]), IdentityHead(6))
    parts = parts_for(encoder, evaluator=ParametricDiscoveryEvaluator())
    method = SimGCD(
        parts, projection_hidden=5, projection_size=4, projection_layers=2, **settings
    ).double()
    method._trainer = SimpleNamespace(current_epoch=1, global_step=0)
    return method


def batch():
    views = torch.randint(0, 255, (5, 2, 1, 4, 4), generator=torch.Generator().manual_seed(1))
    labels = torch.tensor([0, -1, 1, -1, 0])
    return {"views": views.to(torch.uint8), "label": labels, "index": torch.arange(5)}


def by_hand(method, drawn):
    """The released loss, term by term (train.py of its repository), for both views of 5 images."""
    images = torch.cat([drawn["views"][:, 0], drawn["views"][:, 1]])
    tokens = method.encoder.raw({"image": images})
    out = F.normalize(tokens, dim=1) @ F.normalize(method.prototypes.weight, dim=1).T
    known = drawn["label"] >= 0
    logits = torch.cat([half[known] for half in (out / 0.1).chunk(2)])
    classified = F.cross_entropy(logits, drawn["label"][known].repeat(2))
    temperature = 0.07 + (0.04 - 0.07) * 1 / 29
    taught = (out.detach() / temperature).softmax(1).chunk(2)
    shares = (out / 0.1).log_softmax(1).chunk(2)
    distilled = sum(-(taught[view] * shares[1 - view]).sum(1).mean() for view in range(2)) / 2
    mean = (out / 0.1).softmax(1).mean(0)
    gap = -(mean.pow(-mean)).log().sum() + torch.tensor(3.0, dtype=mean.dtype).log()
    rows = F.normalize(method.projector(tokens), dim=1)
    similar = (rows @ rows.T).fill_diagonal_(-torch.inf)
    apart = F.cross_entropy(similar, (torch.arange(10) + 5) % 10)
    chosen = known.repeat(2)
    labels = drawn["label"].repeat(2)[chosen]
    near = (rows[chosen] @ rows[chosen].T / 0.07).fill_diagonal_(-torch.inf).log_softmax(1)
    same = (labels[:, None] == labels).fill_diagonal_(False)
    together = -(near.masked_fill(~same, 0).sum(1) / same.sum(1)).mean()
    return 0.65 * (distilled + 2 * gap + apart) + 0.35 * (classified + together)


def test_a_step_is_the_released_loss():
    method = simgcd()
    outcome = method.training_step(batch(), 0)
    expected = by_hand(method, batch())
    close(outcome["loss"], expected.detach(), check_dtype=False)
    parameters = [p for p in method.parameters() if p.requires_grad]
    found = torch.autograd.grad(outcome["loss"], parameters)
    wanted = torch.autograd.grad(expected, parameters)
    for one, other in zip(found, wanted, strict=True):
        close(one, other, rtol=1e-8, atol=1e-10)
    assert outcome["index"].tolist() == [0, 2, 4]


def test_a_batch_without_labels_has_a_loss():
    drawn = batch()
    drawn["label"] = torch.full((5,), -1)
    outcome = simgcd().training_step(drawn, 0)
    assert outcome["loss"].isfinite()
    assert outcome["terms"]["classified"] == 0
    assert len(outcome["index"]) == 0


def test_evaluation_takes_the_prototypes_of_the_run(tmp_path):
    method, other = simgcd(), simgcd()
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(0.3)
    file = tmp_path / "run.ckpt"
    torch.save({"state_dict": method.state_dict()}, file)
    other.load_trained(file)
    images = batch()["views"][:, 0]
    outputs = other.outputs({"image": images}, {"logits"})
    close(outputs["logits"], method.outputs({"image": images}, {"logits"})["logits"])
    assert outputs["logits"].shape == (5, 3)
    with pytest.raises(UserError, match=r"keep method\.num_classes"):
        simgcd(num_classes=7).load_trained(file)
