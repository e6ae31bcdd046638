"""Artefacts of a finished run, collected from those who offer them."""

from types import SimpleNamespace

import numpy as np
import pandas as pd

from noisyml.callbacks.artefacts import describe_run, offered_artefacts
from noisyml.runs.artefacts import Artefact, list_artefacts
from noisyml.runs.folder import RunFolder


class Offering:
    """A method without embeddings that offers a table, as does its evaluator."""

    gives = frozenset({"masks"})
    evaluation_artefacts = (Artefact("confusion.csv", pd.DataFrame({"n": [1]}), "Confusion"),)

    def artefacts(self, data, trust):
        self.trust = trust
        yield Artefact("own.csv", pd.DataFrame({"n": [2]}), "Own")


def test_method_and_evaluators_are_asked(tmp_path):
    run = RunFolder(tmp_path)
    method = Offering()
    describe_run(method, SimpleNamespace(), run)
    assert [entry.file for entry in list_artefacts(run)] == ["own.csv", "confusion.csv"]
    assert method.trust is None
    assert (tmp_path / "own.csv").read_text() == "n\n2\n"


def test_the_method_is_told_which_samples_were_trusted(tmp_path):
    run = RunFolder(tmp_path)
    judged = {"index": [0, 1, 1], "p_clean": [0.5, 0.1, 0.3], "kept": True, "epoch": 0}
    pd.DataFrame(judged).to_parquet(run.selection_file)
    method = Offering()
    next(offered_artefacts(method, SimpleNamespace(), run))
    assert method.trust.index.tolist() == [1, 0]
    np.testing.assert_allclose(method.trust, [0.2, 0.5])
