"""Released noisy lists: parsing, names, checks, and the join to a split."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from support import paths, vectors

from noisyml.errors import UserError
from noisyml.noise import FromManifest, SampleState, manifest_from_list, read_list
from noisyml.noise.released import lists as module
from noisyml.noise.released.lists import (
    ListName,
    check_official_list,
    join_key,
    official_table,
    reroot,
)

PRISM = paths.GOLDEN / "prism"
FIXTURE = PRISM / "datalist_fixture"
NOISED, SMALL = "TOY_0.5noised_train", "TOY_0.5smallclusternoised_train"


def expected() -> dict[str, np.ndarray]:
    return vectors.arrays(FIXTURE, "expected")


def toy_split() -> tuple[list[str], np.ndarray]:
    """Keys as a data set would give them (relative, sorted) and 0-based labels."""
    rows = read_list(FIXTURE / "TOY_train.csv")
    order = np.argsort(rows.paths, kind="stable")
    keys = [rows.paths[i].removeprefix("/data/toy/images/") for i in order]
    return keys, rows.labels[order] - 1


@pytest.mark.parametrize("name", ["TOY_train", NOISED, SMALL])
def test_answers_of_the_released_loader(name: str) -> None:
    golden, rows = expected(), read_list(FIXTURE / f"{name}.csv")
    np.testing.assert_array_equal(rows.labels, golden[f"{name}__labels"])
    assert rows.paths[0] == str(golden[f"{name}__first_path"])
    assert rows.num_head_classes == int(golden[f"{name}__n_classes_head"])
    cleaned = read_list(FIXTURE / ListName.parse(f"{name}.csv").cleaned_name)
    assert len(cleaned) == int(golden[f"{name}__eval_rows"])
    np.testing.assert_array_equal(cleaned.labels, golden[f"{name}__eval_labels"])
    if f"{name}__is_noise" in golden:
        np.testing.assert_array_equal(rows.is_noise(cleaned), golden[f"{name}__is_noise"])
    else:
        assert not rows.is_noise(cleaned).any()


def test_every_key_of_the_fixture_was_looked_at() -> None:
    kinds = {key.split("__")[1] for key in expected()}
    assert kinds == {
        "labels",
        "is_noise",
        "n_classes_head",
        "first_path",
        "eval_rows",
        "eval_labels",
    }


def test_table_of_official_lists() -> None:
    golden = vectors.arrays(PRISM, "official_lists")
    table = official_table()
    assert list(table) == golden["list_name"].tolist()
    for fact in ("sha256", "rows", "n_labels", "min_label", "max_label", "noisy_rows"):
        assert [entry[fact] for entry in table.values()] == golden[fact].tolist()
    for name, facts in table.items():
        parsed = ListName.parse(name)
        if parsed.noisy:
            assert facts["noisy_rows"] == facts["rows"] - table[parsed.cleaned_name]["rows"]
            assert facts["noisy_rows"] / facts["rows"] == pytest.approx(parsed.rate, abs=0.01)
            assert facts["rows"] == table[parsed.clean_name]["rows"]
        else:
            assert facts["noisy_rows"] == 0
        if parsed.small_cluster and parsed.noisy:
            stem = name.removesuffix(".csv")
            sizes = golden[f"group_size_hist__{stem}"]
            assert (sizes * np.arange(len(sizes))).sum() == facts["noisy_rows"]
            removed = int(golden[f"n_removed_classes__{stem}"])
            assert facts["n_labels"] == table[parsed.clean_name]["n_labels"] - removed
        per_class = golden.get(f"noisy_rows_per_true_class__{name.removesuffix('.csv')}")
        if per_class is not None:
            assert per_class.sum() == facts["noisy_rows"]


def test_names() -> None:
    name = ListName.parse("CARS_0.25smallclusternoised_train.csv")
    assert (name.dataset, name.rate, name.small_cluster, name.cleaned) == (
        "CARS",
        0.25,
        True,
        False,
    )
    assert name.noisy
    assert name.cleaned_name == "CARS_0.25smallclusternoised_cleaned_train.csv"
    assert name.clean_name == "CARS_train.csv"
    assert not ListName.parse("CARS_0.25smallclusternoised_cleaned_train.csv").noisy
    assert ListName.parse("CARSN_train.csv").real_noise
    assert not ListName.parse("CARSN_test.csv").real_noise
    with pytest.raises(UserError, match="not named like"):
        ListName.parse("labels.csv")


def test_paths() -> None:
    assert reroot("/data/cars196/images/Audi A4/1.jpg") == "images/Audi A4/1.jpg"
    assert reroot("C:\\x\\cars_noise\\img_v3\\3\\a b.jpg") == "img_v3/3/a b.jpg"
    assert reroot("/data/toy/images/A/1.jpg", ["toy"]) == "images/A/1.jpg"
    assert reroot("A/1.jpg") == "A/1.jpg"
    assert join_key("/data/Stanford_Online_Products/bicycle_final/1_0.JPG") == (
        "bicycle_final/1_0.JPG"
    )
    assert join_key("bicycle_final\\1_0.JPG") == "bicycle_final/1_0.JPG"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("a.jpg,1\nb.jpg\n", "Line 2"),
        ("a.jpg,1\nb.jpg,x\n", "Line 2"),
        ("a,b.jpg,1\n", "Line 1"),
        (",1\n", "Line 1"),
        ("a.jpg,-1\n", "Line 1"),
        ("a.jpg,99999999999999999999\n", "Line 1"),
        ("a.jpg,1\n\n", "Line 2"),
        ("", "Line 1"),
    ],
)
def test_malformed_lists(tmp_path: Path, content: str, words: str) -> None:
    path = tmp_path / "X_train.csv"
    path.write_text(content)
    with pytest.raises(UserError, match=words):
        read_list(path)


def test_unreadable_lists(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="There is no list"):
        read_list(tmp_path / "X_train.csv")
    (tmp_path / "X_train.csv").write_bytes(b"\xff\xfe,1\n")
    with pytest.raises(UserError, match="UTF-8"):
        read_list(tmp_path / "X_train.csv")


def test_line_endings_do_not_matter(tmp_path: Path) -> None:
    (tmp_path / "X_train.csv").write_bytes(b"a b/1.jpg,1\r\na b/2.jpg,2")
    rows = read_list(tmp_path / "X_train.csv")
    assert rows.paths == ("a b/1.jpg", "a b/2.jpg")
    assert rows.labels.tolist() == [1, 2]


def test_official_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import hashlib

    path = tmp_path / "TOY_train.csv"
    shutil.copy(FIXTURE / "TOY_train.csv", path)
    with pytest.raises(UserError, match=r"No released list is called TOY_train\.csv"):
        check_official_list(path)
    facts = {
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "rows": 30,
        "n_labels": 6,
        "min_label": 1,
        "max_label": 6,
        "noisy_rows": 0,
    }
    monkeypatch.setattr(module, "official_table", lambda: {"TOY_train.csv": facts})
    assert check_official_list(path) == facts
    path.write_text(path.read_text().replace("81149", "81148"))
    with pytest.raises(UserError, match="sha256"):
        check_official_list(path)
    path.write_text("\n".join(path.read_text().splitlines()[:-1]))
    with pytest.raises(UserError, match="rows is 29, not 30"):
        check_official_list(path)


def test_a_changed_official_list_is_refused_in_place_of_an_injector(tmp_path: Path) -> None:
    for source, target in [(NOISED, "CARS_0.5noised_train"), ("TOY_train", "CARS_train")]:
        shutil.copy(FIXTURE / f"{source}.csv", tmp_path / f"{target}.csv")
    cleaned = "TOY_0.5noised_cleaned_train.csv"
    shutil.copy(FIXTURE / cleaned, tmp_path / "CARS_0.5noised_cleaned_train.csv")
    keys, labels = toy_split()
    path = str(tmp_path / "CARS_0.5noised_train.csv")
    with pytest.raises(UserError, match=r"is not the released CARS_0\.5noised_train\.csv"):
        FromManifest(path=path).inject(labels, 6, keys=keys)
    trusted = FromManifest(path=path, verify_official=False).inject(labels, 6, keys=keys)
    assert trusted.changed.sum() == 13


def test_noised_list_joins_by_path() -> None:
    keys, labels = toy_split()
    manifest = FromManifest(path=str(FIXTURE / f"{NOISED}.csv")).inject(labels, 6, keys=keys)
    rows = read_list(FIXTURE / f"{NOISED}.csv")
    by_path = {join_key(path): label for path, label in zip(rows.paths, rows.labels, strict=True)}
    assert manifest.observed.tolist() == [by_path[key] - 1 for key in keys]
    np.testing.assert_array_equal(manifest.clean, labels)
    np.testing.assert_array_equal(manifest.changed, manifest.observed != labels)
    assert manifest.changed.sum() == expected()[f"{NOISED}__is_noise"].sum()
    assert manifest.num_classes == 6
    assert manifest.nominal_rate == 0.5
    assert (manifest.state[manifest.changed] == SampleState.CLOSED).all()
    assert manifest.details["missing_files"] == []


def test_small_cluster_list_is_renumbered() -> None:
    keys, labels = toy_split()
    manifest = FromManifest(path=str(FIXTURE / f"{SMALL}.csv")).inject(labels, 6, keys=keys)
    assert manifest.num_classes == 3
    assert manifest.class_source.tolist() == [0, 2, 5]
    np.testing.assert_array_equal(manifest.clean, labels)
    np.testing.assert_array_equal(manifest.changed, np.isin(labels, [1, 3, 4]))
    kept = ~manifest.changed
    np.testing.assert_array_equal(manifest.class_source[manifest.observed[kept]], labels[kept])
    assert (manifest.state[manifest.changed] == SampleState.OPEN).all()


def test_lists_alone_give_the_same_manifest() -> None:
    keys, labels = toy_split()
    for name in (NOISED, SMALL):
        joined = FromManifest(path=str(FIXTURE / f"{name}.csv")).inject(labels, 6, keys=keys)
        cleaned = FIXTURE / ListName.parse(f"{name}.csv").cleaned_name
        alone = manifest_from_list(
            FIXTURE / f"{name}.csv", cleaned, FIXTURE / "TOY_train.csv", keys
        )
        assert alone.sha256 == joined.sha256


def test_missing_files_are_tolerated_and_named() -> None:
    keys, labels = toy_split()
    keep = np.arange(len(keys)) % 7 != 3
    some = [key for key, kept in zip(keys, keep, strict=True) if kept]
    manifest = FromManifest(path=str(FIXTURE / f"{NOISED}.csv")).inject(labels[keep], 6, keys=some)
    whole = FromManifest(path=str(FIXTURE / f"{NOISED}.csv")).inject(labels, 6, keys=keys)
    np.testing.assert_array_equal(manifest.observed, whole.observed[keep])
    assert manifest.details["num_missing_files"] == (~keep).sum()
    gone = {join_key(path) for path in manifest.details["missing_files"]}
    assert gone == set(keys) - set(some)


def write(path: Path, rows: list[tuple[str, int]]) -> Path:
    path.write_text("".join(f"/data/toy/{name},{label}\n" for name, label in rows))
    return path


def test_phantom_and_unseen_labels(tmp_path: Path) -> None:
    """CUB's lists hold a label of no class; SOP's lists labels that no clean row explains."""
    clean = [("a/1", 1), ("a/2", 1), ("b/1", 2), ("b/2", 2), ("c/1", 3), ("c/2", 3)]
    noisy = [("a/1", 1), ("a/2", 3), ("b/1", 2), ("b/2", 4), ("c/1", 1), ("c/2", 2)]
    keys, labels = [name for name, _ in clean], [label - 1 for _, label in clean]
    write(tmp_path / "T_0.5noised_train.csv", noisy)
    write(tmp_path / "T_0.5noised_cleaned_train.csv", [noisy[0], noisy[2]])
    manifest = FromManifest(path=str(tmp_path / "T_0.5noised_train.csv")).inject(
        labels, 3, keys=keys
    )
    assert manifest.observed.tolist() == [0, 2, 1, 3, 0, 1]
    assert manifest.num_classes == 4
    assert manifest.num_clean_classes == 3
    assert manifest.details["labels_without_class"] == [4]
    assert manifest.changed.tolist() == [False, True, False, True, True, True]
    # Classes of the split need not be numbered in the list's order: the clean list tells.
    write(tmp_path / "T_train.csv", clean)
    shuffled = FromManifest(
        path=str(tmp_path / "T_0.5noised_train.csv"), clean_list=str(tmp_path / "T_train.csv")
    ).inject([2, 2, 0, 0, 1, 1], 3, keys=keys)
    assert shuffled.observed.tolist() == [2, 1, 0, 3, 2, 0]


def test_real_noise_has_no_known_truth(tmp_path: Path) -> None:
    path = write(tmp_path / "CARSN_train.csv", [("0/1", 1), ("1/1", 2), ("10/1", 3)])
    manifest = FromManifest(path=str(path), verify_official=False).inject(
        [0, 1, 2], 3, keys=["0/1", "1/1", "10/1"]
    )
    assert manifest.observed.tolist() == [0, 1, 2]
    assert not manifest.truth_known
    assert np.isnan(manifest.actual_rate)
    clean = write(tmp_path / "T_train.csv", [("0/1", 1), ("1/1", 2), ("10/1", 3)])
    known = FromManifest(path=str(clean)).inject([0, 1, 2], 3, keys=["0/1", "1/1", "10/1"])
    assert known.truth_known
    assert known.actual_rate == 0


def test_lists_that_do_not_fit_the_split(tmp_path: Path) -> None:
    keys, labels = toy_split()
    stored = FromManifest(path=str(FIXTURE / f"{NOISED}.csv"))
    with pytest.raises(UserError, match="has no paths"):
        stored.inject(labels, 6)
    with pytest.raises(UserError, match=r"1 of 31 training samples are not in the list"):
        stored.inject([*labels, 0], 6, keys=[*keys, "New/1.jpg"])
    mixed = labels.copy()
    one, other = (
        keys.index("Alpha Model 1 2010/81149.jpg"),
        keys.index("Flpha Model 6 2015/43062.jpg"),
    )
    mixed[[one, other]] = mixed[[other, one]]
    for name in (NOISED, SMALL):
        with pytest.raises(UserError, match="disagree about classes"):
            FromManifest(path=str(FIXTURE / f"{name}.csv")).inject(mixed, 6, keys=keys)
    alone = tmp_path / f"{NOISED}.csv"
    shutil.copy(FIXTURE / f"{NOISED}.csv", alone)
    with pytest.raises(UserError, match=r"needs TOY_0.5noised_cleaned_train.csv beside it"):
        FromManifest(path=str(alone)).inject(labels, 6, keys=keys)
    with pytest.raises(UserError, match="give the clean list"):
        manifest_from_list(alone, None, None, keys)
    with pytest.raises(UserError, match="is not in the list"):
        manifest_from_list(alone, None, FIXTURE / "TOY_0.5noised_cleaned_train.csv", keys)
    with pytest.raises(ValueError, match="2 labels for 30 keys"):
        manifest_from_list(alone, None, None, keys, labels=[0, 1])
    twice = write(tmp_path / "T_train.csv", [("a/1", 1), ("a/1", 2)])
    with pytest.raises(UserError, match="'a/1' twice"):
        FromManifest(path=str(twice)).inject([0], 1, keys=["a/1"])
