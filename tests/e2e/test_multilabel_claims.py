"""What methods for several labels must show on mosaics of digits, three seeds each. Slow."""

import pytest

from noisyml.reports import load_runs

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

#: 40 epochs at a constant rate: late epochs show what was learnt by heart.
MOSAIC = [
    "dataset=mosaic",
    "backbone=mlp",
    "backbone.image_size=[8,24]",
    "sampler.batch_size=64",
    "optimizer.lr=0.001",
    "scheduler=constant",
    "trainer.max_epochs=40",
    "trainer.check_val_every_n_epoch=40",
    "model_choice=last",
    "callbacks.checkpoint.best=null",
    "report=false",
    "seed=0,1,2",
]


def table(shell, arms, noise, metrics):
    """Means over seeds of the arms' metrics, by arm and metric; printed beside the deviations."""
    means = {}
    for arm, parts in arms.items():
        status, said = shell("train", "-m", *MOSAIC, *parts, *noise, f"name={arm}")
        assert status == 0, said
        runs = load_runs([shell.folder / "outputs" / "train" / arm])
        assert len(runs) == 3
        known = [metric for metric in metrics if metric in runs and runs[metric].notna().all()]
        means[arm] = {metric: runs[metric].mean() for metric in known}
        values = [f"{m} {means[arm][m]:.3f} +- {runs[m].std():.3f}" for m in known]
        with shell.capfd.disabled():
            print(f"\n{noise[0]} {arm:14}", "  ".join(values), end="")
    return means


def test_ranking_beats_random_exclusion_which_beats_learning_from_everything(shell):
    """An image in which two fifths of the entries are inverted shows by its ranking."""
    arms = {
        "bce": ["method=multilabel"],
        "random": ["method=rcml", "method.ranking=random"],
        "no_discrepancy": ["method=rcml", "method.discrepancy=none"],
        "rcml": ["method=rcml"],
    }
    found = table(
        shell,
        arms,
        ["noise=multilabel_per_sample", "noise.seed=1"],
        ["test/map_macro", "selection/excluded_precision", "selection/suspected_precision"],
    )

    def mean(metric, arm):
        return found[arm][metric]

    quality = [mean("test/map_macro", arm) for arm in ("bce", "random", "rcml")]
    assert quality == sorted(quality)
    assert quality[2] > quality[0] + 0.08
    # Two fifths of the images are noisy.
    assert abs(mean("selection/excluded_precision", "random") - 0.4) < 0.05
    assert mean("selection/excluded_precision", "rcml") > 0.8


ROBUST = {
    "bce": ["method=multilabel"],
    "sat": ["method=multilabel", "loss=multilabel_sat", "loss.warmup_epochs=10"],
    "elr": ["method=multilabel", "loss=multilabel_elr"],
    "jocor": ["method=jocor_multilabel"],
}


@pytest.mark.parametrize("kind", ["mixed", "subtractive"])
def test_robust_losses_help_against_mixed_noise_and_jocor_drops_what_is_missing(shell, kind):
    noise = [f"noise=multilabel_{kind}", "noise.rate=0.5", "noise.seed=1"]
    found = table(shell, ROBUST, noise, ["test/map_macro", "selection/excluded_precision"])
    quality = {arm: found[arm]["test/map_macro"] for arm in ROBUST}
    if kind == "mixed":
        assert all(quality[arm] > quality["bce"] for arm in ("sat", "elr", "jocor"))
        assert quality["sat"] > quality["bce"] + 0.1
    else:
        # Entries that are truly positive have the largest losses of all.
        assert quality["jocor"] < quality["bce"]
