"""Training splits of which some labels are hidden: their noise, and their two halves for tests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from noisyml.data.base import Split
from noisyml.errors import UserError
from noisyml.targets.partial import NO_LABEL

if TYPE_CHECKING:  # data sets are listed without the libraries of noise
    from noisyml.noise.manifest import NoiseManifest

#: Names of the halves as splits.
LABELLED, UNLABELLED = "labelled", "unlabelled"


def hides_labels(split: Split) -> bool:
    """True if some, not all, samples of a split have a label that training may use."""
    return split.labelled is not None and not bool(split.labelled.all())


def corrupt_labelled(split: Split, corrupt: Callable[[Split], NoiseManifest]) -> NoiseManifest:
    """The record of a split with hidden labels: noise on the others, within their classes.

    Args:
        split: with its true labels, see `hides_labels`.
        corrupt: noise for a split with one label per sample.

    Raises:
        UserError: nothing is labelled, or noise that renumbers classes.
    """
    assert split.labelled is not None
    rows = np.flatnonzero(split.labelled)
    if not len(rows):
        raise UserError("No training sample has a label: label some, or use another method.")
    known, inner = np.unique(split.labels[rows], return_inverse=True)
    part = replace(
        split.take(rows, f"{split.fingerprint}[labelled]"),
        labels=inner.astype(np.int64),
        class_names=[split.class_names[number] for number in known.tolist()],
        labelled=None,
    )
    found = corrupt(part)
    if found.class_source is not None or found.num_classes != len(known):
        raise UserError(
            f"Noise {found.injector} renumbers classes, which discovery tells apart by their "
            "numbers: choose another noise=..."
        )
    observed = np.full(len(split), NO_LABEL, dtype=np.int64)
    observed[rows] = known[found.observed]
    clean = split.labels.copy()
    clean[rows] = np.where(found.clean < 0, -1, known[found.clean])
    changed = np.zeros(len(split), dtype=bool)
    changed[rows] = found.changed
    source = None
    if found.source_index is not None:
        source = np.full(len(split), -1, dtype=np.int64)
        source[rows] = found.source_index
    return replace(
        found,
        observed=observed,
        clean=clean,
        changed=changed,
        source_index=source,
        keys=None if found.keys is None else split.keys,
        num_classes=len(split.class_names),
        num_clean_classes=len(split.class_names),
    )


def check_hidden(split: Split, manifest: NoiseManifest) -> None:
    """Refuse a record of noise that hides other labels than the split does.

    Raises:
        UserError: it was made for another division.
    """
    assert split.labelled is not None
    if not np.array_equal(manifest.target.labelled(manifest.observed), split.labelled):
        raise UserError(
            "The noise manifest hides other labels than the data set: use the same "
            "dataset.labelled_share, dataset.draw and dataset.seed as it was made with."
        )


def without_hidden_labels(train: Split) -> Split:
    """The split as training may see it: hidden labels are `NO_LABEL`."""
    assert train.labelled is not None
    return replace(train, labels=np.where(train.labelled, train.labels, NO_LABEL))


def halves(train: Split, manifest: NoiseManifest) -> dict[str, Split]:
    """The labelled samples with observed labels, and the others with true ones, as test splits.

    Args:
        train: the split.
        manifest: of its labels.
    """
    marks = manifest.target.labelled(manifest.observed)
    parts = {LABELLED: (marks, manifest.observed), UNLABELLED: (~marks, manifest.clean)}
    found = {}
    for name, (chosen, labels) in parts.items():
        rows = np.flatnonzero(chosen)
        taken = train.take(rows, f"{train.fingerprint}[{name}]")
        found[name] = replace(taken, name=name, labels=labels[rows], labelled=None)
    return found
