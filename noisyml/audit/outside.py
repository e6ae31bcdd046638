"""Opinions of others on the rows: probabilities of another classifier, trust of a run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from noisyml.audit.ranking import rank_by_trust
from noisyml.audit.rows import Rows
from noisyml.data.vectors import VectorInputs
from noisyml.errors import UserError
from noisyml.noise.manifest import NoiseManifest
from noisyml.runs.folder import RunFolder
from noisyml.storage.reading import reading

#: Array of the keys in an archive of probabilities, and of the probabilities.
KEYS, PROBABILITIES = "keys", "probabilities"


def read_probabilities(file: Path, rows: Rows) -> NDArray[np.float32]:
    """Out-of-fold probabilities of all rows [N, C], as cleanlab takes them (``pred_probs``).

    Args:
        file: ``.npy`` [M, C] with a line for each line of the file of vectors (or of rows, where
            none was left out); ``.npz`` with ``keys`` (paths) and ``probabilities``; or a table
            with a column ``path`` and a column for each class.
        rows: that they are about, in whose order they come back.

    Raises:
        UserError: it cannot be read, or does not fit rows and classes.
    """
    names = [str(name) for name in rows.class_names]
    if not file.is_file():
        raise UserError(f"There is no {file}: probabilities= is a file of numbers.")
    if file.suffix not in (".npy", ".npz"):
        from noisyml.audit.report import read_table

        table = read_table(file)
        absent = [name for name in ("path", *names) if name not in table.columns]
        if absent:
            raise UserError(f"{file} has no column '{absent[0]}'.")
        found, keys = table[names].to_numpy(dtype=np.float64), table["path"].astype(str).tolist()
    else:
        with reading(file, "save the probabilities again with numpy.save"):
            loaded = np.load(file, allow_pickle=False)
            if file.suffix == ".npz":
                with loaded:
                    found = np.asarray(loaded[PROBABILITIES])
                    keys = [str(key) for key in loaded[KEYS]]
            else:
                found, keys = loaded, None
    if found.ndim != 2 or found.shape[1] != len(names):
        raise UserError(
            f"{file} has the shape {list(found.shape)}: a column for each of the {len(names)} "
            f"classes is needed, in the order {', '.join(names[:5])} ..."
        )
    places = _by_order(file, len(found), rows) if keys is None else _by_key(file, keys, rows)
    found = np.asarray(found[places], dtype=np.float32)
    if not (np.isfinite(found).all() and (found >= 0).all() and (found <= 1.0001).all()):
        raise UserError(f"{file} holds numbers that are no probabilities.")
    if rows.target.exclusive and not np.allclose(found.sum(axis=1), 1, atol=1e-2):
        raise UserError(f"The probabilities of a row in {file} do not sum to 1.")
    return found


def _by_order(file: Path, lines: int, rows: Rows) -> NDArray[np.int64]:
    """The line of each row, by the order of the file that the rows come from."""
    place = rows.place.copy()
    for name, inputs in rows.inputs.items():
        if isinstance(inputs, VectorInputs) and inputs.rows.rows is not None:
            own = rows.split == name
            place[own] = inputs.rows.rows[rows.place[own]]
    ordered = len(rows.inputs) == 1 or all(
        isinstance(i, VectorInputs) for i in rows.inputs.values()
    )
    if lines == len(rows) and np.array_equal(np.sort(place), np.arange(lines)) and ordered:
        return np.asarray(place)
    raise UserError(
        f"{file} has {lines} lines without paths, and the order of the {len(rows)} rows is not "
        f"that of one file: give an .npz with keys and probabilities, or a table with a column "
        f"path and a column for each class."
    )


def _by_key(file: Path, keys: list[str], rows: Rows) -> NDArray[np.int64]:
    """The line of each row by its key or its path."""
    line = {key: number for number, key in enumerate(keys)}
    found = [
        line.get(str(key), line.get(path, -1))
        for key, path in zip(rows.keys, rows.paths, strict=True)
    ]
    places = np.asarray(found, dtype=np.int64)
    if (places < 0).any():
        row = int(np.flatnonzero(places < 0)[0])
        raise UserError(f"{file} has no line for {rows.keys[row]}.")
    return places


def read_trained(run: Path, rows: Rows) -> NDArray[np.float64]:
    """Trust in the rows by a run that trained on them [N], NaN for those that it did not judge.

    The mean of what its selector, or the classifier itself, said over all epochs: of
    ``selector=aum`` the area under the margin, of ``learnt`` the share of right answers, of
    ``loss_mixture`` the losses.

    Args:
        run: folder of the run, with ``selection.parquet`` and ``noise.parquet``.
        rows: of the same data.

    Raises:
        UserError: no such run, it judged entries, or it has none of the rows.
    """
    folder = RunFolder(run)
    for file in (folder.selection_file, folder.noise_file):
        if not file.is_file():
            raise UserError(f"{run} holds no {file.name}: trained= is the folder of a run.")
    keys = NoiseManifest.load(folder.noise_file).keys
    ranking = rank_by_trust(folder.selection_file)
    if keys is None or ranking.classes:
        raise UserError(f"{run} did not judge whole rows that have names.")
    score = ranking.table["log_odds" if "log_odds" in ranking.table else "p_clean"]
    numbers = score.index.to_numpy(dtype=np.int64).tolist()
    by_key = {str(keys[n]): v for n, v in zip(numbers, score.tolist(), strict=True)}
    found = np.asarray([by_key.get(str(key), np.nan) for key in rows.keys], dtype=np.float64)
    if np.isnan(found).all():
        raise UserError(f"{run} was not trained on any of these rows.")
    return found
