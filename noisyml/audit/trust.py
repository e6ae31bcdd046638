"""Trust in labels after training: the samples trusted least, a list of suspects, trust by class.

Errors that were planted on purpose are no suspects: they are left out of lists and pictures.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from PIL import Image

from noisyml.audit.planted import PlantedCheck, check_planted
from noisyml.audit.ranking import Over, Ranking, rank_by_trust
from noisyml.data.datamodule import DataModule
from noisyml.data.inputs import BrokenImage, ImageSource, as_rgb
from noisyml.metrics.label_trust import auroc, class_selection, finding, selection_by_class
from noisyml.noise.planted import planted
from noisyml.runs.artefacts import Artefact
from noisyml.storage.parquet import last_epoch
from noisyml.targets.entries import (
    as_judged,
    entry_classes,
    entry_texts,
    positions_of,
)

#: How many pictures are kept, and their side in pixels.
THUMBNAILS = 48
THUMBNAIL_SIDE = 64
#: Where a selector judges entries there are N * C of them to list.
LISTED_ENTRIES = 100_000


def trust_artefacts(
    data: DataModule, selection_file: Path, over: Over = "all_epochs"
) -> Iterator[Artefact]:
    """Pictures and tables that a file of judgements (``selection.parquet``) allows.

    Args:
        data: of the run.
        selection_file: its judgements.
        over: those that count, see `rank_by_trust`.

    Yields:
        ``thumbnails.npz``, ``suspects.csv`` and ``selection_by_class.csv``, each if there is
        something in it.
    """
    whole = rank_by_trust(selection_file, over)
    ranking = whole.without(planted(data.manifest))
    if arrays := least_trusted(data, ranking):
        yield Artefact("thumbnails.npz", arrays, "Trusted least")
    if len(ranking.table):
        manifest = data.manifest
        marks = manifest.target.labelled(manifest.observed)
        # A sample without a label has nothing to be judged.
        able = int(marks.sum()) if manifest.target.exclusive else len(marks)
        told = [coverage(whole, able, len(marks))]
        if (check := planted_check(data, whole)) is not None:
            told.append(check.sentence)
        yield Artefact("suspects.csv", suspects(data, ranking), caption=" ".join(told))
    table = trust_by_class(data, selection_file)
    if len(table):
        yield Artefact("selection_by_class.csv", table)


def coverage(ranking: Ranking, samples: int, rows: int | None = None) -> str:
    """A sentence on how many of the training rows were judged.

    Args:
        ranking: of those that were.
        samples: rows that could be.
        rows: all rows; None: as many.
    """
    what = "training rows" if rows in (None, samples) else "labelled training rows"
    told = f"{ranking.samples:,} of {samples:,} {what} were judged"
    if ranking.samples < samples:
        told += "; the others never came into a batch that was"
    return f"{told}."


def planted_check(data: DataModule, ranking: Ranking) -> PlantedCheck | None:
    """Check of a ranking by the errors planted in the training labels; None without any."""
    errors = planted(data.manifest)
    if not len(errors):
        return None
    if not ranking.classes and not data.manifest.target.exclusive:
        # Whole samples were judged: one is wrong if any of its entries is.
        errors = np.unique(errors // data.num_classes)
    return check_planted(ranking.table.index, errors)


def trust_metrics(
    data: DataModule, selection_file: Path, over: Over = "all_epochs"
) -> dict[str, float]:
    """Figures about the ranking of suspects as a whole.

    Returns:
        ``selection/judged``, the share of the training samples that were; where the truth is known
        ``selection/ranking_auroc``, the probability that a wrong label ranks before a right one,
        and ``selection/ranking_`` before each of `FINDING`; and those of `PlantedCheck`, if
        errors were planted.
    """
    ranking, manifest = rank_by_trust(selection_file, over), data.manifest
    found = {"selection/judged": ranking.samples / max(1, len(manifest))}
    if manifest.truth_known and len(ranking.table):
        numbers = ranking.table.index.to_numpy()
        wrong = torch.from_numpy(as_judged(manifest.changed, ranking.classes).ravel()[numbers])
        trust = torch.arange(len(numbers), dtype=torch.float64)
        found["selection/ranking_auroc"] = auroc(trust, ~wrong)
        figures = finding(trust, wrong)
        found |= {f"selection/ranking_{name}": value for name, value in figures.items()}
    if (check := planted_check(data, ranking)) is not None:
        found |= check.metrics
    return found


def least_trusted(data: DataModule, ranking: Ranking) -> dict[str, NDArray]:
    """Images and labels of the training samples trusted least.

    Returns:
        Arrays ``images`` uint8 [n, s, s, 3], ``index``, ``p_clean``, ``observed_name``,
        ``clean_name`` (empty where unknown), ``key``; none where nothing was scored or where there
        are no images.
    """
    if ranking.table.empty or data.splits["train"].inputs.kind != "images":
        return {}
    lowest = ranking.table.iloc[:THUMBNAILS]
    split, manifest = data.splits["train"], data.manifest
    index, entry = positions_of(lowest.index.to_numpy(), ranking.classes)
    if entry is not None:
        observed = entry_texts(manifest.observed[index, entry], entry, data.class_names)
        clean = entry_texts(manifest.clean[index, entry], entry, data.class_names)
    else:
        observed = manifest.target.texts(manifest.observed[index], data.class_names)
        clean = manifest.target.texts(manifest.clean[index], split.class_names)
    return {
        "images": np.stack([thumbnail(split.images, int(i)) for i in index]),
        "index": index,
        "p_clean": lowest["p_clean"].to_numpy(dtype=np.float64),
        "observed_name": np.asarray(observed),
        "clean_name": np.asarray(clean),
        "key": np.asarray([split.keys[i] for i in index]),
    }


def _judged_last(selection_file: Path) -> tuple[NDArray[np.int64], NDArray, NDArray]:
    """Positions [n] and the marks kept and p_clean, both [n] or [n, C], of the last epoch."""
    found = last_epoch(selection_file, ["index", "kept", "p_clean"])
    return found["index"], found["kept"], found["p_clean"]


def thumbnail(images: ImageSource, index: int) -> np.ndarray:
    """A picture on a square of `THUMBNAIL_SIDE` pixels, uint8 [s, s, 3]; black where broken."""
    try:
        picture = as_rgb(images.load(index))
    except BrokenImage:
        picture = Image.new("RGB", (1, 1))
    scale = THUMBNAIL_SIDE / max(picture.size)
    size = [max(1, round(side * scale)) for side in picture.size]
    # Small pictures are enlarged pixel by pixel, large ones reduced smoothly.
    way = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
    picture = picture.resize((size[0], size[1]), way)
    canvas = Image.new("RGB", (THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    canvas.paste(
        picture, ((THUMBNAIL_SIDE - picture.width) // 2, (THUMBNAIL_SIDE - picture.height) // 2)
    )
    return np.asarray(canvas)


def suspects(data: DataModule, ranking: Ranking) -> pd.DataFrame:
    """Every judged training sample, the least trusted first.

    Returns:
        Columns ``key`` (path or id), ``label`` (observed, by name), ``p_clean`` (mean of the
        judgements), where they have them ``log_odds`` (likewise; the order is theirs), and ``kept``
        (share of them that kept the sample). Where entries were judged, a
        row for each of the `LISTED_ENTRIES` least trusted: ``label`` is its class, and
        ``marked`` says whether the data have it there. True labels are left out: this is the list
        for someone who does not know them.
    """
    means = ranking.table.iloc[: LISTED_ENTRIES if ranking.classes else None]
    index, entry = positions_of(means.index.to_numpy(), ranking.classes)
    keys, observed = data.splits["train"].keys, data.manifest.observed
    columns: dict[str, Any] = {"key": [keys[i] for i in index]}
    if entry is None:
        columns["label"] = data.manifest.target.texts(observed[index], data.class_names)
    else:
        columns["label"] = [data.class_names[label] for label in entry]
        columns["marked"] = observed[index, entry] == 1
    columns |= {str(name): means[name].to_numpy() for name in means}
    return pd.DataFrame(columns)


def trust_by_class(data: DataModule, selection_file: Path) -> pd.DataFrame:
    """Treatment of each class by the selector in the last epoch; shows classes that died out.

    Returns:
        Columns ``label`` (by name) and ``kept`` (share), and where true labels are known
        ``precision`` and ``recall``; of samples of one label also ``samples``, of entries also
        ``auroc``. Empty where whole samples of several labels were judged.
    """
    index, kept, p_clean = _judged_last(selection_file)
    manifest = data.manifest
    wrong = torch.from_numpy(manifest.changed[index])
    keep = torch.from_numpy(np.array(kept))
    if entry_classes(keep):
        found = selection_by_class(keep, torch.from_numpy(np.array(p_clean)), wrong)
    elif data.manifest.target.exclusive:
        observed = torch.from_numpy(manifest.observed[index])
        shares = class_selection(keep, wrong, observed, data.num_classes)
        found = {name: values.tolist() for name, values in shares.items()}
    else:
        return pd.DataFrame()
    known = {"samples", "kept"} if not manifest.truth_known else found.keys()
    columns = {name: values for name, values in found.items() if name in known}
    return pd.DataFrame({"label": data.class_names, **columns})
