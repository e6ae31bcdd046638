"""Judgements of samples and of entries."""

import numpy as np
import pytest
import torch

from noisyml.targets.entries import (
    as_judged,
    by_entry,
    entry_classes,
    entry_numbers,
    entry_texts,
    positions_of,
)

INDEX = np.array([4, 0, 7])


@pytest.mark.parametrize("classes", [0, 3])
def test_numbers_lead_back_to_positions(classes):
    position, entry = positions_of(entry_numbers(INDEX, classes).ravel(), classes)
    np.testing.assert_array_equal(position, np.repeat(INDEX, max(classes, 1)))
    assert entry is None if classes == 0 else entry.tolist() == [0, 1, 2] * 3


def test_a_sample_judged_as_a_whole_has_any_of_its_marks():
    marks = np.array([[True, False], [False, False]])
    assert as_judged(marks, 0).tolist() == [True, False]
    np.testing.assert_array_equal(as_judged(marks, 2), marks)
    np.testing.assert_array_equal(as_judged(marks[0], 0), marks[0])


def test_marks_of_samples_become_a_column():
    assert by_entry(torch.ones(0, dtype=torch.bool)).shape == (0, 1)
    assert by_entry(torch.ones(2, 3)).shape == (2, 3)
    assert entry_classes(torch.ones(2, 3)) == 3


def test_words_for_entries():
    texts = entry_texts(np.array([1, 0, -1]), np.array([0, 1, 1]), ["ant", "bee"])
    assert texts == ["ant", "no bee", ""]
