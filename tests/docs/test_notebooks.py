"""Notebooks are those of their sources, small, of no machine, and run."""

import nbformat
import pytest

from scripts.docs_site import notebooks

SOURCES = notebooks.sources()
#: Bytes of a notebook with its pictures.
LARGEST = 150_000


def stored(source):
    return nbformat.read(source.with_suffix(".ipynb"), as_version=4)


def test_there_are_three():
    assert [source.stem for source in SOURCES] == ["clean", "compare", "reproduce"]


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)
def test_a_notebook_is_that_of_its_source(source):
    """If it is not: ``make notebooks``."""
    made = notebooks.from_source(source.read_text(encoding="utf-8"))
    found = stored(source)
    nbformat.validate(found)
    assert [(c.cell_type, c.source) for c in made.cells] == [
        (c.cell_type, c.source) for c in found.cells
    ]
    assert all(c.outputs or c.execution_count for c in found.cells if c.cell_type == "code")
    assert found.cells[-1].outputs, "the last cell shows something"


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)
def test_a_notebook_is_small_and_names_no_folder_of_a_machine(source):
    text = source.with_suffix(".ipynb").read_text(encoding="utf-8")
    assert len(text) < LARGEST
    for place in ("/tmp", "/root", "/home", "/work", "/Users"):
        assert place not in text


@pytest.mark.slow  # `make test-notebooks`, which CI runs
@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)
def test_a_notebook_runs(source):
    found = notebooks.executed(notebooks.from_source(source.read_text(encoding="utf-8")))
    kinds = [[o.output_type for o in c.get("outputs", [])] for c in found.cells]
    assert kinds == [[o.output_type for o in c.get("outputs", [])] for c in stored(source).cells]
