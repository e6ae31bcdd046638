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


def test_capped_metrics_divide_by_what_can_be_found():
    angles = torch.tensor([0.0, 0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    rows = torch.stack([angles.cos(), angles.sin()], dim=1)
    names = [
        f"{kind}_at_{k}"
        for kind in ("precision", "precision_capped", "map", "map_capped")
        for k in (2, 4)
    ]
    # The others come at ranks 1 to 4; relevant are those at 1 and 3.
    found = retrieval_metrics(rows[:1], [1], rows[1:], [1, 0, 1, 0], metrics=names)
    assert [round(found[name], 6) for name in names] == [
        *(0.5, 0.5),  # 1 / 2, 2 / 4
        *(0.5, 0.666667),  # 1 / 2, 2 / 3
        *(0.5, 0.833333),  # 1 / 2, (1 + 2/3) / 2
        *(0.5, 0.833333),
    ]
    first = retrieval_metrics(rows[:1], [1], rows[1:], [1, 0, 1, 0], metrics=names[4:7:2])
    many = retrieval_metrics(
        rows[:1], [1], rows[1:], [1, 1, 1, 0], metrics=["map_at_2", "map_capped_at_2"]
    )
    assert first["map_at_2"] == first["map_capped_at_2"] == 0.5
    assert (round(many["map_at_2"], 6), many["map_capped_at_2"]) == (0.666667, 1.0)
