"""Embeddings and labels as they come: tensors, arrays, memory maps, names."""

import numpy as np
import pytest
import torch

from noisyml.metrics.retrieval import retrieval_metrics


def test_arrays_memory_maps_and_names_give_the_same_as_tensors(tmp_path):
    rows = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)
    labels = np.arange(30) % 5
    np.save(tmp_path / "rows.npy", rows)
    mapped = np.load(tmp_path / "rows.npy", mmap_mode="r")
    names = np.array(["ä", "b", "cc", "1", "10"])[labels]
    expected = retrieval_metrics(torch.tensor(rows), torch.tensor(labels))
    for given in (labels, labels.tolist(), names, names.tolist(), names.astype(object)):
        assert retrieval_metrics(rows, given) == expected
        assert retrieval_metrics(mapped, given) == expected
    split = retrieval_metrics(
        torch.tensor(rows[:9]), torch.tensor(labels[:9]), torch.tensor(rows[9:]), labels[9:]
    )
    assert retrieval_metrics(mapped[:9], names[:9], mapped[9:], names[9:].tolist()) == split


def test_names_on_one_side_alone_are_refused():
    rows = np.eye(2, dtype=np.float32)
    with pytest.raises(TypeError, match="both be strings"):
        retrieval_metrics(rows, ["a", "b"], rows, [0, 1])
