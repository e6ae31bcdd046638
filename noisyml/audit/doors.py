"""Doors to other tools: tables of issues for their viewers, and their reviews read back.

Formats are those of cleanlab's ``get_issues`` frames, FiftyOne's ``samples.json`` (import as
``fiftyone.types.FiftyOneDataset``), Label Studio's tasks and exports, CVAT's tables of image and
label, and the columns that embedding-atlas asks for.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from noisyml.audit.issues import lines_of
from noisyml.audit.kinds.base import Verdict
from noisyml.audit.rows import JOINT, Rows
from noisyml.audit.scores.folds import principal_projection
from noisyml.errors import UserError
from noisyml.storage.files import atomic, write_atomically
from noisyml.storage.reading import reading

Door = Literal["cleanlab", "fiftyone", "label_studio", "cvat", "embedding_atlas"]
#: Names of the controls in a labelling project of Label Studio.
CONTROL, OBJECT = "label", "image"
#: What to do about a damaged export.
ADVICE = "export it again as JSON"


def to_cleanlab(issues: pd.DataFrame) -> pd.DataFrame:
    """A frame like that of ``Datalab.get_issues("label")``, in the order in which rows were read.

    Columns ``is_label_issue``, ``label_score`` (low for wrong labels), ``given_label``,
    ``predicted_label``.
    """
    table = issues.sort_values("row", kind="stable")
    return pd.DataFrame(
        {
            "is_label_issue": (table["p_wrong"] > 0.5).to_numpy(),
            "label_score": 1 - table["p_wrong"].to_numpy(),
            "given_label": table["given"].to_numpy(),
            "predicted_label": np.where(table["p_wrong"] > 0.5, table["suggested"], table["given"]),
        }
    )


def from_cleanlab(frame: pd.DataFrame, paths: Any = None) -> pd.DataFrame:
    """Decisions from a ``get_issues`` frame: what it calls an issue is relabelled as it predicts.

    Args:
        frame: with ``is_label_issue`` and ``predicted_label``.
        paths: of the rows; None: a column ``path``, or the frame's index.

    Returns:
        Columns ``path``, ``decision``, ``label``; rows that are no issue are not decided on.

    Raises:
        UserError: columns that there are not.
    """
    for column in ("is_label_issue", "predicted_label"):
        if column not in frame.columns:
            raise UserError(
                f"The frame of cleanlab has no column '{column}'; it has: "
                f"{', '.join(map(str, frame.columns))}."
            )
    where = frame.get("path", frame.index) if paths is None else paths
    table = pd.DataFrame(
        {"path": [str(p) for p in where], "label": frame["predicted_label"].map(str).to_numpy()}
    )
    table.insert(1, "decision", "relabel")
    return table[frame["is_label_issue"].to_numpy(dtype=bool)].reset_index(drop=True)


def labels_in(text: str, several: bool) -> list[str]:
    """The labels that a text of a table holds.

    Example:
        >>> labels_in("ant; bee", several=True), labels_in("ant; bee", several=False)
        (['ant', 'bee'], ['ant; bee'])
    """
    return [part for part in text.split(JOINT) if part] if several else [text]


def to_fiftyone(issues: pd.DataFrame, several: bool = False) -> dict[str, Any]:
    """Samples as FiftyOne writes them: ``ground_truth``, ``suggested`` and ``p_wrong`` of each.

    Args:
        issues: see `noisyml.audit.issues.issues_table`.
        several: a row may have several labels, which become ``Classifications``.
    """

    def label(text: str, confidence: float | None = None) -> dict[str, Any]:
        more = {} if confidence is None else {"confidence": confidence}
        each = [
            {"_cls": "Classification", "label": part, "tags": [], **more}
            for part in labels_in(text, several)
        ]
        return {"_cls": "Classifications", "classifications": each} if several else each[0]

    return {
        "samples": [
            {
                "filepath": line.path,
                "tags": [line.split],
                "ground_truth": label(line.given),
                "suggested": label(line.suggested, float(line.p_suggested)),
                "p_wrong": float(line.p_wrong),
                "reasons": line.reasons,
            }
            for line in lines_of(issues)
        ]
    }


def to_label_studio(issues: pd.DataFrame, several: bool = False) -> list[dict[str, Any]]:
    """Tasks with a prediction each; the project's choices are ``<Choices name="label">``.

    Args:
        issues: see `noisyml.audit.issues.issues_table`.
        several: a row may have several labels (``<Choices name="label" choice="multiple">``).
    """

    def choice(text: str) -> list[dict[str, Any]]:
        value = {"choices": labels_in(text, several)}
        return [{"from_name": CONTROL, "to_name": OBJECT, "type": "choices", "value": value}]

    return [
        {
            "data": {
                OBJECT: line.path,
                "given": line.given,
                "p_wrong": float(line.p_wrong),
                "reasons": line.reasons,
            },
            "predictions": [
                {
                    "model_version": "noisyml",
                    "score": float(line.p_suggested),
                    "result": choice(line.suggested if line.p_wrong > 0.5 else line.given),
                }
            ],
        }
        for line in lines_of(issues)
    ]


def from_label_studio(export: Any, source: str) -> pd.DataFrame:
    """Decisions from an export of Label Studio (JSON or JSON-MIN).

    Args:
        export: its tasks.
        source: where they come from, for messages.

    Returns:
        Columns ``path``, ``decision``, ``label``: ``keep`` where the annotation is the given label,
        else ``relabel``; tasks without an annotation that was not cancelled are left out.

    Raises:
        UserError: tasks that `to_label_studio` did not write.
    """
    lines = []
    try:
        for task in export:
            data = task.get("data", task)
            path, given = data[OBJECT], data["given"]
            if "annotations" in task:
                made = [a for a in task["annotations"] if not a.get("was_cancelled")]
                results = made[-1]["result"] if made else []
                found = [r["value"]["choices"] for r in results if r["from_name"] == CONTROL]
                chosen = found[0] if found else []
            else:
                # One choice is a text, several are in a mapping.
                told = task.get(CONTROL) or []
                told = told["choices"] if isinstance(told, dict) else told
                chosen = [told] if isinstance(told, str) else told
            if chosen:
                same = set(chosen) == {given} or set(chosen) == set(labels_in(given, True))
                label = "" if same else JOINT.join(chosen)
                lines.append((path, "keep" if same else "relabel", label))
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise UserError(
            f"{source} is no export of tasks that noisyml wrote ({error!r} is missing or wrong)."
        ) from error
    return pd.DataFrame(lines, columns=["path", "decision", "label"])


def to_cvat(issues: pd.DataFrame) -> pd.DataFrame:
    """A table of image, label and split, and what was found of them."""
    return pd.DataFrame(
        {
            "image_name": issues["path"],
            "label": issues["given"],
            "subset": issues["split"],
            "suggested_label": issues["suggested"],
            "p_wrong": issues["p_wrong"],
        }
    )


def to_embedding_atlas(issues: pd.DataFrame, rows: Rows, judged: Verdict) -> pd.DataFrame:
    """Rows in the order they were read, with ``x``, ``y`` (principal axes) and ``neighbors``.

    ``neighbors`` are mappings of ``ids`` and ``distances``, as embedding-atlas takes them.
    """
    table = issues.sort_values("row", kind="stable").drop(columns="row").reset_index(drop=True)
    project = principal_projection(rows.features, 2)
    step = 16_384
    parts = [project(rows.features[at : at + step]).numpy() for at in range(0, len(rows), step)]
    plane: NDArray[Any] = np.concatenate(parts)
    near = judged.index[:, :10].tolist()
    far = (1 - judged.similarity[:, :10]).astype(float).tolist()
    return table.assign(
        id=np.arange(len(rows)),
        x=plane[:, 0],
        y=plane[:, 1] if plane.shape[1] > 1 else 0.0,
        neighbors=pd.Series(
            [{"ids": i, "distances": d} for i, d in zip(near, far, strict=True)], dtype=object
        ),
    )


def write_doors(
    doors: list[Door], folder: Path, issues: pd.DataFrame, rows: Rows, judged: Verdict
) -> list[Path]:
    """Write the files of the doors that are asked for; their paths.

    Args:
        doors: which.
        folder: where they go.
        issues: see `noisyml.audit.issues.issues_table`.
        rows: that were judged.
        judged: their labels.
    """
    several = rows.several

    def as_json(content: Any) -> Callable[[Path], None]:
        return lambda file: write_atomically(file, json.dumps(content, indent=1) + "\n")

    def as_csv(table: pd.DataFrame) -> Callable[[Path], None]:
        def write(file: Path) -> None:
            from noisyml.audit.report import write_table

            write_table(table, file)

        return write

    def as_parquet(table: pd.DataFrame) -> Callable[[Path], None]:
        def write(file: Path) -> None:
            with atomic(file, sole_writer=True) as temporary:
                table.to_parquet(temporary, index=False)

        return write

    makers: Mapping[Door, tuple[str, Callable[[], Callable[[Path], None]]]] = {
        "cleanlab": ("cleanlab_issues.csv", lambda: as_csv(to_cleanlab(issues))),
        "fiftyone": ("fiftyone/samples.json", lambda: as_json(to_fiftyone(issues, several))),
        "label_studio": (
            "label_studio_tasks.json",
            lambda: as_json(to_label_studio(issues, several)),
        ),
        "cvat": ("cvat.csv", lambda: as_csv(to_cvat(issues))),
        "embedding_atlas": (
            "embedding_atlas.parquet",
            lambda: as_parquet(to_embedding_atlas(issues, rows, judged)),
        ),
    }
    written = []
    for door in doors:
        name, make = makers[door]
        make()(folder / name)
        written.append(folder / name)
    return written


def read_export(file: Path) -> pd.DataFrame:
    """Decisions in a JSON file: an export of Label Studio.

    Raises:
        UserError: it is something else.
    """
    with reading(file, ADVICE):
        content = json.loads(file.read_text(encoding="utf-8"))
    return from_label_studio(content, str(file))
