"""Values that a signature does not allow, and the sentences they are answered with."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import pytest
from torch import Tensor, nn

from noisyml.checks import (
    ArgumentError,
    Checked,
    Count,
    Ge,
    Gt,
    Hint,
    Interval,
    OpenShare,
    Positive,
    Share,
    Unbounded,
    check_arguments,
    check_fields,
    checked,
)
from noisyml.errors import UserError


class Example(Checked, nn.Module):
    def __init__(
        self,
        when: Literal["after", "before"] = "after",
        rate: OpenShare = 0.5,
        size: Count | None = None,
        widths: Sequence[Count] = (1,),
        betas: tuple[OpenShare, OpenShare] = (0.9, 0.999),
        groups: Mapping[str, Mapping[str, Any]] | None = None,
        *,
        on: bool = True,
        limit: Unbounded = math.inf,
        scale: Positive = 1.0,
        guess: Annotated[Share, Hint("It is the share of wrong labels, e.g. 0.2.")] = 0.2,
        weight: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.when, self.size = when, size


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"when": "befor"}, "when=befor must be after or before. Did you mean 'before'?"),
        ({"when": None}, "when=null must be after or before."),
        ({"rate": 1.0}, "rate=1.0 must be a number from 0 to below 1."),
        ({"rate": -0.1}, "rate=-0.1 must be a number from 0 to below 1."),
        ({"rate": math.nan}, "rate=nan must be a number from 0 to below 1."),
        ({"rate": True}, "rate=true must be a number from 0 to below 1."),
        ({"rate": "half"}, "rate=half must be a number from 0 to below 1."),
        ({"size": 0}, "size=0 must be a whole number of at least 1 or null."),
        ({"size": 1.5}, "size=1.5 must be a whole number of at least 1 or null."),
        ({"widths": [4, 0]}, "widths[1]=0 must be a whole number of at least 1."),
        ({"widths": 4}, "widths=4 must be a list of whole numbers of at least 1."),
        ({"betas": [0.9]}, "betas=[0.9] must be a list of 2: a number from 0 to below 1, a number"),
        ({"betas": [0.9, 1]}, "betas[1]=1 must be a number from 0 to below 1."),
        ({"groups": {"loss": 3}}, "groups.loss=3 must be a mapping."),
        ({"on": 1}, "on=1 must be true or false."),
        ({"limit": math.nan}, ""),
        ({"scale": math.inf}, "scale=inf must be a number above 0."),
        ({"guess": 20}, "guess=20 must be a number from 0 to 1. It is the share of wrong labels"),
    ],
)
def test_a_wrong_value_is_answered_with_one_sentence(given, sentence):
    if not sentence:  # an infinite number may be asked for, and then NaN cannot be told from it
        Example(**given)
        return
    with pytest.raises(ArgumentError) as caught:
        Example(**given)
    assert str(caught.value).startswith(sentence)
    assert isinstance(caught.value, UserError)
    below = caught.value.below("method")
    assert str(below) == f"method.{caught.value}"


@pytest.mark.parametrize(
    "given",
    [
        {"rate": 0},
        {"rate": np.float32(0.25)},
        {"size": np.int64(3)},
        {"size": None},
        {"widths": np.array([1, 2])},
        {"widths": (3, 2)},
        {"betas": [0.5, 0]},
        {"groups": {"loss": {"lr": 0.1}}},
        {"limit": math.inf},
        {"weight": "not compared"},
    ],
)
def test_what_fits_passes(given):
    Example(**given)


def test_a_subclass_is_checked_by_its_own_signature_and_that_of_its_base():
    class Child(Example):
        def __init__(self, more: Annotated[int, Ge(2)] = 2, **others: Any) -> None:
            super().__init__(**others)

    with pytest.raises(ArgumentError, match="more=1 must be a whole number of at least 2"):
        Child(more=1)
    with pytest.raises(ArgumentError, match="rate=2 must"):
        Child(rate=2)


def test_a_call_that_python_refuses_is_left_to_python():
    with pytest.raises(TypeError, match="nonsense"):
        Example(nonsense=1)


def test_functions_and_dataclasses():
    @checked
    def rise(share: Annotated[float, Interval(gt=0, le=1)]) -> float:
        return share

    assert rise(1) == 1
    with pytest.raises(ArgumentError, match="share=0 must be a number above 0 and at most 1"):
        rise(share=0)
    with pytest.raises(ArgumentError, match="share=2"):
        check_arguments(rise, {"share": 2, "other": None})

    @dataclass(frozen=True)
    class Record:
        width: Annotated[float, Gt(0)] = 1.0

        def __post_init__(self) -> None:
            check_fields(self)

    with pytest.raises(ArgumentError, match="width=0 must be a number above 0"):
        Record(width=0)


@pytest.mark.parametrize("value", [None, ["new"]])
def test_a_text_that_looks_like_a_list_is_told_how_to_be_written(value):
    @checked
    def opened(path: str) -> str:
        return path

    with pytest.raises(UserError, match=r"must be a word\. A text that looks like this stands"):
        opened(value)
    assert opened("[new]") == "[new]"
