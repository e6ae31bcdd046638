"""Transformers with prompts, and the projection head, against the released ones."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
import torch.nn.functional as F
from support import paths, vectors
from support.vectors import close

from noisyml.errors import UserError
from noisyml.models.backbones.prompted import PromptedBlock, prompted_vit, tiny_vit
from noisyml.models.ema import EMATeacher
from noisyml.models.projection import ProjectionHead, supervised_prompt

tensors = functools.partial(vectors.tensors, paths.GOLDEN / "promptcal")


def released_head(state, **sizes):
    """The head with weights of the released one."""
    shapes = [state[f"mlp.{i}.weight"].shape for i in (0, 2, 4)]
    head = ProjectionHead(
        shapes[0][1],
        len(state["last_layer.weight_v"]),
        hidden_features=shapes[0][0],
        bottleneck=shapes[2][0],
        layers=3,
    ).double()
    own = {name: tensor for name, tensor in state.items() if name.startswith("mlp.")}
    assert (state["last_layer.weight_g"] == 1).all()
    head.load_state_dict(own | {"last_layer.weight": state["last_layer.weight_v"]})
    return head


def released_names(name):
    """The released name of a parameter of a head."""
    return name.replace("last_layer.weight", "last_layer.weight_v")


def built(case, tmp_path):
    size, patch, width, depth, heads, prompts, shallow, supervised, first = case["cfg"].tolist()
    backbone = tiny_vit(
        size,
        patch,
        3,
        width,
        depth,
        heads,
        2.0,
        num_prompts=prompts,
        num_shallow=shallow,
        train_from=first,
    ).double()
    load(backbone.body, {k[6:]: v for k, v in case.items() if k.startswith("plain/")}, case)
    return backbone, supervised


def load(body, plain, case):
    """Take the released weights, whose prompts are one tensor [depth, P, D]."""
    tokens = case["prompt_tokens"].double()
    state = {}
    for name, value in body.state_dict().items():
        if name == "reg_token":
            state[name] = tokens[:1]
        elif name.endswith(".prompts"):
            state[name] = tokens[int(name.split(".")[1])][None, -value.shape[1] :]
        elif name == "pos_embed":
            table, nothing = plain[name], torch.zeros(1, tokens.shape[1], tokens.shape[2])
            state[name] = torch.cat([table[:, :1], nothing, table[:, 1:]], dim=1)
        else:
            state[name] = plain[name.replace(".block.", ".")]
    body.load_state_dict(state)


@pytest.mark.parametrize("name", ["token_layout_a", "token_layout_b"])
def test_tokens_and_projections_are_the_released_ones(name, tmp_path):
    case = tensors(name)
    backbone, supervised = built(case, tmp_path)
    body, images = backbone.body, case["images"].double()
    close(body.pos_embed, case["pos_embed_after_load"])

    entering = {}
    for i, block in enumerate(body.blocks):
        inner = block.block if isinstance(block, PromptedBlock) else block
        inner.register_forward_pre_hook(
            lambda _module, given, i=i: entering.__setitem__(i, given[0])
        )
    tokens = body.forward_features(images)
    for i in range(len(body.blocks)):
        close(entering[i], case[f"block_in_{i}"])
    close(tokens, case["all_tokens"])
    close(tokens[:, 0], case["cls_out"])
    close(F.normalize(tokens[:, 0], dim=1), case["eval_feature"])

    prompts = tokens[:, 1 : 1 + backbone.num_prompts]
    sides = {"cls": tokens[:, 0], "dpr": supervised_prompt(prompts, supervised)}
    heads, loss = {}, 0.0
    for side, prefix in (("cls", "head/"), ("dpr", "aux_head/")):
        weights = {k.removeprefix(prefix): v for k, v in case.items() if k.startswith(prefix)}
        heads[prefix] = head = released_head(weights)
        for what, found in (
            ("proj", head(sides[side])),
            ("z", F.normalize(sides[side], dim=1)),
        ):
            close(found, case[f"{what}_{side}"])
            loss = loss + (found * case[f"probe_{what}_{side}"]).sum()
    close(loss, case["probe_loss"])
    loss.backward()
    for prefix, head in heads.items():
        for key, parameter in head.named_parameters():
            expected = case[f"grad/{prefix}{released_names(key)}"]
            close(parameter.grad, expected, rtol=1e-8, atol=1e-10)
    check_gradients(body, case)


def check_gradients(body, case):
    gradient = case["grad/model/prompt_tokens"]
    training = set()
    for key, parameter in body.named_parameters():
        if not parameter.requires_grad:
            assert f"grad/model/{key}" not in case
            continue
        if key == "reg_token" or key.endswith(".prompts"):
            layer = 0 if key == "reg_token" else int(key.split(".")[1])
            expected = gradient[layer][None, -parameter.shape[1] :]
            training.add("prompt_tokens")
        else:
            key = key.replace(".block.", ".")
            expected = case[f"grad/model/{key}"]
            training.add(key)
        close(parameter.grad, expected, rtol=1e-8, atol=1e-10)
    # NumPy texts do not become tensors: the names are those of the gradients.
    assert training == {key[11:] for key in case if key.startswith("grad/model/")}


def test_the_released_names_train():
    arrays = vectors.arrays(paths.GOLDEN / "promptcal", "token_layout_a")
    names = set(arrays["trainable_names"].tolist())
    backbone = tiny_vit(8, 4, 3, 12, 3, 2, num_prompts=4, train_from=2)
    found = {
        "prompt_tokens" if key == "reg_token" or key.endswith(".prompts") else key
        for key, parameter in backbone.body.named_parameters()
        if parameter.requires_grad
    }
    assert {key.replace(".block.", ".") for key in found} == names


def test_block_tokens_come_from_the_network_itself():
    backbone = tiny_vit().eval()
    images = torch.randint(0, 255, (2, 1, 8, 8), dtype=torch.uint8)
    features, maps = backbone.activations(images, ["block4", "block1"])
    assert list(maps) == ["block4", "block1"]
    assert maps["block4"].shape == (2, 1 + 5 + 16, 64)
    close(backbone.body.norm(maps["block4"])[:, 0], features)
    tokens = backbone.tokens(images)
    close(tokens.class_token, backbone(images))
    close(tokens.class_token, features)
    assert tokens.prompts.shape == (2, 5, 64)
    with pytest.raises(UserError, match="no layer 'block5'"):
        backbone.activations(images, ["block5"])


def test_no_images_give_no_tokens():
    backbone = tiny_vit()
    tokens = backbone.tokens(torch.zeros(0, 1, 8, 8, dtype=torch.uint8))
    assert tokens.class_token.shape == (0, 64)
    tokens.class_token.sum().backward()


def test_prompts_never_get_a_position():
    backbone = tiny_vit(train_from=None)
    optimizer = torch.optim.SGD(backbone.parameters(), lr=0.1, weight_decay=0.1)
    images = torch.randint(0, 255, (2, 1, 8, 8), dtype=torch.uint8)
    before = backbone.body.pos_embed.detach().clone()
    backbone(images).square().sum().backward()
    optimizer.step()
    table = backbone.body.pos_embed
    assert (table[:, 1:6] == 0).all()
    assert not torch.equal(table, before)


@pytest.mark.long
def test_weights_of_a_plain_transformer_are_taken(tmp_path):
    from timm.models.vision_transformer import VisionTransformer

    plain = VisionTransformer(32, 16, 3, 0, embed_dim=192, depth=12, num_heads=3)
    file = tmp_path / "plain.pth"
    torch.save(plain.state_dict(), file)
    name = "vit_tiny_patch16_224"
    backbone = prompted_vit(name, str(file), num_prompts=3, image_size=32).eval()
    state = backbone.body.state_dict()
    close(state["blocks.11.block.attn.qkv.weight"], plain.state_dict()["blocks.11.attn.qkv.weight"])
    assert (state["pos_embed"][:, 1:4] == 0).all()
    assert sum(p.requires_grad for p in backbone.parameters()) == 12 + 12
    alone = prompted_vit(name, str(file), num_prompts=0, image_size=32).eval()
    images = torch.randint(0, 255, (2, 3, 32, 32), dtype=torch.uint8)
    close(alone(images), plain.eval().forward_features(alone.normalise(images))[:, 0])
    with pytest.raises(UserError, match="position table"):
        prompted_vit(name, str(file), image_size=48)
    with pytest.raises(UserError, match="no transformer 'vit_huge'"):
        prompted_vit("vit_huge", None)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_size": 9}, "no multiple of patch_size"),
        ({"width": 63}, "no multiple of heads"),
        ({"num_shallow": 6}, "exceeds backbone.num_prompts"),
        ({"train_from": 4}, "none of the 4 blocks"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        tiny_vit(**settings)


def test_a_teacher_of_heads_is_the_released_average():
    case = tensors("ema")
    student = torch.nn.ModuleDict({"head": released_head(part(case, "t0/"))})
    teacher = EMATeacher(copy.deepcopy(student), float(case["momentum"]), warmup=False)
    for n in range(1, 5):
        student["head"].load_state_dict(released_head(part(case, f"s{n}/")).state_dict())
        teacher.update_parameters(student)
        expected = released_head(part(case, f"t{n}/"))
        for found, wanted in zip(teacher.averages.parameters(), expected.parameters(), strict=True):
            close(found, wanted.detach())
        scores = teacher.averages["head"].both(case["probe_input"]).scores
        close(scores, case[f"teacher_out_{n}"], rtol=1e-8)


def part(case, prefix):
    return {key.removeprefix(prefix): v for key, v in case.items() if key.startswith(prefix)}
