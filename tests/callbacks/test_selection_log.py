"""What the selection log can score when only part of the truth is known."""

import numpy as np
import torch

from noisyml.callbacks.selection_log import SelectionLog
from noisyml.noise import NoNoise


def test_only_samples_of_known_truth_are_scored(tmp_path):
    log = SelectionLog(str(tmp_path / "selection.parquet"))
    real = NoNoise().inject([0, 1, 2, 0, 1, 2], 3)
    # Right, wrong for another class, wrong for nobody knows which, and three never looked at.
    log.manifest = real.with_unknown_truth(np.array([0, 2, -2, -1, -1, -1]))
    index = torch.arange(6)
    keep = torch.tensor([True, False, True, True, True, False])
    scores = log._metrics(index, keep, torch.tensor([0.9, 0.1, 0.2, 0.0, 0.0, 1.0]))
    assert scores["selection/kept"] == 4 / 6
    assert scores["selection/precision"] == 1 / 2
    assert scores["selection/recall"] == 1.0
    assert scores["selection/auroc"] == 1.0
    log.manifest = real.with_unknown_truth()
    assert list(log._metrics(index, keep, keep.float())) == ["selection/kept"]
