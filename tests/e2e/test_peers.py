"""Two networks as typed: train, evaluate, embed, mistakes; and what they are for."""

import json

import pandas as pd
import pytest
import torch
import yaml

from noisyml.reports import aggregate, load_runs

DIGITS = [
    "dataset=digits",
    "backbone=mlp",
    "backbone.hidden_features=[64]",
    "noise=symmetric",
    "noise.rate=0.3",
    "optimizer.lr=0.01",
    "trainer.max_epochs=2",
    "report=false",
]


def metrics(run):
    return json.loads((run / "metrics.json").read_text())


def printed(said):
    return json.loads(said[said.index("{") : said.rindex("}") + 1])


def test_train_evaluate_and_embed(shell):
    typed = ["method=co_teaching", "method.predict=best", "method.num_gradual=1"]
    status, said = shell("train", *DIGITS, *typed)
    assert status == 0, said
    (run,) = shell.runs()
    trained = metrics(run)
    assert trained["test/accuracy"] > 0.7
    # The believed share of wrong labels is the injected one unless it is given.
    assert yaml.safe_load((run / "config.yaml").read_text())["method"]["noise_rate"] == 0.3
    judged = pd.read_parquet(run / "selection.parquet").groupby("epoch")["kept"].mean()
    assert judged.tolist() == pytest.approx([1.0, 44 / 64])
    assert trained["selection/precision"] > 0.8
    assert trained["selection/auroc"] > 0.8

    history = pd.read_csv(run / "history.csv")
    scores = history.dropna(subset="val/accuracy")
    both = scores[["val/accuracy_first", "val/accuracy_second"]]
    assert (scores["val/accuracy"] == both.max(axis=1)).all()
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    name = ("first", "second")[int(state["chosen"])]
    assert scores[f"val/accuracy_{name}"].iloc[-1] == scores["val/accuracy"].iloc[-1]
    assert trained["test/accuracy"] == trained[f"test/accuracy_{name}"]

    status, said = shell("evaluate", f"checkpoint={run}")
    assert status == 0, said
    repeated = printed(said)
    assert set(repeated) == {name for name in trained if name.startswith("test/")}
    assert all(abs(repeated[name] - trained[name]) < 1e-9 for name in repeated)
    status, said = shell("evaluate", f"checkpoint={run}", "method.predict=mean")
    assert status == 0, said
    assert printed(said)["test/nll"] < max(trained["test/nll_first"], trained["test/nll_second"])
    status, said = shell("embed", f"checkpoint={run}", "splits=[test]")
    assert status == 0, said
    assert "539 x 64" in said


def test_a_frozen_backbone_serves_both(shell):
    frozen = ["backbone.frozen=true", "head=mlp", "head.normalise=false", "head.out_features=16"]
    status, said = shell("train", *DIGITS, "method=co_teaching", *frozen)
    assert status == 0, said
    (run,) = shell.runs()
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert not any("backbone.body" in name for name in state)
    assert not torch.equal(
        state["encoder.head.layers.0.weight"], state["peer.encoder.head.layers.0.weight"]
    )
    assert metrics(run)["test/accuracy"] > 0.8
    status, said = shell("evaluate", f"checkpoint={run}")
    assert status == 0, said
    assert abs(printed(said)["test/accuracy"] - metrics(run)["test/accuracy"]) < 1e-9


@pytest.mark.parametrize(
    ("typed", "sentence"),
    [
        (["method=co_teaching", "noise=none"], "set method.noise_rate to the share"),
        (["method=jocor", "selector=prism_proxy"], "JoCoR asks no selector"),
        (["method=jocor", "loss=triplet"], "JoCoR brings a loss of its own"),
        (["method=jocor", "method.predict=best", "method.best_by=f1"], "is not measured: use one"),
        (["method=jocor", "method.predict=best", "dataset.val_fraction=0"], "and there is none"),
        (["method=co_teaching_plus", "dataset.split=zero_shot"], "dataset.split=closed_set"),
    ],
)
def test_what_cannot_work_is_refused(shell, typed, sentence):
    settings = [s for s in DIGITS if "noise=none" not in typed or not s.startswith("noise")]
    status, said = shell("train", *settings, *typed)
    assert status == 2, said
    assert sentence in said
    assert "Traceback" not in said


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_small_losses_keep_what_cross_entropy_unlearns(shell):
    """Half of the labels wrong, three seeds: the last epoch is better than cross-entropy's."""
    status, said = shell(
        "train",
        "-m",
        "method=classification,co_teaching,co_teaching_plus,jocor",
        "seed=0,1,2",
        "dataset=digits",
        "backbone=mlp",
        "backbone.hidden_features=[256]",
        "noise=symmetric",
        "noise.rate=0.5",
        "optimizer.lr=0.002",
        "scheduler=constant",
        "sampler.batch_size=128",
        "trainer.max_epochs=100",
        "report=false",
    )
    assert status == 0, said
    runs = load_runs([shell.folder / "outputs"])
    assert len(runs) == 12
    table = aggregate(runs, by=["method"])["test/accuracy"]
    print(table[["mean", "std"]].to_string(float_format="%.4f"))
    means = {method: row["mean"] for (method,), row in table.iterrows()}
    for method in ("co_teaching", "co_teaching_plus", "jocor"):
        assert means[method] > means["classification"] + 0.05
