"""The package's one source of noise: draws that are a function of (seed, injector, stream, sample).

A draw is not the next number of a sequence but the hash of a counter, so a sample's noise depends
neither on the order of the data nor on which other samples are present, nor on the number of
workers. The hash is two rounds of the SplitMix64 finaliser (Steele, Lea, Flood, "Fast splittable
pseudorandom number generators", OOPSLA 2014; constants of Stafford's variant 13) around a 128-bit
stream key.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

from noisyml.errors import UserError

#: Written into every record; changes whenever a draw changes.
GENERATOR = "noisyml-splitmix64-counter-1"

_GOLDEN = 0x9E3779B97F4A7C15
_BLOCK = 1 << 16


def mix64(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Bijective 64-bit hash of `x` (uint64, any shape): the SplitMix64 finaliser, variant 13."""
    z = x ^ (x >> np.uint64(30))
    z *= np.uint64(0xBF58476D1CE4E5B9)
    z ^= z >> np.uint64(27)
    z *= np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return z


def hash_keys(keys: Sequence[str]) -> NDArray[np.uint64]:
    """64-bit ids of sample keys, uint64 [N]: the same on every machine and in every process.

    The UTF-8 bytes of a key are read as little-endian 64-bit words; the id is the hashed sum of
    the words' hashes, each salted with its position.
    """
    ids = np.empty(len(keys), dtype=np.uint64)
    for start in range(0, len(keys), _BLOCK):
        encoded = np.array([key.encode() for key in keys[start : start + _BLOCK]], dtype=np.bytes_)
        width = -(-max(encoded.itemsize, 1) // 8)
        words = encoded.astype(f"S{8 * width}").view("<u8").reshape(len(encoded), width)
        total = np.zeros(len(encoded), dtype=np.uint64)
        for position in range(width):
            word = words[:, position].astype(np.uint64)
            salt = np.uint64((_GOLDEN * (position + 1)) & 0xFFFFFFFFFFFFFFFF)
            # Padding words are zero and must not count: the id may not depend on the longest key.
            total += np.where(word != 0, mix64(word ^ salt), np.uint64(0))
        ids[start : start + _BLOCK] = mix64(total)
    return ids


def sample_ids(n: int, keys: Sequence[str] | None) -> NDArray[np.uint64]:
    """Stable ids of `n` samples, uint64 [n]: hashed keys if there are any, else 0 .. n-1.

    Raises:
        UserError: two samples have the same key.
        ValueError: the number of keys is not `n`.

    Example:
        >>> from noisyml.noise.random import sample_ids
        >>> sample_ids(3, None).tolist()
        [0, 1, 2]
        >>> bool((sample_ids(2, ["a", "b"]) == sample_ids(2, ["b", "a"])[::-1]).all())
        True
    """
    if keys is None:
        return np.arange(n, dtype=np.uint64)
    if len(keys) != n:
        raise ValueError(f"{len(keys)} keys for {n} samples")
    ids = hash_keys(keys)
    ordered = np.sort(ids)
    repeated = ordered[1:][ordered[1:] == ordered[:-1]]
    if len(repeated):
        first, second = np.flatnonzero(ids == repeated[0])[:2]
        raise UserError(
            f"Samples {first} and {second} of the training split share the key "
            f"{keys[int(second)]!r}; give every sample a key of its own."
        )
    return ids


@dataclass(frozen=True)
class Draws:
    """Draws of one injector; every method is a pure function of its arguments.

    Attributes:
        seed: any integer; the noise seed, not the training seed.
        injector: the injector's name, so that two injectors with one seed are independent.

    Example:
        >>> from noisyml.noise.random import Draws, sample_ids
        >>> draws, ids = Draws(seed=0, injector="mine"), sample_ids(3, ["a", "b", "c"])
        >>> draws.uniform(ids, "flip").round(3).tolist()
        [0.686, 0.078, 0.964]
    """

    seed: int
    injector: str

    def bits(self, ids: NDArray[np.uint64], stream: str) -> NDArray[np.uint64]:
        """64 random bits per id, uint64 like `ids`; distinct ids give distinct values."""
        digest = hashlib.sha256(f"{self.injector}\0{stream}\0{self.seed}".encode()).digest()
        first, second = np.frombuffer(digest[:16], dtype="<u8").astype(np.uint64)
        return mix64(mix64(ids + first) ^ second)

    def uniform(self, ids: NDArray[np.uint64], stream: str) -> NDArray[np.float64]:
        """Uniform in [0, 1) with 53 bits, float64 like `ids`."""
        return (self.bits(ids, stream) >> np.uint64(11)).astype(np.float64) * 2.0**-53

    def below(self, n: int, ids: NDArray[np.uint64], stream: str) -> NDArray[np.int64]:
        """Uniform integers in 0 .. n-1, int64 like `ids`."""
        return (self.uniform(ids, stream) * n).astype(np.int64)

    def normal(self, ids: NDArray[np.uint64], stream: str) -> NDArray[np.float64]:
        """Standard normal, float64 like `ids` (inverse distribution function)."""
        return ndtri(self.uniform(ids, stream) + 2.0**-54)

    def truncated_normal(
        self, mean: float, std: float, ids: NDArray[np.uint64], stream: str
    ) -> NDArray[np.float64]:
        """Normal(mean, std^2) conditioned on [0, 1], float64 like `ids`."""
        low, high = ndtr((0.0 - mean) / std), ndtr((1.0 - mean) / std)
        u = self.uniform(ids, stream) + 2.0**-54
        return np.clip(mean + std * ndtri(low + u * (high - low)), 0.0, 1.0)

    def smallest(self, n: int, ids: NDArray[np.uint64], stream: str) -> NDArray[np.bool_]:
        """Mask of exactly `n` of the ids, drawn without replacement, bool like `ids`."""
        chosen = np.zeros(len(ids), dtype=bool)
        if n > 0:
            chosen[np.argpartition(self.bits(ids, stream), n - 1)[:n]] = True
        return chosen

    def rank_within_class(
        self, labels: NDArray[np.int64], ids: NDArray[np.uint64], stream: str
    ) -> NDArray[np.int64]:
        """Position of each sample in a random permutation of its class's members, int64 [N]."""
        order = np.argsort(self.bits(ids, stream))
        sizes = np.bincount(labels)
        # NumPy sorts 16-bit integers by radix, several times faster than wider ones.
        narrow = labels.astype(np.uint16) if len(sizes) <= 1 << 16 else labels
        order = order[np.argsort(narrow[order], kind="stable")]
        starts = np.cumsum(sizes) - sizes
        ranks = np.empty(len(labels), dtype=np.int64)
        ranks[order] = np.arange(len(labels)) - starts[labels[order]]
        return ranks


@dataclass(frozen=True)
class ClassOrder:
    """Classes in an order that does not know their numbers.

    Classes are ranked by the smallest stable id among their members, so a renaming of the classes
    renames the order along with them; classes without members come last, by number.

    Attributes:
        classes: int64 [C], ``classes[k]`` is the class of rank k.
        rank: int64 [C], the inverse permutation.

    Example:
        >>> import numpy as np
        >>> from noisyml.noise.random import ClassOrder, sample_ids
        >>> ClassOrder.of(np.array([1, 0, 1]), sample_ids(3, None), 2).classes.tolist()
        [1, 0]
    """

    classes: NDArray[np.int64]
    rank: NDArray[np.int64]

    @classmethod
    def of(cls, labels: NDArray[np.int64], ids: NDArray[np.uint64], num_classes: int) -> ClassOrder:
        """The order of `num_classes` classes given labels [N] and stable ids [N]."""
        smallest = np.full(num_classes, np.iinfo(np.uint64).max, dtype=np.uint64)
        np.minimum.at(smallest, labels, ids)
        empty = np.bincount(labels, minlength=num_classes) == 0
        classes = np.lexsort((smallest, empty)).astype(np.int64)
        rank = np.empty(num_classes, dtype=np.int64)
        rank[classes] = np.arange(num_classes)
        return cls(classes=classes, rank=rank)

    def other(self, labels: NDArray[np.int64], which: NDArray[np.int64]) -> NDArray[np.int64]:
        """The class number `which` (0 .. C-2) among the classes other than `labels`; both [N]."""
        return self.classes[which + (which >= self.rank[labels])]
