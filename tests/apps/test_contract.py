"""`noisyml contract`: whose tiny settings a class from elsewhere is trained with."""

import pytest
import yaml

from noisyml.apps.contract import _nearest, _recipe
from noisyml.methods.classification.base import Classification
from noisyml.methods.classification.cdr import CDR
from noisyml.methods.metric_learning.base import MetricLearning
from noisyml.methods.metric_learning.iaa import IAA
from noisyml.methods.multilabel.base import MultiLabel


@pytest.mark.long
@pytest.mark.parametrize(
    ("base", "option"),
    [
        (Classification, "classification"),
        (CDR, "cdr"),
        (MetricLearning, "prism"),
        (IAA, "iaa"),
        (MultiLabel, "multilabel"),
    ],
)
def test_the_method_it_derives_from_or_one_of_the_same_task_is_nearest(base, option):
    assert _nearest(type("Mine", (base,), {}))[0] == option


class Mine(CDR):
    """A method from elsewhere."""


def test_a_class_gets_the_settings_of_its_base_and_what_was_typed(tmp_path):
    folder = tmp_path / "method"
    name, recipe = _recipe(f"{__name__}.Mine", ["method.gradual_epochs=3"], folder)
    node = yaml.safe_load((folder / "mine.yaml").read_text())["method"]
    assert node["_target_"] == f"{__name__}.Mine"
    assert "noise_rate" in node
    assert (name, recipe.parts["method"]) == ("mine", "mine")
    assert recipe.settings["method"] == {"gradual_epochs": 3}
    assert recipe.settings["loss"] == {"estimation_epoch": 1}
