"""Document retrieval: metrics against their definition, files of BEIR and TREC."""

import math

import numpy as np
import pytest
import torch

from noisyml.data.datasets.vectors.beir import Beir
from noisyml.data.datasets.vectors.judged import judgements, read_qrels
from noisyml.data.vectors import vector_rows
from noisyml.errors import UserError
from noisyml.metrics.documents import DocumentEvaluator, graded_metrics, trec_qrels, trec_run
from noisyml.targets.judgements import Judgements


def random_case(seed, queries=12, documents=30, judged=60):
    rng = np.random.default_rng(seed)
    pairs = rng.choice(queries * documents, judged, replace=False)
    known = Judgements(
        [f"q{i}" for i in range(queries)],
        [f"d{i}" for i in range(documents)],
        pairs // documents,
        np.where(rng.random(judged) < 0.1, -1, pairs % documents),
        rng.integers(0, 4, judged),
    )
    ranking = np.argsort(rng.random((queries, documents)), axis=1)[:, :20]
    ranking[0, 15:] = -1
    return ranking, known


def by_definition(ranking, known, k, what):
    values = []
    for q, row in enumerate(ranking.tolist()):
        mine = known.query == q
        grades = dict(zip(known.document[mine].tolist(), known.grade[mine].tolist(), strict=True))
        positive = sorted((int(g) for g in known.grade[mine] if g > 0), reverse=True)
        found = [grades.get(d, 0) if d >= 0 else 0 for d in row[:k]]
        if what == "recall":
            values.append(sum(g > 0 for g in found) / max(1, len(positive)))
            continue
        ideal = sum(g / math.log2(r + 2) for r, g in enumerate(positive[:k]))
        gain = sum(g / math.log2(r + 2) for r, g in enumerate(found))
        values.append(gain / ideal if ideal else 0.0)
    return sum(values) / len(values)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("k", [1, 10, 20])
def test_metrics_are_those_of_the_definition(seed, k):
    ranking, known = random_case(seed)
    found = graded_metrics(ranking, known, ndcg_at=[k], recall_at=[k])
    assert found[f"ndcg_at_{k}"] == pytest.approx(by_definition(ranking, known, k, "ndcg"))
    assert found[f"recall_at_{k}"] == pytest.approx(by_definition(ranking, known, k, "recall"))


def test_judgements_come_in_two_formats(tmp_path):
    (tmp_path / "a.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td1\t2\nq2\td9\t1\n")
    (tmp_path / "b.txt").write_text("q1 0 d1 2\nq2 0 d9 1\n")
    expected = [("q1", "d1", 2), ("q2", "d9", 1)]
    assert read_qrels(tmp_path / "a.tsv") == read_qrels(tmp_path / "b.txt") == expected
    known, kept = judgements(expected, ["q0", "q1", "q2"], ["d0", "d1"])
    assert kept == [1, 2]
    assert known.query_ids == ["q1", "q2"]
    assert known.document.tolist() == [1, -1]
    assert trec_qrels(known) == "q1 0 d1 2\n"
    run = trec_run(np.array([[1, 0], [0, -1]]), np.array([[0.5, 0.25], [1, 0]]), known, "tag")
    assert run == "q1 Q0 d1 1 0.5 tag\nq1 Q0 d0 2 0.25 tag\nq2 Q0 d0 1 1 tag\n"
    (tmp_path / "c.txt").write_text("q1 0 d1 2\nq2 d9\n")
    with pytest.raises(UserError, match="line 2: expected query, document and grade"):
        read_qrels(tmp_path / "c.txt")
    with pytest.raises(UserError, match="No judgement is about any of the queries"):
        judgements(expected, ["q7"], ["d1"])


def collection(folder):
    """Six documents, three queries of which two are judged."""
    (folder / "qrels").mkdir()
    lines = "".join(f'{{"_id": "d{i}", "title": "", "text": "t"}}\n' for i in range(6))
    (folder / "corpus.jsonl").write_text(lines)
    (folder / "queries.jsonl").write_text('{"_id": "q0"}\n{"_id": "d5"}\n{"_id": "q2"}\n')
    (folder / "qrels" / "test.tsv").write_text(
        "query-id\tcorpus-id\tscore\nq2\td3\t1\nd5\td1\t2\nd5\td4\t1\n"
    )
    rows = np.eye(6, 8, dtype=np.float32)
    np.save(folder / "corpus.npy", rows)
    asked = np.stack([rows[0], rows[5] + 0.5 * rows[1] + 0.1 * rows[4], rows[2] + 0.5 * rows[3]])
    np.save(folder / "queries.npy", asked)
    return Beir(str(folder), str(folder / "corpus.npy"), str(folder / "queries.npy"))


def test_a_collection_is_searched_by_its_judged_queries(tmp_path):
    source = collection(tmp_path)
    splits = source.splits()
    assert {name: len(split) for name, split in splits.items()} == {
        "train": 6, "query": 2, "gallery": 6
    }  # fmt: skip
    assert list(splits["query"].keys) == ["d5", "q2"]
    assert source.test_sets(list(splits))["test"] == {"query": "query", "gallery": "gallery"}
    evaluator = DocumentEvaluator(recall_at=[1, 2])
    evaluator.judgements = source.judgements
    for role in ("gallery", "query"):
        rows = torch.tensor(vector_rows(splits[role].inputs)[:])
        for part in torch.arange(len(rows)).flip(0).split(4):
            evaluator.update({"embeddings": rows[part]}, part * 0, part, role)
    found = evaluator.compute()
    # d5 is the query itself; d1 and d4 follow. q2 finds d2 first, then d3.
    assert found["recall_at_1"] == 0.25
    assert found["recall_at_2"] == 1.0
    assert found["ndcg_at_10"] == pytest.approx((1 + 1 / math.log2(3)) / 2)
    files = {artefact.file: artefact.content for artefact in evaluator.artefacts()}
    assert files["run.trec.txt"].splitlines()[0].startswith("d5 Q0 d1 1 0.44")
    assert len(files["qrels.trec.txt"].splitlines()) == 3
    evaluator.ignore_same_id = False
    assert evaluator.compute()["recall_at_1"] == 0.0


def test_what_does_not_fit_a_collection_is_said(tmp_path):
    source = collection(tmp_path)
    np.save(tmp_path / "corpus.npy", np.eye(5, 8))
    with pytest.raises(UserError, match=r"5 vectors, and corpus\.jsonl has 6 lines"):
        source.splits()
    with pytest.raises(UserError, match="needs judgements, which the data set has not"):
        DocumentEvaluator().compute()
    (tmp_path / "corpus.jsonl").unlink()
    assert source.missing().endswith("corpus.jsonl")
