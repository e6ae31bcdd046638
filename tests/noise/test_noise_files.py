"""Human labels from files, and the YAML of every injector."""

from __future__ import annotations

import dataclasses
import importlib
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from noisyml.errors import UserError
from noisyml.noise import HumanLabels
from noisyml.noise.base import Injector
from noisyml.noise.files import CIFAR_N_MD5, read_label_columns

CLEAN = np.array([0, 1, 2, 0, 1])
NOISY = np.array([0, 2, 2, 1, 1])
CONFIGS = sorted((Path(__file__).parents[2] / "conf" / "noise").glob("*.yaml"))


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
        if default is not dataclasses.MISSING:
            assert value == default, f"{key}: the YAML and the class disagree about the default"
    if "???" not in config.values() and name != "Matrix":
        injector(**config)
    assert injector.name == path.stem


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
