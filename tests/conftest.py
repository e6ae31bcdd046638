"""Which reference vectors the tests have opened; the test that asks runs last."""

import sys
from pathlib import Path

import pytest

GOLDEN = Path(__file__).parent / "golden"
OPENED: set[Path] = set()


def _note(event, arguments):
    if event == "open" and arguments and isinstance(arguments[0], str):
        path = arguments[0]
        if "golden" in path:
            OPENED.add(Path(path).resolve())


sys.addaudithook(_note)


@pytest.fixture
def opened_vectors():
    """The files under ``golden`` opened so far in this run of the tests."""
    return OPENED


def pytest_collection_modifyitems(items):
    """The check of what was opened comes after everything that opens."""
    items.sort(key=lambda item: item.path.name == "test_golden_coverage.py")
