"""Reference vectors: where they come from, and that an unused one would be found."""

from support.reference_vectors import GOLDEN, unused_vectors


def test_a_vector_that_no_test_opened_is_found():
    everything = {str(path.resolve()) for path in GOLDEN.rglob("*")}
    assert len(unused_vectors(set())) > 40
    assert not unused_vectors(everything)
    missed = (GOLDEN / "rkd" / "recall.npz").resolve()
    assert unused_vectors(everything - {str(missed)}) == ["rkd/recall.npz"]


def test_every_folder_of_vectors_says_where_they_come_from():
    for folder in GOLDEN.iterdir():
        assert (folder / "README.md").is_file(), folder
