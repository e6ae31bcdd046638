"""Human labels from files, and the YAML of every injector."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from support import paths, vectors

from noisyml.errors import UserError
from noisyml.noise import HumanLabels, LabelList
from noisyml.noise.base import Injector
from noisyml.noise.injectors import files
from noisyml.noise.injectors.files import (
    CIFAR_N_MD5,
    CIFAR_N_WRONG,
    RAF_DB_LISTS,
    read_label_columns,
)

CLEAN = np.array([0, 1, 2, 0, 1])
NOISY = np.array([0, 2, 2, 1, 1])
CONFIGS = sorted((paths.CONF / "noise").glob("*.yaml"))
#: Files whose settings are not the defaults of the injector named behind them.
PRESETS = {
    "cifar10n": "human",
    "cifar100n": "human",
    "raf_db_list": "label_list",
    "multilabel_additive": "multilabel_mixed",
    "multilabel_mixed": "multilabel_mixed",
    "multilabel_subtractive": "multilabel_mixed",
    "symmetric_half": "symmetric",
}
GOLDEN = paths.GOLDEN


def write(path: Path) -> Path:
    columns = {"clean_label": CLEAN, "noisy_label": NOISY}
    if path.suffix == ".npz":
        np.savez(path, **columns)
    elif path.suffix == ".npy":
        np.save(path, NOISY)
    elif path.suffix == ".csv":
        rows = [f"{a},{b}" for a, b in zip(CLEAN, NOISY, strict=True)]
        path.write_text("clean_label,noisy_label\n" + "\n".join(rows) + "\n")
    else:
        torch.save({**columns, "noisy_coarse_label": NOISY.tolist()}, path)
    return path


@pytest.mark.parametrize("name", ["labels.npz", "labels.npy", "labels.csv", "labels.pt"])
def test_human_labels(tmp_path: Path, name: str) -> None:
    manifest = HumanLabels(path=str(write(tmp_path / name))).inject(CLEAN, 3)
    np.testing.assert_array_equal(manifest.observed, NOISY)
    np.testing.assert_array_equal(manifest.clean, CLEAN)
    assert manifest.actual_rate == 0.4
    assert manifest.nominal_rate is None
    assert manifest.details["clean_labels_checked"] == (name != "labels.npy")


def test_old_numpy_module_names_are_read(tmp_path: Path) -> None:
    """The published files were written by NumPy 1: its module is called numpy.core there."""
    path = write(tmp_path / "new.pt")
    torch.save({"noisy_label": NOISY}, path, _use_new_zipfile_serialization=False)
    old = path.read_bytes().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    assert old != path.read_bytes()
    path.write_bytes(old)
    np.testing.assert_array_equal(read_label_columns(path)["noisy_label"], NOISY)


class Trap:
    def __reduce__(self) -> tuple:
        return (print, ("executed",))


def test_foreign_code_is_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"noisy_label": Trap()}, tmp_path / "trap.pt")
    np.save(tmp_path / "trap.npy", np.array([Trap()]), allow_pickle=True)
    for name in ("trap.pt", "trap.npy"):
        with pytest.raises(UserError, match=name):
            read_label_columns(tmp_path / name)
    assert "executed" not in capsys.readouterr().out


def test_official_files_are_verified(tmp_path: Path) -> None:
    for name in CIFAR_N_MD5:
        with pytest.raises(UserError, match="is not the published file: its MD5"):
            read_label_columns(write(tmp_path / name))


def test_mistakes_end_in_a_sentence(tmp_path: Path) -> None:
    path = str(write(tmp_path / "labels.npz"))
    with pytest.raises(UserError, match="sample 1 is 1 in the file and 0"):
        HumanLabels(path=path).inject([0, 0, 2, 0, 1], 3)
    with pytest.raises(UserError, match="has 5 labels but the training split has 2"):
        HumanLabels(path=path).inject([0, 1], 3)
    with pytest.raises(UserError, match=r"noise.label=worse is not in .*clean_label, noisy_label"):
        HumanLabels(path=path, label="worse").inject(CLEAN, 3)
    with pytest.raises(UserError, match=r"noise\.clean=truth"):
        HumanLabels(path=path, clean="truth").inject(CLEAN, 3)
    assert HumanLabels(path=path, clean=None).inject([0, 0, 2, 0, 1], 3).actual_rate == 0.4
    with pytest.raises(UserError, match="label 2"):
        HumanLabels(path=path, clean=None).inject([0] * 5, 2)
    with pytest.raises(UserError, match="There is no label file"):
        HumanLabels(path=str(tmp_path / "none.npy")).inject(CLEAN, 3)
    for name, content in [("a.npy", b"x"), ("a.npz", b"x"), ("a.csv", b""), ("a.txt", b"1")]:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=name):
            HumanLabels(path=str(tmp_path / name)).inject(CLEAN, 3)
    (tmp_path / "w.csv").write_text("clean_label,noisy_label\n0,a\n")
    with pytest.raises(UserError, match="not a column of whole numbers"):
        HumanLabels(path=str(tmp_path / "w.csv"), clean=None).inject([0], 3)
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(UserError, match="named label columns"):
        HumanLabels(path=str(tmp_path / "list.pt")).inject(CLEAN, 3)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_keys_are_constructor_arguments(path: Path) -> None:
    text = path.read_text()
    assert text.startswith("# ")
    config = yaml.safe_load(text)
    module, _, name = config.pop("_target_").rpartition(".")
    injector = getattr(importlib.import_module(module), name)
    assert issubclass(injector, Injector)
    config.pop("_convert_", None)
    fields = {field.name: field for field in dataclasses.fields(injector)}
    assert set(config) == set(fields)
    lines = {line.partition(":")[0]: line for line in text.splitlines() if ":" in line}
    for key, value in config.items():
        assert "  # " in lines[key], f"{key} has no comment"
        default = fields[key].default
        if isinstance(default, tuple):
            default = list(default)
        if default is not dataclasses.MISSING and path.stem not in PRESETS:
            assert value == default, f"{key}: the YAML and the class disagree about the default"
    if "???" not in config.values() and name != "Matrix":
        injector(**config)
    assert injector.name == PRESETS.get(path.stem, path.stem)


def test_every_injector_has_a_config() -> None:
    import noisyml.noise as noise

    exported = {
        name
        for name in noise.__all__
        if isinstance(getattr(noise, name), type)
        and issubclass(getattr(noise, name), Injector)
        and name != "Injector"
    }
    targets = {yaml.safe_load(path.read_text())["_target_"] for path in CONFIGS}
    assert targets == {f"noisyml.noise.{name}" for name in exported}


def test_a_file_without_true_labels_is_told_how_to_do_without(tmp_path):
    np.savez(tmp_path / "people.npz", noisy_label=np.array([0, 1, 1]))
    path = str(tmp_path / "people.npz")
    with pytest.raises(UserError, match=r"noise\.clean=clean_label is not in .*noise\.clean=null"):
        HumanLabels(path=path).inject([0, 1, 0], 2)
    assert HumanLabels(path=path, clean=None).inject([0, 1, 0], 2).changed.sum() == 1


def _labels_of(confusion: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """True and observed labels with these counts."""
    true, observed = np.indices(confusion.shape).reshape(2, -1)
    times = confusion.reshape(-1)
    return np.repeat(true, times), np.repeat(observed, times)


def test_cifar_n_has_the_published_numbers_of_wrong_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Columns with the confusion counts of the released ones stand in for the file."""
    file = tmp_path / "CIFAR-10_human.pt"
    monkeypatch.setattr(files, "_check_md5", lambda path: None)
    golden = vectors.arrays(GOLDEN / "noise", "cifar_n_tables")
    for label in ("aggre_label", "worse_label", *(f"random_label{i}" for i in (1, 2, 3))):
        clean, observed = _labels_of(golden[f"cifar10n_{label}_confusion"])
        torch.save({"clean_label": clean, label: observed}, file)
        people = HumanLabels(path=str(file), label=label)
        assert people.inject(clean, 10).changed.sum() == CIFAR_N_WRONG[label]
        observed[0] = (observed[0] + 1) % 10
        torch.save({"clean_label": clean, label: observed}, file)
        with pytest.raises(
            UserError, match=f"{label} differs .* not at the {CIFAR_N_WRONG[label]}"
        ):
            people.inject(clean, 10)
    assert golden["cifar100n_flipped_count"] == CIFAR_N_WRONG["noisy_label"]
    assert golden["cifar100n_coarse_flipped_count"] == CIFAR_N_WRONG["noisy_coarse_label"]


@pytest.mark.long
def test_lists_of_rafdb_are_joined_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lists with the confusion counts of the released ones, in another order than the images."""
    keys = [f"train_{i:05d}.jpg" for i in range(1, 12_272)]
    golden = vectors.arrays(GOLDEN / "eac", "rafdb_noise_lists")
    for name, (_, wrong) in RAF_DB_LISTS.items():
        clean, observed = _labels_of(golden[f"{name.removesuffix('.txt')}_confusion"])
        np.testing.assert_array_equal(np.bincount(clean), golden["clean_train_counts"])
        lines = [f"{key} {label + 1}\n" for key, label in zip(keys, observed, strict=True)]
        (tmp_path / name).write_text("".join(reversed(lines)))
        listed = LabelList(path=str(tmp_path / name), first_label=1)
        assert not listed.training_only
        with pytest.raises(UserError, match="not the released list of that name"):
            listed.inject(clean, 7, keys=keys)
        digest = hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()
        monkeypatch.setitem(files.RAF_DB_LISTS, name, (digest, wrong))
        manifest = listed.inject(clean, 7, keys=keys)
        np.testing.assert_array_equal(manifest.observed, observed)
        assert manifest.changed.sum() == wrong
        some = listed.inject(clean[100:200], 7, keys=keys[100:200])
        np.testing.assert_array_equal(some.observed, observed[100:200])
        monkeypatch.setitem(files.RAF_DB_LISTS, name, (digest, wrong + 1))
        with pytest.raises(UserError, match=f"at {wrong} samples, and not at the {wrong + 1}"):
            listed.inject(clean, 7, keys=keys)


def test_mistakes_in_lists(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    listed = LabelList(path=str(path))
    with pytest.raises(UserError, match="There is no list"):
        listed.inject([0, 1], 2, keys=["a", "b"])
    for content, message in [
        ("a 0\nb one\n", "has the label 'one', which is neither a whole number nor the name"),
        ("a 0\nb\n", "Line 2 of .* 'b'"),
        ("a 0\na 1\n", "Line 2 of .* lists 'a' a second time"),
        ("a 0\n", "no label for the sample 'b'"),
        ("a 0\nb 2\n", "label 2"),
    ]:
        path.write_text(content)
        with pytest.raises(UserError, match=message):
            listed.inject([0, 1], 2, keys=["a", "b"])
    path.write_text("a 0\n\nb c 1\n")
    with pytest.raises(UserError, match="this data set has no names"):
        listed.inject([0, 1], 2)
    assert listed.inject([0, 1], 2, keys=["b c", "a"]).observed.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("names", "written", "wrong"),
    [
        # Folders called 1 to 3, and a list that repeats the numbers of the folders.
        (["1", "2", "3"], ["1", "2", "3"], []),
        (["1", "2", "3"], ["01", "02", "02"], [2]),
        # A list that counts from 0 beside folders that count from 1.
        (["1", "2", "3"], ["0", "1", "2"], []),
        (["cat", "dog", "owl"], ["cat", "owl", "owl"], [1]),
        (["cat", "dog", "owl"], ["0", "1", "1"], [2]),
    ],
)
def test_labels_of_a_list_are_names_of_classes_or_count_them(tmp_path, names, written, wrong):
    keys = ["a b=1,2.png", "Größe 図　9.png", "c.png"]
    lines = [f"{key}\t{label}" for key, label in zip(keys, written, strict=True)]
    (tmp_path / "list.txt").write_bytes("\r\n".join(lines).encode("utf-16"))
    noise = LabelList(path=str(tmp_path / "list.txt"))
    manifest = noise.inject([0, 1, 2], 3, keys=keys, class_names=names)
    assert np.flatnonzero(manifest.changed).tolist() == wrong


def test_commas_at_the_end_of_lines_are_no_column(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text("clean_label,noisy_label\n0,0,\n1,2,\n2,2,\n")
    assert HumanLabels(path=str(path)).inject([0, 1, 2], 3).changed.tolist() == [False, True, False]
