"""Data sets whose labels are wrong where no label is to be used."""

from dataclasses import replace

import numpy as np

from noisyml.data.datasets.embedded.digits import Digits
from noisyml.data.labelled import LabelledPart


class LyingDigits(Digits):
    """Digits whose training labels are wrong where no label is to be used."""

    def splits(self):
        """The splits, with other labels behind all but the labelled samples."""
        splits = super().splits()
        train = LabelledPart(size=60).apply(splits)["train"]
        wrong = np.where(train.labelled, train.labels, (train.labels + 3) % 10)
        splits["train"] = replace(train, labels=wrong)
        return splits
