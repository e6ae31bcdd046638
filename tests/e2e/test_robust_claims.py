"""What BARE must show beside plain cross-entropy, with three seeds. Slow: 18 and 9 runs."""

import pytest

from noisyml.data.datasets import fashion_mnist
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
RATE = ["noise.rate"]
SHOWN = [
    "test/accuracy",
    "best/test/accuracy",
    "selection/precision",
    "selection/recall",
    "selection/recall_min_class",
]
LEARNERS = {
    "cross-entropy": ["method=classification"],
    "bare": ["method=bare"],
    "bare, whole batch": ["method=bare", "selector=bare_released"],
}


def by_learner_and_rate(shell, settings):
    """Means over seeds of every metric by learner, then by rate; printed."""
    found = {}
    with shell.capfd.disabled():
        print("\nlearner, rate:", ", ".join(SHOWN))
    for learner, method in LEARNERS.items():
        folder = "outputs/" + learner.replace(", ", "-").replace(" ", "-")
        status, said = shell("train", "-m", *settings, *method, f"hydra.sweep.dir={folder}")
        assert status == 0, said
        table = aggregate(load_runs([shell.folder / folder], RATE), by=RATE)
        for (rate,), row in table.iterrows():
            assert row["test/accuracy", "n"] == 3
            found[learner, float(rate)] = row
            shown = [f"{row[m, 'mean']:.3f} +- {row[m, 'std']:.3f}" for m in SHOWN]
            with shell.capfd.disabled():
                print(f"{learner}, {rate}:", ", ".join(shown))
    return found


def test_bare_withstands_what_cross_entropy_learns_by_heart(shell):
    found = by_learner_and_rate(shell, DIGITS)

    def mean(metric, learner, rate):
        return found[learner, rate][metric, "mean"]

    for rate in (0.5, 0.7):
        plain, bare, released = (mean("test/accuracy", learner, rate) for learner in LEARNERS)
        assert bare > plain + 0.15
        assert released > plain
        assert bare > released
        # Cross-entropy peaks early and falls.
        assert mean("best/test/accuracy", "cross-entropy", rate) > plain + 0.1
        assert mean("selection/precision", "bare", rate) > 1 - rate + 0.2
    best = mean("best/test/accuracy", "bare", 0.5)
    assert mean("test/accuracy", "bare", 0.5) > best - 0.05
    assert mean("selection/precision", "bare", 0.5) > 0.9


@pytest.mark.skipif(
    not fashion_mnist.DEBIAN_FOLDER.is_dir(),
    reason="needs Fashion-MNIST: apt-get install dataset-fashion-mnist",
)
def test_bare_withstands_pair_flips_of_clothes(shell):
    """Nearly half of each class is called the next one; on digits BARE fails at that.

    Nothing is claimed of the whole batch's statistics: in one of three seeds several classes die.
    """
    found = by_learner_and_rate(shell, CLOTHES)
    accuracy = {learner: found[learner, 0.45]["test/accuracy", "mean"] for learner in LEARNERS}
    assert accuracy["bare"] > accuracy["cross-entropy"] + 0.05
    # More right labels among those kept than among all, .55.
    assert found["bare", 0.45]["selection/precision", "mean"] > 0.65
