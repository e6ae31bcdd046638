"""What BARE must show beside plain cross-entropy, with three seeds. Slow: 18 and 9 runs."""

import pytest

from noisyml.data.datasets.small_images import fashion_mnist
from noisyml.reports import aggregate, load_runs

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

DIGITS = [
    "dataset=digits",
    "backbone=mlp",
    "backbone.hidden_features=[256]",
    "sampler.batch_size=128",
    "optimizer.lr=0.002",
    "scheduler=constant",
    "trainer.max_epochs=100",
    "model_choice=[last,best,mean_last]",
    "noise=symmetric",
    "noise.rate=0.5,0.7",
    "seed=0,1,2",
    "report=false",
]
#: 10,000 images, a perceptron, 20 epochs: the settings of the leaderboard.
CLOTHES = [
    "experiment=noisy_labels_leaderboard",
    "noise=pair",
    "noise.rate=0.45",
    "seed=0,1,2",
    "report=false",
]
RECIPES = ["cross_entropy", "bare", "bare_released"]
SHOWN = [
    "test/accuracy",
    "best/test/accuracy",
    "selection/precision",
    "selection/recall",
    "selection/recall_min_class",
]


def by_recipe_and_rate(shell, settings):
    """Means over seeds of every metric by recipe, then by rate; printed."""
    status, said = shell("train", "-m", f"recipe={','.join(RECIPES)}", *settings)
    assert status == 0, said
    groups = ["recipe", "noise.rate"]
    table = aggregate(load_runs([shell.folder / "outputs"], groups), by=groups)
    found = {}
    with shell.capfd.disabled():
        print("\nrecipe, rate:", ", ".join(SHOWN))
        for (recipe, rate), row in table.iterrows():
            assert row["test/accuracy", "n"] == 3
            found[recipe, float(rate)] = {metric: row[metric, "mean"] for metric in SHOWN}
            shown = [f"{row[m, 'mean']:.3f} +- {row[m, 'std']:.3f}" for m in SHOWN]
            print(f"{recipe}, {rate}:", ", ".join(shown))
    return found


def test_bare_withstands_what_cross_entropy_learns_by_heart(shell):
    found = by_recipe_and_rate(shell, DIGITS)
    for rate in (0.5, 0.7):
        plain, bare, released = (found[recipe, rate] for recipe in RECIPES)
        assert bare["test/accuracy"] > plain["test/accuracy"] + 0.15
        assert released["test/accuracy"] > plain["test/accuracy"]
        assert bare["test/accuracy"] > released["test/accuracy"]
        # Cross-entropy peaks early and falls.
        assert plain["best/test/accuracy"] > plain["test/accuracy"] + 0.1
        assert bare["selection/precision"] > 1 - rate + 0.2
    bare = found["bare", 0.5]
    assert bare["test/accuracy"] > bare["best/test/accuracy"] - 0.05
    assert bare["selection/precision"] > 0.9


@pytest.mark.skipif(
    not fashion_mnist.DEBIAN_FOLDER.is_dir(),
    reason="needs Fashion-MNIST: apt-get install dataset-fashion-mnist",
)
def test_bare_withstands_pair_flips_of_clothes(shell):
    """Nearly half of each class is called the next one; on digits BARE fails at that.

    Nothing is claimed of the whole batch's statistics: in one of three seeds several classes die.
    """
    found = by_recipe_and_rate(shell, CLOTHES)
    plain, bare = (found[recipe, 0.45] for recipe in ("cross_entropy", "bare"))
    assert bare["test/accuracy"] > plain["test/accuracy"] + 0.05
    # More right labels among those kept than among all, .55.
    assert bare["selection/precision"] > 0.65
