"""Optional files of a run folder: judgements, thumbnails, circumstances."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from support.synthetic_runs import RunMaker

from noisyml.reports.artefacts import (
    Unreadable,
    png_data_uri,
    read_history,
    read_judgements,
    read_manifest,
)
from noisyml.reports.provenance import (
    data_warnings,
    environment_facts,
    environment_warnings,
    rate_warnings,
    repetition_warnings,
    rerun_commands,
)
from noisyml.reports.sections.artefacts.class_maps import read_class_maps
from noisyml.reports.sections.artefacts.thumbnails import read_thumbnails
from noisyml.reports.tables import load_runs
from noisyml.runs.folder import RunFolder


@pytest.fixture
def judged(maker: RunMaker) -> RunFolder:
    """Four samples, 1 and 3 wrongly labelled, judged in two epochs, sample 0 twice in the last."""
    run = maker.run("a", files=False)
    manifest = {"index": range(4), "observed": [0, 1, 2, 0], "clean": [0, 0, 2, 1]}
    pd.DataFrame({**manifest, "changed": [False, True, False, True]}).to_parquet(run.noise_file)
    rows = [
        (0, 0.5, True, 0),
        (1, 0.5, True, 0),
        (2, 0.5, True, 0),
        (3, 0.5, True, 0),
        (0, 0.1, False, 1),
        (1, 0.8, True, 1),
        (2, 0.9, True, 1),
        (0, 0.7, True, 1),
    ]
    table = pd.DataFrame(rows, columns=["index", "p_clean", "kept", "epoch"])
    table.to_parquet(run.selection_file)
    return run


def test_precision_and_recall_of_the_kept_set_by_hand(judged: RunFolder) -> None:
    found = read_judgements(judged)
    assert found is not None
    assert found.truth_known
    by_epoch = found.by_epoch.set_index("epoch")
    assert by_epoch.loc[0].tolist() == [1.0, 0.5, 1.0]
    # Epoch 1: judged 0 (rejected), 1, 2, 0 (kept); right ones kept 2 of 3, kept ones right 2 of 3.
    assert by_epoch.loc[1].tolist() == pytest.approx([3 / 4, 2 / 3, 2 / 3])


def test_the_last_judgement_of_the_last_epoch_counts(judged: RunFolder) -> None:
    found = read_judgements(judged)
    assert found is not None
    last = found.last.set_index("index")
    assert last["p_clean"].to_dict() == {0: 0.7, 1: 0.8, 2: 0.9}
    assert last["wrong"].to_dict() == {0: False, 1: True, 2: False}
    assert found.samples == 4


def test_unknown_truth_gives_no_precision(judged: RunFolder) -> None:
    manifest = pd.read_parquet(judged.noise_file)
    manifest.assign(clean=-1, changed=False).to_parquet(judged.noise_file)
    found = read_judgements(judged)
    assert found is not None
    assert not found.truth_known
    assert list(found.by_epoch.columns) == ["epoch", "kept"]


def test_missing_files_are_none_and_broken_ones_are_named(maker: RunMaker) -> None:
    run = maker.run("a", files=False)
    assert read_judgements(run) is None
    assert read_thumbnails(run) is None
    assert read_history(run) is None
    run.selection_file.write_bytes(b"not parquet")
    with pytest.raises(Unreadable, match=r"selection\.parquet cannot be read"):
        read_judgements(run)
    pd.DataFrame({"index": [0], "kept": [True], "epoch": [0]}).to_parquet(run.selection_file)
    with pytest.raises(Unreadable, match=r"selection\.parquet lacks the column p_clean"):
        read_judgements(run)


def test_thumbnails_are_sorted_and_marked_by_the_manifest(judged: RunFolder) -> None:
    np.savez(
        judged.path / "thumbnails.npz",
        images=np.arange(3 * 4, dtype=np.uint8).reshape(3, 2, 2),
        index=np.array([2, 3, 0]),
        p_clean=np.array([0.5, 0.1, 0.3]),
        observed_name=np.array(["c", "a", "a"]),
        clean_name=np.array(["c", "", "a"]),
        key=np.array(["k2", "k3", "k0"]),
    )
    found = read_thumbnails(judged)
    assert found is not None
    assert found.key.tolist() == ["k3", "k0", "k2"]
    assert found.images[0].tolist() == [[4, 5], [6, 7]]
    assert found.right == (False, True, True)
    judged.noise_file.unlink()
    without = read_thumbnails(judged)
    assert without is not None
    assert without.right == (None, True, True)


def test_pickles_in_thumbnails_are_refused(maker: RunMaker) -> None:
    run = maker.run("a", files=False)
    np.savez(run.path / "thumbnails.npz", images=np.array([{"a": 1}], dtype=object))
    with pytest.raises(Unreadable, match=r"thumbnails\.npz cannot be read"):
        read_thumbnails(run)


def test_class_maps_are_read_or_named(maker: RunMaker) -> None:
    run = maker.run("a", files=("class_maps",))
    found = read_class_maps(run)
    assert found is not None
    assert len(found) == 6
    assert found.given.shape == found.answer.shape == (6, 4, 3)
    assert found.kind.tolist() == ["label right"] * 2 + ["label wrong"] * 4
    with np.load(run.path / "class_maps.npz") as arrays:
        whole = dict(arrays)
    for name, wrong in (
        ("given_maps", whole["given_maps"][:3]),
        ("given_maps", np.full_like(whole["given_maps"], np.nan)),
        ("answer_maps", whole["answer_maps"][:, 0]),
        ("images", whole["images"].astype(float)),
        ("kind", np.array([{"a": 1}] * 6, dtype=object)),
    ):
        np.savez(run.path / "class_maps.npz", **(whole | {name: wrong}))
        with pytest.raises(Unreadable, match=r"class_maps\.npz"):
            read_class_maps(run)
    (run.path / "class_maps.npz").unlink()
    assert read_class_maps(run) is None


def test_large_thumbnails_are_shrunk() -> None:
    large = png_data_uri(np.zeros((400, 300, 3), dtype=np.uint8), largest_side=50)
    small = png_data_uri(np.zeros((50, 37, 3), dtype=np.uint8), largest_side=50)
    assert large == small
    assert large.startswith("data:image/png;base64,")


def test_a_complete_sweep_is_repeated_by_one_command(maker: RunMaker) -> None:
    runs = [
        maker.run(f"{s}{r}{seed}", s, r, seed, files=False)
        for s in ("keep_all", "prism_avg")
        for r in (0.3, 0.5)
        for seed in (0, 1)
    ]
    assert rerun_commands(runs) == [
        "noisyml train -m experiment=demo selector=keep_all,prism_avg noise.rate=0.3,0.5 seed=0,1"
    ]
    assert rerun_commands(runs[:1]) == [
        "noisyml train experiment=demo selector=keep_all noise.rate=0.3 seed=0"
    ]
    assert len(rerun_commands(runs[:-1])) == 7


def test_a_sweep_folder_does_not_decide_the_verb(maker: RunMaker) -> None:
    run = maker.run("../sw/x/0", files=False)
    assert rerun_commands([run])[0].startswith("noisyml train ")


def test_commands_are_quoted_for_the_shell(maker: RunMaker) -> None:
    run = maker.run("a", files=False, extra_overrides=("dataset.path=my labels; rm -rf.csv",))
    assert rerun_commands([run])[0].endswith(" 'dataset.path=my labels; rm -rf.csv'")


def test_mixed_code_libraries_and_devices_are_told() -> None:
    first = {"commit": "a" * 40, "packages.torch": "2.11.0", "python": "3.11.9", "device": "cpu"}
    second = {**first, "commit": "b" * 40 + "-dirty", "packages.torch": "2.12.0", "device": "A100"}
    assert environment_warnings(environment_facts([first, first])) == []
    told = " ".join(environment_warnings(environment_facts([first, first, second])))
    assert "commits aaaaaaaaaa (2) and bbbbbbbbbb-dirty (1)" in told
    assert "1 run was made from code with uncommitted changes" in told
    assert "torch 2.11.0 and 2.12.0" in told
    assert "times do not compare" in told
    assert "python" not in told


def test_different_data_and_different_wrong_labels_are_told(maker: RunMaker) -> None:
    same = [maker.run(f"s/{i}", s, 0.3, 0) for i, s in enumerate(("prism_avg", "prism_vmf"))]
    runs = load_runs([maker.root / "s"])
    assert data_warnings(runs, read_manifest) == []
    manifest = pd.read_parquet(same[1].noise_file)
    manifest["observed"] = (manifest["observed"] + 1) % 10
    manifest.to_parquet(same[1].noise_file)
    assert "noise.rate" not in runs.attrs["varied"]
    assert "different wrong labels (for example at seed=0)" in data_warnings(runs, read_manifest)[0]
    manifest.iloc[:-1].to_parquet(same[1].noise_file)
    assert "different training data" in data_warnings(runs, read_manifest)[0]


def test_repeated_and_missing_seeds_are_told(maker: RunMaker) -> None:
    for number, (selector, workers) in enumerate([("x", 0), ("x", 2), ("y", 0)]):
        extra = {"data": {"num_workers": workers}}
        maker.run(f"s/{number}", selector, seed=0, files=False, extra_config=extra)
    runs = load_runs([maker.root / "s"])
    told = repetition_warnings(runs, ["x", "x", "y"])
    assert told[0].startswith("Seed 0 in x was run more than once")
    assert told[1] == "Groups have between 1 and 2 finished runs."


def test_a_realised_rate_off_the_nominal_one_is_told(maker: RunMaker) -> None:
    for seed, actual in enumerate((0.5, 0.45)):
        rates = {"noise/nominal_rate": 0.5, "noise/actual_rate": actual}
        maker.run(f"s/{seed}", seed=seed, metrics=rates, files=False)
    runs = load_runs([maker.root / "s"])
    assert "0.500 became 0.450" in rate_warnings(runs)[0]
    assert rate_warnings(runs[:1]) == []
