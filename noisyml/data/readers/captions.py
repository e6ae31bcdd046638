"""Captions and class names from the texts of published data sets.

Formats as read by the code of OTTER (github.com/facebookresearch/OTTER, MIT).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote

import numpy as np
from numpy.typing import NDArray

from noisyml.errors import UserError
from noisyml.storage.text import read_lines, read_text

_TAG = re.compile(r"<.*?>")


def clean_flickr_text(text: str) -> str:
    """A title or description of YFCC100M: percent-decoded, ``+`` as a blank, without tags.

    A plus sign that was encoded is lost, as in the release.

    Example:
        >>> clean_flickr_text("My+%3Cb%3Ecat%3C%2Fb%3E+photo")
        'My cat photo'
    """
    return _TAG.sub("", unquote(text).replace("+", " "))


def flickr_caption(title: str, description: str) -> str:
    """The caption of an image of YFCC15M.

    Example:
        >>> flickr_caption("Hello+World", "100%25+pure")
        'Hello World. 100% pure'
    """
    return f"{clean_flickr_text(title)}. {clean_flickr_text(description)}"


def wit_row(line: str, released: bool = False) -> tuple[str, str]:
    """Path and caption in a line of WIT's ``process_labels.csv``, TAB-separated.

    All fields after the path make the caption.

    Args:
        line: with its line end.
        released: join the fields by nothing and keep the line end, as the release does; else they
            are stripped and joined by a blank.

    Example:
        >>> wit_row("a.jpg\\tfirst part\\tsecond part\\n")
        ('a.jpg', 'first part second part')
        >>> wit_row("a.jpg\\tfirst part\\tsecond part\\n", released=True)
        ('a.jpg', 'first partsecond part\\n')
    """
    path, *fields = line.split("\t")
    if released:
        return path, "".join(fields)
    return path.strip(), " ".join(field.strip() for field in fields if field.strip())


def joined_synonyms(lemmas: str, underscores: bool = True) -> str:
    """A class name of a list of synonyms: ``tench, Tinca tinca`` becomes ``tench,or Tinca tinca``.

    Args:
        lemmas: separated by a comma and a blank.
        underscores: write them as blanks (the lists of ImageNet).

    Example:
        >>> joined_synonyms("great_white_shark, white shark")
        'great white shark,or white shark'
    """
    names = [name.strip() for name in lemmas.split(", ")]
    joined = ",or ".join(names)
    return joined.replace("_", " ") if underscores else joined


def read_class_names(path: Path, released: bool = False) -> list[str]:
    """The class names of a list file, by its form.

    A table of Tencent ML-Images (its first line begins with ``category_index``) gives the names of
    its last column, synonyms joined. Any other file gives a class per line; of a list of WordNet
    lemmas (``imagenet...lemmas.txt``) the synonyms are joined, and underscores become blanks.

    Args:
        path: the file.
        released: take the last field of a table as OTTER does, which names the class 0 of its copy
            ``-1  thing``: parent and name are joined by blanks there. Else it is ``thing``.

    Raises:
        UserError: a file that cannot be read, without names, or a row without a name.
    """
    if not path.is_file():
        raise UserError(f"There is no list of classes {path}: give a text file, one name a line.")
    lines = read_lines(path)
    if not lines:
        raise UserError(f"The list of classes {path} is empty: write one name a line.")
    if lines[0].startswith("category_index\t"):
        return [
            _tencent_name(line, f"{path}, line {number}", released)
            for number, line in enumerate(lines[1:], start=2)
        ]
    if path.name.endswith("lemmas.txt"):
        return [joined_synonyms(line) for line in lines]
    return [line.strip() for line in lines]


def _tencent_name(line: str, place: str, released: bool) -> str:
    fields = line.split("\t")
    if len(fields) == 3 and not released:
        fields = [*fields[:2], *fields[2].split(maxsplit=1)]
    if len(fields) not in ((3, 4) if released else (4,)) or not fields[0].isdigit():
        raise UserError(
            f"{place}: expected the columns index, synset, parent and name, separated by tabs, "
            f"found {line[:80]!r}."
        )
    return joined_synonyms(fields[-1], underscores=False)


def read_templates(path: Path, name: str = "") -> list[str]:
    """Prompt templates from a file: one a line, or CLIP's JSON.

    Args:
        path: a text file whose lines hold ``{}``, or a JSON list of such texts, or a JSON mapping
            with one such list somewhere below `name`.
        name: of a data set in a JSON mapping (``ImageNet``); nothing if there is one list only.

    Raises:
        UserError: no such file, or nothing in it holds ``{}``.
    """
    import json

    if not path.is_file():
        raise UserError(f"There is no file of prompt templates {path}.")
    if path.suffix != ".json":
        found = read_lines(path)
    else:
        content = json.loads(read_text(path))
        lists = list(_template_lists(content.get(name, content) if name else content))
        if len(lists) != 1:
            raise UserError(
                f"{path} holds {len(lists)} lists of templates: name one of its data sets."
            )
        found = lists[0]
    wrong = [text for text in found if "{}" not in text]
    if wrong or not found:
        raise UserError(
            f"{path}: a prompt template must hold {{}} where the class name goes, and "
            f"{'none is there' if not found else repr(wrong[0]) + ' does not'}."
        )
    return found


def _template_lists(content: object) -> list[list[str]]:
    """All lists of texts with ``{}`` in a JSON value."""
    if isinstance(content, dict):
        return [found for value in content.values() for found in _template_lists(value)]
    if isinstance(content, list) and content and all(isinstance(t, str) for t in content):
        return [content] if any("{}" in text for text in content) else []
    return []


def read_label_lists(
    path: Path, num_classes: int | None = None
) -> tuple[list[str], NDArray[np.int64]]:
    """Images and their classes: lines of an image name and class numbers, TAB-separated.

    The format of OTTER's ``goi_images.txt`` and of the validation list of ImageNet-10K.

    Args:
        path: the file.
        num_classes: C, to compare with.

    Returns:
        N names, and class numbers [N, most], filled up with -1.

    Raises:
        UserError: a field that is no class number; the sentence names file and line.
    """
    names, rows = [], []
    for number, line in enumerate(read_lines(path), start=1):
        name, *fields = line.split("\t")
        if not all(field.strip().isdigit() for field in fields if field.strip()):
            raise UserError(
                f"{path}, line {number}: expected an image name and class numbers, separated by "
                f"tabs, found {line[:80]!r}."
            )
        row = [int(field) for field in fields if field.strip()]
        if num_classes is not None and row and max(row) >= num_classes:
            raise UserError(
                f"{path}, line {number}: class {max(row)}, but the list of classes has "
                f"{num_classes} (numbers from 0)."
            )
        names.append(name)
        rows.append(row)
    return names, padded_labels(rows)


def padded_labels(rows: Sequence[Sequence[int]]) -> NDArray[np.int64]:
    """Class numbers of each sample in one array [N, most], filled up with -1.

    Example:
        >>> padded_labels([[4, 2], [7], []]).tolist()
        [[4, 2], [7, -1], [-1, -1]]
    """
    most = max((len(row) for row in rows), default=0)
    padded = np.full((len(rows), max(most, 1)), -1, dtype=np.int64)
    for at, row in enumerate(rows):
        padded[at, : len(row)] = row
    return padded
