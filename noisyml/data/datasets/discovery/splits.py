"""Old and new classes, and which images of the old ones are labelled."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from noisyml.checks import Share
from noisyml.errors import UserError

#: Lists of classes by name, with their source.
CLASS_LISTS = "class_lists.json"

#: Which images of the old classes are labelled: a draw from all of them, or a share of each class.
Draw = Literal["released", "per_class"]


@dataclass(frozen=True)
class ClassSplit:
    """Class numbers of a data set in the order in which discovery numbers them anew.

    Attributes:
        old: the known classes.
        new: the others.
    """

    old: tuple[int, ...]
    new: tuple[int, ...]

    @classmethod
    def of(cls, which: str | int | Sequence[int], num_classes: int) -> ClassSplit:
        """The old and new classes of a data set.

        Args:
            which: the name of a list of the package (``cub200``); a number of classes, the first
                ones; ``half``: the first half, rounded down; or the numbers of the old classes in
                their order.
            num_classes: C.

        Raises:
            UserError: no such list, or numbers that are none of the classes.

        Example:
            >>> ClassSplit.of("half", 5)
            ClassSplit(old=(0, 1), new=(2, 3, 4))
            >>> ClassSplit.of([2, 0], 3).new
            (1,)
        """
        new: Sequence[int] | None = None
        if which == "half":
            which = num_classes // 2
        if isinstance(which, str):
            old, new = named_list(which)
        elif isinstance(which, int):
            old = list(range(which))
        else:
            old = [int(number) for number in which]
        if new is None:
            new = [number for number in range(num_classes) if number not in set(old)]
        if sorted([*old, *new]) != list(range(num_classes)) or not old:
            raise UserError(
                f"dataset.old_classes names {len(old)} old and {len(new)} new classes, which are "
                f"not the {num_classes} of the data set, each once: choose another list."
            )
        return cls(tuple(old), tuple(new))

    @property
    def order(self) -> NDArray[np.int64]:
        """The data set's class numbers in their new order [C]."""
        return np.array([*self.old, *self.new], dtype=np.int64)


@functools.cache
def class_lists() -> dict[str, dict[str, list[int]]]:
    """All lists of the package by name: ``old``, perhaps ``new``, and their ``source``."""
    text = resources.files(__package__).joinpath(CLASS_LISTS).read_text(encoding="utf-8")
    found: dict[str, dict[str, list[int]]] = json.loads(text)
    return found


def named_list(name: str) -> tuple[list[int], list[int] | None]:
    """Old and, where they have an order of their own, new classes of a list of the package.

    Raises:
        UserError: there is no such list.
    """
    known = {key: entry for key, entry in class_lists().items() if "old" in entry}
    if name not in known:
        raise UserError(
            f"There is no list of old classes '{name}': use half, a number, the class numbers, or "
            f"one of {', '.join(known)}."
        )
    return known[name]["old"], known[name].get("new")


def draw_labelled(
    labels: NDArray[np.int64], old: int, share: Share, seed: int, draw: Draw = "released"
) -> NDArray[np.bool_]:
    """Marks of the images that are labelled, bool [N].

    Args:
        labels: int64 [N], the old classes first.
        old: number of old classes.
        share: of their images that are labelled, rounded down.
        seed: of the draw.
        draw: ``released``: from all images of old classes at once, as GCD does; ``per_class``: the
            share of each class, at least one image.

    Raises:
        UserError: no image is labelled.

    Example:
        >>> import numpy as np
        >>> draw_labelled(np.array([0, 0, 1, 1, 2]), 2, 0.5, 0, "per_class").sum()
        np.int64(2)
    """
    rows = np.flatnonzero(labels < old)
    marks = np.zeros(len(labels), dtype=bool)
    # The stream of the released code: numpy.random.seed(seed) and numpy.random.choice.
    stream = np.random.RandomState(seed)
    if draw == "released":
        chosen = stream.choice(len(rows), replace=False, size=int(share * len(rows)))
        marks[rows[chosen]] = True
    else:
        for number in range(old):
            members = np.flatnonzero(labels == number)
            size = min(len(members), max(1, int(share * len(members))))
            marks[stream.choice(members, replace=False, size=size)] = True
    if not marks.any():
        raise UserError(
            f"dataset.labelled_share={share} leaves none of the {len(rows)} images of old classes "
            "labelled: raise it."
        )
    return marks
