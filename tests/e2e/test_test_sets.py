"""Several test sets in one run, one of them with distractors."""

import json

import numpy as np
import torch
from support.shell import TINY

from noisyml.embeddings.store import EmbeddingStore
from noisyml.metrics.retrieval import retrieval_metrics


def test_every_test_set_has_metrics_of_its_own(shell):
    settings = [word for word in TINY if not word.startswith(("dataset=", "noise"))]
    given = ["dataset._target_=support.revisited.RevisitedDigits"]
    given += [
        f"~dataset.{k}" for k in ("split", "val_fraction", "test_fraction", "mirrored", "seed")
    ]
    status, said = shell("train", "method=prism", "dataset=digits", *settings, *given)
    assert status == 0, said
    (run,) = shell.runs()
    found = json.loads((run / "metrics.json").read_text())
    wanted = "splits=[query,hard_query,gallery,distractors]"
    status, said = shell("embed", f"checkpoint={run}", wanted, "hydra.run.dir=out")
    assert status == 0, said
    store = EmbeddingStore(shell.folder / "out")
    rows = {name: store.split(name) for name in store.splits}

    def expected(query, *gallery):
        return retrieval_metrics(
            torch.from_numpy(np.array(rows[query][:])),
            torch.from_numpy(rows[query].labels.copy()),
            torch.from_numpy(np.concatenate([rows[name][:] for name in gallery])),
            torch.from_numpy(np.concatenate([rows[name].labels for name in gallery])),
            metrics=["map_at_r", "precision_at_1"],
        )

    sets = {
        "test": expected("query", "gallery"),
        "test/hard": expected("hard_query", "gallery"),
        "test/hard_more": expected("hard_query", "gallery", "distractors"),
    }
    for prefix, wanted in sets.items():
        for name, value in wanted.items():
            assert abs(found[f"{prefix}/{name}"] - value) < 1e-6, (prefix, name)
    assert sets["test/hard_more"]["map_at_r"] < sets["test/hard"]["map_at_r"]
    assert not (rows["distractors"].labels >= 0).any()
