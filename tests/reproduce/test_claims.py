"""Claims as data, their verdicts, and the results that the package keeps."""

from collections import Counter

import pytest
import yaml
from support import paths

from noisyml.reports.statistics import bootstrap_interval, mean_interval, paired_difference
from noisyml.reproduce.claims import (
    CLAIMS_FILE,
    Trial,
    choose_claims,
    claim_jobs,
    load_claims,
)
from noisyml.reproduce.verdicts import (
    markdown,
    short_markdown,
    stored_results,
    stored_trials,
)


@pytest.mark.long
def test_every_paper_has_two_claims_at_least():
    claims = load_claims()
    assert len({claim.name for claim in claims}) == len(claims) >= 26
    papers = Counter(claim.paper for claim in claims)
    assert len(papers) >= 13
    assert min(papers.values()) >= 2
    for claim in claims:
        assert claim.first != claim.second
        assert claim.statement
        assert claim.source
    settings = yaml.safe_load(CLAIMS_FILE.read_text(encoding="utf-8"))["settings"]
    used = {c["setting"] for c in yaml.safe_load(CLAIMS_FILE.read_text(encoding="utf-8"))["claims"]}
    assert used == set(settings)


@pytest.mark.parametrize(
    ("first", "second", "verdict"),
    [
        # Differences .1 .12 .08: mean .1, deviation .02, half width 4.303 * .02 / sqrt(3) = .0497.
        ((0.6, 0.62, 0.58), (0.5, 0.5, 0.5), "holds"),
        ((0.5, 0.5, 0.5), (0.6, 0.62, 0.58), "contradicted"),
        # Differences .1 -.02 .04: mean .04, deviation .06, half width .149.
        ((0.6, 0.48, 0.54), (0.5, 0.5, 0.5), "does not show"),
    ],
)
def test_a_verdict_is_that_of_the_interval(first, second, verdict):
    claim = load_claims()[0]
    trial = Trial(claim, first, second)
    assert trial.verdict == verdict
    assert verdict in markdown([trial])


def test_one_pair_decides_nothing():
    trial = Trial(load_claims()[0], (0.9,), (0.1,))
    assert trial.verdict == "open"
    assert "open (1 pair)" in markdown([trial])


def test_intervals_are_those_computed_by_hand():
    found = paired_difference([0.6, 0.62, 0.58], [0.5, 0.5, 0.5])
    assert found.mean == pytest.approx(0.1)
    assert found.high - found.mean == pytest.approx(4.302653 * 0.02 / 3**0.5, rel=1e-6)
    assert mean_interval([1.0]).high == float("inf")
    with pytest.raises(ValueError, match="pairs of 2 and 1"):
        paired_difference([1.0, 2.0], [1.0])


def test_the_bootstrap_is_scipys():
    import numpy as np
    from scipy.stats import bootstrap

    values = np.random.default_rng(0).gamma(2.0, size=20)
    expected = bootstrap((values,), np.mean, n_resamples=9999, rng=np.random.default_rng(0))
    found = bootstrap_interval(values)
    assert (found.low, found.high) == tuple(expected.confidence_interval)
    assert bootstrap_interval([2.0, 2.0, 2.0]).low == 2.0


@pytest.mark.long
def test_claims_whose_data_are_missing_have_no_jobs():
    claims = choose_claims(load_claims(), ["bare_pair", "bare_pair_fashion"])
    jobs, lacking = claim_jobs(
        claims, missing=lambda config: "clothes" if "Fashion" in str(config.dataset) else None
    )
    assert list(jobs) == ["bare_pair"]
    assert [len(arm) for arm in jobs["bare_pair"]] == [claims[0].pairs] * 2
    assert lacking == {"bare_pair_fashion": "clothes"}


def test_kept_results_agree_with_themselves():
    claims = {claim.name: claim for claim in load_claims()}
    for name, stored in stored_results().items():
        assert Trial(claims[name], stored.first, stored.second).verdict == stored.verdict
        assert len(stored.first) == len(stored.second) >= 1


def test_readme_and_page_show_what_is_kept():
    trials = stored_trials(load_claims())
    assert short_markdown(trials) in (paths.ROOT / "README.md").read_text(encoding="utf-8")
    page = (paths.ROOT / "docs" / "reproduce.md").read_text(encoding="utf-8")
    assert markdown(trials) in page
