"""Embeddings on disk: what `noisyml embed` writes, and the class that reads it anywhere.

Only NumPy (and pyarrow for the table of samples) is needed to read them::

    from noisyml.embeddings.store import EmbeddingStore

    store = EmbeddingStore("outputs/embed/NAME/TIME")
    test = store.split("test")
    test.shape, test.dtype      # (5344, 128), float32; nothing is in memory yet
    test[:1000]                 # rows as an array; slices, integers, lists and masks work
    test.labels, test.names     # one per row

Layout of the folder ``embeddings/`` inside the run folder, one folder per split:

====================  ============================================================================
``plan.json``         what the rows depend on, written before the first row
``00000.npy`` ...     shards [rows, D]; shard ``i`` holds the decodable samples among the positions
                      ``i * rows_per_shard`` to ``(i + 1) * rows_per_shard - 1`` of the split
``00000.json`` ...    rows, undecodable positions and SHA-256 of each shard, until all are there
``samples.parquet``   one line per row: ``index`` (position in the split), ``label`` (where there
                      may be several: a list of C zeros and ones), ``name``, ``label_name`` (several
                      joined by `` + ``)
``index.json``        the plan and the shards; written last: its presence says that all is there
====================  ============================================================================

Shards are a matter of positions alone, whoever computes them: the folder is the same whether one
process or many made it, and whether or not they were interrupted.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from noisyml.errors import UserError, did_you_mean
from noisyml.storage.files import atomic, write_atomically
from noisyml.storage.parquet import from_column
from noisyml.storage.reading import read_json, read_npy, reading
from noisyml.targets import target_of

if TYPE_CHECKING:
    import pyarrow as pa

#: Raise when the meaning of the files changes.
FORMAT = 1
#: The folder inside a run folder.
EMBEDDINGS_FOLDER = "embeddings"
#: What to do about a damaged file of them.
ADVICE = "embed again into another folder"
PLAN_FILE = "plan.json"
INDEX_FILE = "index.json"
SAMPLES_FILE = "samples.parquet"
#: Shards mapped at a time: each costs a file descriptor.
MAPPED_SHARDS = 64

DType = Literal["float32", "float16"]


@dataclass(frozen=True)
class EmbeddingPlan:
    """Everything that the rows of a split depend on.

    Attributes:
        split: name of the split.
        samples: N, positions in the split (undecodable ones included).
        dim: D.
        dtype: of the stored numbers, ``float32`` or ``float16``.
        rows_per_shard: positions that one shard covers.
        batch_size: samples encoded at a time; batches start at the first position of a shard.
        precision: of the arithmetic, in Lightning's words.
        data: fingerprint of the images.
        labels: SHA-256 of the labels.
        transform: what was done to the images.
        encoder: fingerprint of the network and its weights.
    """

    split: str
    samples: int
    dim: int
    dtype: DType
    rows_per_shard: int
    batch_size: int
    precision: str
    data: str
    labels: str
    transform: str
    encoder: str

    @property
    def shards(self) -> int:
        """Number of shards of the whole split."""
        return -(-self.samples // self.rows_per_shard)

    def positions(self, shard: int) -> NDArray[np.int64]:
        """Positions in the split that a shard covers, int64."""
        first = shard * self.rows_per_shard
        return np.arange(first, min(first + self.rows_per_shard, self.samples))


#: How a refusal calls the parts of a plan.
_WORDS = {
    "samples": "number of samples",
    "dim": "embedding dimension",
    "batch_size": "batch size",
    "data": "data",
    "transform": "transform",
    "encoder": "weights",
}


class SplitWriter:
    """Writes the embeddings of one split, shard by shard, in any order and by any process.

    A shard is there or it is not: a kill at any moment leaves no half of one. Several processes may
    write different shards of one folder; one of them calls `begin` first and `finish` last.

    Args:
        folder: of the split.
        plan: what the rows depend on.
    """

    def __init__(self, folder: Path, plan: EmbeddingPlan) -> None:
        self.folder = folder
        self.plan = plan

    def begin(self) -> None:
        """Write the plan, or compare it with the one of an earlier, interrupted attempt.

        Raises:
            UserError: the folder holds embeddings of something else.
        """
        file = self.folder / PLAN_FILE
        plan = {"format": FORMAT, **asdict(self.plan)}
        for unfinished in self.folder.glob(".*.tmp"):
            unfinished.unlink()
        if not file.is_file():
            write_atomically(file, json.dumps(plan, indent=2) + "\n")
            return
        there = read_json(file, f"remove {self.folder} and embed again")
        differing = [_WORDS.get(key, key) for key in plan if there.get(key) != plan[key]]
        if differing:
            raise UserError(
                f"{self.folder} holds embeddings with other {' and '.join(differing)}; choose "
                f"another folder (hydra.run.dir=...), or remove that one."
            )

    @property
    def is_finished(self) -> bool:
        """True once `finish` is done."""
        return (self.folder / INDEX_FILE).is_file()

    def pending(self) -> list[int]:
        """Numbers of the shards that are not there yet, in order."""
        if self.is_finished:
            return []
        return [number for number in range(self.plan.shards) if not self._is_there(number)]

    def write(self, number: int, positions: NDArray[np.int64], rows: NDArray[Any]) -> None:
        """Write one shard.

        Args:
            number: of the shard.
            positions: [m] int64, increasing: the decodable positions among those it covers.
            rows: [m, D] float.

        Raises:
            UserError: a value that is not finite, or too large for the stored type.
            ValueError: positions or a shape that are not this shard's.
        """
        covered = self.plan.positions(number)
        if rows.shape != (len(positions), self.plan.dim) or not np.isin(positions, covered).all():
            raise ValueError(f"rows {rows.shape} at {positions} do not belong to shard {number}")
        with np.errstate(over="ignore"):
            stored = np.ascontiguousarray(rows, dtype=self.plan.dtype)
        finite = np.isfinite(stored).all(axis=1)
        if not finite.all():
            worst = int(np.flatnonzero(~finite)[0])
            why = (
                "is too large for dtype=float16: use dtype=float32"
                if np.isfinite(rows[worst]).all()
                else "is not finite: the network or its weights are broken"
            )
            raise UserError(
                f"The embedding of sample {positions[worst]} of the {self.plan.split} split {why}."
            )
        buffer = io.BytesIO()
        np.lib.format.write_array(buffer, stored, allow_pickle=False)
        content = buffer.getbuffer()
        facts = {
            "rows": len(stored),
            "broken": np.setdiff1d(covered, positions).tolist(),
            "sha256": hashlib.sha256(content).hexdigest(),
        }
        write_atomically(self.folder / _shard_file(number), content, durable=True)
        # Second: its presence says that the shard is whole.
        write_atomically(self._facts_file(number), json.dumps(facts), durable=True)

    def finish(
        self, labels: NDArray[Any], names: Sequence[str], class_names: Sequence[str]
    ) -> None:
        """Write the table of samples and ``index.json``, once all shards are there.

        Args:
            labels: [N] int64, one per position, or [N, C] zeros and ones.
            names: N strings, one per position.
            class_names: one per label.

        Raises:
            ValueError: shards are missing.
        """
        if not self.is_finished:
            self._write_index(labels, names, class_names)
        for number in range(self.plan.shards):
            self._facts_file(number).unlink(missing_ok=True)

    def _write_index(
        self, labels: NDArray[Any], names: Sequence[str], class_names: Sequence[str]
    ) -> None:
        if self.pending():
            raise ValueError(f"shards {self.pending()} of {self.folder} are missing")
        files = map(self._facts_file, range(self.plan.shards))
        facts = [
            read_json(file, "remove it and go on: its shard is embedded anew") for file in files
        ]
        broken = np.concatenate([np.asarray(f["broken"], dtype=np.int64) for f in facts])
        kept = np.setdiff1d(np.arange(self.plan.samples), broken)
        _write_samples(self.folder / SAMPLES_FILE, kept, labels, names, class_names)
        index = {
            "format": FORMAT,
            **asdict(self.plan),
            "rows": len(kept),
            "broken": broken.tolist(),
            "shards": [
                {"file": _shard_file(number), "rows": f["rows"], "sha256": f["sha256"]}
                for number, f in enumerate(facts)
            ],
        }
        write_atomically(self.folder / INDEX_FILE, json.dumps(index, indent=2) + "\n")

    def _facts_file(self, number: int) -> Path:
        return (self.folder / _shard_file(number)).with_suffix(".json")

    def _is_there(self, number: int) -> bool:
        return self._facts_file(number).is_file() and (self.folder / _shard_file(number)).is_file()


class EmbeddedSplit:
    """The embeddings of one split, read from disk when asked for.

    Behaves like a two-dimensional array that lies on disk: it has `shape`, `dtype`, `ndim` and a
    length; indexing with an integer, a slice, integers or a mask gives arrays; ``np.asarray`` reads
    everything. A slice inside one shard is a view of the mapped file.

    Args:
        folder: of the split, with its ``index.json``.

    Raises:
        UserError: the folder is unfinished, of a later version, or files in it are missing.
    """

    ndim = 2

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        file = folder / INDEX_FILE
        if not file.is_file():
            raise UserError(
                f"The embeddings in {folder} are not finished: `noisyml embed "
                f"resume={folder.parent.parent}` goes on with them."
            )
        #: The content of ``index.json``: fingerprints, batch size, shards.
        self.facts: dict[str, Any] = read_json(file, ADVICE)
        if self.facts.get("format") != FORMAT:
            raise UserError(
                f"{file} has format {self.facts.get('format')}, and this version of noisyml reads "
                f"{FORMAT}: embed again, or use the version that wrote it."
            )
        with reading(file, ADVICE):
            self.name = str(self.facts["split"])
            self.shape = (int(self.facts["rows"]), int(self.facts["dim"]))
            self.dtype = np.dtype(self.facts["dtype"])
            names = [str(shard["file"]) for shard in self.facts["shards"]]
            if elsewhere := [name for name in names if Path(name).name != name]:
                raise ValueError(f"it lists a file of another folder: {elsewhere[0]}")
            self._files = [folder / name for name in names]
            rows = [int(shard["rows"]) for shard in self.facts["shards"]]
        self._ends = np.cumsum(rows, dtype=np.int64)
        self._starts = self._ends - np.asarray(rows, dtype=np.int64)
        self._mapped: OrderedDict[int, NDArray[Any]] = OrderedDict()
        gone = next((shard for shard in self._files if not shard.is_file()), None)
        if gone is not None:
            raise UserError(f"{gone} is missing: embed into another folder again.")

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        return f"EmbeddedSplit({self.name!r}, shape={self.shape}, dtype={self.dtype})"

    def __getitem__(self, key: Any) -> NDArray[Any]:
        if isinstance(key, slice):
            start, stop, step = key.indices(len(self))
            if step == 1:
                return self._span(start, max(start, stop))
            return self._take(np.arange(start, stop, step))
        if isinstance(key, int | np.integer):
            position = range(len(self))[int(key)]
            return self._span(position, position + 1)[0]
        wanted = np.asarray(key)
        if wanted.dtype == bool and wanted.shape == (len(self),):
            wanted = np.flatnonzero(wanted)
        elif wanted.size == 0:
            wanted = wanted.astype(np.int64)
        if wanted.ndim != 1 or wanted.dtype.kind not in "iu":
            raise IndexError(
                f"rows are chosen by an integer, a slice, integers [m] or a mask [{len(self)}], "
                f"not by {key!r}"
            )
        wanted = wanted.astype(np.int64)
        wanted = np.where(wanted < 0, wanted + len(self), wanted)
        if len(wanted) and not (wanted.min() >= 0 and wanted.max() < len(self)):
            raise IndexError(f"row {key!r} is out of range for {len(self)} rows")
        return self._take(wanted)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        if copy is False:
            raise ValueError("rows of several files cannot become one array without a copy")
        return np.array(self[:], dtype=dtype)

    @property
    def index(self) -> NDArray[np.int64]:
        """Position of each row's sample in the split [rows] int64."""
        return np.asarray(self._column("index"), dtype=np.int64)

    @property
    def labels(self) -> NDArray[Any]:
        """Label of each row [rows] int64; of a training split, as the run observed it.

        Where there may be several: zeros and ones [rows, C] uint8.
        """
        labels = self._column("label")
        return labels.astype(target_of(labels).dtype, copy=False)

    @property
    def names(self) -> NDArray[np.object_]:
        """Path or identifier of each row's sample [rows] str."""
        return np.asarray(self._column("name"), dtype=object)

    @property
    def label_names(self) -> NDArray[np.object_]:
        """Label of each row in words [rows] str."""
        return np.asarray(self._column("label_name"), dtype=object)

    def check(self) -> None:
        """Compare the shards with their SHA-256.

        Raises:
            UserError: a file was changed since it was written.
        """
        for file, shard in zip(self._files, self.facts["shards"], strict=True):
            with file.open("rb") as stream:
                found = hashlib.file_digest(stream, "sha256").hexdigest()
            if found != shard["sha256"]:
                raise UserError(f"{file} was changed since it was written: embed again.")

    @cached_property
    def _samples(self) -> pa.Table:
        import pyarrow.parquet as pq

        file = self.folder / SAMPLES_FILE
        with reading(file, ADVICE):
            table = pq.read_table(file)
            if missing := {"index", "label", "name", "label_name"} - set(table.column_names):
                raise ValueError(f"it lacks the column {min(missing)}")
            if len(table) != len(self):
                raise ValueError(f"it lists {len(table)} samples, not {len(self)}")
            return table

    def _column(self, name: str) -> Any:
        table = self._samples
        # Text is decoded here: what is damaged within a file need not show before.
        with reading(self.folder / SAMPLES_FILE, ADVICE):
            column = table.column(name)
            if name == "label":
                return from_column(column)
            return (column.cast("string") if name == "label_name" else column).to_numpy()

    def _shard(self, number: int) -> NDArray[Any]:
        """A shard, mapped; the least recently used one is given up when there are many."""
        if number in self._mapped:
            self._mapped.move_to_end(number)
            return self._mapped[number]
        expected = (int(self._ends[number] - self._starts[number]), self.shape[1])
        rows = read_npy(self._files[number], ADVICE)
        if rows.shape != expected or rows.dtype != self.dtype:
            raise UserError(
                f"{self._files[number]} holds {rows.dtype} {rows.shape} instead of {self.dtype} "
                f"{expected}: embed again."
            )
        self._mapped[number] = rows
        if len(self._mapped) > MAPPED_SHARDS:
            self._mapped.popitem(last=False)
        return rows

    def _span(self, start: int, stop: int) -> NDArray[Any]:
        """Rows ``start .. stop - 1``; a view if one shard holds them all."""
        if stop <= start:
            return np.empty((0, self.shape[1]), dtype=self.dtype)
        first = int(np.searchsorted(self._ends, start, side="right"))
        last = int(np.searchsorted(self._ends, stop - 1, side="right"))
        if first == last:
            begin = int(self._starts[first])
            return self._shard(first)[start - begin : stop - begin]
        rows = np.empty((stop - start, self.shape[1]), dtype=self.dtype)
        for number in range(first, last + 1):
            begin, end = int(self._starts[number]), int(self._ends[number])
            low, high = max(start, begin), min(stop, end)
            rows[low - start : high - start] = self._shard(number)[low - begin : high - begin]
        return rows

    def _take(self, wanted: NDArray[np.int64]) -> NDArray[Any]:
        """Rows by number [m], in the order asked for; each shard is opened once."""
        rows = np.empty((len(wanted), self.shape[1]), dtype=self.dtype)
        if not len(wanted):
            return rows
        shard_of = np.searchsorted(self._ends, wanted, side="right")
        order = np.argsort(shard_of, kind="stable")
        touched, first = np.unique(shard_of[order], return_index=True)
        for number, places in zip(touched.tolist(), np.split(order, first[1:]), strict=True):
            rows[places] = self._shard(number)[wanted[places] - self._starts[number]]
        return rows


class EmbeddingStore:
    """All splits that one `noisyml embed` has written.

    Args:
        path: the run folder, or the folder ``embeddings`` inside it.

    Raises:
        UserError: there are no embeddings.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp()) / EMBEDDINGS_FOLDER
        >>> settings = dict.fromkeys(["precision", "data", "labels", "transform", "encoder"], "")
        >>> plan = EmbeddingPlan("test", 3, 2, "float32", 2, 1, **settings)
        >>> writer = SplitWriter(folder / "test", plan)
        >>> writer.begin()
        >>> for shard in range(plan.shards):
        ...     at = plan.positions(shard)
        ...     writer.write(shard, at, np.ones((len(at), 2)) * at[:, None])
        >>> writer.finish(np.array([0, 1, 1]), ["a.png", "b.png", "c.png"], ["ant", "bee"])
        >>> split = EmbeddingStore(folder.parent).split("test")
        >>> split.shape, split[1:].tolist(), split.label_names.tolist()
        ((3, 2), [[1.0, 1.0], [2.0, 2.0]], ['ant', 'bee', 'bee'])
    """

    def __init__(self, path: str | Path) -> None:
        given = Path(path)
        inside = given / EMBEDDINGS_FOLDER
        self.path = inside if inside.is_dir() else given
        found = sorted(file.parent.name for file in self.path.glob(f"*/{PLAN_FILE}"))
        if not found:
            raise UserError(
                f"{given} holds no embeddings: give the folder that `noisyml embed` has written."
            )
        #: Names of the splits.
        self.splits: tuple[str, ...] = tuple(found)

    def split(self, name: str) -> EmbeddedSplit:
        """One split.

        Raises:
            UserError: there is none of that name, or it is not finished.
        """
        if name not in self.splits:
            raise UserError(
                f"{self.path} holds no split '{name}'.{did_you_mean(name, self.splits)} "
                f"It has: {', '.join(self.splits)}."
            )
        return EmbeddedSplit(self.path / name)


def _shard_file(number: int) -> str:
    return f"{number:05d}.npy"


def _write_samples(
    path: Path,
    kept: NDArray[np.int64],
    labels: NDArray[Any],
    names: Sequence[str],
    class_names: Sequence[str],
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    target = target_of(labels)
    rows = np.asarray(labels, dtype=target.dtype)[kept]
    table = pa.table(
        {
            "index": kept,
            "label": target.to_column(rows),
            "name": [str(names[position]) for position in kept.tolist()],
            "label_name": target.text_column(rows, class_names),
        }
    )
    with atomic(path) as temporary:
        pq.write_table(table, temporary)
