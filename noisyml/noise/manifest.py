"""The record of what was done to the labels of a training split."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from enum import IntEnum
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

import noisyml
from noisyml.errors import UserError
from noisyml.noise.random import GENERATOR
from noisyml.storage.files import atomic
from noisyml.storage.parquet import from_column, to_column
from noisyml.targets.labels import KIND_WORDS, LabelKind, Labels, kind_of

FORMAT = 1
_METADATA_KEY = b"noisyml.noise"


class SampleState(IntEnum):
    """What a training sample is, given the truth about it."""

    UNKNOWN = -1
    CLEAN = 0
    CLOSED = 1  # wrong label, but the image belongs to one of the training classes
    OPEN = 2  # the image belongs to none of the training classes


def current_versions() -> dict[str, str]:
    """Versions of everything a draw can depend on."""
    libraries = ("numpy", "scipy", "scikit-learn")
    return {
        "noisyml": noisyml.__version__,
        "python": platform.python_version(),
        **{library: version(library) for library in libraries},
    }


def _plain(value: Any) -> Any:
    """`value` as JSON would give it back, so that a saved and a fresh record are equal."""

    def convert(item: Any) -> Any:
        if isinstance(item, np.ndarray | np.generic):
            return item.tolist()
        if isinstance(item, Path):
            return str(item)
        raise TypeError(f"{type(item).__name__} cannot be recorded")

    return json.loads(json.dumps(value, default=convert))


def _frozen(array: ArrayLike, dtype: type[np.generic]) -> NDArray[Any]:
    copy = np.array(array, dtype=dtype)
    copy.setflags(write=False)
    return copy


@dataclass(frozen=True)
class LabelChanges:
    """What became of the labels of each class, multi-label only.

    Attributes:
        positives: int64 [C], samples that truly have the class.
        added: int64 [C], samples without the class that were given it.
        removed: int64 [C], samples with the class that lost it.
    """

    positives: NDArray[np.int64]
    added: NDArray[np.int64]
    removed: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class NoiseManifest:
    """Labels of a training split after corruption, beside the truth; arrays are read-only.

    Attributes:
        observed: int64 [N], the label training sees, ``0 .. num_classes-1``; multi-label: uint8
            [N, num_classes] of zeros and ones.
        clean: int64 [N], the true label in the numbering of the split, -1 where there is none
            (open-set image) or none is known; multi-label: int8 [N, num_classes].
        changed: bool [N], whether the pair of image and observed label is wrong; multi-label: bool
            [N, num_classes], which entries are.
        num_classes: number of classes after corruption (small-cluster noise removes some).
        injector: the injector's name.
        params: the injector's arguments, JSON values.
        seed: the noise seed, None where nothing was drawn.
        nominal_rate: the rate asked for (fraction of 1), None where the injector has none;
            multi-label: as a share of all N * C entries, like `actual_rate`.
        source_index: int64 [N] or None: -1, or the position in the open-set image source of the
            image that replaces this sample's.
        keys: N sample keys or None.
        num_clean_classes: number of classes of the split before corruption.
        class_source: int64 [num_classes] or None: where corruption renumbers classes, the class of
            the split each observed class was (-1 if none of its own images is left).
        details: facts about the corruption that are not arguments, JSON values.
        versions: library versions at the time of corruption.
        index: int64 [N], position in the training split, always ``0 .. N-1``.

    Raises:
        ValueError: the arrays do not fit each other.
    """

    observed: Labels
    clean: Labels
    changed: NDArray[np.bool_]
    num_classes: int
    injector: str
    params: dict[str, Any] = field(default_factory=dict)
    seed: int | None = None
    nominal_rate: float | None = None
    source_index: NDArray[np.int64] | None = None
    keys: Sequence[str] | None = None
    num_clean_classes: int = -1
    class_source: NDArray[np.int64] | None = None
    details: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=current_versions)
    index: NDArray[np.int64] = field(init=False)

    def __post_init__(self) -> None:
        put = object.__setattr__
        multi_label = np.ndim(self.observed) == 2
        put(self, "observed", _frozen(self.observed, np.uint8 if multi_label else np.int64))
        put(self, "clean", _frozen(self.clean, np.int8 if multi_label else np.int64))
        put(self, "changed", _frozen(self.changed, np.bool_))
        put(self, "index", _frozen(np.arange(len(self.observed)), np.int64))
        put(self, "params", _plain(self.params))
        put(self, "details", _plain(self.details))
        if self.num_clean_classes < 0:
            put(self, "num_clean_classes", self.num_classes)
        if self.source_index is not None:
            put(self, "source_index", _frozen(self.source_index, np.int64))
        if self.class_source is not None:
            put(self, "class_source", _frozen(self.class_source, np.int64))
            if len(self.class_source) != self.num_classes:
                raise ValueError(f"{len(self.class_source)} class sources, not {self.num_classes}")
        if self.keys is not None:
            put(self, "keys", tuple(self.keys))
        n = len(self.observed)
        columns = (self.clean, self.changed, self.source_index, self.keys)
        if any(column is not None and len(column) != n for column in columns):
            raise ValueError(f"columns differ in length; the labels have {n} rows")
        if multi_label:
            self._check_entries()
            return
        if n and not 0 <= self.observed.min() <= self.observed.max() < self.num_classes:
            raise ValueError(f"an observed label is not in 0 .. {self.num_classes - 1}")
        if n and not -1 <= self.clean.min() <= self.clean.max() < self.num_clean_classes:
            raise ValueError(f"a clean label is not in -1 .. {self.num_clean_classes - 1}")

    def _check_entries(self) -> None:
        shape = (len(self), self.num_classes)
        if not self.observed.shape == self.clean.shape == self.changed.shape == shape:
            raise ValueError(
                f"multi-label columns must be {list(shape)}, not {list(self.observed.shape)}, "
                f"{list(self.clean.shape)} and {list(self.changed.shape)}"
            )
        if self.num_clean_classes != self.num_classes or self.source_index is not None:
            raise ValueError("multi-label noise keeps classes and images as they are")
        if (self.observed > 1).any():
            raise ValueError("an observed entry is neither 0 nor 1")
        if not np.isin(self.clean, (-1, 0, 1)).all():
            raise ValueError("a clean entry is not -1, 0 or 1")

    def __len__(self) -> int:
        return len(self.observed)

    @property
    def kind(self) -> LabelKind:
        """One label per sample, or several."""
        return kind_of(self.observed)

    @property
    def wrong(self) -> NDArray[np.bool_]:
        """Samples with a wrong label, bool [N]; multi-label: with any wrong entry."""
        wrong: NDArray[np.bool_] = self.changed
        return np.asarray(wrong.any(axis=1)) if self.kind == "multi" else wrong

    @property
    def truth_known(self) -> bool:
        """True if it is known of every sample whether it is wrong."""
        return not bool(((self.clean < 0) & ~self.changed).any())

    @property
    def actual_rate(self) -> float:
        """Realised fraction of wrong labels, NaN where the truth is unknown.

        Of the samples; multi-label: of all N * C entries.
        """
        if len(self) == 0:
            return 0.0
        return float(self.changed.mean()) if self.truth_known else float("nan")

    @property
    def state(self) -> NDArray[np.int8]:
        """`SampleState` of each sample, int8 [N]."""
        state = np.where(self.wrong, SampleState.CLOSED, SampleState.CLEAN).astype(np.int8)
        if self.kind == "multi":
            state[((self.clean < 0) & ~self.changed).any(axis=1)] = SampleState.UNKNOWN
            return state
        if self.class_source is not None:
            kept = self.class_source[self.class_source >= 0]
            state[self.changed & ~np.isin(self.clean, kept)] = SampleState.OPEN
        if self.source_index is not None:
            state[self.source_index >= 0] = SampleState.OPEN
        state[(self.clean < 0) & ~self.changed] = SampleState.UNKNOWN
        return state

    @property
    def sha256(self) -> str:
        """Hex digest of the samples: labels, flags, image sources, keys, and class sources."""
        digest = hashlib.sha256(f"{len(self)} {self.num_classes}".encode())
        if self.kind == "multi":
            digest.update(b"multi" + self.observed.tobytes() + self.clean.tobytes())
        else:
            digest.update(self.observed.astype("<i8").tobytes())
            digest.update(self.clean.astype("<i8").tobytes())
        digest.update(self.changed.astype("u1").tobytes())
        if self.source_index is not None:
            digest.update(b"source" + self.source_index.astype("<i8").tobytes())
        if self.keys is not None:
            digest.update(b"keys" + "\0".join(self.keys).encode())
        if self.class_source is not None:
            # They decide which wrong samples are open-set.
            digest.update(b"classes" + self.class_source.astype("<i8").tobytes())
        return digest.hexdigest()

    def count_matrix(self) -> NDArray[np.int64]:
        """Samples by true (row) and observed (column) class, [num_clean_classes, num_classes].

        Samples without a true class are left out. Multi-label: [C, 2, 2], samples of each class by
        true and observed absence (0) or presence (1).
        """
        if self.kind == "multi":
            cells = np.where(self.clean < 0, 4, 2 * self.clean + self.observed)
            each = [(cells == cell).sum(axis=0, dtype=np.int64) for cell in range(4)]
            return np.stack(each, axis=1).reshape(self.num_classes, 2, 2)
        known = self.clean >= 0
        cells = self.clean[known] * self.num_classes + self.observed[known]
        size = self.num_clean_classes * self.num_classes
        counts = np.bincount(cells, minlength=size).astype(np.int64)
        return counts.reshape(self.num_clean_classes, self.num_classes)

    def label_changes(self) -> LabelChanges:
        """Positives, added and removed labels per class, of a multi-label split."""
        counts = self.count_matrix()
        return LabelChanges(counts[:, 1].sum(axis=1), counts[:, 0, 1], counts[:, 1, 0])

    def rates(self) -> dict[str, float]:
        """Rates of the noise by name, fractions of 1; empty where the truth is unknown.

        ``actual_rate`` and, where the injector has one, ``nominal_rate``. Multi-label also:
        ``added_rate`` and ``removed_rate``, labels added and removed over labels truly there, and
        ``wrong_samples``, the share of samples with any wrong entry.
        """
        if not self.truth_known:
            return {}
        rates = {"actual_rate": self.actual_rate}
        if self.nominal_rate is not None:
            rates["nominal_rate"] = self.nominal_rate
        if self.kind == "multi" and len(self):
            changes = self.label_changes()
            positives = max(int(changes.positives.sum()), 1)
            rates["added_rate"] = int(changes.added.sum()) / positives
            rates["removed_rate"] = int(changes.removed.sum()) / positives
            rates["wrong_samples"] = float(self.wrong.mean())
        return rates

    def summary(self) -> dict[str, Any]:
        """The record without its samples: both rates, parameters, hash, generator, versions.

        Multi-label: also ``classes``, the counts of `label_changes`.
        """
        actual = self.actual_rate
        classes = {}
        if self.kind == "multi":
            changes = asdict(self.label_changes())
            classes = {"classes": {name: counts.tolist() for name, counts in changes.items()}}
        return classes | {
            "format": FORMAT,
            "injector": self.injector,
            "params": self.params,
            "seed": self.seed,
            "nominal_rate": self.nominal_rate,
            "actual_rate": None if np.isnan(actual) else actual,
            "num_samples": len(self),
            "num_classes": self.num_classes,
            "num_clean_classes": self.num_clean_classes,
            "class_source": None if self.class_source is None else self.class_source.tolist(),
            "details": self.details,
            "sha256": self.sha256,
            "generator": GENERATOR,
            "versions": self.versions,
        }

    def save(self, path: str | Path) -> None:
        """Write Parquet: one row per sample, `summary` as JSON in the schema's metadata.

        Entries of multi-label columns are lists of fixed size.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        columns: dict[str, Any] = {
            "index": self.index,
            "observed": to_column(self.observed),
            "clean": to_column(self.clean),
            "changed": to_column(self.changed),
        }
        if self.source_index is not None:
            columns["source_index"] = self.source_index
        if self.keys is not None:
            columns["key"] = pa.array(self.keys, type=pa.string())
        table = pa.table(columns).replace_schema_metadata(
            {_METADATA_KEY: json.dumps(self.summary()).encode()}
        )
        with atomic(Path(path)) as temporary:
            pq.write_table(table, temporary)

    @classmethod
    def load(cls, path: str | Path) -> NoiseManifest:
        """Read what `save` wrote, without drawing anything.

        Raises:
            UserError: no such file, not a noise manifest, or its samples were altered.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        path = Path(path)
        if not path.is_file():
            raise UserError(f"There is no noise manifest {path}; give the path of a Parquet file.")
        try:
            table = pq.read_table(path)
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"{path} is not a Parquet file ({error}).") from error
        metadata = (table.schema.metadata or {}).get(_METADATA_KEY)
        required = {"index", "observed", "clean", "changed"}
        if metadata is None or not required <= set(table.column_names):
            raise UserError(
                f"{path} is a Parquet file but no noise manifest; give one that NoiseManifest.save "
                "or a run (noise.parquet) wrote."
            )
        try:
            record = json.loads(metadata)
            if record["format"] != FORMAT:
                raise UserError(
                    f"{path} has manifest format {record['format']}, this version reads {FORMAT}; "
                    f"use noisyml {record['versions'].get('noisyml')} or inject the noise again."
                )
            optional = {"source_index": None, "key": None}
            optional.update({n: table[n] for n in optional if n in table.column_names})
            source, keys = optional["source_index"], optional["key"]
            manifest = cls(
                observed=from_column(table["observed"]),
                clean=from_column(table["clean"]),
                changed=from_column(table["changed"]),
                num_classes=record["num_classes"],
                injector=record["injector"],
                params=record["params"],
                seed=record["seed"],
                nominal_rate=record["nominal_rate"],
                source_index=None if source is None else source.to_numpy(),
                keys=None if keys is None else keys.to_pylist(),
                num_clean_classes=record["num_clean_classes"],
                class_source=record["class_source"],
                details=record["details"],
                versions=record["versions"],
            )
            intact = manifest.sha256 == record["sha256"] and np.array_equal(
                table["index"].to_numpy(), manifest.index
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"The noise manifest {path} is damaged ({error}); restore it or inject again."
            ) from error
        if not intact:
            raise UserError(
                f"The samples in {path} do not match the SHA-256 recorded with them: the file was "
                "altered after it was written; restore it or inject the noise again."
            )
        return manifest

    def check_split(self, labels: ArrayLike, keys: Sequence[str] | None = None) -> None:
        """Refuse a split this manifest was not made for.

        Args:
            labels: int [N] or [N, C], the split's clean labels.
            keys: the split's sample keys; compared where the manifest has keys too.

        Raises:
            UserError: another kind or number of labels, other keys or other clean labels.
        """
        labels = np.asarray(labels)
        if kind_of(labels) != self.kind:
            raise UserError(
                f"The noise manifest was made for {KIND_WORDS[self.kind]}, but the data set gives "
                f"{KIND_WORDS[kind_of(labels)]}; use the data set it was made for."
            )
        if len(labels) != len(self):
            raise UserError(
                f"The noise manifest describes {len(self)} samples but the training split has "
                f"{len(labels)}; use the data set (and split options) it was made for."
            )
        if keys is not None and self.keys is not None:
            other = np.array([a != b for a, b in zip(keys, self.keys, strict=True)], dtype=bool)
            if other.any():
                i = int(np.flatnonzero(other)[0])
                raise UserError(
                    f"The noise manifest was made for other samples: sample {i} is {keys[i]!r} in "
                    f"the training split and {self.keys[i]!r} in the manifest."
                )
        differs = (self.clean >= 0) & (self.clean != labels)
        wrong = np.flatnonzero(differs.any(axis=1) if self.kind == "multi" else differs)
        if len(wrong) and self.kind == "multi":
            raise UserError(
                f"The noise manifest was made for other clean labels: those of {len(wrong)} "
                f"samples differ, the first is sample {wrong[0]}; use the data set it was made for."
            )
        if len(wrong):
            i = int(wrong[0])
            raise UserError(
                f"The noise manifest was made for other clean labels: {len(wrong)} differ, first "
                f"sample {i} (label {labels[i]} in the training split, {self.clean[i]} in the "
                "manifest); use the data set it was made for."
            )

    def take(self, positions: NDArray[np.int64]) -> NoiseManifest:
        """The manifest of the samples at `positions` (int64 [M]), renumbered 0 .. M-1.

        For validation parts cut from the training split and for re-ordered splits.
        """
        return replace(
            self,
            observed=self.observed[positions],
            clean=self.clean[positions],
            changed=self.changed[positions],
            source_index=None if self.source_index is None else self.source_index[positions],
            keys=None if self.keys is None else [self.keys[int(i)] for i in positions],
        )

    def with_unknown_truth(self, known: NDArray[np.int64] | None = None) -> NoiseManifest:
        """The same observed labels, but nobody knows which are wrong (real label noise).

        Args:
            known: int64 [N], the true class of the samples that were looked at by hand; elsewhere
                -1, or -2 for a label that is wrong while the true class is unknown. None: no
                sample was looked at.
        """
        if known is None:
            known = np.full(self.observed.shape, -1)
        return replace(
            self,
            clean=np.maximum(known, -1),
            changed=(known != -1) & (known != self.observed),
            nominal_rate=None,
        )
