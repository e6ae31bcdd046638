"""The verbs from Python, and what may be made of a run folder: export, replay, diff."""

import json

import numpy as np
import pytest
import torch
from support.shell import TINY

import noisyml
from noisyml.errors import UserError

SETTINGS = dict(word.split("=", 1) for word in TINY) | {
    "recipe": "cross_entropy",
    "trainer.max_epochs": 1,
    "backbone.hidden_features": [32],
}
SETTINGS.pop("head.out_features")


def test_runs_are_trained_compared_exported_and_replayed(shell, monkeypatch):
    monkeypatch.chdir(shell.folder)
    one = noisyml.train(SETTINGS, seed=0)
    two = noisyml.train(SETTINGS, seed=0, **{"optimizer.lr": 0.01})
    assert one.metrics["test/accuracy"] > 0.1
    assert one.config["noise"]["rate"] == 0.3
    assert len(one.history)

    # The ledger has every sample, though nothing selects.
    ledger = one.ledger
    samples = len(noisyml.load_runs(str(one.path)))
    assert samples == 1
    assert ledger["index"].nunique() > 1000
    assert ledger["kept"].all()
    assert {"loss", "margin", "prediction", "p_clean", "kept", "epoch"} <= set(ledger)
    # Cross-entropy is the soft margin's: both order samples alike where the margin is wide.
    assert (ledger["loss"] >= 0).all()
    assert ledger["loss"].corr(ledger["margin"], method="spearman") < -0.9
    assert set(ledger["prediction"]) <= set(range(10))

    found = noisyml.compare(one, two, "test/accuracy")
    gap = one.metrics["test/accuracy"] - two.metrics["test/accuracy"]
    assert found.difference.mean == pytest.approx(gap)
    assert len(found.pairs) == 1
    with pytest.raises(UserError, match="no metric test/nothing"):
        noisyml.compare(one, two, "test/nothing")

    status, said = shell("diff", str(one.path), str(two.path))
    assert status == 1
    assert "optimizer.lr: 0.001 | 0.01" in said
    assert "data:" not in said

    for to, file in (("torchscript", "network.pt"), ("onnx", "network.onnx")):
        status, said = shell("export", str(one.path), "--to", to)
        assert status == 0, said
        folder = one.path / "export" / to
        facts = json.loads((folder / "input.json").read_text())
        assert facts["file"] == file
        assert facts["input"] == "image"
        assert facts["shape"] == ["N", 1, 8, 8]
        assert facts["outputs"]["logits"] == ["N", 10]
        assert facts["largest_difference"] < 1e-4
    status, said = shell("export", str(one.path), "--to", "safetensors")
    assert status == 0, said
    status, said = shell("export", str(one.path), "--to", "cleanlab")
    assert status == 0, said
    with np.load(one.path / "export" / "cleanlab" / "cleanlab.npz") as arrays:
        assert arrays["pred_probs"].shape == (len(arrays["labels"]), 10)
        np.testing.assert_allclose(arrays["pred_probs"].sum(axis=1), 1, rtol=1e-5)

    network = torch.jit.load(str(one.path / "export" / "torchscript" / "network.pt"))
    assert network(torch.zeros(3, 1, 8, 8, dtype=torch.uint8))[1].shape == (3, 10)

    status, said = shell("replay", str(one.path))
    assert status == 0, said
    assert "metrics are the same to the last bit" in said
