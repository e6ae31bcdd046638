"""Judgements of documents or images for queries: the ground truth of retrieval by lists."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

#: Grades of images under the revisited protocol of Oxford and Paris. What is junk is neither right
#: nor wrong, and is taken out of a ranking.
EASY, HARD, JUNK = 2, 1, -1

#: How rankings are scored: by grades (documents), by difficulty (revisited Oxford and Paris), by
#: lists of right images (INSTRE), by the first hundred (Google landmarks).
Protocol = Literal["graded", "revisited", "instances", "landmarks"]


@dataclass(frozen=True)
class Judgements:
    """Grades of some documents (or images) for some queries.

    Those without a grade count as not relevant.

    Attributes:
        query_ids: names of the queries, in the order of their split.
        document_ids: names of the documents, in the order of theirs.
        query: [J] int64, positions of queries.
        document: [J] int64, positions of documents; -1: the collection does not hold it, and nobody
            can find it.
        grade: [J] int64, above 0 where the document is relevant; see `EASY`, `HARD`, `JUNK`.
        protocol: how rankings are scored.
        parts: queries that are reported apart, bool [number of queries] by name.
    """

    query_ids: Sequence[str]
    document_ids: Sequence[str]
    query: NDArray[np.int64]
    document: NDArray[np.int64]
    grade: NDArray[np.int64]
    protocol: Protocol = "graded"
    parts: Mapping[str, NDArray[np.bool_]] = field(default_factory=dict)

    @classmethod
    def of_lists(
        cls,
        query_ids: Sequence[str],
        document_ids: Sequence[str],
        lists: Mapping[int, Sequence[Sequence[int]]],
        protocol: Protocol,
        parts: Mapping[str, NDArray[np.bool_]] | None = None,
    ) -> Judgements:
        """From the positions of the documents that have a grade, query by query.

        Args:
            query_ids: Q names.
            document_ids: names of the documents.
            lists: by grade, for each query the positions.
            protocol: how rankings are scored.
            parts: see the attribute.

        Example:
            >>> known = Judgements.of_lists(["q"], ["a", "b"], {2: [[1]], -1: [[0]]}, "revisited")
            >>> known.document.tolist(), known.grade.tolist()
            ([1, 0], [2, -1])
        """
        rows = [
            (query, document, grade)
            for grade, of_queries in lists.items()
            for query, documents in enumerate(of_queries)
            for document in documents
        ]
        query, document, grade = np.array(rows, dtype=np.int64).reshape(-1, 3).T
        return cls(query_ids, document_ids, query, document, grade, protocol, dict(parts or {}))
