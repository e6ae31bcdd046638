"""Captions answer the questions that every kind of labels answers."""

import numpy as np
import pytest

from noisyml.storage.parquet import from_column
from noisyml.targets import PAIRS, SINGLE, label_fields, target_of, texts_of

TEXTS = np.array(["a café", "b", "a café", "日本"], dtype=object)


def test_texts_are_recognised_whatever_holds_them():
    for texts in (TEXTS, TEXTS.tolist(), np.array(TEXTS, dtype=str), tuple(TEXTS)):
        assert target_of(texts) is PAIRS
    assert target_of(np.array([], dtype=object)) is SINGLE
    assert target_of([1, 2]) is SINGLE
    checked = PAIRS.checked(np.array(TEXTS, dtype=str), 0)
    assert checked.dtype == object
    assert all(type(text) is str for text in checked)
    with pytest.raises(TypeError, match="texts"):
        PAIRS.checked([1, "a"], 0)


def test_captions_of_a_batch_are_bytes_and_come_back():
    fields = label_fields(TEXTS, np.array([3, 0]))
    assert fields["caption"].shape == (2, 7)
    assert texts_of(fields["caption"]) == ["日本", "a café"]
    assert texts_of(PAIRS.tensor(TEXTS[:0])) == []


def test_content_and_columns():
    assert PAIRS.content(np.array(["ab", "c"], dtype=object)) != PAIRS.content(
        np.array(["a", "bc"], dtype=object)
    )
    column = PAIRS.to_column(TEXTS)
    assert column.to_pylist() == TEXTS.tolist()
    import pyarrow as pa

    table = pa.table({"observed": column})
    assert from_column(table["observed"]).tolist() == TEXTS.tolist()


def test_groups_facts_and_marks():
    numbers, names, shown = PAIRS.groups(TEXTS, [], 1)
    assert [names[i] for i in numbers] == TEXTS.tolist()
    assert names[shown[0]] == "a café"
    assert PAIRS.facts(TEXTS) == {"captions": "3", "words per caption": "1.5"}
    assert PAIRS.shown("b") == "'b'"
    clean = np.array(["a café", "c", "", "日本"], dtype=object)
    assert PAIRS.changed(TEXTS, clean).tolist() == [False, True, True, False]
    assert PAIRS.differing(clean, TEXTS).tolist() == [1]
    known, wrong = PAIRS.truth(TEXTS, clean)
    assert wrong.tolist() == [False, True, False, False]
    assert PAIRS.unknown(known, wrong).tolist() == [False, False, True, False]
    assert PAIRS.strata(TEXTS).tolist() == [0] * 4
    assert PAIRS.summary(TEXTS, clean) == {"captions": {"observed": 3, "clean": 4}}
