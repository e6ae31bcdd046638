"""One step of TLDR: released values, gradients and running statistics."""

import functools

import pytest
import torch
from support import paths, vectors
from torch import nn

from noisyml.errors import UserError
from noisyml.methods.vectors.twins import Twins
from noisyml.models.dense import encoder_layers

load = functools.partial(vectors.tensors, paths.GOLDEN / "tldr")
close = functools.partial(vectors.close, atol=1e-10)
MODULES = ["lin_mlp1", "flin_mlp2", "mlp_none", "mlp2_ln", "mse"]
NORMS = {"BN": "batch", "LN": "layer"}
LOSSES = {"BT": "redundancy", "MSE": "autoencoder"}


def network(golden):
    norm = NORMS[golden["norm_layer"]]
    size = golden["x1"].shape[1]
    encoder = encoder_layers(golden["encoder"], size, int(golden["n_components"]), norm)
    twins = Twins(
        int(golden["n_components"]),
        size,
        None if golden["projector"] == "None" else golden["projector"],
        norm,
        loss=LOSSES[golden["loss_name"]],
        lambd=float(golden["lambd"]),
        scale_loss=float(golden["scale_loss"]),
    )
    return nn.ModuleDict({"encoder": encoder, **dict(twins.named_children())}), twins


@pytest.mark.parametrize("name", MODULES)
def test_released_step(name):
    golden = load(f"module_{name}")
    whole, twins = network(golden)
    whole.double()
    before = {key.removeprefix("before."): x for key, x in golden.items() if "before." in key}
    whole.load_state_dict(before)
    sides = [golden[key].clone().requires_grad_() for key in ("x1", "x2")]
    codes = [whole["encoder"](side) for side in sides]
    loss = twins(*codes, inputs=lambda: torch.cat(sides))
    loss.backward()
    close(loss.detach(), golden["loss"])
    close(sides[0].grad, golden["grad_x1"])
    close(sides[1].grad, golden["grad_x2"])
    gradients = dict(whole.named_parameters())
    assert {key.removeprefix("grad.") for key in golden if "grad." in key} == gradients.keys()
    for key, parameter in gradients.items():
        close(parameter.grad, golden[f"grad.{key}"])
    state = whole.state_dict()
    for key, expected in golden.items():
        if "after." in key:
            close(state[key.removeprefix("after.")], expected)
    close(whole["encoder"].eval()(sides[0]).detach(), golden["eval_out"])


def test_pairs_that_are_not_kept_do_not_count():
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(2, 12, 4, generator=generator)
    keep = torch.arange(12) % 3 > 0
    twins = Twins(4, 4, projector=None)
    some = twins(first, second, lambda: first, keep)
    torch.testing.assert_close(some, Twins(4, 4, None)(first[keep], second[keep], lambda: first))
    assert some != twins(first, second, lambda: first)


def test_an_autoencoder_has_the_width_of_its_inputs():
    with pytest.raises(UserError, match=r"write e\.g\. mlp-1-10"):
        Twins(4, 10, "mlp-1-9", loss="autoencoder")
