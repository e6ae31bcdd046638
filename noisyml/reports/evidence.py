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
            (NaN where none was computed) and ``wrong`` bool (label differs from the true one).
        truth_known: True if some labels are known to be wrong and all others to be right; if
            not, ``wrong`` is all False and means nothing.
        samples: number of training samples.
    """

    table: pd.DataFrame
    truth_known: bool
    samples: int

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


def read_history(run: RunFolder) -> pd.DataFrame | None:
    """Metrics over steps; None if the run logged none or not by step."""
    try:
        history = run.history()
    except (ValueError, OSError) as error:
        raise Unreadable(f"history.csv cannot be read: {_short(error)}") from error
    return history if len(history) and "step" in history else None


def read_manifest(run: RunFolder) -> pd.DataFrame | None:
    """The noise manifest: ``index observed clean changed``."""
    return _parquet(run.noise_file, ["index", "observed", "clean", "changed"])


def read_judgements(run: RunFolder) -> Judgements | None:
    """The selector's judgements joined with the manifest by ``index``."""
    table = _parquet(run.selection_file, ["index", "p_clean", "kept", "epoch"])
    if table is None or table.empty:
        return None
    table = table.astype({"index": np.int64, "epoch": np.int64, "kept": bool, "p_clean": float})
    manifest = read_manifest(run)
    if manifest is None or not manifest["changed"].any() or _unknown(manifest).any():
        samples = int(table["index"].nunique()) if manifest is None else len(manifest)
        return Judgements(table.assign(wrong=False), truth_known=False, samples=samples)
    wrong = table["index"].map(manifest.set_index("index")["changed"])
    if wrong.isna().any():
        raise Unreadable("selection.parquet judges samples that noise.parquet does not list.")
    return Judgements(table.assign(wrong=wrong.astype(bool)), True, len(manifest))


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


def _parquet(path: Path, columns: Sequence[str]) -> pd.DataFrame | None:
    if not path.is_file():
        return None
    import pyarrow.parquet

    try:
        # Not through pandas' metadata: a column called "index" may be stored as the index.
        file = pyarrow.parquet.ParquetFile(path)
        missing = [column for column in columns if column not in file.schema_arrow.names]
        if missing:
            raise Unreadable(f"{path.name} lacks the column {missing[0]}.")
        return file.read(columns=list(columns)).to_pandas(ignore_metadata=True)
    except (OSError, ValueError, KeyError) as error:
        raise Unreadable(f"{path.name} cannot be read: {_short(error)}") from error


def _rightness(
    manifest: pd.DataFrame | None,
    index: NDArray[np.int64],
    observed: NDArray[np.str_],
    clean: NDArray[np.str_],
) -> tuple[bool | None, ...]:
    """Whether labels are right, as the manifest says, or else as their names say."""
    if manifest is None:
        return tuple(
            bool(seen == true) if true else None for seen, true in zip(observed, clean, strict=True)
        )
    rows = manifest.set_index("index").reindex(index)
    if rows["changed"].isna().any():
        raise Unreadable("thumbnails.npz shows samples that noise.parquet does not list.")
    unknown = _unknown(rows.astype({"changed": bool}))
    return tuple(
        None if nobody_knows else not changed
        for nobody_knows, changed in zip(unknown, rows["changed"], strict=True)
    )


def _unknown(manifest: pd.DataFrame) -> pd.Series:
    """[N] bool: samples of which nobody knows whether their label is right."""
    return (manifest["clean"] < 0) & ~manifest["changed"]


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
