"""Jobs are what Hydra composes, however they were composed."""

import pytest

from noisyml.reproduce.cells import cells, choose_rows
from noisyml.reproduce.claims import load_claims
from noisyml.reproduce.figures import find_table, published_tables
from noisyml.reproduce.jobs import QUIET, Job, composing, fingerprint, repeated
from noisyml.reproduce.times import estimate

SCALES = ("paper", "desk")
SEEDS = [{"seed": 0, "noise.seed": 1}, {"seed": 2, "noise.seed": 1}]


def of_hydra(job):
    """The fingerprint of what Hydra makes of all words of a job."""
    from hydra import compose

    return fingerprint(compose("train", [*job.overrides, *QUIET], return_hydra_config=True))


@pytest.mark.long
@pytest.mark.parametrize(
    ("table", "rows"),
    [
        ("bare_mnist", "20"),
        ("iaa_table6", "2"),
        ("gist_rist_leaderboard_voc", "6"),
        ("promptcal_quoted_generic", "1"),
    ],
)
def test_jobs_of_cells_are_those_that_hydra_composes(table, rows):
    for cell in choose_rows(cells(find_table(table)), rows):
        with composing() as composed:
            composed([*cell.words[:-1], "seed=5"])  # options of the same names, other values
            jobs = repeated(composed(cell.words), cell.words, SEEDS)
            assert [job.key for job in jobs] == [of_hydra(job) for job in jobs]


def test_words_that_add_and_delete_are_composed_as_they_stand():
    words = [
        "method=classification",
        "+dataset.extra=1",
        "~memory",
        "dataset=digits",
        "+x={a: 1}",
        "x.a=2",
    ]
    with composing() as composed:
        (job,) = repeated(composed(words), words, [{"seed": 1}])
        assert job.key == of_hydra(job)
        assert "memory" not in composed(words)
        assert "memory" in composed(words[:1])


def test_a_word_that_does_not_fit_is_named_by_hydra():
    from hydra.errors import HydraException

    with composing() as composed:
        with pytest.raises(HydraException, match="bach_size"):
            composed(["method=prism", "sampler.bach_size=3"])
        with pytest.raises(HydraException, match="seed=1,2"):
            composed(["method=prism", "seed=1,2"])


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_jobs_of_all_cells_and_claims_are_those_that_hydra_composes():
    with composing() as composed:
        found = [c for t in published_tables().values() for s in SCALES for c in cells(t, s)]
        words = [cell.words for cell in found if cell.words]
        words += [arm for claim in load_claims() for arm in (claim.first, claim.second)]
        for own in dict.fromkeys(words):
            (job,) = repeated(composed(own), own, SEEDS[-1:])
            assert job.key == of_hydra(job), own


def test_time_is_estimated_by_stored_results_before_images(tmp_path):
    stored, new, strange = (Job((), key) for key in ("a", "b", "c"))
    runs = [([stored], 6000.0), ([new], 6000.0), ([strange], 0.0)]
    said = estimate(runs, tmp_path, before={"a": 90.0})
    assert "90 seconds for 1 runs by the time that the stored results took" in said
    assert "2 seconds for 1 runs at 3000 images a second" in said
    assert said.endswith("1 runs of unknown length.")
