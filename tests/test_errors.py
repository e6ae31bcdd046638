"""What the package's errors are made of."""

import pytest

from noisyml.errors import UserError, causes


def test_each_cause_comes_once_also_in_a_circle():
    first, second = KeyError("a"), UserError("b")
    second.__cause__ = first
    assert [*causes(second)] == [second, first]
    first.__cause__ = second
    assert [*causes(second)] == [second, first]


def test_an_error_during_another_leads_to_it():
    def fail():
        try:
            raise OSError(28, "full")
        except OSError:
            raise ValueError("x")  # noqa: B904

    with pytest.raises(ValueError, match="x") as raised:
        fail()
    assert [type(link) for link in causes(raised.value)] == [ValueError, OSError]
