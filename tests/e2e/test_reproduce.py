"""`noisyml reproduce`: tables and claims, from the command to the files."""

import csv
import json

import pytest

from noisyml.reproduce.claims import choose_claims, claim_jobs, load_claims

TABLE = [
    *("cbml_readme_64_resnet18", "scale=desk", "rows=CBML-log,N-Pair", "seeds=2", "noise_seeds=1"),
    *("backbone.hidden_features=[16]", "trainer.max_epochs=1"),
]


def test_a_table_is_run_once_and_shows_both_figures(shell):
    status, said = shell("reproduce", TABLE[0], "--dry-run", *TABLE[1:])
    assert status == 0, said
    assert "2 runs, 0 of them finished, 2 to do" in said
    assert "noisyml has no method 'N-Pair'" in said
    assert said.count("hydra.run.dir=outputs/reproduce/runs/") == 2
    assert "seconds for 2 runs" in said

    status, said = shell("reproduce", *TABLE)
    assert status == 0, said
    folder = shell.folder / "outputs" / "reproduce"
    stem = folder / "cbml_readme_64_resnet18" / "cbml_readme_64_resnet18"
    runs = sorted(path.parent for path in (folder / "runs").glob("*/metrics.json"))
    assert len(runs) == 2
    values = [json.loads((run / "metrics.json").read_text())["test/recall_at_1"] for run in runs]
    with stem.with_suffix(".csv").open(encoding="utf-8") as file:
        rows = {(row["method"], row["metric"]): row for row in csv.DictReader(file)}
    row = rows["CBML-log", "recall_at_1"]
    assert float(row["measured"]) == pytest.approx(100 * sum(values) / 2)
    assert row["runs"] == row["planned"] == "2"
    assert rows["N-Pair", "recall_at_1"]["lacking"] == "noisyml has no method 'N-Pair'"
    for ending in (".md", ".tex", ".html", ".png"):
        assert stem.with_suffix(ending).stat().st_size > 500
    assert "booktabs" in stem.with_suffix(".tex").read_text()

    # What is finished is not run again, whatever asks for it.
    before = [(run / "metrics.json").stat().st_mtime_ns for run in runs]
    status, said = shell("reproduce", "cbml_readme_64_resnet50", *TABLE[1:])
    assert "2 runs, 2 of them finished, 0 to do" in said
    assert [(run / "metrics.json").stat().st_mtime_ns for run in runs] == before

    # A broken run is gone on with.
    (runs[0] / "status.json").write_text('{"state": "interrupted"}')
    status, said = shell("reproduce", *TABLE)
    assert status == 0, said
    assert "2 runs, 1 of them finished, 1 to do" in said
    assert json.loads((runs[0] / "status.json").read_text())["state"] == "finished"


def test_a_claim_has_two_arms_on_the_same_seeds(shell):
    quick = ["backbone.hidden_features=[16]", "trainer.max_epochs=1", "seeds=2"]
    status, said = shell("reproduce", "claims", "cbml_log", *quick)
    assert status == 0, said
    assert "1 claims, 4 runs, 4 of them to do." in said
    stem = shell.folder / "outputs" / "reproduce" / "claims"
    found = json.loads(stem.with_suffix(".json").read_text())["cbml_log"]
    gaps = [one - other for one, other in zip(found["first"], found["second"], strict=True)]
    assert found["effect"] == round(sum(gaps) / 2, 6)
    assert found["low"] <= found["effect"] <= found["high"]
    expected = "holds" if found["low"] > 0 else "contradicted" if found["high"] < 0 else None
    assert found["verdict"] == (expected or "does not show")

    status, said = shell("reproduce", "claims", "no_such")
    assert status == 2
    assert "There is no claim 'no_such'" in said


def test_arms_differ_in_what_the_claim_says_alone():
    (claim,) = choose_claims(load_claims(), ["prism_avg"])
    first, second = claim_jobs([claim])[0]["prism_avg"]
    assert len({job.key for job in [*first, *second]}) == 2 * claim.pairs
    for one, other in zip(first, second, strict=True):
        apart = set(one.overrides) ^ set(other.overrides)
        assert apart == {"selector=prism_avg", "selector=keep_all"}
    assert "seed=1" in first[1].overrides
    assert "noise.seed=1" in first[1].overrides
