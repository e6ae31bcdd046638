"""The claims tried again: their effects stay where the package keeps them. Slow: an hour."""

import json

import pytest

from noisyml.reproduce.verdicts import stored_results

pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200)]

#: Least distance of an effect that counts, fraction of 1: another processor rounds otherwise.
LEAST = 0.02


def test_effects_are_those_that_are_kept(shell):
    status, said = shell("reproduce", "claims")
    assert status == 0, said
    file = shell.folder / "outputs" / "reproduce" / "claims.json"
    found = json.loads(file.read_text())
    apart = {}
    for name, stored in stored_results().items():
        expected = stored.difference
        if expected.count < 2:
            continue
        reach = max(LEAST, expected.high - expected.mean)
        if abs(found[name]["effect"] - expected.mean) > reach:
            apart[name] = (found[name]["effect"], expected.mean)
    assert apart == {}
