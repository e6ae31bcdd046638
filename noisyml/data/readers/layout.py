"""Shared steps of readers of files: presence, counts, text tables, fingerprints, splits."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from noisyml.data.base import Split
from noisyml.data.inputs import ArrayImages, FileImages
from noisyml.errors import UserError
from noisyml.storage.text import read_text
from noisyml.targets import target_of

if TYPE_CHECKING:
    from noisyml.data.base import DatasetSource
    from noisyml.targets import Labels

Result = TypeVar("Result")

#: Threads that wait for a disk, and files one of them asks for in a row, see `at_once`.
_THREADS = 16
_PART = 256

_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?")

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"}
)


def require_files(source: DatasetSource, name: str) -> None:
    """Raise the error of a missing data set, with the way to get it.

    Raises:
        UserError: `source.missing()` names something.
    """
    missing = source.missing()
    if missing is not None:
        raise UserError(f"Data set {name}: {missing} is missing; {source.how_to_get}")


def first_missing(root: Path, *names: str) -> str | None:
    """The first of `names` that does not exist below `root` as a full path, or None."""
    return next((str(root / name) for name in names if not (root / name).exists()), None)


def check_count(what: str, found: int, expected: int) -> None:
    """Compare a count with the published one.

    Raises:
        UserError: they differ.
    """
    if found != expected:
        raise UserError(
            f"{what}: expected {expected} as published, found {found}; fetch the data set again, "
            "or set dataset.check_counts=false if the difference is intended."
        )


def check_split(name: str, split: Split, images: int, classes: int) -> None:
    """Compare a split's images and classes with the published numbers.

    Raises:
        UserError: one differs.
    """
    check_count(f"Images of the {split.name} split of {name}", len(split), images)
    present = int(np.count_nonzero(split.class_counts))
    check_count(f"Classes of the {split.name} split of {name}", present, classes)


def read_lines(path: Path) -> list[str]:
    """The non-empty lines of a UTF-8 text file, without line ends.

    Raises:
        UserError: it cannot be read as text.
    """
    try:
        text = read_text(path)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as UTF-8 text: {error}.") from error
    return [line for line in text.splitlines() if line.strip()]


def class_order(names: Iterable[str]) -> list[str]:
    """Different class names in order: as numbers if all of them are numbers, else by bytes.

    Args:
        names: e.g. folders or labels of a table; repeated ones count once.
    """
    different = set(names)
    if all(_NUMBER.fullmatch(name) for name in different):
        return sorted(different, key=lambda name: (Decimal(name), name))
    return sorted(different)


def read_columns(path: Path, columns: int, skip: int = 0) -> list[list[str]]:
    """The rows of a blank-separated table; the last column may hold blanks.

    Args:
        path: the text file.
        columns: how many columns each row has.
        skip: leading lines to leave out.

    Raises:
        UserError: a row has fewer columns; the sentence names file and line.
    """
    rows = [line.split(maxsplit=columns - 1) for line in read_lines(path)[skip:]]
    for number, row in enumerate(rows, start=skip + 1):
        if len(row) != columns:
            raise UserError(f"{path}, line {number}: expected {columns} columns, found {len(row)}.")
    return rows


def whole_numbers(values: Sequence[str], path: Path) -> NDArray[np.int64]:
    """Decimal integers from text, int64 [N].

    Raises:
        UserError: one is none; the sentence names it and the file.
    """
    try:
        return np.array([int(value) for value in values], dtype=np.int64)
    except ValueError as error:
        wrong = next(value for value in values if not value.strip().lstrip("-").isdecimal())
        raise UserError(f"{path}: '{wrong}' stands where a whole number is expected.") from error


def image_files(folder: Path) -> list[str]:
    """Names of the images in a folder, sorted by bytes; hidden files are left out.

    Archives packed on a Mac hold a ``._name.jpg`` beside ``name.jpg``, which is no image.
    """
    return sorted(
        name
        for name in os.listdir(folder)
        if Path(name).suffix.lower() in IMAGE_SUFFIXES and not name.startswith(".")
    )


def check_archives(folder: Path, published: Mapping[str, str], name: str) -> None:
    """Compare the downloaded archives of a data set with their published MD5 sums.

    Args:
        folder: where they lie.
        published: MD5 hex digest by file name; those that are not there are passed over.
        name: of the data set, for messages.

    Raises:
        UserError: none of them is there, or one is another file.
    """
    there = [archive for archive in published if (folder / archive).is_file()]
    if not there:
        raise UserError(
            f"dataset.archives={folder} holds none of {', '.join(published)} of {name}: name the "
            "folder with the downloaded archives, or leave it null."
        )
    for archive in there:
        with (folder / archive).open("rb") as file:
            found = hashlib.file_digest(
                file, lambda: hashlib.md5(usedforsecurity=False)
            ).hexdigest()
        if found != published[archive]:
            raise UserError(
                f"{folder / archive} has the MD5 sum {found}, published is {published[archive]}: "
                "the download is damaged or another release; fetch it again."
            )


def stat_files(root: Path, paths: Sequence[str]) -> list[os.stat_result | None]:
    """Size and times of each file, None where there is no file."""
    folder = str(root)

    def look(some: Sequence[str]) -> list[os.stat_result | None]:
        found: list[os.stat_result | None] = []
        for path in some:
            try:
                found.append(os.stat(os.path.join(folder, path)))
            except (FileNotFoundError, NotADirectoryError):
                found.append(None)
        return found

    return [stat for found in at_once(look, paths) for stat in found]


def at_once(work: Callable[[Sequence[str]], Result], items: Sequence[str]) -> list[Result]:
    """Results of `work` on consecutive parts of `items`, several at a time: disks are slow.

    Args:
        work: called in threads; what it raises for the first failing part is raised.
        items: e.g. paths.
    """
    parts = [items[at : at + _PART] for at in range(0, len(items), _PART)]
    if len(parts) < 2:
        return [work(part) for part in parts]
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(work, parts))


def files_digest(paths: Sequence[str], stats: Sequence[os.stat_result | None], name: str) -> str:
    """SHA-256 of a name and of paths, sizes and modification times of the files there are."""
    digest = hashlib.sha256(name.encode())
    for path, stat in zip(paths, stats, strict=True):
        if stat is not None:
            digest.update(f"\0{path}\0{stat.st_size}\0{stat.st_mtime_ns}".encode(errors="replace"))
    return digest.hexdigest()


def array_split(
    name: str,
    pixels: NDArray[np.uint8],
    labels: Labels,
    class_names: Sequence[str],
    keys: Sequence[str],
    extras: dict[str, NDArray] | None = None,
) -> Split:
    """A split of images held in memory; its fingerprint is the SHA-256 of pixels and labels.

    Args:
        name: the split's name.
        pixels: uint8 [N, H, W] or [N, H, W, 3].
        labels: int64 [N], indices into `class_names`, uint8 [N, C] multi-hot, or captions.
        class_names: C names.
        keys: N unique names.
        extras: further per-sample arrays.
    """
    digest = hashlib.sha256(pixels.tobytes())
    digest.update(target_of(labels).content(labels))
    return Split(
        name, ArrayImages(pixels), labels, class_names, keys, digest.hexdigest(), extras or {}
    )


def file_split(
    name: str,
    root: Path,
    paths: Sequence[str],
    labels: Labels,
    class_names: Sequence[str],
    extras: dict[str, NDArray] | None = None,
) -> Split:
    """A split of image files; its fingerprint covers name, paths, sizes and modification times.

    Args:
        name: the split's name.
        root: folder the paths are relative to.
        paths: N paths, also the keys.
        labels: int64 [N], indices into `class_names`, or uint8 [N, C] multi-hot.
        class_names: C names.
        extras: further per-sample arrays.

    Raises:
        UserError: a file is missing (the sentence names the first and counts them), a path occurs
            twice, or the split is empty.
    """
    if not paths:
        raise UserError(f"The {name} split of {root} has no images; check the folder's layout.")
    if len(set(paths)) != len(paths):
        twice = Counter(paths).most_common(1)[0][0]
        raise UserError(f"The {name} split of {root} lists {twice} twice; remove one of the rows.")
    stats = stat_files(root, paths)
    absent = [path for path, stat in zip(paths, stats, strict=True) if stat is None]
    if absent:
        raise UserError(
            f"{len(absent)} of {len(paths)} images of the {name} split are missing, the first is "
            f"{root / absent[0]}; unpack the images again."
        )
    return Split(
        name=name,
        inputs=FileImages(list(paths), str(root)),
        labels=labels,
        class_names=class_names,
        keys=list(paths),
        fingerprint=files_digest(paths, stats, name),
        extras=extras or {},
    )


def parts_to_splits(
    root: Path,
    paths: Sequence[str],
    labels: Labels,
    class_names: Sequence[str],
    parts: Mapping[str, NDArray[np.int64]],
    share_classes: bool,
) -> dict[str, Split]:
    """Splits of image files by row numbers.

    Args:
        root: folder the paths are relative to.
        paths: N paths.
        labels: int64 [N], indices into `class_names`, or uint8 [N, C] multi-hot (closed set only).
        class_names: C names.
        parts: row numbers of each split; an empty ``val`` is left out.
        share_classes: True if all splits keep the one list of classes (closed set), False if each
            has its own (zero-shot); ``query`` and ``gallery``, whose labels are compared, always
            have one list together.

    Raises:
        UserError: a split other than ``val`` is empty, or a file is missing.
    """
    together = [parts[name] for name in ("query", "gallery") if name in parts]
    splits = {}
    for name, rows in parts.items():
        if name == "val" and not len(rows):
            continue
        own, names = labels[rows], list(class_names)
        if not share_classes:
            pool = np.concatenate(together) if name in ("query", "gallery") else rows
            present = np.unique(labels[pool])
            own = np.searchsorted(present, own).astype(np.int64)
            names = [class_names[int(value)] for value in present]
        splits[name] = file_split(name, root, [paths[row] for row in rows], own, names)
    return splits
