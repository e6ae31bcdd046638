"""What a run folder holds beside its figures: judgements, curves, pictures, its circumstances.

Every file read here is optional: a reader returns None where the file is missing and raises
`Unreadable`, with a sentence, where it is there but broken.
"""

from __future__ import annotations

import base64
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

from noisyml.columns import from_column
from noisyml.runs import RunFolder

#: One row per image that could not be decoded, where a run was told to skip those.
BROKEN_IMAGES_FILE = "broken_images.csv"


class Unreadable(Exception):
    """A file of a run folder is there but cannot be used; the message names it and says why."""


@dataclass(frozen=True)
class Judgements:
    """Every judgement a selector made in one run, in the order in which they were made.

    Attributes:
        table: columns ``index`` int64, ``epoch`` int64, ``kept`` bool, ``p_clean`` float
            (NaN where none was computed) and ``wrong`` bool (label differs from the true one). A
            row per sample, or per entry of a multi-label sample, numbered ``index * C + class``.
        truth_known: True if some labels are known to be wrong and all others to be right; if
            not, ``wrong`` is all False and means nothing.
        samples: number of training samples.
        entries: True if entries were judged and not samples.
    """

    table: pd.DataFrame
    truth_known: bool
    samples: int
    entries: bool = False

    def last(self) -> pd.DataFrame:
        """The last judgement in the last epoch of every sample judged in it."""
        final = self.table[self.table["epoch"] == self.table["epoch"].max()]
        return final.drop_duplicates("index", keep="last")

    def by_epoch(self) -> pd.DataFrame:
        """Per epoch: ``kept`` share and, where the truth is known, ``precision`` and ``recall``.

        Precision is the share of rightly labelled samples among those kept, recall the share of
        rightly labelled samples that were kept; NaN where nothing was kept or nothing is right.
        """
        right, kept = ~self.table["wrong"], self.table["kept"]
        counts = pd.DataFrame(
            {"all": 1, "kept": kept, "right": right, "both": kept & right}
        ).astype(np.int64)
        sums = counts.groupby(self.table["epoch"]).sum()
        shares = pd.DataFrame({"kept": sums["kept"] / sums["all"]})
        if self.truth_known:
            shares["precision"] = sums["both"] / sums["kept"].where(sums["kept"] > 0)
            shares["recall"] = sums["both"] / sums["right"].where(sums["right"] > 0)
        return shares.reset_index()


@dataclass(frozen=True)
class Thumbnails:
    """Pictures of the training samples trusted least, the least trusted first.

    Attributes:
        images: uint8 [n, H, W] or [n, H, W, 3].
        p_clean: [n] float.
        observed_name: [n] name of the label in the data.
        clean_name: [n] name of the true label, ``""`` where unknown.
        key: [n] what names the sample (a path or an id).
        right: [n] True or False where it is known whether the label is right, else None.
    """

    images: NDArray[np.uint8]
    p_clean: NDArray[np.floating]
    observed_name: NDArray[np.str_]
    clean_name: NDArray[np.str_]
    key: NDArray[np.str_]
    right: tuple[bool | None, ...]

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class ClassMaps:
    """Where a classifier looked in a few training samples, grouped by kind.

    Attributes:
        images: uint8 [n, h, w] or [n, h, w, 3].
        given: [n, H, W] class activation map of the label in the data, less the mean class's.
        answer: [n, H, W] of the class the network answers, likewise.
        given_name: [n] name of the label in the data.
        answer_name: [n] name of the answer.
        true_name: [n] name of the true label, ``""`` where unknown.
        kind: [n] what they stand for, e.g. ``label wrong``; ``""`` for no kind.
    """

    images: NDArray[np.uint8]
    given: NDArray[np.floating]
    answer: NDArray[np.floating]
    given_name: NDArray[np.str_]
    answer_name: NDArray[np.str_]
    true_name: NDArray[np.str_]
    kind: NDArray[np.str_]

    def __len__(self) -> int:
        return len(self.images)


def read_history(run: RunFolder) -> pd.DataFrame | None:
    """Metrics over steps; None if the run logged none or not by step."""
    try:
        history = run.history()
    except (ValueError, OSError) as error:
        raise Unreadable(f"history.csv cannot be read: {_short(error)}") from error
    return history if len(history) and "step" in history else None


def read_manifest(run: RunFolder) -> pd.DataFrame | None:
    """The noise manifest: ``index observed clean changed unknown``.

    Labels are numbers or, multi-label, lists; ``changed`` and ``unknown`` (nobody knows whether the
    label is right) say whether any label of the sample is.
    """
    found = _manifest(run)
    if found is None:
        return None
    unknown = (found["clean"] < 0) & ~found["changed"]
    if found["changed"].ndim == 1:
        return pd.DataFrame({**found, "unknown": unknown})
    lists = {name: found[name].tolist() for name in ("observed", "clean")}
    flags = {"changed": found["changed"].any(axis=1), "unknown": unknown.any(axis=1)}
    return pd.DataFrame({"index": found["index"], **lists, **flags})


def read_judgements(run: RunFolder) -> Judgements | None:
    """The selector's judgements joined with the manifest by ``index``."""
    judged = _arrays(run.selection_file, ["index", "p_clean", "kept", "epoch"])
    if judged is None or not len(judged["index"]):
        return None
    kept = judged["kept"].astype(bool)
    entries = kept.ndim == 2
    wrong = np.zeros(kept.shape, dtype=bool)
    manifest = _manifest(run)
    truth_known = False
    samples = len(np.unique(judged["index"]))
    if manifest is not None:
        samples, changed = len(manifest["index"]), manifest["changed"]
        truth_known = bool(changed.any() and not ((manifest["clean"] < 0) & ~changed).any())
    if manifest is not None and truth_known:
        place = pd.Index(manifest["index"]).get_indexer(judged["index"])
        if (place < 0).any():
            raise Unreadable("selection.parquet judges samples that noise.parquet does not list.")
        if entries and changed.shape[1:] != kept.shape[1:]:
            raise Unreadable("selection.parquet judges other classes than noise.parquet lists.")
        per_sample = changed.ndim == 2 and not entries
        wrong = np.asarray(changed.any(axis=1) if per_sample else changed)[place]
    index, epoch = judged["index"].astype(np.int64), judged["epoch"].astype(np.int64)
    if entries:
        classes = kept.shape[1]
        index = (index[:, None] * classes + np.arange(classes)).ravel()
        epoch = np.repeat(epoch, classes)
    columns = {"kept": kept, "p_clean": judged["p_clean"].astype(float), "wrong": wrong}
    flat = {name: values.ravel() for name, values in columns.items()}
    table = pd.DataFrame({"index": index, "epoch": epoch, **flat})
    return Judgements(table, truth_known, samples, entries)


def read_embedding_map(run: RunFolder) -> pd.DataFrame | None:
    """The map of test embeddings: ``x y label label_name``."""
    table = _parquet(run.embedding_map_file, ["x", "y", "label", "label_name"])
    return None if table is None or table.empty else table


def read_thumbnails(run: RunFolder) -> Thumbnails | None:
    """The least trusted training samples; plain arrays only, nothing is unpickled."""
    if not run.thumbnails_file.is_file():
        return None
    try:
        with np.load(run.thumbnails_file, allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in arrays.files}
        images, p_clean = found["images"], found["p_clean"].astype(float)
        index = found["index"].astype(np.int64)
        names = [found[key].astype(str) for key in ("observed_name", "clean_name", "key")]
    except (ValueError, OSError, KeyError, EOFError) as error:
        raise Unreadable(f"thumbnails.npz cannot be read: {_short(error)}") from error
    grey_or_rgb = images.ndim == 3 or (images.ndim == 4 and images.shape[3] == 3)
    if images.dtype != np.uint8 or not grey_or_rgb:
        raise Unreadable(f"thumbnails.npz holds no images: {images.dtype} {list(images.shape)}.")
    if any(array.shape != (len(images),) for array in (p_clean, index, *names)):
        raise Unreadable("thumbnails.npz holds names or scores for another number of images.")
    order = np.argsort(p_clean, kind="stable")
    observed, clean, key = (array[order] for array in names)
    right = _rightness(read_manifest(run), index[order], observed, clean)
    return Thumbnails(images[order], p_clean[order], observed, clean, key, right)


def read_class_maps(run: RunFolder) -> ClassMaps | None:
    """Class activation maps of training samples; plain arrays only, nothing is unpickled."""
    if not run.class_maps_file.is_file():
        return None
    try:
        with np.load(run.class_maps_file, allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in arrays.files}
        images = found["images"]
        maps = [found[key].astype(float) for key in ("given_maps", "answer_maps")]
        keys = ("given_name", "answer_name", "true_name", "kind")
        names = [found[key].astype(str) for key in keys]
    except (ValueError, OSError, KeyError, EOFError) as error:
        raise Unreadable(f"class_maps.npz cannot be read: {_short(error)}") from error
    grey_or_rgb = images.ndim == 3 or (images.ndim == 4 and images.shape[3] == 3)
    same_number = all(len(array) == len(images) for array in (*maps, *names))
    if images.dtype != np.uint8 or not grey_or_rgb or not same_number:
        raise Unreadable("class_maps.npz holds no images with a map each.")
    if any(array.ndim != 3 or not np.isfinite(array).all() for array in maps):
        raise Unreadable("class_maps.npz holds maps that are no numbers.")
    return ClassMaps(images, *maps, *names)


def read_broken_images(run: RunFolder) -> int:
    """How many images could not be decoded and were left out; 0 where the run tells of none."""
    path = run.path / BROKEN_IMAGES_FILE
    if not path.is_file():
        return 0
    try:
        return len(pd.read_csv(path))
    except (ValueError, OSError) as error:
        raise Unreadable(f"{path.name} cannot be read: {_short(error)}") from error


def read_environment(run: RunFolder) -> dict[str, str]:
    """``environment.json``, flat: dotted key to text; empty if there is none."""
    if not run.environment_file.is_file():
        return {}
    try:
        return dict(_flat(json.loads(run.environment_file.read_text())))
    except (ValueError, OSError) as error:
        raise Unreadable(f"environment.json cannot be read: {_short(error)}") from error


def fingerprints(manifest: pd.DataFrame) -> tuple[str, str]:
    """Digests of the true and of the observed labels of a training split."""
    ordered = manifest.sort_values("index")
    return _digest(ordered["clean"]), _digest(ordered["observed"])


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
    found = _arrays(run.noise_file, ["index", "observed", "clean", "changed"])
    return None if found is None else {**found, "changed": found["changed"].astype(bool)}


def _arrays(path: Path, columns: Sequence[str]) -> dict[str, NDArray[Any]] | None:
    table = _table(path, columns)
    try:
        return None if table is None else {name: from_column(table[name]) for name in columns}
    except ValueError as error:
        raise Unreadable(f"{path.name} cannot be read: {_short(error)}") from error


def _parquet(path: Path, columns: Sequence[str]) -> pd.DataFrame | None:
    table = _table(path, columns)
    return None if table is None else table.to_pandas(ignore_metadata=True)


def _table(path: Path, columns: Sequence[str]) -> Any:
    if not path.is_file():
        return None
    import pyarrow.parquet

    try:
        # Not through pandas' metadata: a column called "index" may be stored as the index.
        file = pyarrow.parquet.ParquetFile(path)
        missing = [column for column in columns if column not in file.schema_arrow.names]
        if missing:
            raise Unreadable(f"{path.name} lacks the column {missing[0]}.")
        return file.read(columns=list(columns))
    except (OSError, ValueError, KeyError) as error:
        raise Unreadable(f"{path.name} cannot be read: {_short(error)}") from error


def _rightness(
    manifest: pd.DataFrame | None,
    index: NDArray[np.int64],
    observed: NDArray[np.str_],
    clean: NDArray[np.str_],
) -> tuple[bool | None, ...]:
    """Whether labels are right, as the manifest says, or else as their names say."""
    # Several labels or a single entry of them are told in full by their names.
    if manifest is None or isinstance(manifest["observed"].iloc[0], list):
        return tuple(
            bool(seen == true) if true else None for seen, true in zip(observed, clean, strict=True)
        )
    rows = manifest.set_index("index").reindex(index)
    if rows["changed"].isna().any():
        raise Unreadable("thumbnails.npz shows samples that noise.parquet does not list.")
    return tuple(
        None if nobody_knows else not changed
        for nobody_knows, changed in zip(rows["unknown"], rows["changed"], strict=True)
    )


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


def _short(error: Exception) -> str:
    text = str(error) or type(error).__name__
    return text.splitlines()[0]
