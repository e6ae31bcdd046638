"""Features of a frozen backbone, computed once and shared by every run that needs them.

The cache is keyed by the content of the data split, the evaluation transform and the weights and
input convention of the backbone; a change in any of them is another file. Files are memory-mapped,
so that the runs of a sweep share their pages.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from noisyml.data.base import Split
from noisyml.data.inputs import identity
from noisyml.data.transforms.image import ViewMaker
from noisyml.data.views import EvaluationView, whole
from noisyml.errors import UserError
from noisyml.storage.files import atomic, write_atomically
from noisyml.storage.locks import locked
from noisyml.storage.reading import read_json, read_npy, reading

#: Raise when the meaning of the stored numbers changes.
FORMAT = 2

#: Called with (samples done, samples in all) while features are computed.
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class CachedFeatures:
    """Raw features [N, F] float32 (memory-mapped) and the positions of undecodable images.

    Of a data set of vectors: its `noisyml.data.vectors.VectorRows`.
    """

    features: Any
    broken: NDArray[np.int64]


def cache_key(split: Split, transform: ViewMaker, backbone_fingerprint: str) -> str:
    """The name of a cache entry: 32 hex digits."""
    parts = (
        FORMAT,
        split.fingerprint,
        identity(split.inputs),
        len(split),
        transform.fingerprint(),
        backbone_fingerprint,
    )
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
    """Read the features of a split from the cache, computing them first if they are not there.

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
    folder = cache_dir / "features"
    folder.mkdir(parents=True, exist_ok=True)
    key = cache_key(split, transform, backbone_fingerprint)
    data_file, facts_file = folder / f"{key}.npy", folder / f"{key}.json"
    if not facts_file.is_file():
        # Only one process computes a file; the others wait for it.
        with locked(folder / f"{key}.lock", wait=True):
            if not facts_file.is_file():
                _compute(
                    split, transform, encode, data_file, facts_file,
                    batch_size=batch_size, num_workers=num_workers, on_broken=on_broken,
                    progress=progress,
                )  # fmt: skip
    advice = f"remove {facts_file} and the features are computed anew"
    facts = read_json(facts_file, advice)
    features = read_npy(data_file, advice)
    with reading(facts_file, advice):
        broken = np.asarray(facts["broken"], dtype=np.int64)
        if len(features) != len(split):
            raise ValueError(f"{data_file.name} beside it has {len(features)} rows")
    if len(broken) and on_broken == "error":
        # An earlier run skipped it; this one was not told to.
        split.images.load(int(broken[0]))
    return CachedFeatures(features, broken)


def _compute(
    split: Split,
    transform: ViewMaker,
    encode: Callable[[Tensor], Tensor],
    data_file: Path,
    facts_file: Path,
    *,
    batch_size: int,
    num_workers: int,
    on_broken: Literal["error", "skip"],
    progress: Progress | None,
) -> None:
    loader = DataLoader(
        EvaluationView(split, transform, on_broken=on_broken),
        batch_sampler=[
            list(range(start, min(start + batch_size, len(split))))
            for start in range(0, len(split), batch_size)
        ],
        collate_fn=whole,
        num_workers=num_workers,
    )
    stored: np.memmap[Any, np.dtype[np.float32]] | None = None
    broken: list[int] = []
    done = 0
    with atomic(data_file) as temporary:
        for batch in loader:
            index = batch["index"].numpy()
            if len(index):
                features = encode(batch["image"]).float().numpy()
                if stored is None:
                    stored = np.lib.format.open_memmap(
                        temporary,
                        mode="w+",
                        dtype=np.float32,
                        shape=(len(split), features.shape[1]),
                    )
                stored[index] = features
            broken += batch["broken"].tolist()
            done += len(index) + len(batch["broken"])
            if progress is not None:
                progress(done, len(split))
        if stored is None:
            raise UserError(
                f"None of the {len(split)} images of the {split.name} split can be decoded; "
                "`noisyml data check` says why."
            )
        stored.flush()
        del stored
    facts = {"broken": broken, "split": split.name, "samples": len(split)}
    # Written last: its presence says that the array is whole.
    write_atomically(facts_file, json.dumps(facts))
