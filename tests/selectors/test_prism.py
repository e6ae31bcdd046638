import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from noisyml.errors import UserError
from noisyml.selectors.base import Evidence
from noisyml.selectors.curriculum import Curriculum
from noisyml.selectors.keep_all import KeepAll
from noisyml.selectors.prism import (
    PrismAverage,
    PrismProxy,
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
    vmf_log_posterior,
)
from noisyml.similarity.memory_bank import MemoryBank

DIM = 16
CLASSES = 6


def unit_rows(n, dim=DIM, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(n, dim, dtype=torch.float64, generator=generator)
    return torch.nn.functional.normalize(rows, dim=1).to(dtype)


def clustered(n, seed, spread=0.6):
    """Embeddings around one centre per class, their labels, a third of them wrong."""
    generator = torch.Generator().manual_seed(seed)
    true = torch.randint(CLASSES, (n,), generator=generator)
    noise = torch.randn(n, DIM, dtype=torch.float64, generator=generator)
    rows = unit_rows(CLASSES, seed=99)[true] + spread * noise / DIM**0.5
    wrong = torch.rand(n, generator=generator) < 1 / 3
    labels = torch.where(wrong, (true + 1) % CLASSES, true)
    return torch.nn.functional.normalize(rows, dim=1), labels, ~wrong


def evidence_of(embeddings, labels, bank=None, proxies=None):
    return Evidence(labels, labels, embeddings=embeddings, memory=bank, proxies=proxies)


def run(selector, bank, steps, first=0, batch=24):
    outcomes = []
    for step in range(first, first + steps):
        embeddings, labels, _ = clustered(batch, step)
        selection = selector.select(evidence_of(embeddings, labels, bank))
        outcomes.append(selection)
        keep = selection.keep
        bank.enqueue(embeddings[keep], labels[keep], keep.nonzero().squeeze(1))
    return outcomes


SELECTORS = {
    "average": lambda: PrismAverage(0.3, window=5, warmup_steps=2),
    "average-lazy": lambda: PrismAverage(0.3, window=5, warmup_steps=2, centres="lazy"),
    "vmf": lambda: PrismVonMisesFisher(0.3, window=5, warmup_steps=2, min_count=3),
    "vmf-corrected": lambda: PrismVonMisesFisher(
        0.3, window=5, warmup_steps=2, bias_correction=True, newton_steps=2
    ),
}


@pytest.fixture(params=SELECTORS, ids=str)
def make_selector(request):
    return SELECTORS[request.param]


def small_bank():
    return MemoryBank(70, DIM, CLASSES, dtype=torch.float64)


def test_state_dict_round_trip_resumes_identical_decisions(make_selector, tmp_path):
    selector, bank = make_selector(), small_bank()
    run(selector, bank, 9)
    both = torch.nn.ModuleList([selector, bank])
    torch.save(both.state_dict(), tmp_path / "state.pt")
    again = torch.nn.ModuleList([make_selector(), small_bank()])
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for expected, actual in zip(
        run(selector, bank, 8, first=9), run(*again, 8, first=9), strict=True
    ):
        assert torch.equal(expected.keep, actual.keep)
        assert torch.equal(expected.p_clean, actual.p_clean)
    assert torch.equal(selector.recent_cuts, again[0].recent_cuts)


def test_refreshing_only_changed_classes_equals_refreshing_all():
    # More classes than a step touches, so that the change record is really used.
    many = 200
    for make in (lambda: PrismAverage(0.3, window=3), lambda: PrismVonMisesFisher(0.3, window=3)):
        selector = make()
        bank = MemoryBank(60, DIM, many, dtype=torch.float64)
        for step in range(12):
            embeddings = unit_rows(10, seed=step)
            labels = torch.randint(20, (10,), generator=torch.Generator().manual_seed(step)) * 9
            fresh = make()
            fresh.recent_cuts.copy_(selector.recent_cuts)
            expected = fresh.select(evidence_of(embeddings, labels, bank))
            actual = selector.select(evidence_of(embeddings, labels, bank))
            assert torch.equal(expected.keep, actual.keep)
            assert torch.equal(expected.p_clean.nan_to_num(-1), actual.p_clean.nan_to_num(-1))
            bank.enqueue(embeddings, labels, labels)


def test_another_bank_is_not_mistaken_for_the_last_one(make_selector):
    selector, first = make_selector(), small_bank()
    run(selector, first, 4)
    second = small_bank()
    for step in range(4):
        embeddings, labels, _ = clustered(24, 50 + step)
        second.enqueue(embeddings, labels, labels)
    fresh = make_selector()
    fresh.load_state_dict(selector.state_dict())
    embeddings, labels, _ = clustered(24, 77)
    expected = fresh.select(evidence_of(embeddings, labels, second))
    actual = selector.select(evidence_of(embeddings, labels, second))
    assert torch.equal(expected.p_clean, actual.p_clean)


def test_selection_finds_wrong_labels(make_selector):
    selector, bank = make_selector(), MemoryBank(400, DIM, CLASSES, dtype=torch.float64)
    outcomes = run(selector, bank, 25)
    kept_clean = kept = 0
    for step, selection in enumerate(outcomes[10:], start=10):
        clean = clustered(24, step)[2]
        kept += int(selection.keep.sum())
        kept_clean += int((selection.keep & clean).sum())
    # A third of the labels is wrong; removing 0.3 of a batch leaves 0.95 at best.
    assert kept_clean / kept > 0.8


def test_warmup_keeps_everything_and_scores_nothing(make_selector):
    outcomes = run(make_selector(), small_bank(), 3)
    for selection in outcomes[:2]:
        assert selection.keep.all()
        assert selection.p_clean.isnan().all()
    assert not outcomes[2].p_clean.isnan().any()


def test_selection_waits_for_no_device():
    """A meta tensor has no values: whatever had to read one would raise."""
    batch, classes = 12, 5
    with torch.device("meta"):
        embeddings, centres = torch.empty(batch, DIM), torch.empty(classes, DIM)
        labels = torch.empty(batch, dtype=torch.int64)
        counts = torch.empty(classes, dtype=torch.int64)
        window = torch.empty(30, dtype=torch.float64)
        p = prism_avg_scores(embeddings, labels, centres, counts > 0)
        assert smooth_top_r(p, window, 4, scored=p < 1).keep.shape == (batch,)
        directions, r_bar = resultant_statistics(centres.double(), counts, bias_correction=True)
        kappa = kappa_from_resultant(r_bar, DIM, newton_steps=1, kappa_max=1e4)
        density = vmf_log_density(embeddings, directions.float(), kappa, log_vmf_ratio(kappa, DIM))
        log_p, scored = vmf_log_posterior(density, labels, (counts > 0).double().log())
        assert smooth_top_r(log_p, window, 4, certain=0.0, scored=scored).window.shape == (30,)


@pytest.mark.parametrize("absent", ["exclude", "uniform"])
def test_vmf_drops_nobody_while_no_class_has_enough_rows(absent):
    bank = MemoryBank(20, DIM, CLASSES)
    bank.enqueue(unit_rows(5), torch.arange(5), torch.arange(5))
    selector = PrismVonMisesFisher(0.5, absent=absent, min_count=2)
    selection = selector.select(evidence_of(unit_rows(8, seed=1), torch.arange(8) % 5, bank))
    assert selection.keep.all()
    assert (selection.p_clean == 1).all()
    assert selector.recent_cuts.isnan().all()


def test_cold_start():
    embeddings, labels = unit_rows(8), torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])
    for choice, expected in (("keep_all", 8), ("released", 4)):
        bank = MemoryBank(20, DIM, 9, dtype=torch.float64)
        bank.enqueue(unit_rows(2, seed=5), torch.tensor([7, 8]), torch.tensor([0, 1]))
        for kind in (PrismAverage, PrismVonMisesFisher):
            selector = kind(0.5, cold_start=choice)
            selection = selector.select(evidence_of(embeddings, labels, bank))
            assert int(selection.keep.sum()) == expected
            assert (selection.p_clean == 1).all()
            assert selector.recent_cuts.isnan().all()


@pytest.mark.parametrize("rate", [0.0, 0.04])
def test_a_rate_that_removes_nobody_keeps_everything_but_scores(rate):
    bank = small_bank()
    run(PrismAverage(0.0), bank, 3)
    for selector in (PrismAverage(rate), PrismVonMisesFisher(rate)):
        embeddings, labels, _ = clustered(24, 8)
        selection = selector.select(evidence_of(embeddings, labels, bank))
        assert number_removed(rate, 24) == 0
        assert selection.keep.all()
        assert (selection.p_clean < 1).any()


def test_saturated_probabilities_still_rank_by_their_logarithm():
    tight = torch.nn.functional.normalize(
        unit_rows(1).repeat(40, 1).index_fill(0, torch.arange(20, 40), 0.0)
        + 1e-3 * unit_rows(40, seed=4)
        + torch.cat([torch.zeros(20, DIM), unit_rows(1, seed=3).repeat(20, 1)]).double(),
        dim=1,
    )
    labels = torch.arange(2).repeat_interleave(20)
    bank = MemoryBank(40, DIM, 2, dtype=torch.float64)
    bank.enqueue(tight, labels, labels)
    selector = PrismVonMisesFisher(0.5)
    selection = selector.select(evidence_of(tight, labels, bank))
    assert (selection.p_clean == 1).all()
    assert int(selection.keep.sum()) == 20


def test_autocast_does_not_blur_the_scores(make_selector):
    bank = small_bank()
    run(make_selector(), bank, 3)
    embeddings, labels, _ = clustered(24, 8)
    plain, under = make_selector(), make_selector()
    for _ in range(3):
        expected = plain.select(evidence_of(embeddings.float(), labels, bank))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            actual = under.select(evidence_of(embeddings.float(), labels, bank))
    assert torch.equal(expected.p_clean, actual.p_clean)


def test_float32_and_float64_agree(make_selector):
    selections = []
    for dtype in (torch.float32, torch.float64):
        bank = MemoryBank(100, DIM, CLASSES, dtype=dtype)
        for step in range(3):
            embeddings, labels, _ = clustered(24, step)
            bank.enqueue(embeddings, labels, labels)
        selector = make_selector()
        for step in range(20, 26):
            embeddings, labels, _ = clustered(24, step)
            selection = selector.select(evidence_of(embeddings.to(dtype), labels, bank))
        selections.append(selection)
    torch.testing.assert_close(
        selections[0].p_clean.double(), selections[1].p_clean, atol=2e-5, rtol=0
    )
    assert torch.equal(selections[0].keep, selections[1].keep)


def test_proxies_take_the_place_of_class_means():
    proxies = unit_rows(CLASSES, seed=99)
    embeddings, labels, clean = clustered(60, 3)
    selector = PrismProxy(0.3, window=1)
    selection = selector.select(evidence_of(embeddings, labels, proxies=proxies))
    posterior = torch.softmax(embeddings @ proxies.T, dim=1)
    expected = posterior[torch.arange(60), labels]
    torch.testing.assert_close(selection.p_clean, expected)
    assert int((~selection.keep).sum()) == 18
    assert clean[selection.keep].double().mean() > clean.double().mean() + 0.1


def test_keep_all():
    selection = KeepAll().select(Evidence(torch.tensor([3, 1]), torch.tensor([0, 1])))
    assert selection.keep.all()
    assert selection.p_clean.isnan().all()


def test_a_warm_up_may_be_a_share_of_the_run_and_ends_before_it():
    share = PrismAverage(0.3, warmup_share=0.25)
    share.begin(steps=10, epochs=5)
    outcomes = run(share, small_bank(), 5)
    assert [bool(one.p_clean.isnan().all()) for one in outcomes] == [True, True, True, False, False]
    nearly = PrismVonMisesFisher(0.3, warmup_share=0.999)
    nearly.begin(steps=2, epochs=1)
    assert not run(nearly, small_bank(), 2)[1].p_clean.isnan().any()
    with pytest.raises(UserError, match="keeps everything for the whole run of 90 steps"):
        PrismVonMisesFisher(0.3, warmup_steps=100).begin(steps=90, epochs=10)
    with pytest.raises(UserError, match="has no end"):
        share.begin(steps=None, epochs=None)
    with pytest.raises(UserError, match="set the same thing"):
        PrismProxy(0.3, warmup_steps=1, warmup_share=0.1)
    with pytest.raises(UserError, match="whole run of 5 epochs"):
        Curriculum(0.3, warmup_epochs=5).begin(steps=50, epochs=5)


def test_judging_from_the_first_step_is_said_where_it_is_a_trap(caplog):
    for selector, said in (
        (PrismVonMisesFisher(0.3), True),
        (PrismVonMisesFisher(0.3, warmup_share=0.1), False),
        (PrismVonMisesFisher(0.3, threshold_space="logprob"), False),
        (PrismVonMisesFisher(0.0), False),
        (PrismAverage(0.3), False),
    ):
        caplog.clear()
        selector.begin(steps=100, epochs=10)
        assert ("judges from the first step on" in caplog.text) == said


def test_log_odds_tell_apart_what_probabilities_do_not():
    bank = MemoryBank(400, 64, CLASSES, dtype=torch.float64)
    centres = unit_rows(CLASSES, 64, seed=99)
    labels = torch.arange(400) % CLASSES
    rows = torch.nn.functional.normalize(centres[labels] + 0.3 * unit_rows(400, 64, 5), dim=1)
    bank.enqueue(rows, labels, labels)
    given = labels.clone()
    given[::3] = (labels[::3] + 1) % CLASSES
    selection = PrismVonMisesFisher(0.3).select(evidence_of(rows, given, bank))
    assert len(selection.p_clean.float().unique()) < 10
    assert len(selection.log_odds.float().unique()) == 400
    wrong = given != labels
    assert selection.log_odds[wrong].max() < selection.log_odds[~wrong].min()


def test_samples_of_a_class_not_met_yet_have_no_log_odds():
    bank = MemoryBank(20, DIM, CLASSES)
    bank.enqueue(unit_rows(4).float(), torch.tensor([0, 0, 1, 1]), torch.arange(4))
    for selector in (PrismAverage(0.3), PrismVonMisesFisher(0.3)):
        labels = torch.tensor([0, 1, 5])
        selection = selector.select(evidence_of(unit_rows(3, seed=2).float(), labels, bank))
        assert selection.p_clean[2] == 1
        assert selection.log_odds.isnan().tolist() == [False, False, True]


def test_missing_evidence_is_a_programming_error():
    labels = torch.tensor([0])
    for selector in (PrismAverage(0.5), PrismVonMisesFisher(0.5), PrismProxy(0.5)):
        with pytest.raises(ValueError, match="needs"):
            selector.select(Evidence(labels, labels, embeddings=unit_rows(1)))


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        (PrismAverage, {"noise_rate": 1.0}),
        (PrismAverage, {"noise_rate": None}),
        (PrismAverage, {"window": 0}),
        (PrismAverage, {"warmup_steps": -1}),
        (PrismAverage, {"cold_start": "freeze"}),
        (PrismAverage, {"centres": "fuzzy"}),
        (PrismAverage, {"eps": -1.0}),
        (PrismProxy, {"eps": -1.0}),
        (PrismVonMisesFisher, {"threshold_space": "log"}),
        (PrismVonMisesFisher, {"absent": "drop"}),
        (PrismVonMisesFisher, {"prior": "flat"}),
        (PrismVonMisesFisher, {"absent": "uniform", "prior": "empirical"}),
        (PrismVonMisesFisher, {"min_count": 0}),
        (PrismVonMisesFisher, {"kappa_max": 0.0}),
        (PrismVonMisesFisher, {"newton_steps": -1}),
    ],
)
def test_bad_arguments_are_refused(kind, arguments):
    with pytest.raises(UserError):
        kind(**({"noise_rate": 0.5} | arguments))


# --- scores -----------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**16), batch=st.integers(1, 20), dim=st.sampled_from([2, 3, 8, 64]))
def test_probabilities_sum_to_one_over_classes(seed, batch, dim):
    embeddings = unit_rows(batch, dim, seed)
    centres = unit_rows(CLASSES, dim, seed + 1) * torch.rand(CLASSES, 1, dtype=torch.float64)
    filled = torch.ones(CLASSES, dtype=torch.bool)
    kappa = kappa_from_resultant(centres.norm(dim=1), dim)
    density = vmf_log_density(
        embeddings, torch.nn.functional.normalize(centres, dim=1), kappa, log_vmf_ratio(kappa, dim)
    )
    prior = torch.rand(CLASSES, dtype=torch.float64).log()
    average = posterior = torch.zeros(batch, dtype=torch.float64)
    for c in range(CLASSES):
        labels = torch.full((batch,), c)
        average = average + prism_avg_scores(embeddings, labels, centres, filled)
        posterior = posterior + vmf_log_posterior(density, labels, prior)[0].exp()
    torch.testing.assert_close(average, torch.ones(batch, dtype=torch.float64))
    torch.testing.assert_close(posterior, torch.ones(batch, dtype=torch.float64))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**16), kappa=st.floats(0.5, 30))
def test_equal_concentrations_rank_like_cosine(seed, kappa):
    """With equal kappa the posterior is a softmax of kappa times the cosine."""
    embeddings, directions = unit_rows(20, seed=seed), unit_rows(CLASSES, seed=seed + 1)
    labels = torch.randint(CLASSES, (20,), generator=torch.Generator().manual_seed(seed))
    kappas = torch.full((CLASSES,), kappa, dtype=torch.float64)
    density = vmf_log_density(embeddings, directions, kappas, log_vmf_ratio(kappas, DIM))
    log_p, _ = vmf_log_posterior(density, labels, torch.zeros(CLASSES, dtype=torch.float64))
    cosine = embeddings @ directions.T
    expected = torch.log_softmax(kappa * cosine, dim=1)[torch.arange(20), labels]
    torch.testing.assert_close(log_p, expected, atol=1e-10, rtol=1e-10)
    assert torch.equal(density.argsort(dim=1), cosine.argsort(dim=1))


@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 2**16))
def test_scores_and_decisions_follow_a_permutation_of_the_batch(seed):
    bank = small_bank()
    run(PrismAverage(0.2), bank, 3)
    embeddings, labels, _ = clustered(24, seed)
    order = torch.randperm(24, generator=torch.Generator().manual_seed(seed))
    for make in SELECTORS.values():
        straight, shuffled = make(), make()
        for _ in range(4):
            expected = straight.select(evidence_of(embeddings, labels, bank))
            actual = shuffled.select(evidence_of(embeddings[order], labels[order], bank))
        torch.testing.assert_close(actual.p_clean, expected.p_clean[order])
        assert torch.equal(actual.keep, expected.keep[order])


def test_degenerate_classes_never_give_nan():
    """Empty, one-row, identical-row and antipodal classes, in every option."""
    row = unit_rows(1)
    embeddings = torch.cat([row, row, row, -row, row, unit_rows(5, seed=1)])
    labels = torch.tensor([1, 2, 2, 3, 3, 4, 4, 4, 4, 4])
    bank = MemoryBank(10, DIM, CLASSES, dtype=torch.float64)
    bank.enqueue(embeddings, labels, labels)
    batch = torch.cat([unit_rows(CLASSES, seed=7), row, -row])
    targets = torch.cat([torch.arange(CLASSES), torch.tensor([3, 1])])
    for correction in (False, True):
        for minimum in (1, 2, 9):
            for options in ({"absent": "uniform"}, {"prior": "empirical"}):
                for steps in (0, 3):
                    selector = PrismVonMisesFisher(
                        0.4,
                        min_count=minimum,
                        bias_correction=correction,
                        newton_steps=steps,
                        **options,
                    )
                    p = selector.select(evidence_of(batch, targets, bank)).p_clean
                    assert ((p >= 0) & (p <= 1)).all()
    p = PrismAverage(0.4).select(evidence_of(batch, targets, bank)).p_clean
    assert ((p > 0) & (p <= 1)).all()


# --- von Mises-Fisher -------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(dim=st.integers(2, 3000), kappa=st.floats(0, 1e6))
def test_normaliser_and_mean_are_finite_and_consistent(dim, kappa):
    """d log C_D / d kappa = -A_D, checked by a central difference."""
    step = max(1e-4, 1e-4 * kappa)
    points = torch.tensor([max(0.0, kappa - step), kappa, kappa + step], dtype=torch.float64)
    g = log_vmf_ratio(points, dim)
    mean = mean_resultant_length(points, dim)
    assert torch.isfinite(g).all()
    assert (g <= 0).all()
    assert ((mean >= 0) & (mean < 1)).all()
    slope = (g[2] - g[0]) / (points[2] - points[0])
    rounding = 4e-16 * float(g.abs().max()) / step
    assert abs(float(slope + mean[1])) < 1e-4 + rounding


@settings(max_examples=60, deadline=None)
@given(dim=st.integers(2, 2000), r_bar=st.floats(0, 1))
def test_newton_solves_for_the_resultant(dim, r_bar):
    r = torch.tensor([r_bar], dtype=torch.float64)
    kappa = kappa_from_resultant(r, dim, newton_steps=12, kappa_max=1e6)
    assert 0 <= float(kappa) <= 1e6
    if float(kappa) < 1e6:
        torch.testing.assert_close(mean_resultant_length(kappa, dim), r, atol=1e-9, rtol=1e-9)


def test_resultant_statistics_of_many_draws_are_unbiased_once_corrected():
    """E R^2 = 1/M + (1 - 1/M) rho^2: with 5 rows a class the plain length is far too long."""
    classes, rows = 4000, 5
    centre = torch.zeros(DIM, dtype=torch.float64)
    centre[0] = 2.0
    draws = torch.nn.functional.normalize(unit_rows(classes * rows) + centre, dim=1)
    rho = float(draws.mean(dim=0).norm())
    sums = draws.view(classes, rows, DIM).sum(dim=1)
    counts = torch.full((classes,), rows)
    _, plain = resultant_statistics(sums, counts)
    _, corrected = resultant_statistics(sums, counts, bias_correction=True)
    assert abs(float((corrected**2).mean()) - rho**2) < 0.01
    assert float((plain**2).mean()) - rho**2 > 0.03


def test_a_circle_at_least():
    with pytest.raises(ValueError, match="at least 2"):
        log_vmf_ratio(torch.tensor([1.0]), 1)
    bank, labels = MemoryBank(4, 1, 2), torch.tensor([0, 1])
    bank.enqueue(torch.ones(2, 1), labels, labels)
    evidence = Evidence(labels, labels, embeddings=torch.ones(2, 1), memory=bank)
    with pytest.raises(UserError, match=r"set head\.out_features to 2 or more"):
        PrismVonMisesFisher(noise_rate=0.2).select(evidence)


# --- threshold --------------------------------------------------------------------------------


def by_hand(p, window, r, size):
    """Sections of the paper in plain Python; window oldest first."""
    ranked = sorted(range(len(p)), key=lambda i: p[i])
    cut = p[ranked[r - 1]]
    if cut != 1.0:
        window = [*window, cut][-size:]
    if window:
        mean = math.fsum(window) / len(window)
        keep = [value > mean for value in p]
        if any(keep):
            return keep, window
        window = window[-1:]
    return [i not in ranked[:r] for i in range(len(p))], window


@settings(max_examples=200, deadline=None)
@given(
    batches=st.lists(
        st.lists(st.sampled_from([k / 16 for k in range(1, 17)]), min_size=2, max_size=8),
        min_size=1,
        max_size=8,
    ),
    size=st.sampled_from([1, 2, 4]),
    rate=st.floats(0, 0.99),
)
@pytest.mark.long
def test_smooth_top_r_equals_the_procedure_written_out(batches, size, rate):
    # Sixteenths over windows of 1, 2 and 4 keep both means exact, but for three entries.
    window, remembered = torch.full((size,), torch.nan, dtype=torch.float64), []
    for p in batches:
        r = number_removed(rate, len(p))
        outcome = smooth_top_r(torch.tensor(p, dtype=torch.float64), window, r)
        if r == 0:
            assert outcome.keep.all()
            continue
        if len(remembered) + 1 == 3 or len(remembered) == 3:
            # A mean of three may fall on either side of an equal value; skip only such ties.
            cut = sorted(p)[r - 1]
            mean = math.fsum(entries := [*remembered, cut][-size:]) / len(entries)
            if any(abs(value - mean) < 1e-9 for value in p):
                return
        keep, remembered = by_hand(p, remembered, r, size)
        assert outcome.keep.tolist() == keep
        window = outcome.window
        assert window[~window.isnan()].tolist() == remembered
        assert window[: size - len(remembered)].isnan().all()


def test_of_equal_scores_the_lower_index_goes_first():
    p = torch.tensor([0.5, 1.0, 1.0, 1.0, 1.0], dtype=torch.float64)
    empty = torch.full((3,), torch.nan, dtype=torch.float64)
    assert smooth_top_r(p, empty, 3).keep.tolist() == [False, False, False, True, True]
