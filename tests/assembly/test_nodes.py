"""Nodes of a configuration to objects, and what is said about wrong settings."""

import itertools

import pytest
from omegaconf import OmegaConf

from noisyml.assembly import compatibility
from noisyml.assembly.build import assemble
from noisyml.assembly.nodes import ask, build
from noisyml.checks import ArgumentError
from noisyml.command.config import compose
from noisyml.errors import UserError


def node(text):
    """The node ``part`` of a configuration."""
    return OmegaConf.create({"part": OmegaConf.create(text)}).part


PARTIAL = """
_target_: noisyml.optim.sgd
_partial_: true
lr: {lr}
"""


def test_a_function_with_some_of_its_arguments():
    import torch

    make = build(node(PARTIAL.format(lr=0.5)))
    optimizer = make([torch.nn.Parameter(torch.zeros(1))])
    assert optimizer.param_groups[0]["lr"] == 0.5


def test_wrong_settings_of_a_function_are_refused_before_it_is_called():
    with pytest.raises(ArgumentError, match=r"^part\.lr=-1 must be a number above 0"):
        build(node(PARTIAL.format(lr=-1)))


def test_a_node_inside_a_node_is_named_in_full():
    nested = node("""
    _target_: noisyml.selectors.keep_all.KeepAll
    inner: {_target_: noisyml.selectors.bare.Bare, kappa: -1}
    """)
    with pytest.raises(ArgumentError, match=r"^part\.inner\.kappa=-1 must be"):
        build(nested)


def test_a_class_is_asked_about_settings_that_its_signature_allows():
    def answer(seen, settings):
        return seen, settings["lr"] * 2

    assert ask(answer, node(PARTIAL.format(lr=0.5)), 7) == (7, 1.0)
    with pytest.raises(ArgumentError, match=r"^part\.lr=\( must be a number above 0"):
        ask(answer, node(PARTIAL.format(lr="'('")), 7)
    with pytest.raises(UserError, match=r"cannot be made of its settings \(part: KeyError: 'gone'"):
        ask(lambda settings: settings["gone"], node(PARTIAL.format(lr=0.5)))


def test_a_value_where_settings_belong_is_named():
    config = OmegaConf.create(OmegaConf.to_container(compose("train", ["dataset=digits"])))
    for part, value in zip(compatibility.PARTS, itertools.cycle([True, 3, "text", [1]])):
        before, config[part] = config.get(part), value
        with pytest.raises(UserError, match=rf"^{part}=.* stands where settings belong"):
            assemble(config)
        config[part] = before
