"""Intersection over union: reference values, torchmetrics, several ranks, what is absent."""

import numpy as np
import pytest
import torch
from support import paths
from torchmetrics.classification import MulticlassJaccardIndex

from noisyml.errors import UserError
from noisyml.metrics.segmentation.evaluator import (
    SegmentationEvaluator,
    class_ious,
    mean_iou,
    pixel_statistics,
)
from noisyml.targets.masks import pixel_confusion


def evaluator(classes=3, **settings):
    found = SegmentationEvaluator(**settings)
    found.class_names = [f"c{i}" for i in range(classes)]
    return found


def test_reference_values():
    v = dict(np.load(paths.GOLDEN / "gist_rist" / "miou.npz"))
    classes = int(v["num_classes"])
    predicted, given = (torch.from_numpy(v[name]).view(1, 20, 20) for name in ("pred", "gt"))
    pages = (v[name].astype(np.uint8).reshape(20, 20) for name in ("pred", "gt"))
    found = pixel_confusion(*pages, classes)
    assert np.array_equal(found, v["confusion"])
    statistics = pixel_statistics(predicted, given, classes).sum(0)
    np.testing.assert_allclose(class_ious(statistics).numpy(), v["iou_per_class"], rtol=1e-9)
    for average, name in (
        ("union", "miou_over_classes_with_union"),
        ("ground_truth", "miou_over_classes_in_gt"),
        ("released", "miou_released"),
    ):
        np.testing.assert_allclose(mean_iou(statistics, average), v[name], rtol=1e-9)
    metric = evaluator(classes)
    metric.update({"class_map": predicted}, given, torch.tensor([0]))
    np.testing.assert_allclose(metric.compute()["pixel_accuracy"], v["pixel_accuracy"], rtol=1e-9)


def drawn(n=7, classes=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    predicted = torch.randint(0, classes, (n, 6, 5), generator=generator)
    given = torch.randint(0, classes, (n, 6, 5), generator=generator)
    given[torch.rand(n, 6, 5, generator=generator) < 0.2] = 255
    return predicted, given


def test_it_is_what_torchmetrics_says_of_the_whole_split():
    predicted, given = drawn()
    whole = MulticlassJaccardIndex(num_classes=5, average="macro", ignore_index=255)
    expected = float(whole(predicted, given))  # the fifth class is absent
    metric = evaluator(5, per_class=True)
    for part in (slice(0, 3), slice(3, 7)):
        metric.update({"class_map": predicted[part]}, given[part], torch.arange(7)[part])
    found = metric.compute()
    assert found["miou"] == pytest.approx(expected, abs=1e-6)
    assert "iou/c4" not in found
    assert "iou/c3" in found


def test_an_image_that_comes_twice_counts_once():
    predicted, given = drawn()
    once, twice = evaluator(4), evaluator(4)
    once.update({"class_map": predicted}, given, torch.arange(7))
    twice.update({"class_map": predicted}, given, torch.arange(7))
    twice.update({"class_map": predicted[2:4]}, given[2:4], torch.tensor([2, 3]))
    assert once.compute() == twice.compute()


def test_what_is_no_mask_is_refused():
    metric = evaluator()
    with pytest.raises(UserError, match="mask per image"):
        metric.update({"class_map": torch.zeros(2, 3, 3)}, torch.zeros(2), torch.arange(2))
    with pytest.raises(UserError, match="height, width"):
        metric.update({"class_map": torch.zeros(2, 3, 3)}, torch.zeros(2, 4, 3), torch.arange(2))
    with pytest.raises(UserError, match="no image"):
        evaluator().compute()
