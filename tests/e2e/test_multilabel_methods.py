"""RCML, CCML and JoCoR on images with several labels, as typed."""

import json

import numpy as np
import pandas as pd
import pytest
from support.remote_sensing_trees import earth_tree, merced_tree

from noisyml.noise.manifest import NoiseManifest

MOSAIC = [
    "dataset=mosaic",
    "dataset.num_train=256",
    "dataset.num_val=64",
    "dataset.num_test=128",
    "backbone=mlp",
    "backbone.image_size=[8,24]",
    "backbone.hidden_features=[32]",
    "sampler.batch_size=32",
    "noise=multilabel_per_sample",
    "trainer.max_epochs=3",
    "report=false",
]
METHODS = {
    "rcml": ["method=rcml", "method.swap_start=0.9", "method.swap_end=0.5"],
    "ccml": ["method=ccml", "method.flip_bound=0.5", "method.flip_share=0.5"],
    "jocor": ["method=jocor_multilabel", "method.tau=0.1", "method.gradual_epochs=2"],
}


def metrics(run):
    return json.loads((run / "metrics.json").read_text())


@pytest.mark.parametrize("name", METHODS)
def test_methods_train_and_their_models_are_evaluated_again(shell, name):
    status, said = shell("train", *MOSAIC, *METHODS[name])
    assert status == 0, said
    (run,) = shell.runs()
    trained = metrics(run)
    assert trained["test/map_macro"] > 0.25  # chance is a fifth
    status, said = shell("evaluate", f"checkpoint={run}")
    assert status == 0, said
    repeated = json.loads(said[said.index("{") : said.rindex("}") + 1])
    assert all(abs(repeated[key] - trained[key]) < 1e-9 for key in repeated)
    judged = pd.read_parquet(run / "selection.parquet")
    kept = [np.stack(part["kept"]).mean() for _, part in judged.groupby("epoch")]
    if name == "rcml":
        # int(0.9 * 32), int(0.76 * 32) and int(0.63 * 32) of 32: a line in whole hundredths.
        assert [round(share * 32) for share in kept] == [28, 24, 20]
        assert judged["suspected"].between(0, 9).all()
        names = {"selection/excluded_precision", "selection/suspected_precision"}
        sets = ("first", "second", "intersection", "union")
        names |= {f"selection/excluded_{m}_{s}" for m in ("precision", "recall") for s in sets}
        assert names <= trained.keys()
        assert judged["kept"].equals(judged["kept_second"])
        assert not judged["kept"].equals(judged["kept_first"])
    if name == "jocor":
        entries = [0, int(0.95 * 320), int(0.9 * 320)]
        assert [round(share * 320) for share in kept] == [320, *entries[1:]]


PRESETS = {"rcml_ucmerced": 17, "rcml_bigearthnet": 19}


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_train_on_trees_in_the_official_formats(shell, preset):
    """Downscaled and with random weights, but otherwise as they stand."""
    root = shell.folder / "data"
    if preset == "rcml_ucmerced":
        merced_tree(root)
        data = [f"dataset.root={root}"]
    else:
        kinds = ["Pastures", "Vineyards", "Sea and ocean", "Mixed forest"]
        numbers = {"train": range(10), "val": range(10, 13), "test": range(13, 16)}
        parts = {
            part: [(f"S2A_{i}", [kinds[i % 4], kinds[i % 3]]) for i in own]
            for part, own in numbers.items()
        }
        lists = shell.folder / "lists"
        earth_tree(root, lists, parts)
        data = [f"dataset.root={root}", f"dataset.lists={lists}"]
    small = ["backbone.name=resnet18", "backbone.weights=null", "transform.size=32"]
    short = ["sampler.batch_size=4", "trainer.max_epochs=1", "callbacks.history.every_n_steps=1"]
    typed = [f"experiment={preset}", *data, *small, *short, "dataset.check_counts=false"]
    status, said = shell("train", *typed, "report=false")
    assert status == 0, said
    (run,) = shell.runs()
    assert np.isfinite(metrics(run)["test/map_micro"])
    history = pd.read_csv(run / "history.csv")
    rates = history["lr/default"].dropna().to_numpy()
    assert len(rates) >= 3
    # Read after the schedule's step.
    np.testing.assert_allclose(rates, 0.001 * 0.9 ** (np.arange(1, len(rates) + 1) / 10_000))
    manifest = NoiseManifest.load(run / "noise.parquet")
    flipped = manifest.changed.sum(axis=1)
    assert (flipped > 0).sum() == int(0.4 * len(flipped))
    assert set(flipped) == {0, int(0.4 * PRESETS[preset])}


@pytest.mark.parametrize(
    ("typed", "sentence"),
    [
        (["method=rcml", "loss=triplet"], "RCML trains with a loss on several labels per image"),
        (["method=rcml", "method.feature_layer=block2"], "it has block1"),
        (["method=rcml", "selector=prism_avg"], "RCML asks no selector"),
        (["method=rcml", "dataset=digits", "noise=none"], "RCML learns from several labels"),
        (["method=jocor_multilabel", "loss=bce"], "brings a loss of its own"),
        (
            ["method=rcml", "loss=multilabel_sat", "loss.warmup_epochs=3"],
            "is a plain loss for 3 epochs, and the run has 3",
        ),
    ],
)
def test_mistakes_are_one_sentence(shell, typed, sentence):
    chosen = {override.partition("=")[0] for override in typed}
    rest = [override for override in MOSAIC if override.partition("=")[0] not in chosen]
    if "dataset" in chosen:
        rest = [o for o in rest if not o.startswith(("dataset.", "backbone.image_size"))]
    status, said = shell("train", *rest, *typed)
    assert status == 2, said
    assert sentence in said
    assert "Traceback" not in said
