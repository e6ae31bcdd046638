"""Folders of images: what is a class, what is a picture, and what is neither."""

from __future__ import annotations

import logging
import os
import re
import stat
from collections import defaultdict
from pathlib import Path

from noisyml.errors import UserError

log = logging.getLogger(__name__)

IMAGE_SUFFIXES = frozenset(
    {
        ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm",
        ".pgm", ".pbm", ".pnm",
    }
)  # fmt: skip
#: What systems and tools leave behind; so is everything whose name starts with a dot.
TOOL_NAMES = frozenset(
    {
        "__MACOSX", "__pycache__", "@eaDir", "$RECYCLE.BIN", "System Volume Information",
        "lost+found", "Thumbs.db", "desktop.ini", "Icon\r",
    }
)  # fmt: skip
HIDDEN = "hidden files and folders, or those of tools"
_SUFFIX = re.compile(r"\.[a-z][a-z0-9]{0,9}")


class LeftOut:
    """Paths that were found and are no image of a data set, by kind."""

    def __init__(self) -> None:
        self.by_kind: dict[str, list[str]] = defaultdict(list)

    def add(self, kind: str, path: str | Path) -> None:
        """Note a path; bytes of its name that are no UTF-8 are written as ``\\xNN``."""
        self.by_kind[kind].append(os.fsencode(path).decode("utf-8", "backslashreplace"))

    def say(self, where: str | Path) -> None:
        """Log the number of paths of each kind and the first of them."""
        for kind, paths in self.by_kind.items():
            level = logging.INFO if kind == HIDDEN else logging.WARNING
            log.log(level, "%s: left out %d %s (%s)", where, len(paths), kind, paths[0])


def entries(folder: str | Path, left_out: LeftOut) -> tuple[list[str], list[str]]:
    """Names of the folders and of the files in a folder, sorted by bytes.

    Links count as what they lead to.

    Args:
        folder: an existing folder.
        left_out: takes what is hidden, of tools, a link to nothing, neither file nor folder, or
            named by bytes that are no UTF-8.

    Raises:
        UserError: the folder cannot be read.
    """
    folders, files = [], []
    try:
        found = sorted(os.scandir(folder), key=lambda entry: os.fsencode(entry.name))
    except OSError as error:
        raise UserError(f"The folder {folder} cannot be read: {error.strerror}.") from error
    for entry in found:
        if entry.name.startswith(".") or entry.name in TOOL_NAMES:
            left_out.add(HIDDEN, entry.path)
            continue
        try:
            mode = entry.stat().st_mode
        except OSError:
            left_out.add("links to nothing", entry.path)
            continue
        if not _is_text(entry.name):
            left_out.add("names that are no UTF-8", entry.path)
        elif stat.S_ISDIR(mode):
            folders.append(entry.name)
        elif stat.S_ISREG(mode):
            files.append(entry.name)
        else:
            left_out.add("pipes, sockets and devices", entry.path)
    return folders, files


def image_files(folder: str | Path, left_out: LeftOut) -> list[str]:
    """Names of the images in a folder, sorted by bytes.

    Archives packed on a Mac hold a ``._name.jpg`` beside ``name.jpg``, which is no image.

    Args:
        folder: an existing folder.
        left_out: takes the other files, see `entries`.

    Raises:
        UserError: the folder cannot be read.
    """
    return _images(folder, entries(folder, left_out)[1], left_out)


def _images(folder: str | Path, files: list[str], left_out: LeftOut) -> list[str]:
    images = []
    for name in files:
        suffix = Path(name).suffix.lower()
        if suffix in IMAGE_SUFFIXES:
            images.append(name)
        else:
            known = _SUFFIX.fullmatch(suffix)
            kind = f"files named *{suffix}" if known else "files without suffix"
            left_out.add(kind, os.path.join(folder, name))
    return images


def class_folders(folder: Path, left_out: LeftOut) -> dict[str, list[str]]:
    """The images of every class folder, at every depth, as sorted paths relative to `folder`.

    Args:
        folder: holds a folder per class.
        left_out: takes what is no image of a class.

    Raises:
        UserError: the folder cannot be read.
    """
    classes, files = entries(folder, left_out)
    for name in _images(folder, files, left_out):
        left_out.add("images beside the class folders", folder / name)
    found = {}
    for name in classes:
        images = _images_below(folder, name, left_out)
        if images:
            found[name] = sorted(images, key=os.fsencode)
        else:
            left_out.add("class folders without images", folder / name)
    return found


def _images_below(root: Path, name: str, left_out: LeftOut) -> list[str]:
    """Images of a class folder, relative to `root`."""
    home = os.path.realpath(root)
    # A link to a folder above, or to another class, would bring other classes into this one.
    seen = {home, *map(str, Path(home).parents)}
    images = []
    waiting = [(name, os.path.join(home, name))]
    while waiting:
        below, place = waiting.pop()
        path = os.path.join(root, below)
        real = os.path.realpath(path)
        if real in seen or (real != place and real.startswith(home + os.sep)):
            left_out.add("links to folders already read or above", path)
            continue
        seen.add(real)
        try:
            folders, files = entries(path, left_out)
        except UserError:
            left_out.add("folders that cannot be read", path)
            continue
        images += [os.path.join(below, file) for file in _images(path, files, left_out)]
        waiting += [(os.path.join(below, one), os.path.join(real, one)) for one in folders]
    return images


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


#: Words for the parts of a data set in the names of folders, in any case.
SPLIT_WORDS = {
    "train": frozenset({"train", "training", "trainset"}),
    "val": frozenset({"val", "valid", "validation", "dev", "valset", "eval", "evaluation"}),
    "test": frozenset({"test", "testing", "testset"}),
    "query": frozenset({"query", "queries", "probe"}),
    "gallery": frozenset({"gallery"}),
}
_OF_SPLITS = frozenset().union(*SPLIT_WORDS.values())
_FOLDS = re.compile(r"(fold|split)s?[ _.-]?\d+")


def split_of(word: str) -> str | None:
    """The split that a word stands for, in any case; None if it stands for none."""
    return next((split for split, words in SPLIT_WORDS.items() if word.lower() in words), None)


def split_folders(folder: Path, left_out: LeftOut) -> dict[str, str]:
    """The folders of splits by the split's name; empty if the folders are classes.

    Args:
        folder: the data set.
        left_out: takes the folders beside those of splits.

    Raises:
        UserError: the folders are named after splits, but not after ``train`` and ``test`` (or
            ``query`` and ``gallery``), or every class folder holds folders of splits.
    """
    names, _ = entries(folder, LeftOut())
    roles = {role: [name for name in names if split_of(name) == role] for role in SPLIT_WORDS}
    found = {role: some[0] for role, some in roles.items() if len(some) == 1}
    complete = "train" in found and ("test" in found or {"query", "gallery"} <= found.keys())
    if complete and all(len(some) < 2 for some in roles.values()):
        for name in names:
            if name not in found.values():
                left_out.add("folders beside those of the splits", folder / name)
        return found
    if len(names) > 1 and all(map(_names_a_split, names)):
        raise UserError(
            f"The folders {', '.join(names)} in {folder} are named after splits, no classes: "
            "name one of them train, one test, and one val if there is one; or set dataset.path to "
            "one of them."
        )
    inner = [_folders_in(folder / name) for name in names]
    if inner and all(len(some) > 1 and all(map(_names_a_split, some)) for some in inner):
        raise UserError(
            f"The class folders in {folder} hold folders of splits ({names[0]}/{inner[0][0]}): "
            f"arrange them the other way round ({inner[0][0]}/{names[0]}), or list the images in a "
            "table with a column of splits."
        )
    return {}


def _names_a_split(name: str) -> bool:
    """True of ``clean_test``, ``train2017``, ``fold_1`` and the like."""
    words = set(re.split(r"[^a-z]+", name.lower()))
    return bool(words & _OF_SPLITS) or _FOLDS.fullmatch(name.lower()) is not None


def advice_on_classes(folder: Path) -> str:
    """Advice where a data set has fewer than two class folders with images."""
    names, files = entries(folder, LeftOut())
    images = _images(folder, files, LeftOut())
    if images and not names:
        return f"; its {len(images)} images lie in no class folder"
    deeper = [name for name in names if _folders_in(folder / name)]
    return f"; perhaps dataset.path={folder / deeper[0]} is meant" if len(deeper) == 1 else ""


def _folders_in(folder: Path) -> list[str]:
    """Folders in a folder, none if it cannot be read."""
    try:
        return entries(folder, LeftOut())[0]
    except UserError:
        return []
