"""Files of a run folder: judgements, curves, manifest, environment, artefacts.

Every file read here is optional: a reader returns None where the file is missing and raises
`Unreadable`, with a sentence, where it is there but broken.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from noisyml.errors import UserError
from noisyml.runs.artefacts import ArtefactEntry, list_artefacts
from noisyml.runs.folder import RunFolder
from noisyml.storage.parquet import from_column, row_groups
from noisyml.storage.reading import DamagedFileError
from noisyml.storage.reading import reading as reading_file
from noisyml.targets import target_of
from noisyml.targets.entries import as_judged, entry_classes, entry_numbers

#: One row per image that could not be decoded, where a run was told to skip those.
BROKEN_IMAGES_FILE = "broken_images.csv"


class Unreadable(UserError):
    """A file of a run folder is there but cannot be used; the message names it and says why."""


@dataclass(frozen=True)
class Judgements:
    """Judgements of a selector in one run, of each epoch in sum and of the last in full.

    Attributes:
        last: the last judgement in the last epoch of every sample judged in it; columns ``index``
            int64, ``kept`` bool, ``p_clean`` float (NaN where none was computed) and ``wrong`` bool
            (label differs from the true one). A row per sample, or per entry of a multi-label
            sample, numbered ``index * C + class``.
        by_epoch: per ``epoch`` the ``kept`` share and, where the truth is known, ``precision``
            (share of rightly labelled samples among those kept) and ``recall`` (share of rightly
            labelled samples that were kept); NaN where nothing was kept or nothing is right.
        truth_known: True if some labels are known to be wrong and all others to be right; if
            not, ``wrong`` is all False and means nothing.
        samples: number of training samples.
        entries: True if entries were judged and not samples.
    """

    last: pd.DataFrame
    by_epoch: pd.DataFrame
    truth_known: bool
    samples: int
    entries: bool = False


def read_history(run: RunFolder) -> pd.DataFrame | None:
    """Metrics over steps; None if the run logged none or not by step."""
    with reading(run.history_file):
        history = run.history()
    return history if len(history) and "step" in history else None


def read_manifest(run: RunFolder) -> pd.DataFrame | None:
    """The noise manifest: ``index observed clean changed unknown``.

    Labels are numbers or, multi-label, lists; ``changed`` and ``unknown`` (nobody knows whether the
    label is right) say whether any label of the sample is.
    """
    found = _manifest(run)
    if found is None:
        return None
    target = target_of(found["observed"])
    labels = {name: target.cells(found[name]) for name in ("observed", "clean")}
    flags = {
        "changed": target.per_sample(found["changed"]),
        "unknown": target.per_sample(target.unknown(found["clean"], found["changed"])),
    }
    return pd.DataFrame({"index": found["index"], **labels, **flags})


def read_judgements(run: RunFolder) -> Judgements | None:
    """The selector's judgements joined with the manifest by ``index``.

    A file of many epochs may be larger than the memory: it is read one row group at a time.
    """
    truth = _truth(_manifest(run))
    counts: list[pd.DataFrame] = []
    last: list[pd.DataFrame] = []
    newest = -1
    seen = np.empty(0, dtype=np.int64)
    classes = 0
    for judged in _row_groups(run.selection_file, ["index", "p_clean", "kept", "epoch"]):
        index, epoch = judged["index"].astype(np.int64), judged["epoch"].astype(np.int64)
        if not len(index):
            continue
        kept = judged["kept"].astype(bool)
        classes = entry_classes(kept)
        wrong = truth.wrong(index, kept)
        seen = np.union1d(seen, index)
        counts.append(_counts(epoch, kept, wrong))
        if epoch.max() > newest:
            newest, last = int(epoch.max()), []
        chosen = epoch == newest
        columns = {"kept": kept, "p_clean": judged["p_clean"].astype(float), "wrong": wrong}
        columns = {"index": entry_numbers(index, classes), **columns}
        last.append(pd.DataFrame({n: values[chosen].ravel() for n, values in columns.items()}))
    if not counts:
        return None
    return Judgements(
        pd.concat(last).drop_duplicates("index", keep="last"),
        _shares(pd.concat(counts).groupby("epoch").sum(), truth.known),
        truth.known,
        len(seen) if truth.samples is None else truth.samples,
        classes > 0,
    )


@dataclass(frozen=True)
class _Truth:
    """Wrong labels, [N] bool or (several per sample) [N, C], of samples by position.

    Attributes:
        known: False: nothing is said to be wrong.
        samples: N, None without a manifest.
        place: where a position stands in `changed`.
        changed: as the manifest says.
    """

    known: bool
    samples: int | None
    place: pd.Index
    changed: NDArray[np.bool_]

    def wrong(self, index: NDArray[np.int64], kept: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """True where what was judged, of the shape of `kept`, is wrong."""
        if not self.known:
            return np.zeros(kept.shape, dtype=bool)
        place = self.place.get_indexer(pd.Index(index))
        if (place < 0).any():
            raise Unreadable("selection.parquet judges samples that noise.parquet does not list.")
        classes = entry_classes(kept)
        if classes and entry_classes(self.changed) != classes:
            raise Unreadable("selection.parquet judges other classes than noise.parquet lists.")
        return as_judged(self.changed[place], classes)


def _truth(manifest: dict[str, NDArray[Any]] | None) -> _Truth:
    if manifest is None:
        return _Truth(False, None, pd.Index([]), np.empty(0, dtype=bool))
    changed = manifest["changed"]
    target = target_of(manifest["observed"])
    known = bool(changed.any() and not target.unknown(manifest["clean"], changed).any())
    return _Truth(known, len(manifest["index"]), pd.Index(manifest["index"]), changed)


def _counts(
    epoch: NDArray[np.int64], kept: NDArray[np.bool_], wrong: NDArray[np.bool_]
) -> pd.DataFrame:
    """Numbers of judged, kept, right, and both in each ``epoch``."""
    counts = {"all": np.ones_like(kept), "kept": kept, "right": ~wrong, "both": kept & ~wrong}
    of_sample = {name: marks.reshape(len(epoch), -1).sum(axis=1) for name, marks in counts.items()}
    return pd.DataFrame({"epoch": epoch, **of_sample}).groupby("epoch").sum().reset_index()


def _shares(sums: pd.DataFrame, truth_known: bool) -> pd.DataFrame:
    """See `Judgements.by_epoch`."""
    shares = pd.DataFrame({"kept": sums["kept"] / sums["all"]})
    if truth_known:
        shares["precision"] = sums["both"] / sums["kept"].where(sums["kept"] > 0)
        shares["recall"] = sums["both"] / sums["right"].where(sums["right"] > 0)
    return shares.reset_index()


def read_broken_images(run: RunFolder) -> int:
    """Number of images that could not be decoded and were left out; 0 if the run tells of none."""
    path = run.path / BROKEN_IMAGES_FILE
    if not path.is_file():
        return 0
    with reading(path):
        return len(pd.read_csv(path))


def read_environment(run: RunFolder) -> dict[str, str]:
    """``environment.json``, flat: dotted key to text; empty if there is none."""
    if not run.environment_file.is_file():
        return {}
    with reading(run.environment_file):
        return dict(_flat(json.loads(run.environment_file.read_bytes())))


def fingerprints(manifest: pd.DataFrame) -> tuple[str, str]:
    """Digests of the true and of the observed labels of a training split."""
    ordered = manifest.sort_values("index")
    return _digest(ordered["clean"]), _digest(ordered["observed"])


def read_list(run: RunFolder) -> list[ArtefactEntry]:
    """The artefacts that ``artefacts.json`` lists."""
    with reading(run.artefacts_file):
        return list_artefacts(run)


def png_data_uri(image: NDArray[np.uint8], largest_side: int) -> str:
    """An image (uint8 [H, W] or [H, W, 3]) as a PNG ``data:`` URI, shrunk if it is larger."""
    from PIL import Image

    picture = Image.fromarray(image)
    picture.thumbnail((largest_side, largest_side))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _manifest(run: RunFolder) -> dict[str, NDArray[Any]] | None:
    """Columns of the noise manifest, [N] or (labels of multi-label samples) [N, C]."""
    path, names = run.noise_file, ["index", "observed", "clean", "changed"]
    table = _table(path, names)
    if table is None:
        return None
    with reading(path):
        found = {name: from_column(table[name]) for name in names if name != "observed"}
        found["observed"] = from_column(table["observed"], otherwise=table["clean"])
    return {**found, "changed": found["changed"].astype(bool)}


def _arrays(path: Path, columns: Sequence[str]) -> dict[str, NDArray[Any]] | None:
    table = _table(path, columns)
    with reading(path):
        return None if table is None else {name: from_column(table[name]) for name in columns}


def _row_groups(path: Path, columns: Sequence[str]) -> Iterator[dict[str, NDArray[Any]]]:
    """Columns of a file as `_arrays` gives them, one row group after the other."""
    if path.is_file():
        with reading(path):
            _check_columns(path, columns)
            yield from row_groups(path, columns)


def read_arrays(path: Path) -> dict[str, NDArray[Any]] | None:
    """Arrays by name of an ``.npz`` file; plain arrays only, nothing is unpickled."""
    if not path.is_file():
        return None
    with reading(path), np.load(path, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def read_table(path: Path, columns: Sequence[str]) -> pd.DataFrame | None:
    """Columns of a Parquet file."""
    table = _table(path, columns)
    return None if table is None else table.to_pandas(ignore_metadata=True)


def _table(path: Path, columns: Sequence[str]) -> Any:
    if not path.is_file():
        return None
    import pyarrow.parquet as pq

    with reading(path):
        _check_columns(path, columns)
        # Not through pandas' metadata: a column called "index" may be stored as the index.
        return pq.ParquetFile(path).read(columns=list(columns))


def _check_columns(path: Path, columns: Sequence[str]) -> None:
    import pyarrow.parquet as pq

    names = pq.read_schema(path).names
    missing = [column for column in columns if column not in names]
    if missing:
        raise Unreadable(f"{path.name} lacks the column {missing[0]}.")


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Context in which errors mean that a file is broken.

    Raises:
        Unreadable: in place of them.
    """
    try:
        with reading_file(path, ""):
            yield
    except DamagedFileError as error:
        raise Unreadable(f"{path.name} cannot be read: {error.reason}") from error


def _digest(values: pd.Series) -> str:
    return hashlib.sha256(json.dumps(values.tolist(), default=str).encode()).hexdigest()


def _flat(node: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _flat(value, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(node, list):
        yield prefix, ", ".join(str(item) for item in node)
    else:
        yield prefix, str(node)
