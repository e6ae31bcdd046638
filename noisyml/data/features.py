"""Features of a frozen backbone, computed once and shared by every run that needs them.

An entry holds the features of one data split. Its folder stands for the evaluation transform and
for the weights and input convention of the backbone, its name for the content of the split. A new
entry takes from the others of its folder what they know of its pictures, by the content of each,
and computes the rest. Files are memory-mapped, so that the runs of a sweep share their pages. A
cache that cannot be written is done without.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from noisyml.data.base import Split
from noisyml.data.inputs import identity, picture_digests
from noisyml.data.transforms.image import ViewMaker
from noisyml.data.views import EvaluationView, whole
from noisyml.errors import UserError
from noisyml.storage import caches
from noisyml.storage.locks import locked
from noisyml.storage.reading import read_json, read_npy, reading

log = logging.getLogger(__name__)

#: Raise when the meaning of the stored numbers changes.
FORMAT = 3
#: Rows that are copied at a time.
BLOCK = 8192

#: Called with (samples done, samples in all) while features are computed.
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class CachedFeatures:
    """Raw features [N, F] float32 (memory-mapped) and the positions of undecodable images.

    Of a data set of vectors: its `noisyml.data.vectors.VectorRows`.
    """

    features: Any
    broken: NDArray[np.int64]


@dataclass(frozen=True)
class Entry:
    """The files of one entry.

    Attributes:
        data: features [N, F] float32.
        pictures: digest of each picture, [N, 16] uint8; zeros where it was not decodable.
        facts: written last; its presence says that the others are whole.
    """

    data: Path
    pictures: Path
    facts: Path

    @classmethod
    def named(cls, facts: Path) -> Entry:
        """The entry of a file of facts."""
        return cls(facts.with_suffix(".npy"), facts.with_suffix(".pictures.npy"), facts)


def cache_entry(
    split: Split, transform: ViewMaker, backbone_fingerprint: str, cache_dir: Path
) -> Entry:
    """The place of a split's features in the cache.

    Args:
        split: the images.
        transform: its deterministic form is used.
        backbone_fingerprint: what the features of an image depend on beside it.
        cache_dir: the folder of the cache.
    """
    network = (FORMAT, transform.fingerprint(), backbone_fingerprint)
    images = (split.fingerprint, identity(split.inputs), len(split))
    folder = cache_dir / "features" / _digest(network)
    return Entry.named(folder / f"{_digest(images)}.json")


def _digest(parts: tuple[object, ...]) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]


def cached_features(
    split: Split,
    transform: ViewMaker,
    encode: Callable[[Tensor], Tensor],
    backbone_fingerprint: str,
    cache_dir: Path,
    *,
    batch_size: int,
    num_workers: int = 0,
    on_broken: Literal["error", "skip"] = "error",
    progress: Progress | None = None,
) -> CachedFeatures:
    """Read the features of a split from the cache, computing first those that are not there.

    Args:
        split: the images.
        transform: its deterministic form is used.
        encode: uint8 images [b, C, H, W] to features [b, F] on the CPU, no gradient.
        backbone_fingerprint: what `encode` depends on.
        cache_dir: the folder of the cache; created if need be.
        batch_size: images per call of `encode`.
        num_workers: decoding processes.
        on_broken: ``error`` raises at the first undecodable image, ``skip`` leaves a row of zeros
            and reports its position.
        progress: called now and then while computing.

    Raises:
        BrokenImage: an image cannot be decoded and `on_broken` is ``error``.
    """
    entry = cache_entry(split, transform, backbone_fingerprint, cache_dir)
    if not entry.facts.is_file():
        view = EvaluationView(split, transform, on_broken=on_broken)
        # Only one process computes an entry; the others wait for it.
        with _alone(entry):
            if not entry.facts.is_file():
                found = _compute(split, view, encode, entry, batch_size, num_workers, progress)
                if not entry.facts.is_file():
                    return found
    advice = f"remove {entry.facts} and the features are computed anew"
    facts = read_json(entry.facts, advice)
    features = read_npy(entry.data, advice)
    with reading(entry.facts, advice):
        broken = np.asarray(facts["broken"], dtype=np.int64)
        if len(features) != len(split):
            raise ValueError(f"{entry.data.name} beside it has {len(features)} rows")
    if len(broken) and on_broken == "error":
        # An earlier run skipped it; this one was not told to.
        split.images.load(int(broken[0]))
    return CachedFeatures(features, broken)


@contextlib.contextmanager
def _alone(entry: Entry) -> Iterator[None]:
    """Context in which no other process computes an entry, where the cache can be written."""
    with contextlib.ExitStack() as stack:
        try:
            entry.facts.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(entry.facts.with_suffix(".lock"), wait=True))
        except OSError as error:
            caches.done_without(entry.facts.parent.parent, error)
        yield


def _compute(
    split: Split,
    view: EvaluationView,
    encode: Callable[[Tensor], Tensor],
    entry: Entry,
    batch_size: int,
    num_workers: int,
    progress: Progress | None,
) -> CachedFeatures:
    """The features of a split, left in the cache if it takes them."""
    pictures = picture_digests(split.inputs)
    known = list(_known(entry, pictures))
    missing = np.ones(len(split), dtype=bool)
    for _, here, _ in known:
        missing[here] = False
    wanted = np.flatnonzero(missing)
    loader = DataLoader(
        view,
        batch_sampler=[
            wanted[start : start + batch_size].tolist()
            for start in range(0, len(wanted), batch_size)
        ],
        collate_fn=whole,
        num_workers=num_workers,
    )
    broken: list[int] = []
    done = len(split) - len(wanted)
    if done:
        log.info("%d of %d features are known from other splits.", done, len(split))
    stored: NDArray[np.float32] | None = None
    with caches.ArrayFile(entry.data) as file:
        for features, here, there in known:
            if stored is None:
                stored = file.make((len(split), features.shape[1]), np.float32)
            # In blocks: neither file need fit into memory.
            for start in range(0, len(here), BLOCK):
                part = slice(start, start + BLOCK)
                stored[here[part]] = features[there[part]]
        for batch in loader:
            index = batch["index"].numpy()
            if len(index):
                rows = encode(batch["image"]).float().numpy()
                if stored is None:
                    stored = file.make((len(split), rows.shape[1]), np.float32)
                stored[index] = rows
            broken += batch["broken"].tolist()
            done += len(index) + len(batch["broken"])
            if progress is not None:
                progress(done, len(split))
        if stored is None:
            raise UserError(
                f"None of the {len(split)} images of the {split.name} split can be decoded; "
                "`noisyml data check` says why."
            )
    if file.kept:
        pictures[broken] = 0
        facts = {"broken": broken, "split": split.name, "samples": len(split)}
        # The facts last: their presence says that the arrays are whole.
        if caches.write(entry.pictures, pictures):
            caches.write(entry.facts, json.dumps(facts).encode())
    return CachedFeatures(stored, np.asarray(broken, dtype=np.int64))


def _known(
    entry: Entry, pictures: NDArray[np.uint8]
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]]:
    """Other entries' features [M, F], with rows of this entry and those that they equal there.

    Args:
        entry: to be made.
        pictures: digests [N, 16] of its pictures.
    """
    wanted = pictures.view("S16").ravel()
    missing = np.asarray(pictures.any(axis=1))
    for facts in sorted(entry.facts.parent.glob("*.json")):
        other = Entry.named(facts)
        digests = caches.read_array(other.pictures)
        features = caches.read_array(other.data, mapped=True)
        if digests is None or features is None or len(digests) != len(features):
            continue
        if digests.dtype != np.uint8 or digests.shape[1:] != (16,) or features.ndim != 2:
            continue
        whole = np.flatnonzero(digests.any(axis=1))
        if not len(whole) or not missing.any():
            continue
        there = np.ascontiguousarray(digests[whole]).view("S16").ravel()
        order = np.argsort(there)
        at = order[np.minimum(np.searchsorted(there, wanted, sorter=order), len(there) - 1)]
        here = np.flatnonzero(missing & (there[at] == wanted))
        if len(here):
            missing[here] = False
            yield features, here, whole[at[here]]
