"""What the papers of metric learning claim, on classes that training has not seen. Slow: sweeps.

Each test types a command of docs/metric_learning.md with three seeds and prints its table. Where a
claim does not show on a data set, the test says what does.
"""

import numpy as np
import pytest
import yaml

from noisyml.embeddings import EmbeddingStore
from noisyml.reports import aggregate, load_runs
from noisyml.reports.tables import markdown_table, result_table

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

SEEDS = "seed=0,1,2"
METRICS = ["test/precision_at_1", "test/map_at_r"]


@pytest.fixture
def sweep(shell, tmp_path_factory, monkeypatch, capfd):
    """Runs a sweep, prints its table, returns mean P@1 and MAP@R of each group."""
    cache = tmp_path_factory.getbasetemp() / "cache"  # features are computed once for all tests
    monkeypatch.setenv("NOISYML_CACHE", str(cache))

    def run(*typed, by):
        status, said = shell("train", "-m", *typed, "report=false", "model_choice=[last]")
        assert status == 0, said
        runs = load_runs([shell.folder / "outputs"], by)
        with capfd.disabled():
            print(f"\n\nnoisyml train -m {' '.join(typed)}\n")
            print(markdown_table(result_table(runs, METRICS)))
        table = aggregate(runs, by, METRICS)
        return {
            group if len(by) > 1 else group[0]: tuple(row[metric, "mean"] for metric in METRICS)
            for group, row in table.iterrows()
        }

    return run


def spread_of_negatives(shell, run):
    """Variance of the cosines between test samples of different classes."""
    status, said = shell("embed", f"checkpoint={run}", "splits=[test]", f"name={run.name}")
    assert status == 0, said
    (folder,) = (shell.folder / "outputs" / "embed" / run.name).iterdir()
    split = EmbeddingStore(folder).split("test")
    rows = np.asarray(split[:], dtype=np.float64)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return (rows @ rows.T)[split.labels[:, None] != split.labels].var()


@pytest.mark.parametrize("setting", ["unseen_digits", "unseen_glyphs"])
def test_the_constraint_of_cbml(sweep, shell, setting):
    """It narrows the cosines of negatives; retrieval gains on digits and loses on glyphs."""
    found = sweep(f"experiment=[{setting},cbml_constraint]", by=["loss.constraint"])
    spread = {"mvc": [], "none": []}
    for run in shell.runs():
        constraint = yaml.safe_load((run / "config.yaml").read_text())["loss"]["constraint"]
        spread[constraint].append(run)
    narrow, wide = (
        np.mean([spread_of_negatives(shell, run) for run in spread[kind]])
        for kind in ("mvc", "none")
    )
    assert narrow < wide
    gain = found["mvc"][0] - found["none"][0]
    assert gain > 0.02 if setting == "unseen_digits" else gain < 0


def test_the_covariance_of_iaa(sweep):
    """Noise of the identity hurts, of the classes' own size much less."""
    by = ["method.statistics.covariance", "method.strength"]
    found = sweep("experiment=[unseen_digits,iaa_covariance]", by=by)
    own, identity = found["diagonal", 0.6], found["identity", 0.6]
    assert found["diagonal", 0.0] == found["identity", 0.0]
    assert own[0] > identity[0] + 0.02
    assert own[0] > found["diagonal", 0.0][0] - 0.04


def test_a_student_of_relations(sweep):
    """Taught without a label, it passes a student of the same size that learns from triplets."""
    names = [f"[unseen_digits,{name}]" for name in ("student_rkd", "student_triplet")]
    found = sweep(f"experiment={','.join(names)}", SEEDS, by=["experiment"])
    rkd, triplet = (found[name] for name in names)
    assert rkd[0] > triplet[0] + 0.05
    assert rkd[1] > triplet[1] + 0.05


def test_the_parts_of_proxynca_pp(sweep):
    """All together they beat the loss they started from."""
    names = [f"[unseen_digits,{name}]" for name in ("proxynca_pp", "proxynca")]
    typed = [f"experiment={','.join(names)}", "backbone=small_cnn", SEEDS]
    found = sweep(*typed, by=["experiment"])
    new, old = (found[name] for name in names)
    assert new[0] > old[0] + 0.04
    assert new[1] > old[1] + 0.05
