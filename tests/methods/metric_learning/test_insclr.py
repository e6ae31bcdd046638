"""InsCLR: whole steps of the released code, its parts, and what is refused."""

import dataclasses
import functools
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support import paths, vectors
from support.parts import parts_for
from support.vectors import close
from torch import nn

from noisyml import optim
from noisyml.data.samplers.groups import WithNeighbours
from noisyml.data.samplers.plans import Shuffle
from noisyml.errors import UserError
from noisyml.methods.metric_learning.insclr import InsCLR, _each_alone
from noisyml.methods.metric_learning.instance_banks import MiningBank, NegativeBank
from noisyml.methods.metric_learning.neighbour_graph import NeighbourGraph
from noisyml.metrics.retrieval_evaluator import RetrievalEvaluator
from noisyml.models.heads import EmbeddingHead, unit_norm
from noisyml.models.multi_scale import multi_scale
from noisyml.models.pooling import GeneralisedMean

load = functools.partial(vectors.tensors, paths.GOLDEN / "insclr")


class Rows(nn.Module):
    """An encoder of vectors: a linear layer and the unit sphere."""

    def __init__(self, in_features, out_features):
        super().__init__()
        self.head = nn.Linear(in_features, out_features)
        self.out_features = out_features

    def forward(self, batch):
        """[b, in] to [b, out]."""
        return unit_norm(self.head(batch["image"]))


def method_for(encoder, num_samples, **settings):
    parts = parts_for(encoder, evaluator=RetrievalEvaluator())
    parts = dataclasses.replace(
        parts, sizes=dataclasses.replace(parts.sizes, num_samples=num_samples)
    )
    graph = functools.partial(NeighbourGraph, stored=20)
    return InsCLR(parts, graph=graph, **settings)


@pytest.mark.parametrize("name", ["base", "impr", "select_dynamic"])
def test_steps_of_the_released_code(name):
    case = load(f"train_trace_{name}")
    n, dim, k = int(case["n"]), int(case["dim"]), int(case["k_neighbors"])
    settings = json.loads(case["selection"])
    encoder = Rows(8, dim).double()
    encoder.head.weight.data = case["init_head.fc.weight"].clone()
    encoder.head.bias.data = case["init_head.fc.bias"].clone()
    excluded = int(case["potential_positive"])
    thresholds = {
        "positive_threshold": float(case["positive_thresh"]),
        "negative_threshold": float(case["negative_thresh"]),
    }
    banks = {
        "v1": functools.partial(NegativeBank, excluded_neighbours=excluded),
        "v2": functools.partial(MiningBank, mining=case["mode"], **thresholds),
    }
    method = method_for(
        encoder,
        n,
        bank=functools.partial(banks[case["version"]], rows=10**6),
        num_neighbours=k,
        selection=settings.get("TYPE", "none"),
        selection_threshold=settings.get("THRESH", 0.0),
        always_keep=settings.get("ALWAYS_TRUE", 0),
        judge_by="plain" if settings.get("USE_NOAUG_SIMILARITY") else "training",
        margin=float(case["margin"]),
        write_after=int(case["start_step"]),
        read_after=int(case["get_step"]),
    )
    method.bank.double()
    for buffer in ("embeddings", "plain"):
        if getattr(method.bank, buffer) is not None:
            setattr(method.bank, buffer, getattr(method.bank, buffer).double())
    stored = case["neighbors"].shape[1]
    method.graph.neighbours = case["neighbors"].to(torch.int32)
    method.graph.similarities = case["similarities"]
    assert method.graph.stored == stored
    if case["version"] == "v2":
        views = torch.stack([case["init_aug_inputs"], case["noaug_inputs"]], dim=1)
        method._fill([{"index": torch.arange(n), "views": views}])
    weight_decay = float(case["weight_decay"])
    optimizer = torch.optim.Adam(
        [
            {"params": [encoder.head.weight], "weight_decay": weight_decay},
            {"params": [encoder.head.bias], "weight_decay": 0.0},
        ],
        lr=float(case["base_lr"]),
    )
    milestones = case["milestones"].tolist()
    schedule = optim.multistep_steps(optimizer, total_steps=100, milestones=milestones)
    step = 0
    type(method).global_step = property(lambda self: step)
    try:
        for step in range(int(case["n_steps"])):
            index = torch.cat([case[f"s{step}_anchor_idx"], case[f"s{step}_neighbor_idx"]])
            rows = torch.cat([case[f"s{step}_anchor_inputs"], case[f"s{step}_neighbor_inputs"]])
            views = torch.stack([rows, case["noaug_inputs"][index]], dim=1)
            close(encoder({"image": rows}).detach(), case[f"s{step}_features"], atol=1e-8)
            outcome = method.training_step({"index": index, "views": views}, step)
            close(outcome["terms"]["batch_loss"], case[f"s{step}_batch_loss"], atol=1e-8)
            memory_loss = outcome["terms"].get("memory_loss", torch.zeros(()).double())
            close(memory_loss, case[f"s{step}_memory_loss"], atol=1e-8)
            close(outcome["loss"].detach(), case[f"s{step}_loss"], atol=1e-8)
            assert optimizer.param_groups[0]["lr"] == pytest.approx(float(case[f"s{step}_lr"]))
            optimizer.zero_grad()
            outcome["loss"].backward()
            norm = nn.utils.clip_grad_norm_(encoder.parameters(), float(case["clip"]))
            close(norm, case[f"s{step}_grad_norm"], atol=1e-8)
            optimizer.step()
            schedule.step()
            close(encoder.head.weight.detach(), case[f"s{step}_head.fc.weight"], atol=1e-8)
            close(encoder.head.bias.detach(), case[f"s{step}_head.fc.bias"], atol=1e-8)
    finally:
        del type(method).global_step
    close(method.bank.embeddings, case["final_bank"], atol=1e-8)
    assert torch.equal(method.bank.written, case["final_counter"].long())
    if "final_noaug_bank" in case:
        close(method.bank.plain, case["final_noaug_bank"], atol=1e-8)


@pytest.mark.parametrize("name", ["gldv2_base", "instre_impr", "warm_linear"])
def test_rates_of_the_released_schedule(name):
    case = load("lr_schedule")
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=float(case[f"{name}_base_lr"]))
    schedule = optim.multistep_steps(
        optimizer,
        total_steps=100_000,
        milestones=case[f"{name}_milestones"].tolist(),
        warmup_steps=int(case[f"{name}_warmup"]),
    )
    (factor,) = schedule.lr_lambdas
    found = [factor(step) * schedule.base_lrs[0] for step in case[f"{name}_steps"].tolist()]
    close(found, case[f"{name}_lr"])


def test_pooling_and_heads_are_those_of_the_paper():
    case = load("pool_head")
    for kind, learnable in (("gem3", False), ("gem_learn", True)):
        pooling = GeneralisedMean(3.0, learnable=learnable).double()
        x = case["x"].clone().requires_grad_()
        out = pooling(x)
        close(out.detach(), case[f"{kind}_out"])
        (out * case[f"{kind}_upstream"]).sum().backward()
        close(x.grad, case[f"{kind}_grad_x"])
        if learnable:
            close(pooling.p.grad, case["gem_learn_grad_p"])
    heads = {
        "norm_linear_norm": EmbeddingHead(4, 3, input_norm="l2", bias=False),
        "linear_norm": EmbeddingHead(4, 3),
    }
    for kind, head in heads.items():
        head = head.double()
        linear = head.layers[-1]
        linear.weight.data = case[f"{kind}_fc.weight"].clone()
        if linear.bias is not None:
            linear.bias.data = case[f"{kind}_fc.bias"].clone()
        x = case[f"{kind}_in"].flatten(1).clone().requires_grad_()
        out = head(x)
        close(out.detach(), case[f"{kind}_out"])
        (out * case[f"{kind}_upstream"]).sum().backward()
        close(x.grad, case[f"{kind}_grad_in"].flatten(1))
        close(linear.weight.grad, case[f"{kind}_grad_fc.weight"])
        if linear.bias is not None:
            close(linear.bias.grad, case[f"{kind}_grad_fc.bias"])


def test_descriptors_over_several_scales():
    case = load("multiscale")
    gem = GeneralisedMean(3.0, learnable=False).double()
    seen = []

    def embed(batch):
        seen.append(batch["image"])
        maps = F.conv2d(batch["image"], case["conv_weight"], case["conv_bias"], padding=1)
        pooled = unit_norm(gem(F.relu(maps)).flatten(1))
        return unit_norm(pooled @ case["fc_weight"].T)

    scales = case["scales"].tolist()
    found = multi_scale(embed, {"image": case["images"]}, scales)
    close(found, case["descriptor"])
    assert [list(image.shape[2:]) for image in seen] == case["scaled_hw"].tolist()
    close(seen[-1], case["last_scale_image"])
    for scale, expected in zip(scales, case["per_scale"], strict=True):
        close(multi_scale(embed, {"image": case["images"]}, [scale]), expected)


def test_features_from_the_cache_have_one_scale():
    with pytest.raises(UserError, match="Several scales need images"):
        multi_scale(lambda batch: batch["features"], {"features": torch.ones(1, 2)}, [1.0, 0.5])


# -- batches ---------------------------------------------------------------------------------------


def test_neighbours_follow_their_anchors():
    near = np.array([[1, 2], [2, 3], [3, 0], [0, 1]])
    plan = WithNeighbours(Shuffle(np.zeros(4, np.int64), 0, batch_size=2), near)
    assert (plan.batch_size, len(plan)) == (6, 2)
    for batch in plan.epoch(0):
        anchors = batch[:2]
        assert batch[2:].tolist() == near[anchors].flatten().tolist()


def test_short_batches_of_anchors_are_refused():
    plan = Shuffle(np.zeros(3, np.int64), 0, batch_size=2, drop_last=False)
    with pytest.raises(UserError, match="drop_last=true"):
        WithNeighbours(plan, np.zeros((3, 1), np.int64)).epoch(0)


def test_a_batch_with_missing_images_is_refused():
    method = method_for(Rows(4, 2), 10)
    batch = {"index": torch.arange(7), "image": torch.ones(7, 4)}
    with pytest.raises(UserError, match="needs whole groups"):
        method.training_step(batch, 0)


def test_more_neighbours_than_are_stored_are_refused():
    with pytest.raises(UserError, match="num_neighbours=4 asks for more than the 2"):
        NeighbourGraph(3).check(4)


def test_a_bank_cannot_be_read_before_it_is_written():
    with pytest.raises(UserError, match="would be read while it is empty"):
        method_for(Rows(4, 2), 10, bank=NegativeBank, write_after=5)


def test_rejected_neighbours_may_be_alone():
    labels = torch.tensor([1, 2, 1, -1, -1, 2])
    found = _each_alone(labels)
    assert torch.equal(found[labels > 0], labels[labels > 0])
    assert len(set(found.tolist())) == 4
