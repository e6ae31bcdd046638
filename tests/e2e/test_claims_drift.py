"""The claims tried again: their effects stay where the package keeps them. Slow: an hour in all.

One of them: ``pytest -m slow tests/e2e/test_claims_drift.py -k tldr_neighbours``.
"""

import json

import pytest

from noisyml.reproduce.verdicts import stored_results

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

#: Least distance of an effect that counts, fraction of 1: another processor rounds otherwise.
LEAST = 0.02
STORED = {name: kept for name, kept in stored_results().items() if kept.difference.count > 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder for all claims: some share their runs."""
    return tmp_path_factory.mktemp("claims")


@pytest.mark.parametrize("name", STORED)
def test_the_effect_is_that_which_is_kept(name, shell, folder):
    kept = STORED[name]
    status, said = shell(
        *("reproduce", "claims", name, f"seeds={len(kept.first)}", f"out={folder}")
    )
    if status == 2 and "their data are missing" in said:
        pytest.skip("its data are not on this machine")
    assert status == 0, said
    found = json.loads((folder / "claims.json").read_text())[name]
    expected = kept.difference
    reach = max(LEAST, expected.high - expected.mean)
    assert found["effect"] == pytest.approx(expected.mean, abs=reach)
