"""The record of what was done to the labels of a training split."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
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
from noisyml.storage.reading import reading
from noisyml.targets import PARTIAL, SINGLE, Labels, Target, target_of

FORMAT = 1
_METADATA_KEY = b"noisyml.noise"


class SampleState(IntEnum):
    """State of a training sample, given the truth about it."""

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


@dataclass(frozen=True, eq=False)
class NoiseManifest:
    """Labels of a training split after corruption, beside the truth; arrays are read-only.

    Attributes:
        observed: int64 [N], the label training sees, ``0 .. num_classes-1``, or -1 where it sees
            none; multi-label: uint8 [N, num_classes] of zeros and ones.
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

    Example:
        >>> from noisyml.noise import NoiseManifest
        >>> observed, clean = [0, 1, 1], [0, 0, 1]
        >>> manifest = NoiseManifest(observed, clean, [False, True, False], 2, injector="mine")
        >>> round(manifest.actual_rate, 3), manifest.count_matrix().tolist()
        (0.333, [[1, 1], [0, 1]])
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
        target = target_of(self.observed)
        put(self, "observed", _frozen(self.observed, target.dtype))
        put(self, "clean", _frozen(self.clean, target.clean_dtype))
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
        target.check_record(
            self.observed,
            self.clean,
            self.changed,
            num_classes=self.num_classes,
            num_clean_classes=self.num_clean_classes,
            replaces=self.source_index is not None or self.class_source is not None,
        )

    def __len__(self) -> int:
        return len(self.observed)

    @property
    def target(self) -> Target:
        """The kind of the labels."""
        return target_of(self.observed)

    @property
    def wrong(self) -> NDArray[np.bool_]:
        """Samples with a wrong label, bool [N]; multi-label: with any wrong entry."""
        return self.target.per_sample(self.changed)

    @property
    def unknown(self) -> NDArray[np.bool_]:
        """Samples of which nobody knows whether they are wrong, bool [N]."""
        return self.target.per_sample(self.target.unknown(self.clean, self.changed))

    @property
    def truth_known(self) -> bool:
        """True if it is known of every sample whether it is wrong."""
        return not bool(self.unknown.any())

    @property
    def actual_rate(self) -> float:
        """Realised fraction of wrong labels, NaN where the truth is unknown.

        Of the samples, of those with a label; multi-label: of all N * C entries.
        """
        if len(self) == 0:
            return 0.0
        if not self.truth_known:
            return float("nan")
        return self.target.rate(self.observed, self.changed)

    @property
    def state(self) -> NDArray[np.int8]:
        """`SampleState` of each sample, int8 [N]."""
        state = np.where(self.wrong, SampleState.CLOSED, SampleState.CLEAN).astype(np.int8)
        if self.class_source is not None:
            kept = self.class_source[self.class_source >= 0]
            state[self.changed & ~np.isin(self.clean, kept)] = SampleState.OPEN
        if self.source_index is not None:
            state[self.source_index >= 0] = SampleState.OPEN
        state[self.unknown] = SampleState.UNKNOWN
        return state

    @property
    def sha256(self) -> str:
        """Hex digest of the samples: labels, flags, image sources, keys, and class sources."""
        digest = hashlib.sha256(f"{len(self)} {self.num_classes}".encode())
        digest.update(self.target.digest(self.observed, self.clean))
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
        return self.target.count_matrix(
            self.observed, self.clean, self.num_classes, self.num_clean_classes
        )

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
        return rates | self.target.rates(self.observed, self.clean, self.changed)

    def summary(self) -> dict[str, Any]:
        """The record without its samples: both rates, parameters, hash, generator, versions.

        Multi-label: also ``classes``, the counts of `LabelChanges`.
        """
        actual = self.actual_rate
        return self.target.summary(self.observed, self.clean) | {
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

        Entries of multi-label columns are lists of fixed size; a mask that was not changed stands
        once, in the column ``clean``.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        observed, clean = self.target.to_columns(self.observed, self.clean)
        columns: dict[str, Any] = {
            "index": self.index,
            "observed": observed,
            "clean": clean,
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
        import pyarrow.parquet as pq

        path = Path(path)
        if not path.is_file():
            raise UserError(f"There is no noise manifest {path}; give the path of a Parquet file.")
        with reading(path, "give one that a run (noise.parquet) or NoiseManifest.save wrote"):
            table = pq.read_table(path)
        metadata = (table.schema.metadata or {}).get(_METADATA_KEY)
        required = {"index", "observed", "clean", "changed"}
        if metadata is None or not required <= set(table.column_names):
            raise UserError(
                f"{path} is a Parquet file but no noise manifest; give one that NoiseManifest.save "
                "or a run (noise.parquet) wrote."
            )
        with reading(path, "restore it, or inject the noise again"):
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
                observed=from_column(table["observed"], otherwise=table["clean"]),
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
        labels, given = np.asarray(labels), target_of(labels)
        # The labels of a split may be known to its owner though training does not see them.
        if given is not self.target and {given, self.target} != {SINGLE, PARTIAL}:
            raise UserError(
                f"The noise manifest was made for {self.target.words}, but the data set gives "
                f"{given.words}; use the data set it was made for."
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
        differing = given.differing(self.clean, labels)
        if len(differing):
            i = int(differing[0])
            raise UserError(
                f"The noise manifest was made for other clean labels: {len(differing)} of "
                f"{len(self)} differ, the first at sample {i} ({given.shown(labels[i])} in the "
                f"training split, {given.shown(self.clean[i])} in the manifest); use the data set "
                "it was made for."
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
            known = self.target.unknown_truth(self.observed)
        clean, changed = self.target.truth(self.observed, known)
        return replace(self, clean=clean, changed=changed, nominal_rate=None)
