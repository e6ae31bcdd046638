"""Injectors that draw nothing: a saved manifest, a released list, labels from a file."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from noisyml.errors import UserError
from noisyml.noise.base import Features, Injector, Outcome, Samples, SplitInjector
from noisyml.noise.manifest import NoiseManifest
from noisyml.noise.released.lists import (
    ListName,
    check_official_list,
    manifest_from_list,
    official_table,
)
from noisyml.storage.text import numbered_lines, read_table
from noisyml.targets import SINGLE, TARGETS, TargetKind, target_of

#: MD5 of the CIFAR-N label files (Wei et al., ICLR 2022).
CIFAR_N_MD5 = {
    "CIFAR-10_human.pt": "96644db5574813cae939af5f7f2a0aec",
    "CIFAR-100_human.pt": "a67b45c1d7992051865b5c755bd68bb1",
}
#: Wrong labels among the 50,000 of each column, counted in the released files.
CIFAR_N_WRONG = {
    "aggre_label": 4_505,
    "random_label1": 8_617,
    "random_label2": 9_061,
    "random_label3": 8_820,
    "worse_label": 20_104,
    "noisy_label": 20_100,
    "noisy_coarse_label": 13_202,
}
#: SHA-256 and number of wrong labels of EAC's lists for the 12,271 training images of RAF-DB.
RAF_DB_LISTS = {
    "noise01.txt": ("b452aca82ca7d2b9e62306e4513cca92aa32766ed47ed4137d61dd737155449a", 1_241),
    "noise02.txt": ("04d8c16247bd1dacdad9e5de880dca53f6b79e71aa919ed749b93a489e3cf8ac", 2_498),
    "noise03.txt": ("bb2f536c87af0b20d16b8e48945c3d6220fad0b4d4ee39b8b99f2007745dbe58", 3_722),
}
RAF_DB_IMAGES = 12_271
#: A line of a list of labels by name: names may hold blanks, labels do not.
_NAMED = re.compile(r"(.*\S)[ \t]+(\S+)")


@dataclass(frozen=True, kw_only=True)
class FromManifest(Injector):
    """Noise that already exists: a manifest of an earlier run, or a released noisy list.

    Args:
        path: ``noise.parquet`` of a run, or a released ``..._train.csv``.
        cleaned: the list without noisy rows; default: the file of that name beside `path`.
        clean_list: the list with true labels; only a further check, the split knows its labels.
        verify_official: refuse a file that bears the name of a released list but differs from it.

    Example:
        >>> from tempfile import mkdtemp
        >>> from noisyml.noise import Symmetric
        >>> file = Path(mkdtemp(), "noise.parquet")
        >>> noisy = Symmetric(rate=0.5).inject([0, 1, 2, 0], 3)
        >>> noisy.save(file)
        >>> again = FromManifest(path=str(file)).inject([0, 1, 2, 0], 3)
        >>> (again.observed == noisy.observed).all().item()
        True
    """

    name: ClassVar[str] = "manifest"
    replaces_labels: ClassVar[bool] = True
    training_only: ClassVar[bool] = True
    describes_split: ClassVar[bool] = True
    target_kinds: ClassVar[frozenset[TargetKind]] = frozenset(TARGETS)

    path: str
    cleaned: str | None = None
    clean_list: str | None = None
    verify_official: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
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
        features: Features | None = None,
        class_names: Sequence[str] | None = None,
    ) -> NoiseManifest:
        """The stored noise, checked against the split; arguments as for every injector.

        Raises:
            UserError: the file is missing, damaged or altered, or made for another split.
        """
        target = target_of(labels)
        clean = target.checked(labels, num_classes)
        if Path(self.path).suffix == ".csv":
            if target is not SINGLE:
                raise UserError(
                    f"The list {self.path} gives {SINGLE.words}, but the data set gives "
                    f"{target.words}; give a noise.parquet of a run."
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
    """Labels that people gave, from a file in the order of the official training images.

    Args:
        path: ``.npz``, ``.csv`` with a header, ``.npy`` (labels only) or a CIFAR-N ``.pt``.
        label: name of the noisy labels in the file (``worse_label``); unused for ``.npy``.
        clean: name of the true labels in the file, which must equal the data set's; null skips the
            check, as does a ``.npy`` file.
        row: which row is a sample's: ``position``, its place in the training split, which must be
            as long as the file; or ``number``, the number that its key ends in (``train/00017``),
            so that a validation split carved from the training images has its human labels too.

    Example:
        >>> from tempfile import mkdtemp
        >>> file = Path(mkdtemp(), "labels.csv")
        >>> _ = file.write_text("clean_label,noisy_label\\n0,0\\n1,2\\n2,2\\n")
        >>> human = HumanLabels(path=str(file), label="noisy_label", clean="clean_label")
        >>> human.inject([0, 1, 2], 3).changed.tolist()
        [False, True, False]
    """

    name: ClassVar[str] = "human"
    replaces_labels: ClassVar[bool] = True

    path: str
    label: str = "noisy_label"
    clean: str | None = "clean_label"
    row: Literal["position", "number"] = "position"

    def __post_init__(self) -> None:
        super().__post_init__()
        # By number the validation split finds its rows in the file too.
        object.__setattr__(self, "training_only", self.row == "position")

    def corrupt(self, samples: Samples) -> Outcome:
        """Read, compare the clean labels, take the noisy ones."""
        columns = read_label_columns(self.path)
        if "" in columns:
            noisy, clean = columns[""], None
        else:
            noisy = self._column(columns, self.label, "noise.label")
            clean = None if self.clean is None else self._column(columns, self.clean, "noise.clean")
        whole = len(noisy) == len(samples)
        if self.row == "number":
            rows = _numbers_in(samples.keys, len(noisy), self.path)
            noisy, clean = noisy[rows], None if clean is None else clean[rows]
        elif not whole:
            raise UserError(
                f"{self.path} has {len(noisy)} labels but the training split has {len(samples)} "
                "samples; take no validation part from it, use the data set it was made for, or "
                "(where its keys end in row numbers, as in train/00017) set noise.row=number."
            )
        if clean is not None and not np.array_equal(clean, samples.labels):
            i = int(np.flatnonzero(clean != samples.labels)[0])
            raise UserError(
                f"The clean labels in {self.path} are not those of the data set: sample {i} is "
                f"{clean[i]} in the file and {samples.labels[i]} in the training split."
            )
        observed = SINGLE.checked(noisy, samples.num_classes)
        if whole and Path(self.path).name in CIFAR_N_MD5 and self.label in CIFAR_N_WRONG:
            wrong = int((observed != samples.labels).sum())
            _check_wrong(self.path, self.label, wrong, CIFAR_N_WRONG[self.label])
        return Outcome(
            observed=observed,
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


@dataclass(frozen=True, kw_only=True)
class LabelList(SplitInjector):
    """Labels from a text file of ``name label`` lines, joined to the samples by their keys.

    Labels are numbers of classes, or their names; where the classes are called by numbers, numbers
    are names.

    The file may list more samples than the split has, so that a validation split carved from the
    training images gets its labels from it too.

    Args:
        path: the list; RAF-DB's noisy lists have this form.
        first_label: what the file writes for the first class: 1 in RAF-DB's lists.
        verify_official: refuse a file that bears the name of one of EAC's lists for RAF-DB but
            differs from it.

    Example:
        >>> from tempfile import mkdtemp
        >>> file = Path(mkdtemp(), "list.txt")
        >>> _ = file.write_text("a.png 0\\nb.png 1\\n")
        >>> names = ["b.png", "a.png"]
        >>> LabelList(path=str(file)).inject([0, 0], 2, keys=names).observed.tolist()
        [1, 0]
    """

    name: ClassVar[str] = "label_list"
    replaces_labels: ClassVar[bool] = True

    path: str
    first_label: int = 0
    verify_official: bool = True

    def corrupt(self, samples: Samples) -> Outcome:
        """Look up every sample."""
        path = Path(self.path)
        written = _read_names(path)
        listed = _class_numbers(written, self.first_label, samples.class_names, path)
        official = RAF_DB_LISTS.get(path.name) if self.verify_official else None
        if official is not None:
            found = hashlib.sha256(path.read_bytes()).hexdigest()
            if found != official[0]:
                raise UserError(
                    f"{path} is not the released list of that name: its SHA-256 is {found}, not "
                    f"{official[0]}; fetch it again, or set noise.verify_official=false."
                )
        if samples.keys is None:
            raise UserError(
                f"The list {path} is joined by name, but this data set has no names; use the data "
                "set the list was made for."
            )
        unlisted = next((key for key in samples.keys if key not in listed), None)
        if unlisted is not None:
            raise UserError(
                f"{path} has no label for the sample '{unlisted}'; use the data set the list was "
                "made for."
            )
        labels = np.array([listed[key] for key in samples.keys], dtype=np.int64)
        observed = SINGLE.checked(labels, samples.num_classes)
        if official is not None and len(samples) == RAF_DB_IMAGES:
            wrong = int((observed != samples.labels).sum())
            _check_wrong(self.path, "the list", wrong, official[1])
        return Outcome(observed=observed)


def _read_names(path: Path) -> dict[str, str]:
    """Label of each name in a file of ``name label`` lines, as it stands there."""
    if not path.is_file():
        raise UserError(f"There is no list {path}; correct noise.path.")
    listed: dict[str, str] = {}
    for number, line in numbered_lines(path):
        row = _NAMED.fullmatch(line.strip(" \t"))
        if row is None:
            raise UserError(
                f"Line {number} of {path} is not of the form 'name label', with a blank or a tab "
                f"before the label: {line!r}."
            )
        name, label = row.groups()
        if name in listed:
            raise UserError(f"Line {number} of {path} lists '{name}' a second time.")
        listed[name] = label
    return listed


def _class_numbers(
    listed: Mapping[str, str], first_label: int, class_names: Sequence[str] | None, path: Path
) -> dict[str, int]:
    """The class of each name in a list, counted from 0.

    Labels that are names of the data set's classes mean these classes: words, and also numbers
    where the classes are called by numbers (folders ``1`` to ``26``). Other numbers count the
    classes from `first_label` on.

    Raises:
        UserError: a label is neither.
    """
    named = {_plain(name): i for i, name in enumerate(class_names or ())}
    labels = {label: _plain(label) for label in set(listed.values())}
    numeric = all(label.isdecimal() for label in labels)
    by_name = set(labels.values()) <= named.keys()
    if by_name and not (numeric and first_label):
        return {name: named[labels[label]] for name, label in listed.items()}
    odd = next((label for label in sorted(labels) if not label.isdecimal()), None)
    if odd is not None:
        raise UserError(
            f"{path} has the label {odd!r}, which is neither a whole number nor the name of a "
            "class of the data set."
        )
    return {name: int(label) - first_label for name, label in listed.items()}


def _plain(label: str) -> str:
    """A label without leading zeros if it is a whole number: ``007`` and ``7`` are one class."""
    return str(int(label)) if label.isdecimal() else label


def _numbers_in(keys: Sequence[str] | None, rows: int, path: str) -> NDArray[np.int64]:
    """The number that each key ends in, int64 [N], each a row of a file of `rows`."""
    found = [re.search(r"(\d+)$", key) for key in keys or ()]
    if keys is None or None in found:
        raise UserError(
            f"noise.row=number looks for the row of each sample of {path} in its key, and the keys "
            "of this data set end in no numbers: set noise.row=position."
        )
    numbers = np.array([int(match[1]) for match in found if match], dtype=np.int64)
    if numbers.max(initial=-1) >= rows:
        raise UserError(
            f"{path} has {rows} labels, but a sample is number {numbers.max()} of the training "
            "images; use the data set it was made for."
        )
    return numbers


def _check_wrong(path: str, what: str, found: int, published: int) -> None:
    """Compare the number of wrong labels with what was counted in the released file."""
    if found != published:
        raise UserError(
            f"{path}: {what} differs from the data set's labels at {found} samples, and not at the "
            f"{published} of the release; the data set is in another order or altered."
        )


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
            table = read_table(path)
            return {name: _numbers(table.column(name)) for name in table.header if name}
        if path.suffix == ".pt":
            return _read_torch(path)
    except (ValueError, OSError) as error:
        raise UserError(f"{path} is not a readable label file ({error}).") from error
    raise UserError(f"{path} is not a .npy, .npz, .csv or .pt file; convert the labels to one.")


def _numbers(cells: list[str]) -> NDArray[Any]:
    """A column as int64 if all of its cells are whole numbers, else as text."""
    try:
        return np.array([int(cell) for cell in cells], dtype=np.int64)
    except ValueError:
        return np.array(cells)


def _read_torch(path: Path) -> dict[str, NDArray]:
    import pickle

    import torch
    from torch.serialization import safe_globals

    _check_md5(path)
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


def _check_md5(path: Path) -> None:
    """Refuse a file that bears the name of a CIFAR-N file but differs from it."""
    expected = CIFAR_N_MD5.get(path.name)
    if expected is None:
        return
    found = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
    if found != expected:
        raise UserError(
            f"{path} is not the published file: its MD5 is {found}, not {expected}; fetch it again."
        )
