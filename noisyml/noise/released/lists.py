"""Noisy label lists: the released ``path,label`` files of PRISM, and how to join them to a split.

A list is text without header, one ``path,label`` per line; paths are absolute on their author's
machine, have no comma and may have spaces. A row is noisy exactly if its path is missing from the
matching *cleaned* list; labels cannot tell, because small-cluster lists are renumbered.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from noisyml.errors import UserError
from noisyml.noise.manifest import NoiseManifest
from noisyml.storage.text import read_text

#: Data-set folders at which released paths are split.
DATASET_FOLDERS = (
    "cars196",
    "CUB_200_2011",
    "Stanford_Online_Products",
    "cars_noise",
    "food101nDML",
)
#: Lists whose noise is real: no list says which of their rows are wrong.
_REAL_NOISE = ("CARSN", "FOOD")
_NAME = re.compile(
    r"^(?P<dataset>[^_]+)_"
    r"(?:(?P<rate>\d+(?:\.\d+)?)(?P<kind>smallclusternoised|noised)(?P<cleaned>_cleaned)?_)?"
    r"(?P<split>train|test)\.csv$"
)


@dataclass(frozen=True)
class ListName:
    """Facts in the file name of a list.

    Attributes:
        dataset: ``CARS``, ``CUB``, ``SOP``, ``CARSN``, ``FOOD`` or another prefix.
        split: ``train`` or ``test``.
        rate_text: nominal noise rate as written, None for a list without injected noise.
        small_cluster: whether labels are renumbered.
        cleaned: whether the noisy rows have been taken out.
    """

    dataset: str
    split: str
    rate_text: str | None
    small_cluster: bool
    cleaned: bool

    @classmethod
    def parse(cls, name: str) -> ListName:
        """Read a file name such as ``CARS_0.5smallclusternoised_cleaned_train.csv``.

        Raises:
            UserError: the name does not follow the scheme.
        """
        match = _NAME.match(name)
        if match is None:
            raise UserError(
                f"{name} is not named like a released list; expected for example CARS_train.csv, "
                "CARS_0.5noised_train.csv or CARS_0.5smallclusternoised_train.csv."
            )
        return cls(
            dataset=match["dataset"],
            split=match["split"],
            rate_text=match["rate"],
            small_cluster=match["kind"] == "smallclusternoised",
            cleaned=match["cleaned"] is not None,
        )

    @property
    def rate(self) -> float | None:
        """Nominal noise rate, fraction of 1."""
        return None if self.rate_text is None else float(self.rate_text)

    @property
    def noisy(self) -> bool:
        """True for a list with injected noise that has not been taken out."""
        return self.rate_text is not None and not self.cleaned

    @property
    def real_noise(self) -> bool:
        """True for a crawled training list, whose wrong rows nobody knows."""
        return self.dataset in _REAL_NOISE and self.split == "train"

    @property
    def cleaned_name(self) -> str:
        """File name of the matching list without noisy rows; the clean list where none is noisy."""
        if self.rate_text is None:
            return self.clean_name
        kind = "smallclusternoised" if self.small_cluster else "noised"
        return f"{self.dataset}_{self.rate_text}{kind}_cleaned_{self.split}.csv"

    @property
    def clean_name(self) -> str:
        """File name of the list with all rows and true labels."""
        return f"{self.dataset}_{self.split}.csv"


@dataclass(frozen=True, eq=False)
class PathList:
    """A list in memory.

    Attributes:
        paths: as written, in file order.
        labels: int64 [rows], as written.
    """

    paths: tuple[str, ...]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def num_head_classes(self) -> int:
        """Rows of a class head indexed by the labels as written: largest label + 1."""
        return int(self.labels.max()) + 1

    def is_noise(self, cleaned: PathList) -> NDArray[np.bool_]:
        """Mask of the noisy rows: those whose path is missing from `cleaned`, bool [rows]."""
        return ~pd.Index(self.paths).isin(cleaned.paths)


def read_list(path: str | Path) -> PathList:
    """Read a ``path,label`` file.

    Raises:
        UserError: missing, empty or not UTF-8, or a line that is not ``path,label``.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"There is no list {path}; give the path of a file of path,label lines.")
    try:
        text = io.StringIO(read_text(path), newline=None).read()
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not a UTF-8 text file ({error}).") from error
    lines = text.removesuffix("\n").split("\n")
    rows = [line.rpartition(",") for line in lines]
    for number, (name, _, label) in enumerate(rows, start=1):
        number_like = label.isascii() and label.isdigit() and len(label) < 10
        if not name or "," in name or not number_like:
            raise UserError(
                f"Line {number} of {path} is not of the form path,label with a whole-number label: "
                f"{lines[number - 1]!r}."
            )
    return PathList(
        paths=tuple(name for name, _, _ in rows),
        labels=np.array([int(label) for _, _, label in rows], dtype=np.int64),
    )


def reroot(path: str, folders: Sequence[str] = DATASET_FOLDERS) -> str:
    """The part of `path` after the data-set folder; `path` itself if it names none of `folders`.

    ``/data/cars196/images/Audi A4/1.jpg`` becomes ``images/Audi A4/1.jpg``.
    """
    parts = path.replace("\\", "/").split("/")
    for position, part in enumerate(parts[:-1]):
        if part in folders:
            return "/".join(parts[position + 1 :])
    return path


def join_key(path: str) -> str:
    """Key of an image in every layout: its class folder and its file name."""
    return "/".join(reroot(path).replace("\\", "/").split("/")[-2:])


def official_table() -> dict[str, dict[str, Any]]:
    """Facts of the 39 released lists by file name: sha256, rows, n_labels, min_label, ...."""
    text = resources.files("noisyml.noise").joinpath("official_lists.json").read_bytes()
    return dict(json.loads(text))


def check_official_list(path: str | Path) -> dict[str, Any]:
    """Compare a file with the released list of the same name.

    Returns:
        The list's entry in `official_table`.

    Raises:
        UserError: no released list has this name, or the bytes, rows or labels differ.
    """
    path = Path(path)
    table = official_table()
    if path.name not in table:
        raise UserError(f"No released list is called {path.name}; known: {', '.join(table)}.")
    facts = table[path.name]
    contents = read_list(path)
    measured = {
        "rows": len(contents),
        "n_labels": len(np.unique(contents.labels)),
        "min_label": int(contents.labels.min()),
        "max_label": int(contents.labels.max()),
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }
    for fact, value in measured.items():
        if value != facts[fact]:
            raise UserError(
                f"{path} is not the released {path.name}: {fact} is {value}, not {facts[fact]}; "
                "fetch it again, or rename it if the change is meant."
            )
    return facts


def _locate(keys: Sequence[str], rows: Sequence[str], what: str) -> NDArray[np.int64]:
    """Row of each key, int64 [len(keys)], -1 where there is none."""
    index = pd.Index([join_key(row) for row in rows])
    if not index.is_unique:
        raise UserError(
            f"{what} names {index[index.duplicated()][0]!r} twice; keep one row per image."
        )
    return index.get_indexer(pd.Index([join_key(key) for key in keys])).astype(np.int64)


def _translate(
    written: NDArray[np.int64], pairs: NDArray[np.int64], num_classes: int
) -> tuple[NDArray[np.int64], list[int]]:
    """Labels as written in a list -> the split's numbering.

    Args:
        written: int64 [N].
        pairs: int64 [M, 2], known pairs (written label, class of the split).
        num_classes: classes of the split.

    Returns:
        Translated labels int64 [N]; the written labels that stand for no class of the split and got
        new numbers from `num_classes` on.
    """
    known = np.unique(pairs, axis=0)
    if len(np.unique(known[:, 0])) != len(known) or len(np.unique(known[:, 1])) != len(known):
        raise UserError(
            "The list and the training split disagree about classes: rows that are not noisy map "
            "one label to several classes (or several to one); use the data set it was made for."
        )
    translation = dict(zip(known[:, 0].tolist(), known[:, 1].tolist(), strict=True))
    shifts = np.unique(known[:, 0] - known[:, 1])
    phantom: list[int] = []
    # A label no clean row explains keeps the distance the others have, if it is the same for all.
    for label in np.setdiff1d(written, known[:, 0]).tolist():
        guess = label - int(shifts[0]) if len(shifts) == 1 else -1
        if 0 <= guess < num_classes:
            translation[label] = guess
        else:
            translation[label] = num_classes + len(phantom)
            phantom.append(label)
    table = np.zeros(int(written.max()) + 1, dtype=np.int64)
    for label, number in translation.items():
        if label < len(table):
            table[label] = number
    return table[written], phantom


def manifest_from_list(
    noisy: str | Path,
    cleaned: str | Path | None,
    clean_list: str | Path | None,
    keys: Sequence[str],
    *,
    labels: ArrayLike | None = None,
    num_classes: int | None = None,
) -> NoiseManifest:
    """The manifest of a released noisy list, joined to a split by path.

    Row order may differ. Rows whose image the split does not have are tolerated, counted and named
    in `details`. Labels outside the clean classes (the CUB lists' 101) become further classes.

    Args:
        noisy: the list with noisy labels.
        cleaned: the same list without noisy rows; None if nobody knows which rows are wrong.
        clean_list: the list with true labels; needed unless `labels` is given.
        keys: N sample keys of the split: paths whose last two parts are class folder and file.
        labels: int [N], true labels of the split in its own numbering; without them classes are
            numbered in the order of the labels of `clean_list`.
        num_classes: classes of the split; by default as many as `labels` (or `clean_list`) have.

    Returns:
        A manifest over the N samples of the split, in the order of `keys`.

    Raises:
        UserError: a file is missing or malformed, a sample of the split is not in the list, or list
            and split disagree about classes.
    """
    noisy = Path(noisy)
    rows = read_list(noisy)
    place = _locate(keys, rows.paths, f"The list {noisy}")
    absent = np.flatnonzero(place < 0)
    if len(absent):
        raise UserError(
            f"{len(absent)} of {len(keys)} training samples are not in the list {noisy}, first "
            f"{keys[int(absent[0])]!r}; use the data set and split the list was made for."
        )
    written = rows.labels[place]
    true_written = None
    if clean_list is not None:
        clean_rows = read_list(clean_list)
        at = _locate(keys, clean_rows.paths, f"The list {clean_list}")
        if (at < 0).any():
            i = int(np.flatnonzero(at < 0)[0])
            raise UserError(f"The training sample {keys[i]!r} is not in the list {clean_list}.")
        true_written = clean_rows.labels[at]
    if labels is not None:
        truth = np.asarray(labels, dtype=np.int64)
        classes = int(truth.max()) + 1 if num_classes is None else num_classes
    elif true_written is not None:
        values = np.unique(clean_rows.labels)
        truth = np.searchsorted(values, true_written)
        classes = len(values) if num_classes is None else num_classes
    else:
        raise UserError(
            f"The list {noisy} alone does not tell the true classes; give the clean list as well."
        )
    if len(truth) != len(keys):
        raise ValueError(f"{len(truth)} labels for {len(keys)} keys")

    if cleaned is None:
        wrong, known = np.zeros(len(keys), dtype=bool), False
    else:
        wrong, known = rows.is_noise(read_list(cleaned))[place], True
    name = ListName.parse(noisy.name)
    phantom: list[int] = []
    source = None
    if name.small_cluster:
        observed, total = written, rows.num_head_classes
        own = np.unique(np.stack([written[~wrong], truth[~wrong]], axis=1), axis=0)
        if len(np.unique(own[:, 0])) != len(own):
            raise UserError(
                f"The list {noisy} and the training split disagree about classes; use the data set "
                "it was made for."
            )
        source = np.full(total, -1, dtype=np.int64)
        source[own[:, 0]] = own[:, 1]
    else:
        pairs = np.stack([written[~wrong], truth[~wrong]], axis=1)
        if true_written is not None:
            pairs = np.concatenate([pairs, np.stack([true_written, truth], axis=1)])
        observed, phantom = _translate(written, pairs, classes)
        total = classes + len(phantom)
    missing = np.setdiff1d(np.arange(len(rows)), place)
    return NoiseManifest(
        observed=observed,
        clean=truth if known else np.full(len(keys), -1),
        changed=wrong,
        num_classes=total,
        injector="list",
        params={"path": noisy, "cleaned": cleaned, "clean_list": clean_list},
        nominal_rate=name.rate,
        keys=keys,
        num_clean_classes=classes,
        class_source=source,
        details={
            "list_sha256": hashlib.sha256(noisy.read_bytes()).hexdigest(),
            "missing_files": [rows.paths[int(i)] for i in missing],
            "num_missing_files": len(missing),
            "labels_without_class": phantom,
        },
    )
