"""InfoNCE, label smoothing and distillation of pairs against the released losses."""

import re

import pytest
import torch
import torch.nn.functional as F
from support import paths, vectors

from noisyml.checks import ArgumentError
from noisyml.losses.image_text.contrastive import (
    LogTemperature,
    contrastive_losses,
    distillation_losses,
)

GOLDEN = paths.GOLDEN / "otter"


def test_losses_and_gradients_equal_the_released_ones():
    case = vectors.tensors(GOLDEN, "contrastive_and_kl")
    seen = 0
    for key in [key for key in case if key.endswith("__loss")]:
        name = key.removesuffix("__loss")
        match = re.fullmatch(r"(ls([\d.]+)|kl)_T(-?[\d.]+)", name)
        temperature = LogTemperature().double()
        temperature.value.data.fill_(float(match[3]))
        logits = case["logits"].clone().requires_grad_()
        scaled = temperature(logits)
        if match[1] == "kl":
            losses = distillation_losses(scaled, case["kl_target"])
        else:
            losses = contrastive_losses(scaled, torch.arange(6), float(match[2]))
        losses.mean().backward()
        vectors.close(losses.mean(), case[key])
        vectors.close(logits.grad, case[f"{name}__grad_logits"])
        vectors.close(temperature.value.grad, case[f"{name}__grad_T"])
        seen += 1
    assert seen == 18


def test_a_smoothed_target_is_the_soft_cross_entropy_of_its_own_column():
    logits = torch.randn(3, 5, generator=torch.Generator().manual_seed(0)).double()
    own = torch.tensor([4, 0, 2])
    target = torch.full((3, 5), 0.2 / 4, dtype=torch.float64)
    target[torch.arange(3), own] = 0.8
    vectors.close(
        contrastive_losses(logits, own, 0.2), F.cross_entropy(logits, target, reduction="none")
    )
    alone = torch.tensor([[3.0]])
    assert contrastive_losses(alone, torch.tensor([0]), 0.2).tolist() == [0.0]
    with pytest.raises(ArgumentError, match="smoothing=1 must be"):
        contrastive_losses(logits, own, 1)


def test_a_divergence_is_never_negative_and_zero_for_its_own_softmax():
    logits = torch.randn(6, 4, generator=torch.Generator().manual_seed(1)).double()
    vectors.close(distillation_losses(logits, logits.softmax(1)), torch.zeros(6).double())
    removed = torch.eye(4).double()[[0, 1, 2, 3, 0, 1]]
    assert (distillation_losses(logits, removed) > 0).all()


def test_a_temperature_scales_half_precision_in_single_precision():
    scaled = LogTemperature(3.9)(torch.ones(2, 2, dtype=torch.bfloat16))
    assert scaled.dtype == torch.float32
    torch.testing.assert_close(scaled, torch.full((2, 2), 49.4024))
