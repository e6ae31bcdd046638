"""Carving of splits that depends on names and a seed, never on the order of the samples."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray

from noisyml.checks import Hint, Interval
from noisyml.errors import UserError
from noisyml.targets import Labels, target_of

SplitKind = Literal["zero_shot", "closed_set"]
#: The training split of a benchmark: all of its training classes, or half of them.
DevelopmentSplit = Literal["official", "dev"]
#: A share held out that must not be nothing.
TestShare = Annotated[float, Interval(gt=0, lt=1), Hint("A test split is needed.")]
SPLIT_NAMES: tuple[str, ...] = ("train", "val", "test", "query", "gallery")


def check_fractions(val_fraction: float, test_fraction: float) -> None:
    """Check that shares held out leave something to train on.

    Args:
        val_fraction: share held out for ``val``, in [0, 1).
        test_fraction: share held out for ``test``, in [0, 1).

    Raises:
        UserError: they do not.
    """
    if val_fraction + test_fraction >= 1:
        raise UserError(
            f"dataset.val_fraction={val_fraction} and test_fraction={test_fraction} leave nothing "
            "to train on: their sum must be below 1."
        )


def hash_ranks(keys: Sequence[str], seed: int) -> NDArray[np.uint64]:
    """One pseudo-random number per key, uint64 [N]: a function of key and seed alone.

    Sorting by it shuffles in a way that does not depend on the order in which the keys come.
    """
    prefix = f"{seed}\0".encode()
    digests = b"".join(
        hashlib.blake2b(prefix + key.encode("utf-8", "surrogateescape"), digest_size=8).digest()
        for key in keys
    )
    return np.frombuffer(digests, dtype="<u8").astype(np.uint64)


def carve_samples(
    labels: NDArray[np.int64],
    keys: Sequence[str],
    val_fraction: float,
    test_fraction: float,
    seed: int,
) -> NDArray[np.int64]:
    """Part of every sample, stratified by class: 0 train, 1 val, 2 test; int64 [N].

    Every class gives its rounded share, and keeps at least one sample for training. The choice
    depends on seed, key and label of the samples, never on their order.

    Args:
        labels: int64 [N].
        keys: N unique names.
        val_fraction: share of each class for ``val``, in [0, 1).
        test_fraction: share of each class for ``test``, in [0, 1).
        seed: which of the possible carvings.
    """
    _, inverse, counts = np.unique(labels, return_inverse=True, return_counts=True)
    order = np.lexsort((hash_ranks(keys, seed), inverse))
    starts = np.cumsum(counts) - counts
    rank = np.empty(len(labels), dtype=np.int64)
    rank[order] = np.arange(len(labels)) - np.repeat(starts, counts)
    test = np.minimum(np.floor(counts * test_fraction + 0.5).astype(np.int64), counts - 1)
    held_out = test + np.floor(counts * val_fraction + 0.5).astype(np.int64)
    held_out = np.minimum(held_out, counts - 1)
    return np.where(rank < test[inverse], 2, np.where(rank < held_out[inverse], 1, 0))


#: Size and seed of bare's division, and the validation samples that it keeps of each class.
BARE_HELD_OUT, BARE_SEED, BARE_VAL_PER_CLASS = 0.2, 42, 100


def bare_protocol(labels: NDArray[np.int64], seed: int) -> dict[str, NDArray[np.int64]]:
    """Row numbers of ``train`` and ``val`` in the protocol of bare (Patel, Sastry, WACV 2023).

    The training half is divided 80 : 20 by scikit-learn's `train_test_split` with its state 42,
    unstratified, and ``train`` keeps the order of that draw, on which noise with
    ``count=legacy`` depends. Of the 20 %, 100 samples of each class become ``val`` and the others
    are not used; the release draws these without a seed.

    Args:
        labels: int64 [N].
        seed: which 100 samples of each class.

    Raises:
        UserError: a class has too few samples in the 20 %.
    """
    held_out = math.ceil(BARE_HELD_OUT * len(labels))
    order = np.random.RandomState(BARE_SEED).permutation(len(labels))
    pool, train = order[:held_out], order[held_out:]
    shuffled = pool[np.random.default_rng(seed).permutation(len(pool))]
    grouped = shuffled[np.argsort(labels[shuffled], kind="stable")]
    counts = np.bincount(labels[grouped], minlength=int(labels.max()) + 1)
    if counts.min() < BARE_VAL_PER_CLASS:
        raise UserError(
            f"dataset.split=bare takes {BARE_VAL_PER_CLASS} validation samples of each class from "
            f"{BARE_HELD_OUT:.0%} of the training images, where class {counts.argmin()} has "
            f"{counts.min()}: use split=official."
        )
    rank = np.arange(len(grouped)) - np.repeat(np.cumsum(counts) - counts, counts)
    return {"train": train, "val": grouped[rank < BARE_VAL_PER_CLASS]}


def carve_labelled(
    labels: Labels,
    keys: Sequence[str],
    val_fraction: float,
    test_fraction: float,
    seed: int,
) -> NDArray[np.int64]:
    """Part of every sample, by shares of the strata of its labels: 0 train, 1 val, 2 test; [N].

    One label per sample: every class gives its share, see `carve_samples`. Several: shares are of
    the whole, drawn by name; a class that would have no training sample gets back the one of its
    samples that was drawn last.

    Args:
        labels: int64 [N], or uint8 [N, C] multi-hot.
        keys: N unique names.
        val_fraction: share for ``val``, in [0, 1).
        test_fraction: share for ``test``, in [0, 1).
        seed: which of the possible carvings.
    """
    target = target_of(labels)
    parts = carve_samples(target.strata(labels), keys, val_fraction, test_fraction, seed)
    ranks = hash_ranks(keys, seed)
    lost = np.setdiff1d(target.present(labels), target.present(labels[parts == 0]))
    for label in lost.tolist():
        members = target.members(labels, label)
        parts[members[ranks[members].argmax()]] = 0
    return parts


def carve_classes(
    class_names: Sequence[str], val_fraction: float, test_fraction: float, seed: int
) -> NDArray[np.int64]:
    """Part of every class for zero-shot retrieval: 0 train, 1 val, 2 test; int64 [C].

    Args:
        class_names: C unique names; the choice depends on them and the seed, not on their order.
        val_fraction: share of the classes for ``val``; at least two if positive.
        test_fraction: share of the classes for ``test``; at least two if positive.
        seed: which of the possible carvings.

    Raises:
        UserError: fewer than two classes would be left to train on.
    """
    number = len(class_names)
    test, val = (
        max(2, math.floor(number * fraction + 0.5)) if fraction > 0 else 0
        for fraction in (test_fraction, val_fraction)
    )
    if number - test - val < 2:
        raise UserError(
            f"{number} classes are too few for split=zero_shot with test_fraction={test_fraction} "
            f"and val_fraction={val_fraction}, which needs two classes in every part: use "
            "split=closed_set or bring more classes."
        )
    parts = np.zeros(number, dtype=np.int64)
    order = np.argsort(hash_ranks(class_names, seed), kind="stable")
    parts[order[:test]] = 2
    parts[order[test : test + val]] = 1
    return parts


def last_classes(labels: NDArray[np.int64], val_classes: int, name: str) -> NDArray[np.bool_]:
    """Mask of the samples of the last `val_classes` label values, bool [N].

    Raises:
        UserError: `val_classes` is negative or leaves fewer than two classes to train on.
    """
    classes = np.unique(labels)
    if not 0 <= val_classes <= max(0, len(classes) - 2):
        raise UserError(
            f"val_classes={val_classes} does not fit {name}: its {len(classes)} training classes "
            f"allow 0 to {max(0, len(classes) - 2)}."
        )
    return np.isin(labels, classes[len(classes) - val_classes :])


def held_out_classes(
    labels: NDArray[np.int64], split: DevelopmentSplit, val_classes: int, name: str
) -> NDArray[np.bool_]:
    """Mask of the training samples of a zero-shot benchmark that become ``val``, bool [N].

    Args:
        labels: int64 [N].
        split: ``official`` holds out the last `val_classes` classes; ``dev`` the second half of
            all C, so that the first C // 2 train (the first stage of proxynca_pp).
        val_classes: number of classes; 0 with ``dev``, which sets it.
        name: of the data set, for messages.

    Raises:
        UserError: a number that does not fit `split`.
    """
    if split == "dev":
        if val_classes:
            raise UserError(
                f"dataset.split=dev holds out half of the classes of {name}: leave "
                f"dataset.val_classes={val_classes} at 0."
            )
        classes = len(np.unique(labels))
        if classes < 4:
            raise UserError(
                f"dataset.split=dev halves the {classes} training classes of {name}, but needs two "
                "in each half: use split=official."
            )
        val_classes = classes - classes // 2
    return last_classes(labels, val_classes, name)


def carve(
    labels: Labels,
    class_names: Sequence[str],
    keys: Sequence[str],
    split: SplitKind,
    val_fraction: float,
    test_fraction: float,
    seed: int,
) -> NDArray[np.int64]:
    """Part of every sample, 0 train, 1 val, 2 test, int64 [N]: whole classes or within classes.

    Args:
        labels: int64 [N], indices into `class_names`, or uint8 [N, C] multi-hot.
        class_names: C unique names.
        keys: N unique names.
        split: ``zero_shot`` carves classes, ``closed_set`` samples of each class.
        val_fraction: share for ``val``, in [0, 1).
        test_fraction: share for ``test``, in [0, 1).
        seed: which of the possible carvings.

    Raises:
        UserError: too few classes, or classes to be parted of samples that have several.
    """
    if split == "closed_set":
        return carve_labelled(labels, keys, val_fraction, test_fraction, seed)
    if not target_of(labels).exclusive:
        raise UserError(
            "dataset.split=zero_shot parts the classes, but the data gives "
            f"{target_of(labels).words}: use split=closed_set."
        )
    return carve_classes(class_names, val_fraction, test_fraction, seed)[labels]


def carving(val_fraction: float, test_fraction: float, seed: int) -> str:
    """Origin of carved splits in words.

    Args:
        val_fraction: share carved for ``val``.
        test_fraction: share carved for ``test``; 0: only ``val`` was carved.
        seed: which of the possible carvings.
    """
    shares = f"val_fraction={val_fraction}"
    if test_fraction > 0:
        shares += f", test_fraction={test_fraction}"
    return f"carved by {shares} and seed={seed}"


def origin(
    given: str | None,
    has_val: bool,
    val_fraction: float,
    test_fraction: float,
    seed: int,
) -> str:
    """Origin of the splits of the user's own data in words.

    Args:
        given: what names them (``the column 'split'``), None if they are carved.
        has_val: whether that names a ``val`` split.
        val_fraction: share carved for ``val`` otherwise.
        test_fraction: share carved for ``test`` if nothing names the splits.
        seed: which of the possible carvings.
    """
    if given is None:
        return carving(val_fraction, test_fraction, seed)
    if has_val or val_fraction == 0:
        return f"from {given}"
    return f"from {given}; val {carving(val_fraction, 0.0, seed)} out of train"


def arrange(
    labels: Labels,
    class_names: Sequence[str],
    keys: Sequence[str],
    given: Sequence[str] | None,
    split: SplitKind,
    val_fraction: float,
    test_fraction: float,
    seed: int,
    source: str,
) -> dict[str, NDArray[np.int64]]:
    """Row numbers of every split of the user's own data.

    Args:
        labels: int64 [N], indices into `class_names`, or uint8 [N, C] multi-hot (closed set only).
        class_names: C unique names.
        keys: N unique names.
        given: the split of every sample where the user has chosen, else None. Only a missing
            ``val`` is then carved, from ``train``.
        split: ``zero_shot`` or ``closed_set``.
        val_fraction: share for ``val``, in [0, 1).
        test_fraction: share for ``test``, in [0, 1); unused if `given`.
        seed: which of the possible carvings.
        source: the file or folder, for messages.

    Raises:
        UserError: `given` lacks a split or contradicts `split`, or there are too few classes.
    """
    if given is None:
        parts = carve(labels, class_names, keys, split, val_fraction, test_fraction, seed)
        rows = {name: np.flatnonzero(parts == i) for i, name in enumerate(("train", "val", "test"))}
        if not len(rows["test"]):
            raise UserError(
                f"{source}: test_fraction={test_fraction} leaves no image for the test split; "
                "raise dataset.test_fraction or bring more images per class."
            )
        return rows
    _check_given(labels, class_names, given, split, source)
    named = np.array(given)
    rows = {name: np.flatnonzero(named == name) for name in SPLIT_NAMES if name in set(given)}
    if "val" not in rows:
        train = rows["train"]
        inner, names = target_of(labels).among_present(labels[train], class_names)
        parts = carve(
            inner,
            names,
            [keys[row] for row in train.tolist()],
            split,
            val_fraction,
            0.0,
            seed,
        )
        carved = {"train": train[parts == 0], "val": train[parts == 1]}
        rows = {name: (rows | carved)[name] for name in SPLIT_NAMES if name in rows | carved}
    return rows


def _check_given(
    labels: Labels,
    class_names: Sequence[str],
    given: Sequence[str],
    split: SplitKind,
    source: str,
) -> None:
    """Check the user's own splits against what `split` promises about their classes."""
    names = set(given)
    if "train" not in names or not ("test" in names or {"query", "gallery"} <= names):
        raise UserError(
            f"{source} has the splits {', '.join(sorted(names))}; 'train' and 'test' are needed "
            "(or 'query' and 'gallery' in place of 'test')."
        )
    in_train = np.array(given) == "train"
    present = target_of(labels).present
    trained, others = present(labels[in_train]), present(labels[~in_train])
    if split == "closed_set":
        unknown = np.setdiff1d(others, trained)
        if len(unknown):
            raise UserError(
                f"{source}: {len(unknown)} classes have no training image, the first is "
                f"'{class_names[int(unknown[0])]}'; add some, or set dataset.split=zero_shot."
            )
    else:
        shared = np.intersect1d(others, trained)
        if len(shared):
            raise UserError(
                f"{source}: split=zero_shot wants new classes for testing, but {len(shared)} are "
                f"in training too, the first is '{class_names[int(shared[0])]}'; move them, or set "
                "dataset.split=closed_set."
            )
