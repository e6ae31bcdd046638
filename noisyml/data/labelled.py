"""Training splits of which a part has labels: the part chosen, held out, and drawn into batches."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray

from noisyml.checks import Count, Interval, OpenShare, WholeNonNegative, check_fields
from noisyml.data.base import Split
from noisyml.data.readers.partition import hash_ranks
from noisyml.data.samplers.plans import EMPTY, BatchPlan
from noisyml.errors import UserError
from noisyml.storage.pickles import read_plain
from noisyml.storage.reading import reading
from noisyml.storage.text import numbered_lines
from noisyml.targets.masks import decode_mask

#: Samples of the training split that batches are drawn from: those whose label teaches; the others;
#: as many of the others beside those of each batch; or all, whether they have a label or not.
Pool = Literal["labelled", "unlabelled", "both", "all"]

#: Suffixes of files that hold an order of the samples.
ORDERS = (".json", ".pkl")


@dataclass(frozen=True)
class LabelledPart:
    """The samples of the training split whose label training may use.

    One of `size`, `fraction` and `keys` says which (or `keys`, an order, and `size`, how many of
    its first); with none of them the split's own marks stay.
    Classes give equal shares: of a class of n samples the first ``max(1, round(fraction * n))`` of
    an order that depends on the seed and the samples' names, so that a larger part holds the
    smaller ones.

    Attributes:
        size: labelled samples, the same share of every class (as far as whole numbers allow).
        fraction: share of the samples of each class.
        keys: file of the labelled samples, one a line: names, or paths that end in them as the
            lists of published splits have. A ``.json`` or ``.pkl`` file is an order of positions in
            the split, of which the first `size` are labelled (ClassMix, S4GAN).
        seed: which of the possible choices.
        holdout: share of the labelled samples that become the validation split, in the place of the
            data set's own.

    Raises:
        UserError: two ways to choose, or a value out of range.
    """

    size: Count | None = None
    fraction: Annotated[float, Interval(gt=0, le=1)] | None = None
    keys: str | None = None
    seed: WholeNonNegative = 0
    holdout: OpenShare = 0.0

    def __post_init__(self) -> None:
        check_fields(self)
        given = [n for n in ("size", "fraction", "keys") if getattr(self, n) is not None]
        ordered = self.keys is not None and Path(self.keys).suffix in ORDERS
        if ordered and self.size is None:
            raise UserError(
                f"data.labelled_keys={self.keys} is an order of all samples: say by "
                f"data.labelled_size how many of its first are labelled."
            )
        if len(given) > 1 and not (ordered and given == ["size", "keys"]):
            raise UserError(
                f"data.labelled_{given[0]} and data.labelled_{given[1]} both say which samples "
                f"have labels: leave one of them null."
            )

    @property
    def chooses(self) -> bool:
        """True if it says which samples are labelled."""
        return not (self.size is None and self.fraction is None and self.keys is None)

    def apply(self, splits: Mapping[str, Split]) -> dict[str, Split]:
        """The splits with marks on the training samples and, if asked, a validation split of them.

        Raises:
            UserError: samples that the split does not have.
        """
        splits, train = dict(splits), splits["train"]
        marks = self._marks(train)
        if marks is not None:
            train = replace(train, labelled=marks)
        if self.holdout:
            own = np.flatnonzero(np.ones(len(train), bool) if marks is None else marks)
            order = nested_order(train, own, self.seed, salt="holdout")
            held = np.sort(own[order < max(1, round(self.holdout * len(own)))])
            if len(held) == len(own):
                raise UserError(
                    f"data.labelled_holdout={self.holdout} leaves none of the {len(own)} labelled "
                    f"samples to train on: label more, or validate on the validation split."
                )
            name = f"{train.fingerprint}[held out {self.holdout} by {self.seed}]"
            splits["val"] = replace(train.take(held, f"{name} val"), name="val", labelled=None)
            train = train.take(np.setdiff1d(np.arange(len(train)), held), name)
        splits["train"] = train
        return splits

    def _marks(self, train: Split) -> NDArray[np.bool_] | None:
        """Samples whose label teaches; None: those of the split's own marks."""
        everybody = np.arange(len(train))
        if self.keys is not None:
            file = Path(self.keys)
            if file.suffix in ORDERS:
                assert self.size is not None
                return np.isin(everybody, ordered_positions(file, len(train))[: self.size])
            return listed_samples(file, train.keys)
        if not self.chooses:
            return train.labelled
        if self.size is not None and self.size > len(train):
            raise UserError(
                f"data.labelled_size={self.size} exceeds the {len(train)} training samples."
            )
        if self.size is not None:
            return nested_order(train, everybody, self.seed) < self.size
        assert self.fraction is not None
        strata = train.target.strata(train.labels)
        _, member, counts = np.unique(strata, return_inverse=True, return_counts=True)
        quota = np.maximum(1, np.floor(self.fraction * counts + 0.5)).astype(np.int64)
        return place_in_class(train, self.seed) < quota[member]


def listed_samples(file: Path, keys: Sequence[str]) -> NDArray[np.bool_]:
    """Marks of the samples that a list names, bool [N].

    A line may be a key, or a path (with further columns) whose last part is a key, whatever its
    suffix and the usual ends of names of images (``_leftImg8bit``).

    Args:
        file: one sample a line.
        keys: N keys.

    Raises:
        UserError: a line names none of them, or two samples have one name.
    """
    place = {key: i for i, key in enumerate(keys)}
    short = {short_name(key): i for i, key in enumerate(keys)}
    if len(short) != len(keys):
        short = {}
    marks = np.zeros(len(keys), dtype=bool)
    for number, line in numbered_lines(file):
        if not line.strip():
            continue
        at = place.get(line.strip(), short.get(short_name(line.split()[0])))
        if at is None:
            raise UserError(
                f"{file}, line {number}: '{line.strip()}' is no sample of the training split."
            )
        marks[at] = True
    return marks


def short_name(path: str) -> str:
    """The last part of a path without its suffix and without the usual ends."""
    stem = path.rpartition("/")[2].partition(".")[0]
    return stem.removesuffix("_leftImg8bit").removesuffix("_gtFine")


def ordered_positions(file: Path, n: int) -> NDArray[np.int64]:
    """A permutation of the positions of `n` samples from a JSON list or a pickled array.

    Raises:
        UserError: it is none.
    """
    advice = f"give an order of the {n} samples of the training split"
    if file.suffix == ".json":
        content = read_json_list(file, advice)
    else:
        content = read_plain(file, encoding="latin1", advice=advice)
    order = np.asarray(content).ravel()
    if order.dtype.kind not in "iu" or not np.array_equal(np.sort(order), np.arange(n)):
        raise UserError(f"{file} is no permutation of the {n} training samples: {advice}.")
    return order.astype(np.int64)


def read_json_list(file: Path, advice: str) -> list[Any]:
    """The list in a JSON file.

    Raises:
        UserError: it holds none.
    """
    with reading(file, advice):
        content = json.loads(file.read_bytes())
        if not isinstance(content, list):
            raise ValueError("it holds no list")
    return content


class SoftMasks:
    """Soft masks of some samples: their planes one below the other, each in a PNG file.

    Attributes:
        classes: C; 0 while there are none.
        files: contents by position in the split.
    """

    def __init__(self) -> None:
        self.classes = 0
        self.files: dict[int, bytes] = {}

    def planes(self, position: int, size: Sequence[int]) -> NDArray[np.uint8]:
        """Probabilities in steps of 1/255, uint8 [C, H, W]; zeros of a sample that has none."""
        if position not in self.files:
            return np.zeros((self.classes, *size), dtype=np.uint8)
        return decode_mask(self.files[position]).reshape(self.classes, *size).copy()


def place_in_class(split: Split, seed: int) -> NDArray[np.int64]:
    """Place of each sample in the drawn order of its class, from 0, int64 [N]."""
    strata = split.target.strata(split.labels)
    _, member, counts = np.unique(strata, return_inverse=True, return_counts=True)
    order = np.lexsort((hash_ranks(split.keys, seed), member))
    place = np.empty(len(split), dtype=np.int64)
    place[order] = np.arange(len(split)) - np.repeat(np.cumsum(counts) - counts, counts)
    return place


def nested_order(
    split: Split, rows: NDArray[np.int64], seed: int, salt: str = ""
) -> NDArray[np.int64]:
    """Place of each of some samples in an order of which every beginning has all classes alike.

    Args:
        split: of the samples.
        rows: their positions [M].
        seed: of the order.
        salt: tells orders of one seed apart.

    Returns:
        [M] int64, a permutation of ``0 .. M - 1``.
    """
    strata = split.target.strata(split.labels[rows])
    _, member, counts = np.unique(strata, return_inverse=True, return_counts=True)
    ranks = hash_ranks([split.keys[row] + salt for row in rows.tolist()], seed)
    order = np.lexsort((ranks, member))
    place = np.empty(len(rows), dtype=np.int64)
    place[order] = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    # The k-th of n samples of a class stands at (k + 1/2) / n of the way.
    way = (place + 0.5) / counts[member]
    found = np.empty(len(rows), dtype=np.int64)
    found[np.lexsort((ranks, member, way))] = np.arange(len(rows))
    return found


def pool_rows(pool: Pool, labelled: NDArray[np.bool_] | None, n: int) -> NDArray[np.int64]:
    """Positions of the samples that a plan of batches goes by.

    Args:
        pool: see `Pool`; of ``both`` the labelled ones.
        labelled: [n] bool; None: all are.
        n: samples of the split.

    Raises:
        UserError: there are none.
    """
    rows = np.arange(n)
    if pool == "all":
        return rows
    marks = np.ones(n, dtype=bool) if labelled is None else labelled
    rows = np.flatnonzero(~marks if pool == "unlabelled" else marks)
    if not len(rows):
        raise UserError(
            "The training split has no unlabelled samples to give pseudo-labels: say how many have "
            "labels, e.g. data.labelled_fraction=0.1."
            if pool == "unlabelled"
            else "No sample of the training split has a label: raise data.labelled_size."
        )
    return rows


@dataclass(frozen=True)
class WithUnlabelled:
    """A plan whose batches are joined by as many unlabelled samples.

    Attributes:
        plan: of labelled samples, positions in the split.
        unlabelled: positions of the others.
        seed: of their order.
    """

    plan: BatchPlan
    unlabelled: NDArray[np.int64]
    seed: int

    @property
    def batch_size(self) -> int:
        """Samples of both kinds."""
        return 2 * self.plan.batch_size

    def __len__(self) -> int:
        return len(self.plan)

    def epoch(self, epoch: int) -> NDArray[np.int64]:
        """Positions [number of batches, batch_size], one of either kind by turns."""
        batches = self.plan.epoch(epoch)
        rng = np.random.default_rng([self.seed, epoch, 0x5E1F])
        others = cycled(self.unlabelled, batches.size, rng).reshape(batches.shape)
        others = np.where(batches == EMPTY, EMPTY, others)
        return np.stack([batches, others], axis=2).reshape(len(batches), -1)


def cycled(rows: NDArray[np.int64], length: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """So many of the rows: one permutation of all of them after the other."""
    rounds = -(-length // len(rows))
    return np.concatenate([rng.permutation(rows) for _ in range(rounds)])[:length]
