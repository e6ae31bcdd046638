"""Losses of category discovery against the released ones, values and gradients."""

from __future__ import annotations

import functools
import math

import pytest
import torch
import torch.nn.functional as F
from support import paths, vectors
from support.vectors import close

from noisyml.losses.discovery.affinity import (
    PairMasks,
    affinity_weight,
    contrastive_affinity,
    edge_agreement,
    fading_weight,
    follow_labels,
    links,
    sample_negatives,
)
from noisyml.losses.discovery.contrast import (
    info_nce,
    masked_mean,
    other_view,
    supervised_contrast,
)
from noisyml.losses.discovery.self_distillation import entropy_gap, self_distillation, sharpening
from noisyml.similarity.diffusion import query_affinity

tensors = functools.partial(vectors.tensors, paths.GOLDEN / "promptcal")


def given_labels(case):
    return torch.where(case["mask_lab"], case["labels"], -1).repeat(2)


@pytest.mark.parametrize("name", ["stage1_loss_a", "stage1_loss_b"])
def test_stage_one_is_the_released_one(name):
    case = tensors(name)
    supervised, prompts, unsupervised_t, supervised_t = case["hp"].tolist()
    labels = given_labels(case)
    total, raws = 0.0, {}
    for side, weight in (("cls", 1.0), ("dpr", prompts)):
        raw = raws[side] = case[f"raw_{side}"].requires_grad_()
        rows = F.normalize(raw, dim=1)
        apart = info_nce(rows, rows, unsupervised_t).mean()
        known = supervised_contrast(rows, rows, labels, supervised_t)
        together = masked_mean(known, labels >= 0)
        close(apart, case[f"infonce_{side}"])
        close(together, case[f"supcon_{side}"])
        loss = (1 - supervised) * apart + supervised * together
        close(loss, case[f"loss_{side}"])
        total = total + weight * loss
        logits = case[f"logits_{side}"]
        positive = (rows * other_view(rows)).sum(1) / unsupervised_t
        close(positive, logits[:, 0])
        others = (rows @ rows.T / unsupervised_t).fill_diagonal_(-math.inf)
        close(others.logsumexp(1), logits.logsumexp(1))
    close(total, case["total"])
    total.backward()
    for side, raw in raws.items():
        close(raw.grad, case[f"grad_raw_{side}"], rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", ["stage2_contrast_a", "stage2_contrast_b"])
def test_a_students_rows_meet_its_teachers_columns(name):
    case = tensors(name)
    unsupervised_t, supervised_t = case["hp"].tolist()
    labels = given_labels(case)
    raw = case["raw_student"].requires_grad_()
    apart = info_nce(F.normalize(raw, dim=1), case["teacher"], unsupervised_t).mean()
    close(apart, case["unsup"])
    close(torch.autograd.grad(apart, raw)[0], case["grad_unsup"], rtol=1e-8, atol=1e-10)
    known = supervised_contrast(F.normalize(raw, dim=1), case["teacher"], labels, supervised_t)
    together = masked_mean(known, labels >= 0)
    close(together, case["sup"])
    close(torch.autograd.grad(together, raw)[0], case["grad_sup"], rtol=1e-8, atol=1e-10)
    # Logits of the release hold the positive first, then the others in order.
    close(case["logits_unsup"].logsumexp(1) - case["logits_unsup"][:, 0], apart_rows(case))


def apart_rows(case):
    return info_nce(F.normalize(case["raw_student"].detach(), dim=1), case["teacher"], 1.0)


def test_a_batch_without_labels_teaches_nothing():
    rows = F.normalize(torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), dim=1)
    rows.requires_grad_()
    none = torch.full((6,), -1)
    loss = masked_mean(supervised_contrast(rows, rows, none), none >= 0)
    assert loss == 0
    assert torch.autograd.grad(loss, rows)[0].abs().max() == 0


def test_pretrained_features_are_followed_by_their_squared_difference():
    case = tensors("inkd")
    student = case["student_cls"].requires_grad_()
    loss = F.mse_loss(F.normalize(student, dim=1), F.normalize(case["frozen_cls"], dim=1))
    close(loss, case["loss"])
    close(torch.autograd.grad(loss, student)[0], case["grad_student"], rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", ["cal_a", "cal_b", "cal_c"])
def test_affinity_is_the_released_one(name):
    case = tensors(name)
    k, quantile, budget, temperature, _ = case["hp"].tolist()
    found = query_affinity(case["teacher_query"], case["memory"], k=int(k), quantile=quantile)
    assert torch.equal(found.edges, case["affinity_before"])

    labels = given_labels(case)
    memory_labels = torch.where(case["memory_labelled"] > 0, case["memory_labels"], -1).long()
    must, cannot = links(labels, memory_labels)
    assert torch.equal(must, case["must_link"])
    assert torch.equal(cannot, case["cannot_link"])
    masks = follow_labels(PairMasks(found.edges, case["negatives_before"]), labels, memory_labels)
    assert torch.equal(masks.positives, case["affinity_after"])
    assert torch.equal(masks.negatives, case["negatives_after"])

    drawn = sample_negatives(
        found.edges,
        None if budget < 0 else int(budget),
        torch.Generator().manual_seed(1),
        overdraft="released",
    )
    assert torch.equal(drawn.sum(1), case["negatives_before"].sum(1))
    assert not (drawn & found.edges).any()

    same = case["teacher_same_view"]
    for own, view in ((same, "same"), (other_view(same), "swapped")):
        raw = case["raw_student"].detach().requires_grad_()
        rows = F.normalize(raw, dim=1)
        loss = contrastive_affinity(rows, own, case["memory"], masks, temperature).mean()
        close(loss, case[f"cal_{view}_view"])
        gradient = torch.autograd.grad(loss, raw)[0]
        close(gradient, case[f"grad_cal_{view}_view"], rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", ["cal_a", "cal_b", "cal_c"])
def test_edges_agree_with_true_classes_as_often_as_released(name):
    case = tensors(name)
    memory_labels = case["memory_labels"].long()
    found = edge_agreement(case["affinity_before"], case["labels"].repeat(2), memory_labels)
    close(float(found.precision), float(case["knn_precision"]), rtol=1e-6)
    close(found.recall, case["knn_recall"])
    nobody = torch.full_like(case["labels"].repeat(2), -1)
    unknown = edge_agreement(case["affinity_before"], nobody, memory_labels)
    assert unknown.precision.isnan()
    assert unknown.recall.isnan()


def test_negatives_fill_the_budget_evenly():
    positives = torch.zeros(400, 20, dtype=torch.bool)
    positives[:, :4] = True
    drawn = sample_negatives(positives, 12, torch.Generator().manual_seed(0))
    assert drawn.sum(1).tolist() == [8] * 400
    share = drawn[:, 4:].double().mean(0)
    assert (share - 0.5).abs().max() < 5 * math.sqrt(0.25 / 400)
    again = sample_negatives(positives, 12, torch.Generator().manual_seed(0))
    assert torch.equal(drawn, again)


def test_more_positives_than_the_budget_leave_no_negatives():
    positives = torch.zeros(1, 10, dtype=torch.bool)
    positives[:, :6] = True
    assert not sample_negatives(positives, 4).any()
    # The release takes two from the end of the four that are left.
    assert sample_negatives(positives, 4, overdraft="released").sum() == 2


def test_schedules_are_the_released_ones():
    case = tensors("schedules")
    most, epochs, length = case["w_cal_hp"].tolist()
    ramp = int(epochs * length)
    close([affinity_weight(it, ramp, most) for it in range(20)], case["w_cal"])
    start, end, epochs = case["w_inkd_hp"].tolist()
    weights = [fading_weight(epoch, int(epochs), start, end) for epoch in range(5)]
    close(weights, case["w_inkd"])
    assert fading_weight(5, 5) == 0
    assert affinity_weight(0, 0) == 0.6


def test_labels_before_diffusion_link_and_part():
    generator = torch.Generator().manual_seed(3)
    nodes = F.normalize(torch.randn(30, 5, generator=generator, dtype=torch.float64), dim=1)
    labels = torch.tensor([0, 1] * 15)
    labels[20:] = -1
    found = query_affinity(nodes[:6], nodes[6:], k=4, quantile=0.5, labels=labels)
    without = query_affinity(nodes[:6], nodes[6:], k=4, quantile=0.5)
    assert not torch.equal(found.edges, without.edges)
    must, cannot = links(labels[:6], labels[6:])
    assert found.edges[must].double().mean() > without.edges[must].double().mean()
    assert found.edges[cannot].double().mean() <= without.edges[cannot].double().mean()
    none = torch.full_like(labels, -1)
    same = query_affinity(nodes[:6], nodes[6:], k=4, quantile=0.5, labels=none)
    assert torch.equal(same.edges, without.edges)


def test_self_distillation_teaches_across_views():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 3, generator=generator, dtype=torch.float64).requires_grad_()
    loss = self_distillation(logits, 0.07)
    targets = (logits.detach() / 0.07).softmax(1)
    shares = (logits / 0.1).log_softmax(1)
    by_hand = torch.stack([-(targets[(i + 2) % 4] * shares[i]).sum() for i in range(4)])
    close(loss, by_hand.detach(), rtol=1e-12)
    assert torch.autograd.gradcheck(
        lambda x: -(targets[[2, 3, 0, 1]] * (x / 0.1).log_softmax(1)).sum(1), logits
    )
    first, second = (
        torch.autograd.grad(value.sum(), logits, retain_graph=True)[0] for value in (loss, by_hand)
    )
    close(first, second)


def test_the_entropy_gap_is_what_the_mean_prediction_lacks():
    even = torch.eye(3, dtype=torch.float64)
    assert entropy_gap(even, 0.01) == pytest.approx(0, abs=1e-12)
    assert entropy_gap(even[:1], 0.01) == pytest.approx(math.log(3))


def test_the_teacher_sharpens_to_the_end_of_the_warm_up():
    assert sharpening(0) == 0.07
    assert sharpening(29) == pytest.approx(0.04)
    assert sharpening(100) == 0.04
    assert sharpening(15) == pytest.approx(0.07 - 0.03 * 15 / 29)
