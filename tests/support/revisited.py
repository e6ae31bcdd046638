"""A tiny data set with two test sets over one gallery, one of them with distractors."""

import dataclasses

import numpy as np

from noisyml.data.base import DatasetSource
from noisyml.data.datasets.embedded.digits import Digits


class RevisitedDigits(DatasetSource):
    """Digits in the layout of a revisited retrieval benchmark."""

    description = "digits, two test sets and distractors"

    def missing(self):
        return None

    def splits(self):
        splits = Digits().splits()
        test = splits["test"]
        rows = np.arange(len(test))
        known = np.flatnonzero(test.labels < 8)
        cuts = {
            "query": known[:20],
            "gallery": known[40:240],
            "hard_query": known[20:40],
            "distractors": rows[test.labels >= 8],
        }
        parts = {
            name: dataclasses.replace(test.take(chosen, f"{test.fingerprint}{name}"), name=name)
            for name, chosen in cuts.items()
        }
        nobody = np.full(len(parts["distractors"]), -1, dtype=np.int64)
        parts["distractors"] = dataclasses.replace(parts["distractors"], labels=nobody)
        return {"train": splits["train"], "val": splits["val"], **parts}

    def test_sets(self, names):
        return {
            "test": {"query": "query", "gallery": "gallery"},
            "hard": {"query": "hard_query", "gallery": "gallery"},
            "hard_more": {
                "query": "hard_query",
                "gallery": "gallery",
                "distractors": "distractors",
            },
        }
