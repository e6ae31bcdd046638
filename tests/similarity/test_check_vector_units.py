"""`scripts/check_vector_units.py` tells bits apart, and says what it could not compare."""

import sys

import pytest
from support import paths

sys.path.insert(0, str(paths.ROOT / "scripts"))
import check_vector_units


def test_other_bits_and_units_that_are_not_there_are_named():
    machine = check_vector_units.Machine("a machine", ("fast", "plain"))
    assert check_vector_units.faults(machine, {"fast": "1", "plain": "1"}, "1") == []
    assert check_vector_units.faults(machine, {"plain": "2"}, "1") == [
        "a machine: fast is not there",
        "a machine: plain gives other bits than plain C",
    ]


def test_tools_that_are_not_installed_are_said(monkeypatch, capsys):
    machine = check_vector_units.Machine("a machine", compiler="no-such-compiler")
    monkeypatch.setattr(check_vector_units, "MACHINES", (machine,))
    assert check_vector_units.main([]) == 0
    said = capsys.readouterr().out
    assert "a machine: not compared, for no-such-compiler is not installed." in said
    assert "the same bits" not in said


@pytest.mark.slow
def test_all_units_give_the_same_bits():
    assert check_vector_units.main(["--rounds", "60"]) == 0
