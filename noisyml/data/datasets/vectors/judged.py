"""Files of document retrieval: JSONL collections and judgements as BEIR and TREC write them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from noisyml.errors import UserError
from noisyml.storage.text import read_text
from noisyml.targets.judgements import Judgements


def read_ids(path: Path) -> list[str]:
    """Values of ``_id`` of a JSON object per line, in their order.

    Raises:
        UserError: a line that is none, or a name that occurs twice.
    """
    names: list[str] = []
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                names.append(str(json.loads(line)["_id"]))
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(
                    f"{path}, line {number}: expected a JSON object with _id ({error})."
                ) from error
    if len(set(names)) != len(names):
        raise UserError(f"{path} names the same _id twice.")
    return names


def read_qrels(path: Path) -> list[tuple[str, str, int]]:
    """Query, document and grade of each judgement.

    Args:
        path: BEIR's table of three columns with a heading, or TREC's ``query 0 document grade``.

    Raises:
        UserError: a line of another form; the sentence names it.
    """
    found = []
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        cells = line.split()
        if not cells or (number == 1 and not _whole(cells[-1])):
            continue
        if len(cells) not in (3, 4) or not _whole(cells[-1]):
            raise UserError(
                f"{path}, line {number}: expected query, document and grade, or TREC's query, 0, "
                f"document and grade."
            )
        found.append((cells[0], cells[-2], int(cells[-1])))
    return found


def _whole(text: str) -> bool:
    return text.removeprefix("-").isdecimal()


def judgements(
    qrels: Sequence[tuple[str, str, int]], query_ids: Sequence[str], document_ids: Sequence[str]
) -> tuple[Judgements, list[int]]:
    """Judgements by position, over the queries that have any.

    Args:
        qrels: see `read_qrels`.
        query_ids: of all queries there are, in their order.
        document_ids: of the collection, in its order.

    Returns:
        The judgements, and the positions in `query_ids` of the queries that they are about.

    Raises:
        UserError: none of the judged queries is there.
    """
    judged = {query for query, _, _ in qrels}
    kept = [row for row, name in enumerate(query_ids) if name in judged]
    if not kept:
        raise UserError("No judgement is about any of the queries: take qrels of these queries.")
    place = {query_ids[row]: number for number, row in enumerate(kept)}
    known = {name: row for row, name in enumerate(document_ids)}
    rows = [(place[q], known.get(d, -1), g) for q, d, g in qrels if q in place]
    query, document, grade = np.array(rows, dtype=np.int64).T
    names = [query_ids[row] for row in kept]
    return Judgements(names, document_ids, query, document, grade), kept
