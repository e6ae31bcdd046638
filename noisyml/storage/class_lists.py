"""Class names, prompt templates and true classes from the files of zero-shot recognition.

Formats as read by the code of OTTER (github.com/facebookresearch/OTTER, MIT) and as published for
CLIP (github.com/openai/CLIP, MIT).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from noisyml.errors import UserError, did_you_mean
from noisyml.storage.text import numbered_lines, read_lines, read_text

#: A line of a list of definitions: a synset of WordNet, a comma, the text.
_DEFINITION = re.compile(r"n\d{8},.")


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


def read_class_names(path: Path, released: bool = False, name: str = "") -> list[str]:
    """The class names of a list file, by its form.

    * A table of Tencent ML-Images (its first line begins with ``category_index``) gives the names
      of its last column, synonyms joined.
    * Of a list of WordNet lemmas (``imagenet...lemmas.txt``) the synonyms are joined, and
      underscores become blanks.
    * Of a list of definitions (``n01440764,freshwater fish``) the definitions are taken.
    * JSON gives a list of texts without ``{}``, by itself or below `name` (CLIP).
    * Any other file gives a class per line.

    Args:
        path: the file.
        released: take the last field of a table as OTTER does, which names the class 0 of its copy
            ``-1  thing``: parent and name are joined by blanks there. Else it is ``thing``.
        name: of a data set in a JSON mapping (``CIFAR10``); nothing if there is one list only.

    Raises:
        UserError: a file that cannot be read, without names, or a row without a name.
    """
    if not path.is_file():
        raise UserError(f"There is no list of classes {path}: give a text file, one name a line.")
    if path.suffix == ".json":
        return _one_list(path, name, "names", templates=False)
    lines = numbered_lines(path)
    if not lines:
        raise UserError(f"The list of classes {path} is empty: write one name a line.")
    texts = [line for _, line in lines]
    if texts[0].startswith("category_index\t"):
        return [_tencent_name(line, f"{path}, line {i}", released) for i, line in lines[1:]]
    if path.name.endswith("lemmas.txt"):
        return [joined_synonyms(line) for line in texts]
    if all(_DEFINITION.match(line) for line in texts):
        return [line.partition(",")[2].strip() for line in texts]
    return [line.strip() for line in texts]


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
    if not path.is_file():
        raise UserError(f"There is no file of prompt templates {path}.")
    if path.suffix == ".json":
        return _one_list(path, name, "templates", templates=True)
    found = read_lines(path)
    wrong = [text for text in found if "{}" not in text]
    if wrong or not found:
        raise UserError(
            f"{path}: a prompt template must hold {{}} where the class name goes, and "
            f"{'none is there' if not found else repr(wrong[0]) + ' does not'}."
        )
    return found


def _one_list(path: Path, name: str, kind: str, templates: bool) -> list[str]:
    """The one list of templates, or of names, in a JSON file or below a name in it.

    Raises:
        UserError: no JSON, no such name, or not one such list.
    """
    try:
        content = json.loads(read_text(path))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}.") from error
    known = list(content) if isinstance(content, dict) else []
    if name and name not in known:
        raise UserError(
            f"{path} has no data set '{name}', but {', '.join(known) or 'a single list'}."
            f"{did_you_mean(name, known)}"
        )
    lists = [
        found
        for found in _text_lists(content[name] if name else content)
        if any("{}" in text for text in found) == templates
    ]
    if len(lists) != 1:
        raise UserError(
            f"{path} holds {len(lists) or 'no'} lists of {kind}"
            + (f": name one of its data sets ({', '.join(known)})." if len(lists) > 1 else ".")
        )
    if templates and (wrong := [text for text in lists[0] if "{}" not in text]):
        raise UserError(
            f"{path}: a prompt template must hold {{}} where the class name goes, and "
            f"{wrong[0]!r} does not."
        )
    return lists[0]


def _text_lists(content: object) -> Iterator[list[str]]:
    """All lists of texts in a JSON value."""
    if isinstance(content, dict):
        for value in content.values():
            yield from _text_lists(value)
    elif isinstance(content, list) and content and all(isinstance(t, str) for t in content):
        yield content


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
    for number, line in numbered_lines(path):
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
