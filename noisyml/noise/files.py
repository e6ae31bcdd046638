"""Injectors that draw nothing: a saved manifest, a released list, human labels from a file."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from noisyml.errors import UserError
from noisyml.noise.base import Injector, Outcome, Samples, SplitInjector
from noisyml.noise.labels import LabelKind, Labels, as_labels, as_multi_hot, kind_of
from noisyml.noise.lists import (
    ListName,
    check_official_list,
    manifest_from_list,
    official_table,
)
from noisyml.noise.manifest import NoiseManifest

#: MD5 of the CIFAR-N label files (Wei et al., ICLR 2022).
CIFAR_N_MD5 = {
    "CIFAR-10_human.pt": "96644db5574813cae939af5f7f2a0aec",
    "CIFAR-100_human.pt": "a67b45c1d7992051865b5c755bd68bb1",
}


@dataclass(frozen=True, kw_only=True)
class FromManifest(Injector):
    """Noise that already exists: a manifest of an earlier run, or a released noisy list.

    Args:
        path: ``noise.parquet`` of a run, or a released ``..._train.csv``.
        cleaned: the list without noisy rows; default: the file of that name beside `path`.
        clean_list: the list with true labels; only a further check, the split knows its labels.
        verify_official: refuse a file that bears the name of a released list but differs from it.
    """

    name: ClassVar[str] = "manifest"
    training_only: ClassVar[bool] = True
    label_kinds: ClassVar[frozenset[LabelKind]] = frozenset({"single", "multi"})

    path: str
    cleaned: str | None = None
    clean_list: str | None = None
    verify_official: bool = True

    def __post_init__(self) -> None:
        if Path(self.path).suffix not in (".parquet", ".csv"):
            raise UserError(
                f"noise.path={self.path} is neither a .parquet manifest nor a .csv list; give the "
                "noise.parquet of a run or a released list."
            )

    def inject(
        self,
        labels: ArrayLike,
        num_classes: int,
        *,
        keys: Sequence[str] | None = None,
        features: ArrayLike | None = None,
        class_names: Sequence[str] | None = None,
    ) -> NoiseManifest:
        """The stored noise, checked against the split; arguments as for every injector.

        Raises:
            UserError: the file is missing, damaged or altered, or made for another split.
        """
        multi_label = kind_of(labels) == "multi"
        clean: Labels = (as_multi_hot if multi_label else as_labels)(labels, num_classes)
        if Path(self.path).suffix == ".csv":
            if multi_label:
                raise UserError(
                    f"The list {self.path} gives each image one label, but the data set gives "
                    "several; give a noise.parquet of a run."
                )
            return self._from_list(clean, num_classes, keys)
        manifest = NoiseManifest.load(self.path)
        if manifest.num_clean_classes != num_classes:
            raise UserError(
                f"{self.path} was made for {manifest.num_clean_classes} classes but the data set "
                f"has {num_classes}; use the data set it was made for."
            )
        manifest.check_split(clean, keys)
        return manifest

    def _from_list(
        self, labels: NDArray[np.int64], num_classes: int, keys: Sequence[str] | None
    ) -> NoiseManifest:
        path = Path(self.path)
        if keys is None:
            raise UserError(
                f"The list {path} is joined by path, but this data set has no paths; use the data "
                "set the list was made for."
            )
        if self.verify_official and path.name in official_table():
            check_official_list(path)
        name = ListName.parse(path.name)
        cleaned: Path | None = None
        if self.cleaned is not None:
            cleaned = Path(self.cleaned)
        elif name.noisy:
            cleaned = path.with_name(name.cleaned_name)
            if not cleaned.is_file():
                raise UserError(
                    f"{path.name} needs {cleaned.name} beside it to tell which rows are noisy; put "
                    "it there or set noise.cleaned."
                )
        elif not name.real_noise:
            # A list without injected noise is its own cleaned list.
            cleaned = path
        return manifest_from_list(
            path, cleaned, self.clean_list, keys, labels=labels, num_classes=num_classes
        )


@dataclass(frozen=True, kw_only=True)
class HumanLabels(SplitInjector):
    """Labels that people gave, from a file in the order of the training split.

    Args:
        path: ``.npz``, ``.csv`` with a header, ``.npy`` (labels only) or a CIFAR-N ``.pt``.
        label: name of the noisy labels in the file (``worse_label``); unused for ``.npy``.
        clean: name of the true labels in the file, which must equal the data set's; null skips the
            check, as does a ``.npy`` file.
    """

    name: ClassVar[str] = "human"
    training_only: ClassVar[bool] = True

    path: str
    label: str = "noisy_label"
    clean: str | None = "clean_label"

    def corrupt(self, samples: Samples) -> Outcome:
        """Read, compare the clean labels, take the noisy ones."""
        columns = read_label_columns(self.path)
        if "" in columns:
            noisy, clean = columns[""], None
        else:
            noisy = self._column(columns, self.label, "noise.label")
            clean = None if self.clean is None else self._column(columns, self.clean, "noise.clean")
        if len(noisy) != len(samples):
            raise UserError(
                f"{self.path} has {len(noisy)} labels but the training split has {len(samples)} "
                "samples; take no validation part from it, or use the data set it was made for."
            )
        if clean is not None and not np.array_equal(clean, samples.labels):
            i = int(np.flatnonzero(clean != samples.labels)[0])
            raise UserError(
                f"The clean labels in {self.path} are not those of the data set: sample {i} is "
                f"{clean[i]} in the file and {samples.labels[i]} in the training split."
            )
        return Outcome(
            observed=as_labels(noisy, samples.num_classes),
            details={"clean_labels_checked": clean is not None},
        )

    def _column(self, columns: dict[str, NDArray], name: str, key: str) -> NDArray[np.int64]:
        if name not in columns:
            remedy = "set noise.clean to one of them, or noise.clean=null to do without the check"
            if key != "noise.clean":
                remedy = f"set {key} to one of them"
            raise UserError(
                f"{key}={name} is not in {self.path}; it holds {', '.join(sorted(columns))}: "
                f"{remedy}."
            )
        column = np.asarray(columns[name])
        if column.ndim != 1 or column.dtype.kind not in "iu":
            raise UserError(f"{name} in {self.path} is not a column of whole numbers.")
        return column.astype(np.int64)


def read_label_columns(path: str | Path) -> dict[str, NDArray]:
    """Label columns of a file by name; a nameless ``.npy`` column has the name ``""``.

    Nothing in the file is executed: NumPy files are read without pickles, ``.pt`` files with
    torch's weights-only reader.

    Raises:
        UserError: missing file, unknown type, unreadable contents, or a CIFAR-N file whose MD5
            differs from the published one.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"There is no label file {path}; correct noise.path.")
    try:
        if path.suffix == ".npy":
            column = np.load(path, allow_pickle=False)
            if column.ndim != 1 or column.dtype.kind not in "iu":
                raise ValueError("not a column of whole numbers")
            return {"": column}
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as archive:
                return {name: archive[name] for name in archive.files}
        if path.suffix == ".csv":
            frame = pd.read_csv(path)
            return {str(name): frame[name].to_numpy() for name in frame.columns}
        if path.suffix == ".pt":
            return _read_torch(path)
    except (ValueError, OSError) as error:
        raise UserError(f"{path} is not a readable label file ({error}).") from error
    raise UserError(f"{path} is not a .npy, .npz, .csv or .pt file; convert the labels to one.")


def _read_torch(path: Path) -> dict[str, NDArray]:
    import pickle

    import torch
    from torch.serialization import safe_globals

    expected = CIFAR_N_MD5.get(path.name)
    if expected is not None:
        found = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
        if found != expected:
            raise UserError(
                f"{path} is not the published file: its MD5 is {found}, not {expected}; fetch it "
                "again."
            )
    reconstruct = np.empty(0).__reduce__()[0]
    # The files were written before NumPy 2 renamed its private modules.
    allowed: list[Any] = [
        (reconstruct, "numpy.core.multiarray._reconstruct"),
        (reconstruct, "numpy._core.multiarray._reconstruct"),
        np.ndarray,
        np.dtype,
        type(np.dtype(np.int64)),
    ]
    try:
        with safe_globals(allowed):
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise UserError(f"{path} holds more than arrays of labels and is not read.") from error
    if not isinstance(loaded, dict):
        raise UserError(f"{path} does not hold named label columns; use a CIFAR-N file.")
    return {str(name): np.asarray(column) for name, column in loaded.items()}
