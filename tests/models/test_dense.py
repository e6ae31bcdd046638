"""Encoders and projectors by their words: the released architectures, and what is refused."""

import json

import pytest
from support import paths
from torch import nn

from noisyml.errors import UserError
from noisyml.models.dense import (
    DenseHead,
    encoder_layers,
    parse_architecture,
    projector_layers,
)

RELEASED = json.loads((paths.GOLDEN / "tldr" / "architectures.json").read_text())
NAMES = {"GlobalBatchNorm1d": "BatchNorm1d"}


def described(layers):
    """Type of each layer, then the shapes of its parameters."""
    return [
        [NAMES.get(type(x).__name__, type(x).__name__), *(list(p.shape) for p in x.parameters())]
        for x in layers or ()
    ]


@pytest.mark.parametrize("entry", RELEASED)
def test_released_architectures(entry):
    what, word = entry.split(":")
    expected = RELEASED[entry]
    if what == "parse" and "ERROR" not in expected[0]:
        kind, repeats, sizes = parse_architecture(word)
        assert [kind, repeats, list(sizes)] == expected
        return
    if any("ERROR" in str(row) for row in expected):
        with pytest.raises(UserError, match="rite"):
            projector_layers(word, 3) if what == "projector" else parse_architecture(word)
        return
    if what == "encoder":
        assert described(encoder_layers(word, 7, 3)) == expected
        return
    layers, width = projector_layers(None if word == "None" else word, 3)
    assert [*described(layers), ["bn", width]] == expected


def test_layer_norm_stands_in_hidden_layers():
    layers = encoder_layers("mlp-2-6", 10, 4, norm="layer")
    assert [type(x) for x in layers[:3]] == [nn.Linear, nn.LayerNorm, nn.ReLU]
    assert isinstance(layers[-1], nn.Linear)
    assert layers[-1].bias is None


@pytest.mark.parametrize(
    ("word", "advice"),
    [
        ("lineer", "Did you mean 'linear'"),
        ("mlp-2", "does not say how wide"),
        ("mlp-0-5", "after mlp come numbers"),
        ("mlp-1-x", "after mlp come numbers"),
    ],
)
def test_other_words_are_answered_with_what_there_is(word, advice):
    with pytest.raises(UserError, match=advice):
        parse_architecture(word)


def test_a_head_is_the_encoder_of_its_word():
    head = DenseHead(7, 3, architecture="flinear-1-5")
    assert described(head.layers) == RELEASED["encoder:flinear-1-5"]
    assert not head.normalise
