"""Collections of documents with judged queries in the layout of BEIR, as vectors."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np

from noisyml.data.base import DatasetSource, Split
from noisyml.data.datasets.vectors.files import Source, vector_splits
from noisyml.data.datasets.vectors.judged import judgements, read_ids, read_qrels
from noisyml.data.readers.layout import files_digest, first_missing, require_files, stat_files
from noisyml.data.readers.matrices import open_matrix
from noisyml.errors import UserError


class Beir(DatasetSource):
    """A collection in BEIR's layout (``corpus.jsonl queries.jsonl qrels/SPLIT.tsv``), embedded.

    Documents train, without labels; judged queries search them. Vectors come from a text encoder of
    yours, one for each line.

    Args:
        root: the collection's folder.
        corpus: file of the documents' vectors, in the order of ``corpus.jsonl``.
        queries: file of the queries' vectors, in the order of ``queries.jsonl``.
        qrels: file of the judgements, BEIR's or TREC's; relative to `root`.
        centre: subtract the mean of the documents' vectors from all.
        unit_norm: bring vectors to length 1, after that.
    """

    description: ClassVar[str] = "A BEIR collection: documents and judged queries, as your vectors"
    how_to_get: ClassVar[str] = (
        "fetch a collection (a few MB to some GB) from github.com/beir-cellar/beir, unpack it, set "
        "dataset.root to its folder, and dataset.corpus and dataset.queries to files of vectors in "
        "the order of its lines."
    )
    has_labels = False

    def __init__(
        self,
        root: str,
        corpus: str,
        queries: str,
        qrels: str = "qrels/test.tsv",
        centre: bool = False,
        unit_norm: bool = False,
    ) -> None:
        self.root = Path(root)
        self.corpus = Path(corpus)
        self.queries = Path(queries)
        self.qrels = qrels
        self.centre = centre
        self.unit_norm = unit_norm

    def missing(self) -> str | None:
        """None, or the first file that is not there."""
        gone = first_missing(self.root, "corpus.jsonl", "queries.jsonl", self.qrels)
        vectors = [str(file) for file in (self.corpus, self.queries) if not file.is_file()]
        return gone or (vectors[0] if vectors else None)

    @property
    def vector_size(self) -> int:
        """Columns of the documents' vectors."""
        require_files(self, "beir")
        return int(open_matrix(self.corpus).shape[1])

    def splits(self) -> dict[str, Split]:
        """``train`` and ``gallery`` (the documents), and ``query``.

        Raises:
            UserError: files missing, or vectors that are not as many as the lines.
        """
        require_files(self, "beir")
        names = {
            "corpus": read_ids(self.root / "corpus.jsonl"),
            "queries": read_ids(self.root / "queries.jsonl"),
        }
        found, judged = judgements(
            read_qrels(self.root / self.qrels), names["queries"], names["corpus"]
        )
        self.judgements = found
        sources = {}
        for what, path in (("corpus", self.corpus), ("queries", self.queries)):
            stored = open_matrix(path)
            if len(stored) != len(names[what]):
                raise UserError(
                    f"{path} holds {len(stored)} vectors, and {what}.jsonl has {len(names[what])} "
                    f"lines: give a vector for each line, in their order."
                )
            digest = files_digest([str(path)], stat_files(Path(), [str(path)]), what)
            sources[what] = Source(stored, names[what], None, digest)
        splits, _, _ = vector_splits(
            {"train": sources["corpus"], "test": sources["queries"]},
            val_fraction=0.0,
            test_fraction=0.0,
            seed=0,
            centre=self.centre,
            unit_norm=self.unit_norm,
        )
        rows = np.asarray(judged, dtype=np.int64)
        query = splits["test"].take(rows, f"{splits['test'].fingerprint}[judged]")
        return {
            "train": splits["train"],
            "query": replace(query, name="query"),
            "gallery": replace(splits["train"], name="gallery"),
        }
