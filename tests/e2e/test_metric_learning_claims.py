"""What the papers of metric learning claim, on classes that training has not seen. Slow: sweeps.

Each test types the command that docs/metric_learning.md shows, on digits and on glyphs, with three
seeds, and prints its table. Where a claim does not show on a data set, the test says what does.
"""

import numpy as np
import pytest

from noisyml.embeddings import EmbeddingStore
from noisyml.reports import aggregate, load_runs
from noisyml.reports.tables import markdown_table, result_table

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

SETTINGS = ["unseen_digits", "unseen_glyphs"]
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
