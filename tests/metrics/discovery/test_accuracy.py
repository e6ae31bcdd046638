"""Clusters matched to classes, against the released evaluations."""

from __future__ import annotations

import functools
import math

import pytest
import torch
from support import paths, vectors
from support.vectors import close

from noisyml.metrics.discovery.accuracy import (
    discovery_accuracy,
    match,
    split_discovery_accuracy,
)

tensors = functools.partial(vectors.tensors, paths.GOLDEN / "promptcal")


@pytest.mark.parametrize("name", ["acc_a", "acc_b", "acc_c"])
def test_both_evaluations_are_the_released_ones(name):
    case = tensors(name)
    clusters, labels, old = case["y_pred"], case["y_true"], case["old_mask"]
    close(list(discovery_accuracy(clusters, labels, old)), case["acc_v2"])
    close(list(split_discovery_accuracy(clusters, labels, old)), case["acc_v1"])
    found = match(clusters, labels)
    k, c = found.counts.shape
    assert torch.equal(found.counts, case["counts"][:k, :c])
    assert case["counts"].sum() == found.counts.sum()
    close(discovery_accuracy(clusters, labels, old).all, float(case["acc"]))


@pytest.mark.parametrize("name", ["sskmeans_a", "sskmeans_b", "sskmeans_c"])
def test_clusters_of_the_release_have_its_accuracies(name):
    case = tensors(name)
    n_labelled = len(case["l_feats"])
    clusters, labels = case["best_labels"][n_labelled:], case["u_targets"]
    old = labels < int(case["hp"][1])
    close(list(discovery_accuracy(clusters, labels, old)), case["acc_v2"], equal_nan=True)
    if bool(old.all()):
        return
    close(list(split_discovery_accuracy(clusters, labels, old)), case["acc_v1"])


def test_perfect_clusters_score_one_whatever_their_numbers():
    labels = torch.arange(5).repeat(4)
    clusters = torch.tensor([3, 0, 4, 1, 2])[labels]
    assert discovery_accuracy(clusters, labels, labels < 2) == (1, 1, 1)
    assert split_discovery_accuracy(clusters, labels, labels < 2) == (1, 1, 1)


def test_without_new_samples_there_is_no_new_accuracy():
    labels = torch.arange(3).repeat(2)
    found = discovery_accuracy(labels, labels, labels >= 0)
    assert found.old == 1
    assert math.isnan(found.new)
    found = split_discovery_accuracy(labels, labels, labels >= 0)
    assert found.all == 1
    assert math.isnan(found.new)


def test_shapes_that_differ_are_refused():
    with pytest.raises(ValueError, match="must both be"):
        match(torch.zeros(2, dtype=torch.int64), torch.zeros(3, dtype=torch.int64))
