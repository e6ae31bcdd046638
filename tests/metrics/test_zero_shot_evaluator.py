"""Zero-shot recognition of a split: what is counted, and how often."""

import numpy as np
import pytest
import torch

from noisyml.errors import UserError
from noisyml.metrics.zero_shot_evaluator import ZeroShotEvaluator
from noisyml.targets import PAIRS

PLACES = {"ant": [1.0, 0.0], "bee": [0.0, 1.0], "cat": [-1.0, 0.0]}


def embed(texts):
    return torch.tensor([PLACES[text.removeprefix("a photo of ").rstrip(".")] for text in texts])


def show(evaluator, images, captions, index=None):
    targets = PAIRS.tensor(np.array(captions, dtype=object))
    index = torch.arange(len(images)) if index is None else torch.tensor(index)
    evaluator.update({"embeddings": torch.tensor(images)}, targets, index)


IMAGES = [[2.0, 0.1], [0.3, 1.0], [1.0, 0.2], [-1.0, 0.1]]
CAPTIONS = ["ant", "bee", "bee", "cat"]


@pytest.mark.parametrize("templates", [["{}"], ["{}", "a photo of {}."]])
def test_accuracies_and_recalls(templates):
    evaluator = ZeroShotEvaluator(templates, top_k=[2], recall_at=[1, 2])
    evaluator.begin(sorted(PLACES), embed)
    show(evaluator, IMAGES[:3], CAPTIONS[:3])
    # A sample that a sampler repeated counts once.
    show(evaluator, IMAGES[2:], CAPTIONS[2:], [2, 3])
    found = evaluator.compute()
    assert found["accuracy"] == found["image_to_text_recall_at_1"] == 0.75
    assert found["accuracy_top2"] == found["image_to_text_recall_at_2"] == 1.0
    assert found["accuracy_per_class"] == pytest.approx((1 + 0.5 + 1) / 3)
    assert found["text_to_image_recall_at_1"] == 1.0
    assert found["text_to_image_recall_at_2"] == 1.0
    plain = ZeroShotEvaluator(templates, recall_at=[])
    plain.begin(sorted(PLACES), embed)
    show(plain, IMAGES, CAPTIONS)
    assert set(plain.compute()) == {"accuracy", "accuracy_per_class"}


def test_more_classes_than_the_split_has():
    evaluator = ZeroShotEvaluator(classes=["cat", "bee", "ant"], recall_at=[1])
    evaluator.begin(["ant", "bee"], embed)
    show(evaluator, [[1.0, 0.2], [-1.0, 0.2]], ["ant", "bee"])
    found = evaluator.compute()
    assert found["accuracy"] == 0.5
    assert found["image_to_text_recall_at_1"] == 1.0


def test_classes_and_templates_come_from_files(tmp_path):
    names, prompts = tmp_path / "names.txt", tmp_path / "prompts.txt"
    names.write_text("cat\nbee\nant\n")
    prompts.write_text("{}\na photo of {}.\n")
    evaluator = ZeroShotEvaluator(str(prompts), classes=str(names), recall_at=[])
    assert evaluator.classes == ["cat", "bee", "ant"]
    assert evaluator.templates == ["{}", "a photo of {}."]
    assert ZeroShotEvaluator("a photo of {}.").templates == ["a photo of {}."]
    evaluator.begin(["ant", "bee"], embed)
    show(evaluator, [[1.0, 0.2], [-1.0, 0.2]], ["ant", "bee"])
    assert evaluator.compute()["accuracy"] == 0.5
    with pytest.raises(UserError, match="no file of prompt templates"):
        ZeroShotEvaluator(str(tmp_path / "none.txt"))


def test_what_is_missing_is_said():
    evaluator = ZeroShotEvaluator(classes=["ant", "bee"])
    with pytest.raises(UserError, match="'cat', which is none of the 2 names"):
        evaluator.begin(["cat"], embed)
    with pytest.raises(UserError, match="a model that embeds texts"):
        show(ZeroShotEvaluator(), IMAGES, CAPTIONS)
    evaluator.begin(["ant"], embed)
    with pytest.raises(UserError, match="seen no sample"):
        evaluator.compute()
    with pytest.raises(UserError, match=r"has no \{\}"):
        ZeroShotEvaluator(["photo"])
