"""Traces of the released code (AvgSim) and of plain-loop references (vMF), step by step."""

import functools
import math

import pytest
import torch
from support import paths, vectors

from noisyml.losses.metric_learning.contrastive import ContrastiveLoss, MemoryContrastiveLoss
from noisyml.selectors.base import Evidence
from noisyml.selectors.prism import (
    PrismAverage,
    PrismVonMisesFisher,
    number_removed,
    prism_avg_scores,
    smooth_top_r,
)
from noisyml.selectors.von_mises_fisher import (
    kappa_from_resultant,
    log_vmf_ratio,
    mean_resultant_length,
    resultant_statistics,
    vmf_log_density,
    vmf_log_p_clean,
    vmf_log_posterior,
    vmf_log_prior,
)
from noisyml.similarity.memory_bank import MemoryBank

GOLDEN = paths.GOLDEN / "prism"


def load(name):
    """Single numbers are numbers."""
    return {
        key: torch.from_numpy(array) if array.ndim else array.item()
        for key, array in vectors.arrays(GOLDEN, name).items()
    }


close = functools.partial(vectors.close, rtol=0, atol=1e-10, equal_nan=True)


def window_of(selector):
    cuts = selector.recent_cuts
    return cuts[~torch.isnan(cuts)]


def row_of_window(recorded):
    return recorded[~torch.isnan(recorded)]


def bank_holding(golden, step):
    """The recorded bank as it was before `step`, against ours."""
    length = int(golden["mem_count_before"][step]) if "mem_count_before" in golden else None
    labels = golden["mem_targets_before"][step]
    if length is None:
        length = int((labels >= 0).sum())
    return golden["mem_feats_before"][step][:length], labels[:length]


def check_bank(bank, golden, step):
    rows = bank.filled()
    embeddings, labels = bank_holding(golden, step)
    close(rows.embeddings, embeddings, atol=0)
    close(rows.labels, labels)
    assert bank.pointer == golden["mem_ptr_before"][step]


def check_final_bank(bank, golden):
    close(bank.embeddings, golden["mem_feats_final"], atol=0)
    close(bank.labels, golden["mem_targets_final"])
    assert bank.pointer == golden["mem_ptr_final"]


@pytest.mark.parametrize(
    ("name", "eps"),
    [
        ("avgsim_mcl_steps.npz", 0.0),
        ("avgsim_mcl_warmup_steps.npz", 0.0),
        ("avgsim_selector_late_class_steps.npz", 1e-6),
        ("avgsim_selector_window1_steps.npz", 1e-6),
    ],
)
def test_avgsim_traces(name, eps):
    golden = load(name)
    steps, _, dim = golden["feats"].shape
    warmup = golden.get("hp_warmup", 0)
    bank = MemoryBank(
        golden["hp_bank_size"], dim, golden["hp_num_classes"], "released", torch.float64
    )
    selector = PrismAverage(
        golden["hp_noise_rate"],
        window=golden["hp_window"],
        warmup_steps=warmup,
        cold_start="released",
        centres="lazy",
        eps=eps,
    )
    for step in range(steps):
        check_bank(bank, golden, step)
        embeddings = golden["feats"][step].requires_grad_()
        labels = golden["targets"][step]
        evidence = Evidence(labels, labels, embeddings=embeddings.detach(), memory=bank)
        before = selector.recent_cuts.clone()
        selection = selector.select(evidence)

        close(selection.keep, golden["keep"][step])
        close(selection.p_clean.double(), golden["prob"][step])
        close(window_of(selector), row_of_window(golden["window"][step]))
        if len(bank) and step >= warmup:
            close(selector.class_centres, golden["centers"][step])
            close(selector.filled, golden["filled"][step])
            removed = number_removed(golden["hp_noise_rate"], len(labels))
            decision = smooth_top_r(golden["prob"][step], before, removed)
            close(decision.keep, golden["keep"][step])
            close(decision.threshold, golden["threshold"][step])
        else:
            assert math.isnan(golden["threshold"][step])

        if "loss_total" in golden:
            both = MemoryContrastiveLoss(margin=golden["hp_margin"], block_bytes=8 * 12 * 7)
            batch = ContrastiveLoss(margin=golden["hp_margin"])(
                embeddings, labels, keep=selection.keep
            )
            total = both(embeddings, labels, memory=bank, keep=selection.keep)
            total.backward()
            close(batch.detach(), golden["loss_batch"][step])
            close((total - batch).detach(), golden["loss_bank"][step])
            close(total.detach(), golden["loss_total"][step])
            close(embeddings.grad, golden["grad_feats"][step])

        kept = selection.keep
        bank.enqueue(embeddings.detach()[kept], labels[kept], kept.nonzero().squeeze(1))
    check_final_bank(bank, golden)


@pytest.mark.parametrize(
    "name",
    [
        "avgsim_edge_all_unfilled_with_window.npz",
        "avgsim_edge_fallback_all_below.npz",
        "avgsim_edge_selector_eps.npz",
        "avgsim_edge_some_unfilled.npz",
    ],
)
def test_avgsim_edges(name):
    golden = load(name)
    labels = golden["targets"]
    stored = golden["mem_targets"]
    num_classes, dim = golden["centers_before"].shape
    bank = MemoryBank(len(stored), dim, num_classes, "released", torch.float64)
    bank.enqueue(golden["mem_feats"], stored, torch.arange(len(stored)))
    selector = PrismAverage(
        golden["hp_noise_rate"],
        window=golden["hp_window"],
        cold_start="released",
        centres="lazy",
        eps=golden["hp_eps"],
    )
    state = selector.state_dict()
    window = torch.full((golden["hp_window"],), torch.nan, dtype=torch.float64)
    window[len(window) - len(golden["window_before"]) :] = golden["window_before"]
    state["recent_cuts"] = window
    state["class_centres"] = golden["centers_before"]
    state["filled"] = golden["filled_before"]
    state["kept_classes"] = torch.zeros(num_classes, dtype=torch.bool)
    state["kept_classes"][golden["last_kept_targets"]] = True
    selector.load_state_dict(state)

    embeddings = golden["feats"].requires_grad_()
    selection = selector.select(
        Evidence(labels, labels, embeddings=embeddings.detach(), memory=bank)
    )
    close(selection.p_clean.double(), golden["prob"])
    close(selection.keep, golden["keep"])
    close(window_of(selector), golden["window_after"])
    close(selector.class_centres, golden["centers_after"])
    close(selector.filled, golden["filled_after"])
    removed = number_removed(golden["hp_noise_rate"], len(labels))
    close(
        smooth_top_r(golden["prob"], window, removed).threshold,
        torch.tensor(golden["threshold"], dtype=torch.float64),
    )
    if "loss_bank" in golden:
        loss = MemoryContrastiveLoss(batch_weight=0.0)(
            embeddings, labels, memory=bank, keep=selection.keep
        )
        loss.backward()
        close(loss.detach(), torch.tensor(golden["loss_bank"], dtype=torch.float64))
        close(embeddings.grad, golden["grad_feats"])


def test_avgsim_scores_alone():
    golden = load("avgsim_mcl_steps.npz")
    for step in range(1, len(golden["feats"])):
        scores = prism_avg_scores(
            golden["feats"][step],
            golden["targets"][step],
            golden["centers"][step],
            golden["filled"][step],
        )
        close(scores, golden["prob"][step])


@pytest.mark.parametrize(
    ("name", "space"),
    [("vmf_selector_prob_steps.npz", "prob"), ("vmf_selector_logprob_steps.npz", "logprob")],
)
def test_vmf_traces(name, space):
    golden = load(name)
    steps, _, dim = golden["feats"].shape
    bank = MemoryBank(
        golden["hp_bank_size"], dim, golden["hp_num_classes"], "released", torch.float64
    )
    selector = PrismVonMisesFisher(
        golden["hp_noise_rate"],
        window=golden["hp_window"],
        cold_start="released",
        threshold_space=space,
        min_count=golden["hp_min_count"],
        kappa_max=golden["hp_kappa_max"],
    )
    for step in range(steps):
        check_bank(bank, golden, step)
        embeddings, labels = golden["feats"][step], golden["targets"][step]
        before = selector.recent_cuts.clone()
        selection = selector.select(Evidence(labels, labels, embeddings=embeddings, memory=bank))
        close(selection.keep, golden["keep"][step])
        close(selection.p_clean.double(), golden["p_clean"][step], atol=1e-8)
        close(window_of(selector), row_of_window(golden["window"][step]), atol=1e-8)
        if step:
            close(bank.class_counts, golden["count"][step])
            close(selector.r_bar, golden["r_bar"][step], atol=1e-8)
            kappa, _, _ = selector.concentrations(bank.class_counts)
            close(kappa, golden["kappa"][step], atol=0, rtol=1e-8)
            values = golden["p_clean" if space == "prob" else "log_p_clean"][step]
            decision = smooth_top_r(values, before, 4, certain=1.0 if space == "prob" else 0.0)
            close(decision.threshold, golden["threshold"][step], atol=1e-8)
        if space == "logprob" and step:
            close(selection.p_clean.log(), golden["log_p_clean"][step], atol=1e-8, rtol=1e-8)
        kept = selection.keep
        bank.enqueue(embeddings[kept], labels[kept], kept.nonzero().squeeze(1))
    check_final_bank(bank, golden)


def log_cd_at_zero(dim):
    return math.lgamma(dim / 2) - math.log(2) - dim / 2 * math.log(math.pi)


@pytest.mark.parametrize(
    "name",
    [
        "vmf_posterior_d8.npz",
        "vmf_posterior_d64.npz",
        "vmf_posterior_d512.npz",
        "vmf_posterior_degenerate_d16.npz",
    ],
)
def test_vmf_posteriors(name):
    golden = load(name)
    labels = golden["targets"]
    num_classes, dim = golden["mu"].shape
    bank = MemoryBank(len(golden["bank_targets"]), dim, num_classes, dtype=torch.float64)
    bank.enqueue(
        golden["bank_feats"], golden["bank_targets"], torch.arange(len(golden["bank_targets"]))
    )
    close(bank.class_counts, golden["count"])
    close(bank.class_sums, golden["resultant"])
    directions, r_bar = resultant_statistics(bank.class_sums, bank.class_counts)
    close(r_bar, golden["r_bar"])
    # Where the rows of a class cancel, the direction is that of rounding and has no weight.
    present = golden["r_bar"] > 0
    close(directions[present], golden["mu"][present])
    _, corrected = resultant_statistics(bank.class_sums, bank.class_counts, bias_correction=True)
    close(corrected, golden["r_bar_bias_corrected"], atol=1e-8)
    enough = golden["count"] >= golden["hp_min_count"]
    pooled = bank.class_sums.norm(dim=1)[enough].sum() / golden["count"][enough].sum()
    close(pooled, torch.tensor(golden["r_bar_pooled"], dtype=torch.float64))

    evidence = Evidence(labels, labels, embeddings=golden["feats"], memory=bank)
    cases = {
        "log_p_clean_exclude": {"absent": "exclude"},
        "log_p_clean_uniform": {"absent": "uniform"},
        "log_p_clean_prior_empirical": {"prior": "empirical"},
    }
    for key, options in cases.items():
        selector = PrismVonMisesFisher(
            0.25,
            threshold_space="logprob",
            min_count=golden["hp_min_count"],
            kappa_max=golden["hp_kappa_max"],
            **options,
        )
        p_clean = selector.select(evidence).p_clean
        close(p_clean, golden[key].exp(), atol=1e-8)
        kappa, log_ratio, known = selector.concentrations(bank.class_counts)
        close(kappa, golden["kappa"], atol=1e-9, rtol=1e-9)
        close(log_ratio + log_cd_at_zero(dim), golden["log_cd"], atol=1e-8, rtol=1e-10)
        log_density = vmf_log_density(golden["feats"], selector.directions, kappa, log_ratio)
        log_prior = vmf_log_prior(bank.class_counts, known, selector.absent, selector.prior)
        log_p, _ = vmf_log_posterior(log_density, labels, log_prior)
        close(log_p, golden[key], atol=1e-8, rtol=1e-10)
        found, log_odds = vmf_log_p_clean(
            golden["feats"],
            labels,
            bank.class_sums,
            bank.class_counts,
            min_count=golden["hp_min_count"],
            kappa_max=golden["hp_kappa_max"],
            **options,
        )
        close(found, golden[key], atol=1e-8, rtol=1e-10)
        judged = ~log_odds.isnan()
        close(log_odds[judged], selector.select(evidence).log_odds[judged], atol=1e-8, rtol=1e-10)
        # Where neither P nor 1 - P is lost, the log-odds are theirs.
        sure = judged & (found > -30) & (found < -1e-3)
        close(log_odds[sure], (found - torch.log(-torch.expm1(found)))[sure], atol=1e-9, rtol=1e-9)
        if f"p_{key[6:]}" in golden:
            close(p_clean, golden[f"p_{key[6:]}"], atol=1e-8)
            recorded = golden[key.replace("p_clean", "density")]
            absolute = log_density + log_cd_at_zero(dim) + log_prior
            close(absolute, recorded, atol=1e-8, rtol=1e-10)


def test_vmf_log_bessel():
    golden = load("vmf_log_bessel.npz")
    for row, dim in enumerate(golden["dim"].tolist()):
        ratio = log_vmf_ratio(golden["kappa"], dim)
        close(ratio, golden["log_cd_ratio0"][row], atol=1e-10, rtol=1e-13)
        close(ratio + golden["log_cd_at_0"][row], golden["log_cd"][row], atol=1e-8, rtol=1e-10)
        order = golden["order"][row]
        log_iv = (
            order * golden["kappa"].log() - ratio - order * math.log(2) - torch.lgamma(order + 1)
        )
        close(log_iv, golden["log_iv"][row], atol=1e-8, rtol=1e-10)
        close(mean_resultant_length(golden["kappa"], dim), golden["a_d"][row], atol=0, rtol=1e-13)


def test_vmf_kappa():
    golden = load("vmf_kappa.npz")
    for row, dim in enumerate(golden["dim"].tolist()):
        for steps, key in enumerate(["kappa_closed_form", "kappa_newton1", "kappa_newton2"]):
            kappa = kappa_from_resultant(golden["r_bar"], dim, newton_steps=steps)
            close(kappa, golden[key][row], atol=0, rtol=1e-9)
        close(
            kappa_from_resultant(golden["r_bar"], dim, newton_steps=6),
            golden["kappa_exact"][row],
            atol=0,
            rtol=1e-9,
        )
