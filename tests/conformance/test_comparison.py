"""What the comparison of two runs says to the author of a method."""

import numpy as np
import pandas as pd
import pytest

from noisyml.conformance.comparison import assert_equal
from noisyml.conformance.recipes import Recipe


def runs(folder, **columns):
    """Run folders of ten steps, with a history only: the losses of one and of two processes."""
    for name in ("one", "two"):
        (folder / name).mkdir()
        history = {"train/loss": np.linspace(2, 1, 10)} | columns.get(name, {})
        pd.DataFrame(history).to_csv(folder / name / "history.csv")
    return folder / "one", folder / "two", Recipe({}, {}, 5)


@pytest.mark.parametrize(
    ("two", "sentence"),
    [
        (
            {"train/loss": [*np.linspace(2, 1, 10)[:4], 9, 8, 7, 6, 5, 4]},
            "in step 4 two processes have the loss 9 and one 1.55555556.*agreed_generator",
        ),
        ({"train/centre": np.ones(10)}, "only one of the runs logs train/centre"),
        ({"train/loss": [*range(9), None]}, "a step has no loss"),
    ],
)
def test_the_first_difference_is_named_with_its_likely_cause(tmp_path, two, sentence):
    with pytest.raises(AssertionError, match=sentence):
        assert_equal(*runs(tmp_path, two=two))
