"""What the demo must show, with three seeds. Slow: 27 runs."""

import pytest

from noisyml.reports import aggregate, load_runs

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def test_prism_beats_no_selection_at_every_rate(shell):
    status, said = shell("train", "-m", "experiment=demo", "seed=0,1,2", "report=false")
    assert status == 0, said
    runs = load_runs([shell.folder / "outputs"])
    table = aggregate(runs, by=["noise.rate", "selector"])
    assert len(runs) == 27

    def mean(metric, rate, selector):
        return table.loc[(rate, selector), (metric, "mean")]

    for rate in (0.3, 0.5, 0.7):
        nothing = mean("test/map_at_r", rate, "keep_all")
        for selector in ("prism_avg", "prism_vmf"):
            assert mean("test/map_at_r", rate, selector) > nothing
            # Far above chance, which is the share of right labels.
            assert mean("selection/precision", rate, selector) > (1 - rate) + 0.2
            assert mean("selection/auroc", rate, selector) > 0.85
    assert mean("test/map_at_r", 0.7, "prism_vmf") >= mean("test/map_at_r", 0.7, "prism_avg")
