"""Judgements of whole samples [n], or of every entry (sample and class) of multi-label ones [n, C].

Entries are numbered ``position * C + class`` where they stand in one column.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def entry_classes(marks: Any) -> int:
    """Number of classes C of judgements of entries [n, C]; 0 for judgements of samples [n].

    Args:
        marks: array or tensor.

    Example:
        >>> import numpy as np
        >>> from noisyml.targets.entries import entry_classes
        >>> entry_classes(np.ones(5)), entry_classes(np.ones((5, 3)))
        (0, 3)
    """
    return int(marks.shape[1]) if marks.ndim > 1 else 0


def entry_numbers(index: NDArray[np.int64], classes: int) -> NDArray[np.int64]:
    """Number of each judgement: the position [n] of a sample, or of its entries [n, C].

    Example:
        >>> import numpy as np
        >>> from noisyml.targets.entries import entry_numbers
        >>> entry_numbers(np.array([4, 7]), 0).tolist()
        [4, 7]
        >>> entry_numbers(np.array([4, 7]), 2).tolist()
        [[8, 9], [14, 15]]
    """
    return index[:, None] * classes + np.arange(classes) if classes else index


def positions_of(
    numbers: NDArray[np.int64], classes: int
) -> tuple[NDArray[np.int64], NDArray[np.int64] | None]:
    """Position and, of entries, class of judgements by number; the inverse of `entry_numbers`.

    Example:
        >>> import numpy as np
        >>> from noisyml.targets.entries import positions_of
        >>> [part.tolist() for part in positions_of(np.array([8, 15]), 2)]
        [[4, 7], [0, 1]]
    """
    return (numbers // classes, numbers % classes) if classes else (numbers, None)


def as_judged(marks: NDArray[np.bool_], classes: int) -> NDArray[np.bool_]:
    """Marks of the labels as they were judged: a sample judged as a whole has any of its marks.

    Args:
        marks: [n] or [n, C] bool, e.g. which labels are wrong.
        classes: C if entries were judged, 0 if samples were.

    Example:
        >>> import numpy as np
        >>> from noisyml.targets.entries import as_judged
        >>> as_judged(np.array([[True, False], [False, False]]), 0).tolist()
        [True, False]
    """
    whole = marks.ndim > 1 and not classes
    return np.asarray(marks.any(axis=1) if whole else marks)


def entry_texts(
    marks: NDArray[Any], entry: NDArray[np.int64], class_names: Sequence[str]
) -> list[str]:
    """Entries [n] of classes [n] in words: the name of the class, or "no" and that name.

    Args:
        marks: 1, 0, or negative (unknown, which gives an empty text).
        entry: the class of each.
        class_names: C names.

    Example:
        >>> import numpy as np
        >>> from noisyml.targets.entries import entry_texts
        >>> entry_texts(np.array([1, 0]), np.array([0, 1]), ["ant", "bee"])
        ['ant', 'no bee']
    """
    words = {1: "", 0: "no "}
    return [
        "" if mark < 0 else words[mark] + str(class_names[label])
        for mark, label in zip(marks.tolist(), entry.tolist(), strict=True)
    ]


def by_entry(marks: Any) -> Any:
    """Marks of samples [n] or of entries [n, C] as a column or a table that fits entries.

    Args:
        marks: array or tensor.

    Returns:
        [n, 1] or [n, C], a view.
    """
    return marks if entry_classes(marks) else marks[:, None]
