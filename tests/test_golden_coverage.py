"""No reference vector lies unused: the run of the tests must have opened every one."""

from pathlib import Path

import pytest

GOLDEN = Path(__file__).parent / "golden"


def test_every_reference_vector_is_exercised(request, opened_vectors):
    if request.config.args != ["tests"] or request.config.option.keyword:
        pytest.skip("only the whole suite opens all vectors")
    vectors = {
        path.resolve() for path in GOLDEN.rglob("*") if path.suffix in {".npz", ".csv", ".json"}
    }
    assert len(vectors) > 40
    unused = sorted(str(path.relative_to(GOLDEN)) for path in vectors - opened_vectors)
    assert not unused, f"reference vectors that no test has opened: {unused}"


def test_every_folder_of_vectors_says_where_they_come_from():
    for folder in GOLDEN.iterdir():
        assert (folder / "README.md").is_file(), folder
