"""Networks of category discovery with released weights, and batches of the released traces."""

import json

import torch

from noisyml.methods.discovery.gcd import GCD
from noisyml.metrics.discovery.evaluator import DiscoveryEvaluator
from noisyml.models.backbones.prompted import tiny_vit
from noisyml.models.encoder import Encoder
from noisyml.models.heads import IdentityHead
from noisyml.models.projection import ProjectionHead
from support.parts import parts_for


def strip(case, prefix):
    """Entries below a prefix, without it."""
    return {key.removeprefix(prefix): v for key, v in case.items() if key.startswith(prefix)}


def load_prompted(body, state):
    """Take the released weights of a transformer, whose prompts are one tensor [depth, P, D]."""
    tokens = state["prompt_tokens"].double()
    own = {}
    for name, value in body.state_dict().items():
        if name == "reg_token":
            own[name] = tokens[:1]
        elif name.endswith(".prompts"):
            own[name] = tokens[int(name.split(".")[1])][None, -value.shape[1] :]
        else:
            own[name] = state[name.replace(".block.", ".")]
            if own[name].shape != value.shape:
                # The table of a plain transformer.
                gap = torch.zeros(1, tokens.shape[1], tokens.shape[2])
                own[name] = torch.cat([own[name][:, :1], gap, own[name][:, 1:]], dim=1)
    body.load_state_dict(own)


def released_tensors(body):
    """Weights of a transformer under the released names, the prompts as one tensor."""
    found, prompts = {}, {}
    for name, value in body.state_dict().items():
        if name == "reg_token":
            prompts[0] = value[0]
        elif name.endswith(".prompts"):
            prompts[int(name.split(".")[1])] = value[0]
        else:
            found[name.replace(".block.", ".")] = value
    found["prompt_tokens"] = torch.stack([prompts[layer] for layer in sorted(prompts)])
    return found


def load_head(head, state):
    """Take the weights of a released head, whose gain is 1."""
    assert (state["last_layer.weight_g"] == 1).all()
    own = {name: value for name, value in state.items() if name.startswith("mlp.")}
    head.load_state_dict(own | {"last_layer.weight": state["last_layer.weight_v"]})


def released(case, kind=GCD, **settings):
    """A method with the initial weights of a released trace, and its hyper-parameters."""
    hp = json.loads(case["hp_json"])
    levels = {"mean": (0.0,) * 3, "std": (1.0,) * 3}
    backbone = tiny_vit(
        hp["img"],
        hp["patch"],
        3,
        hp["dim"],
        hp["depth"],
        hp["heads"],
        2.0,
        num_prompts=hp["P"],
        train_from=-1,
        **levels,
    )
    encoder = Encoder(backbone, IdentityHead(backbone.out_features))
    names = [str(number) for number in range(hp["C"])]
    parts = parts_for(
        encoder, names, evaluator=DiscoveryEvaluator(), selector=None, loss=None, memory=None
    )

    def projection(in_features):
        return ProjectionHead(in_features, hp["out"], hp["hid"], hp["bot"], layers=3)

    method = kind(
        parts,
        projection=projection,
        prompt_weight=hp["wdpr"],
        supervised_prompts=hp["ndpr"],
        unsupervised_temperature=hp["temp"],
        **settings,
    ).double()
    load_prompted(backbone.body, strip(case, "init/model/"))
    load_head(method.projections["class"], strip(case, "init/head/"))
    load_head(method.projections["prompt"], strip(case, "init/aux_head/"))
    return method, hp


def batch(case, number):
    """A batch of a released trace, scaled as pixels are."""
    part = strip(case, f"batch{number}/")
    labels = torch.where(part["labelled"] > 0, part["labels"], -1)
    views = 255 * torch.stack([part["view0"], part["view1"]], dim=1).double()
    return {"views": views, "label": labels, "index": torch.arange(len(labels))}
