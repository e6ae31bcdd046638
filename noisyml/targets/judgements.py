"""Judgements of documents for queries: the ground truth of document retrieval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Judgements:
    """Grades of some documents for some queries; those without a grade count as not relevant.

    Attributes:
        query_ids: names of the queries, in the order of their split.
        document_ids: names of the documents, in the order of theirs.
        query: [J] int64, positions of queries.
        document: [J] int64, positions of documents; -1: the collection does not hold it, and nobody
            can find it.
        grade: [J] int64, above 0 where the document is relevant.
    """

    query_ids: Sequence[str]
    document_ids: Sequence[str]
    query: NDArray[np.int64]
    document: NDArray[np.int64]
    grade: NDArray[np.int64]
