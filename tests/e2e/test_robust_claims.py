"""What BARE must show beside plain cross-entropy, with three seeds. Slow: 27 runs."""

import pytest

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
    "seed=0,1,2",
    "report=false",
]
NOISE = {
    "symmetric": ["noise=symmetric", "noise.rate=0.5,0.7"],
    "pair": ["noise=pair", "noise.rate=0.45"],
}
RATE = ["noise.rate"]
LEARNERS = {
    "cross-entropy": ["method=classification"],
    "bare": ["method=bare"],
    "bare, whole batch": ["method=bare", "selector=bare_released"],
}


def test_bare_withstands_what_cross_entropy_learns_by_heart(shell):
    last, best, precision, worst = {}, {}, {}, {}
    for learner, method in LEARNERS.items():
        for kind, noise in NOISE.items():
            folder = f"outputs/{learner}-{kind}".replace(", ", "-").replace(" ", "-")
            typed = [*method, *noise, *DIGITS, f"hydra.sweep.dir={folder}"]
            status, said = shell("train", "-m", *typed)
            assert status == 0, said
            table = aggregate(load_runs([shell.folder / folder], RATE), by=RATE)
            for (rate,), row in table.iterrows():
                case = (learner, kind, float(rate))
                last[case] = row["test/accuracy", "mean"]
                best[case] = row["best/test/accuracy", "mean"]
                precision[case] = row["selection/precision", "mean"]
                worst[case] = row["selection/recall_min_class", "mean"]
    print("\nlearner, noise, rate: last, best on noisy validation, precision, worst class's recall")
    for case in last:
        print(case, *(f"{of[case]:.3f}" for of in (last, best, precision, worst)))
    for rate in (0.5, 0.7):
        plain, bare = (last[name, "symmetric", rate] for name in ("cross-entropy", "bare"))
        released = last["bare, whole batch", "symmetric", rate]
        assert bare > plain + 0.15
        assert released > plain
        assert bare > released
        # Cross-entropy peaks early and falls.
        assert best["cross-entropy", "symmetric", rate] > plain + 0.1
        assert precision["bare", "symmetric", rate] > 1 - rate + 0.2
    assert last["bare", "symmetric", 0.5] > best["bare", "symmetric", 0.5] - 0.05
    assert precision["bare", "symmetric", 0.5] > 0.9
