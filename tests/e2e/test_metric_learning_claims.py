"""What the papers of metric learning claim, on classes that training has not seen. Slow: sweeps.

Each test types a command of docs/metric_learning.md with three seeds and prints its table. Where a
claim does not show on a data set, the test says what does.
"""

import numpy as np
import pytest
import yaml

from noisyml.embeddings.store import EmbeddingStore
from noisyml.reports import aggregate, load_runs, markdown_table, result_table

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

SEEDS = "seed=0,1,2"
SETTINGS = pytest.mark.parametrize("setting", ["unseen_digits", "unseen_glyphs"])
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


@SETTINGS
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


@SETTINGS
def test_the_covariance_of_iaa(sweep, setting):
    """Digits: noise of the identity hurts, of the classes' own size less. Glyphs: both help."""
    by = ["method.statistics.covariance", "method.strength"]
    found = sweep(f"experiment=[{setting},iaa_covariance]", by=by)
    own, identity, none = found["diagonal", 0.6], found["identity", 0.6], found["diagonal", 0.0]
    assert none == found["identity", 0.0]
    if setting == "unseen_digits":
        assert own[0] > identity[0] + 0.02
        assert own[0] > none[0] - 0.04
    else:
        assert own[1] > none[1] + 0.005
        assert identity[1] > none[1]


@SETTINGS
def test_a_student_of_relations(sweep, setting):
    """Without a label it passes one that learns from triplets on digits, not on glyphs."""
    names = [f"[{setting},{name}]" for name in ("student_rkd", "student_triplet")]
    found = sweep(f"experiment={','.join(names)}", SEEDS, by=["experiment"])
    rkd, triplet = (found[name] for name in names)
    if setting == "unseen_digits":
        assert rkd[0] > triplet[0] + 0.05
        assert rkd[1] > triplet[1] + 0.05
    else:
        assert rkd[0] < triplet[0]


@pytest.mark.parametrize(
    ("setting", "typed"), [("unseen_digits", ["backbone=small_cnn"]), ("unseen_glyphs", [])]
)
def test_the_parts_of_proxynca_pp(sweep, setting, typed):
    """Digits: all together beat the loss they started from. Glyphs, frozen features: they lose."""
    names = [f"[{setting},{name}]" for name in ("proxynca_pp", "proxynca")]
    found = sweep(f"experiment={','.join(names)}", *typed, SEEDS, by=["experiment"])
    new, old = (found[name] for name in names)
    if setting == "unseen_digits":
        assert new[0] > old[0] + 0.04
        assert new[1] > old[1] + 0.05
    else:
        assert new[1] < old[1]
