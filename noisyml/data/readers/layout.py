"""Shared steps of readers of files: presence, counts, text tables, fingerprints, splits."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import stat
import unicodedata
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
from noisyml.storage.text import numbered_lines
from noisyml.targets import target_of

if TYPE_CHECKING:
    from noisyml.data.base import DatasetSource
    from noisyml.targets import Labels

log = logging.getLogger(__name__)

Result = TypeVar("Result")

#: Threads that wait for a disk, and files one of them asks for in a row, see `at_once`.
_THREADS = 16
_PART = 256

_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?")


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


def first_missing_of_layouts(root: Path, *layouts: Sequence[str]) -> str | None:
    """Path that the best present of several layouts lacks; None if one is complete.

    Args:
        root: folder of the data set.
        layouts: names below `root` that each layout needs; of equally present ones the first is
            complained about.
    """
    there = [sum((root / name).exists() for name in names) for names in layouts]
    if any(count == len(names) for count, names in zip(there, layouts, strict=True)):
        return None
    shares = [count / len(names) for count, names in zip(there, layouts, strict=True)]
    return first_missing(root, *layouts[shares.index(max(shares))])


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


def class_order(names: Iterable[str]) -> list[str]:
    """Different class names in order: as numbers if all of them are numbers, else by bytes.

    Args:
        names: e.g. folders or labels of a table; repeated ones count once.
    """
    different = set(names)
    if all(_NUMBER.fullmatch(name) for name in different):
        return sorted(different, key=lambda name: (Decimal(name), name))
    return sorted(different)


def say_look_alikes(class_names: Sequence[str], where: str) -> None:
    """Warn of classes that a reader would take for one: ``Cat`` and ``cat``, ``1`` and ``1.0``.

    Args:
        class_names: different names.
        where: the file or folder, for the message.
    """
    alike: dict[str, list[str]] = {}
    for name in class_names:
        alike.setdefault(_as_read(name), []).append(name)
    pairs = [names for names in alike.values() if len(names) > 1]
    if pairs:
        log.warning(
            "%s: %d classes look like another one, e.g. %s; write one name if they are one class",
            where, sum(map(len, pairs)) - len(pairs), " and ".join(map(repr, pairs[0])),
        )  # fmt: skip


def _as_read(name: str) -> str:
    """A name without what eyes pass over: case, form of letters, blanks, dashes, zeros."""
    if _NUMBER.fullmatch(name):
        return str(Decimal(name).normalize())
    letters = unicodedata.normalize("NFKC", name).casefold()
    return re.sub(r"[\W_]+", "", letters) or letters


def user_path(typed: str) -> Path:
    """A path as typed; where nothing has that name, ``~`` at its start is the home folder."""
    path = Path(typed)
    return path if os.path.lexists(path) else Path(os.path.expanduser(typed))


def read_columns(path: Path, columns: int, skip: int = 0, tabs: bool = False) -> list[list[str]]:
    """The rows of a table separated by blanks or tabs; the last column may hold blanks.

    Args:
        path: the text file.
        columns: how many columns each row has.
        skip: leading lines to leave out.
        tabs: whether tabs alone separate, so that every column may hold blanks.

    Raises:
        UserError: a row has fewer columns; the sentence names file and line.
    """
    # Blanks of ASCII alone: an ideographic or an unbreakable space is part of a name.
    blanks = "\t" if tabs else " \t"
    rows = []
    for number, line in numbered_lines(path)[skip:]:
        row = re.split(f"[{blanks}]+", line.strip(blanks), maxsplit=columns - 1)
        if len(row) != columns:
            raise UserError(f"{path}, line {number}: expected {columns} columns, found {len(row)}.")
        rows.append(row)
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
    """Size and times of each file, None where there is no file: nothing, a folder, a pipe.

    Raises:
        UserError: a folder on the way may not be looked into.
    """
    folder = str(root)

    def look(some: Sequence[str]) -> list[os.stat_result | None]:
        found: list[os.stat_result | None] = []
        for path in some:
            try:
                facts = os.stat(os.path.join(folder, path))
            except PermissionError as error:
                raise UserError(
                    f"{root / path} may not be looked at: {error.strerror}; change its folder's "
                    "permissions."
                ) from error
            except (OSError, ValueError):
                # Links that loop, names that are too long or hold a zero byte.
                found.append(None)
            else:
                found.append(facts if stat.S_ISREG(facts.st_mode) else None)
        return found

    return [facts for found in at_once(look, paths) for facts in found]


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
    for path, facts in zip(paths, stats, strict=True):
        if facts is not None:
            text = f"\0{path}\0{facts.st_size}\0{facts.st_mtime_ns}"
            digest.update(text.encode(errors="surrogateescape"))
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
    absent = [path for path, facts in zip(paths, stats, strict=True) if facts is None]
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
