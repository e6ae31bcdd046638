"""Both stages of PromptCAL against the released training loops, step by step."""

from __future__ import annotations

import functools
import json
from types import SimpleNamespace

import pytest
import torch
from support import discovery, paths, vectors
from support.parts import parts_for
from support.vectors import close

from noisyml.errors import UserError
from noisyml.losses.discovery.affinity import fading_weight
from noisyml.methods.discovery.gcd import GCD
from noisyml.methods.discovery.promptcal import PromptCAL
from noisyml.models.backbones.prompted import tiny_vit, without_prompts
from noisyml.models.backbones.small import mlp
from noisyml.models.ema import EMATeacher
from noisyml.models.encoder import Encoder
from noisyml.models.heads import IdentityHead
from noisyml.models.projection import ProjectionHead
from noisyml.optim import cosine_epochs
from noisyml.similarity.memory_bank import MemoryBank

tensors = functools.partial(vectors.tensors, paths.GOLDEN / "promptcal")
WEIGHTS = {"rtol": 1e-6, "atol": 1e-8}


class ReleasedAnchors:
    """Images of a trace in place of those of a folder."""

    def __init__(self, case, hp):
        self.case, self.epochs = case, hp["inkd_T"]
        self.next = 0
        backbone = without_prompts(discovery.released(case)[0].encoder.backbone)
        backbone.body.load_state_dict(discovery.strip(case, "frozen/"))
        self.pretrained = Encoder(backbone, IdentityHead(backbone.out_features))

    def weight(self, epoch):
        return fading_weight(epoch, self.epochs)

    def draw(self, epoch, step):
        self.next += 1
        return 255 * self.case[f"inkd_batch{(self.next - 1) % 2}"].double()

    def features(self, images):
        return self.pretrained.raw({"image": images})


def trained(case, method, hp, after=None):
    """The trace of a released run: steps of SGD with its schedule."""
    optimizer = torch.optim.SGD(
        [p for p in method.parameters() if p.requires_grad],
        lr=hp["lr"],
        momentum=0.9,
        weight_decay=hp["wd"],
    )
    steps = hp["epochs"] * hp["nb"]
    schedule = cosine_epochs(optimizer, total_steps=steps, epochs=hp["epochs"], final_share=0.001)
    method.train()
    for step in range(steps):
        method._trainer = SimpleNamespace(
            current_epoch=step // hp["nb"],
            global_step=step,
            num_training_batches=hp["nb"],
            accumulate_grad_batches=1,
        )
        outcome = method.training_step(discovery.batch(case, step % hp["nb"]), step)
        optimizer.zero_grad()
        outcome["loss"].backward()
        if after is not None:
            after(step)
        method.after_backward()
        optimizer.step()
        schedule.step()
        yield step, outcome


def check_weights(case, method, prefix=""):
    body = discovery.released_tensors(method["encoder"].backbone.body)
    for name, value in discovery.strip(case, f"final/{prefix}model/").items():
        close(body[name], value, **WEIGHTS)
    for side, head in (("class", "head"), ("prompt", "aux_head")):
        found = method["projections"][side]
        wanted = ProjectionHead(
            found.mlp[0].in_features,
            len(found.last_layer.weight),
            found.mlp[0].out_features,
            found.last_layer.weight.shape[1],
            layers=3,
        ).double()
        discovery.load_head(wanted, discovery.strip(case, f"final/{prefix}{head}/"))
        for one, other in zip(found.parameters(), wanted.parameters(), strict=True):
            close(one, other.detach(), **WEIGHTS)


def test_the_first_stage_is_the_released_one():
    case = tensors("train_stage1")
    method, hp = discovery.released(case, GCD)
    anchors = ReleasedAnchors(case, hp)
    method.anchors = anchors
    for step, outcome in trained(case, method, hp):
        terms = outcome["terms"]
        close(terms["unsupervised_class"], case["trace/unsup_contrastive_loss"][step])
        close(terms["supervised_class"], case["trace/sup_con_loss"][step])
        prompt = 0.65 * terms["unsupervised_prompt"] + 0.35 * terms["supervised_prompt"]
        close(prompt, case["trace/aux_loss"][step])
        if anchors.weight(step // hp["nb"]):
            close(terms["anchors"], case["trace/inkd_loss"][step])
        close(outcome["loss"].detach(), case["trace/total"][step])
    check_weights(case, {"encoder": method.encoder, "projections": method.projections})


def stage_two(case, **settings):
    hp = json.loads(case["hp_json"])
    released = {
        "neighbours": hp["knn"],
        "quantile": hp["q"],
        "num_negatives": None,
        "affinity_weight": hp["w"],
        "ramp_epochs": hp["T"],
    }
    method, hp = discovery.released(
        case,
        PromptCAL,
        teacher=functools.partial(EMATeacher, decay=hp["ema"], warmup=False),
        bank=functools.partial(MemoryBank, size=hp["mem"], dtype="float64"),
        **(released | settings),
    )
    method.teacher.restart(method._student())
    return method, hp


def test_the_second_stage_is_the_released_one(monkeypatch):
    case = tensors("train_stage2")
    method, hp = stage_two(case)
    edges = {}
    follow = PromptCAL.graph

    def noted(self, number, side, *given):
        self.constraints = "none"
        before = follow(self, number, side, *given)
        self.constraints = "after"
        edges[side] = before.masks.positives
        return follow(self, number, side, *given)

    monkeypatch.setattr(PromptCAL, "graph", noted)
    for step, outcome in trained(case, method, hp):
        terms = outcome["terms"]
        close(terms["unsupervised_class"], case["trace/unsup_contrastive_loss"][step], **WEIGHTS)
        close(terms["supervised_class"], case["trace/sup_con_loss"][step], **WEIGHTS)
        close(outcome["loss"].detach(), case["trace/total"][step], **WEIGHTS)
        if step == 0:
            assert "affinity_class" not in terms
            continue
        close(terms["affinity_class"], case["trace/knn_contrastive_loss"][step], **WEIGHTS)
        close(terms["affinity_prompt"], case["trace/pp_knn_contrastive_loss"][step], **WEIGHTS)
        assert torch.equal(edges["class"], case[f"affinity_cls_step{step}"])
        assert torch.equal(edges["prompt"], case[f"affinity_dpr_step{step}"])
    check_weights(case, {"encoder": method.encoder, "projections": method.projections})
    # The teacher follows the last step when the next one begins.
    method._taught_at = None
    method.move_teacher()
    check_weights(case, method.teacher.averages, "teacher_")
    rows, labels, _ = method.bank.filled()
    close(rows[:, : hp["dim"]], case["bank/z_cls"], **WEIGHTS)
    close(rows[:, hp["dim"] :], case["bank/z_dpr"], **WEIGHTS)
    released = torch.where(case["bank/lmask"] > 0, case["bank/label"], -1).flatten().long()
    assert torch.equal(labels - 1, released)


@pytest.mark.parametrize(
    "settings",
    [
        {"own_positive_class": "other_view"},
        {"own_positive_prompt": "same_view"},
        {"constraints": "before"},
        {"constraints": "none"},
        {"edges": "neighbours"},
        {"exclude_diagonal": True},
        {"num_negatives": 3},
        {"affinity_weight": 0.0},
        {"diffusion_steps": 0},
    ],
    ids=str,
)
def test_each_named_difference_changes_the_run(settings):
    case = tensors("train_stage2")
    losses = []
    for chosen in ({}, settings):
        method, hp = stage_two(case, **chosen)
        run = trained(case, method, hp | {"epochs": 1})
        losses.append([float(outcome["loss"].detach()) for _, outcome in run])
    assert losses[0][0] == losses[1][0]
    assert losses[0] != losses[1]
    assert all(value == value for value in losses[1])


def test_a_selector_takes_labels_away():
    case = tensors("train_stage1")
    method, _ = discovery.released(case, GCD)
    batch = discovery.batch(case, 0)
    seen = method.see(batch)
    known = int((batch["label"] >= 0).sum())
    assert known >= 2
    selection = method.judge(seen, torch.ones(len(seen.labels)))
    assert len(selection.keep) == known
    keep = torch.zeros(known, dtype=torch.bool)
    keep[0] = True
    trusted = seen.trusting(type(selection)(keep, selection.p_clean))
    assert int((trusted.labels >= 0).sum()) == 2
    assert trusted.labels[: seen.images].max() == batch["label"][batch["label"] >= 0][0]


def test_the_second_stage_takes_encoder_and_class_head_of_the_first(tmp_path):
    case = tensors("train_stage2")
    first, _ = stage_two(case)
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.add_(0.1)
    file = tmp_path / "stage.ckpt"
    torch.save({"state_dict": first.state_dict()}, file)
    for choice in ("restart", "keep"):
        second, _ = stage_two(case, prompt_head=choice)
        second.load_encoder(file)
        for side, same in (("class", True), ("prompt", choice == "keep")):
            mine, theirs = (m.projections[side].mlp[0].weight for m in (second, first))
            assert torch.equal(mine, theirs) == same
        taught = second.teacher.averages
        assert torch.equal(
            taught["projections"]["class"].mlp[0].weight,
            second.projections["class"].mlp[0].weight,
        )
        body, own = (m.encoder.backbone.body for m in (second, first))
        assert torch.equal(body.reg_token, own.reg_token)
        assert torch.equal(taught["encoder"].backbone.body.reg_token, own.reg_token)


def test_prompts_need_a_backbone_that_has_them():
    encoder = Encoder(mlp(8, hidden_features=[4]), IdentityHead(4))
    head = functools.partial(
        ProjectionHead, out_features=3, hidden_features=4, bottleneck=2, layers=3
    )
    with pytest.raises(UserError, match=r"0 of the backbone: choose backbone=prompted_vit"):
        GCD(parts_for(encoder), projection=head, prompt_weight=0.1, supervised_prompts=2)
    with pytest.raises(UserError, match="names none"):
        GCD(parts_for(encoder), projection=head, prompt_weight=0.1, supervised_prompts=0)
    frozen = tiny_vit(frozen=True)
    with pytest.raises(UserError, match=r"backbone\.frozen=false"):
        GCD(parts_for(Encoder(frozen, IdentityHead(64))), projection=head)
    assert list(GCD(parts_for(encoder), projection=head).projections) == ["class"]
