"""Embedding whole splits and finding neighbours, as typed."""

import json
import os
import signal

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from noisyml import cli
from noisyml.embeddings.store import EmbeddingStore, SplitWriter

#: The backbone alone, of random weights: one second of work.
SMALL = [
    "embed",
    "dataset=digits",
    "backbone=mlp",
    "backbone.hidden_features=[32]",
    "rows_per_shard=200",
    "data.eval_batch_size=64",
]


def die_while_writing(*arguments):
    """A command whose process is killed as by a power cut, in the middle of writing."""
    write, written = SplitWriter.write, []

    def strike(self, number, positions, rows):
        written.append(number)
        if len(written) == 4:
            (self.folder / f"{number:05d}.npy").write_bytes(b"half of it")
            os.kill(os.getpid(), signal.SIGKILL)
        write(self, number, positions, rows)

    SplitWriter.write = strike
    return cli.run(list(arguments))


def contents(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted((folder / "embeddings").rglob("*"))
        if path.is_file()
    }


def encoder_by_hand(run):
    """A perceptron with the weights of a run, made without the code that embeds."""
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]

    def embed(images):
        x = (images / 255 - 0.5) / 0.5
        body = "encoder.backbone.body.1"
        x = torch.relu(x.flatten(1) @ state[f"{body}.weight"].T + state[f"{body}.bias"])
        x = x @ state["encoder.head.layers.0.weight"].T + state["encoder.head.layers.0.bias"]
        return torch.nn.functional.normalize(x)

    return embed


def test_rows_are_what_the_trained_network_says(shell, trained):
    from noisyml.data.datasets.embedded.digits import Digits

    status, said = shell(
        "embed", f"checkpoint={trained}", "rows_per_shard=100", "hydra.run.dir=out"
    )
    assert status == 0, said
    store = EmbeddingStore("out")
    assert store.splits == ("test", "train", "val")
    embed = encoder_by_hand(trained)
    for name, split in Digits().splits().items():
        rows = store.split(name)
        images = torch.from_numpy(np.stack([split.images.load(i) for i in range(len(split))]))
        np.testing.assert_allclose(rows[:], embed(images.float()[:, None]), atol=1e-6)
        assert rows.names.tolist() == list(split.keys)
        assert rows.index.tolist() == list(range(len(split)))
        rows.check()
    assert store.split("test").labels.tolist() == Digits().splits()["test"].labels.tolist()
    # The labels of the training split are those the run has seen.
    noise = pd.read_parquet(trained / "noise.parquet")
    observed = noise.sort_values("index")["observed"].tolist()
    assert store.split("train").labels.tolist() == observed
    assert observed != Digits().splits()["train"].labels.tolist()
    facts = json.loads((shell.folder / "out" / "status.json").read_text())
    assert facts["state"] == "finished"
    for name in ("config.yaml", "overrides.yaml", "choices.yaml", "environment.json"):
        assert (shell.folder / "out" / name).is_file()


def test_other_data_bring_their_own_labels_and_broken_images_are_listed(shell, trained):
    folder = shell.folder / "mine"
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in ("a", "b"):
            (folder / split / name).mkdir(parents=True)
            for i in range(6):
                pixels = rng.integers(0, 256, (8, 8), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{i}.png")
    (folder / "train" / "b" / "0.png").write_bytes(b"no picture")
    typed = ["embed", f"checkpoint={trained}", "dataset=image_folder", f"dataset.path={folder}"]
    typed += ["dataset.val_fraction=0", "splits=[train]", "rows_per_shard=5"]
    status, said = shell(*typed, "hydra.run.dir=refused")
    assert status == 2
    assert "b/0.png" in said
    assert "data.on_broken=skip leaves them out" in said
    status, said = shell(*typed, "hydra.run.dir=out", "data.on_broken=skip")
    assert status == 0, said
    rows = EmbeddingStore("out").split("train")
    assert rows.labels.tolist() == [0] * 6 + [1] * 5
    assert rows.index.tolist() == [0, 1, 2, 3, 4, 5, 7, 8, 9, 10, 11]
    listed = pd.read_csv("out/broken_images.csv")
    assert listed[["split", "index"]].to_numpy().tolist() == [["train", 6]]
    assert EmbeddingStore("out").splits == ("train",)


def test_a_killed_embedding_goes_on_to_the_same_bytes(shell):
    assert shell(*SMALL, "hydra.run.dir=whole")[0] == 0
    killed = shell.start(die_while_writing, *SMALL, "hydra.run.dir=killed").wait()
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    before = {path: path.stat().st_mtime_ns for path in shell.folder.glob("killed/**/0*.json")}
    assert len(before) == 3
    assert not list(shell.folder.glob("killed/**/index.json"))
    status, said = shell("embed", "resume=killed")
    assert status == 0, said
    assert contents(shell.folder / "killed") == contents(shell.folder / "whole")
    finished = {path.with_suffix(".npy"): time for path, time in before.items()}
    for path, time in finished.items():
        assert path.stat().st_mtime_ns <= time, f"{path} was computed again"
    # Typed again, whole or with other neighbours, nothing is computed; anything else is refused.
    rows = {path: path.stat().st_mtime_ns for path in shell.folder.glob("killed/**/0*.npy")}
    assert shell(*SMALL, "hydra.run.dir=killed")[0] == 0
    assert rows == {path: path.stat().st_mtime_ns for path in rows}
    for changed, sentence in (
        ("rows_per_shard=100", "made with another rows_per_shard"),
        ("seed=1", "made with another seed"),
    ):
        status, said = shell(*SMALL, changed, "hydra.run.dir=killed")
        assert status == 2
        assert sentence in said


def test_a_command_that_failed_before_its_first_row_leaves_the_folder_free(shell):
    assert shell(*SMALL, "splits=[tset]", "hydra.run.dir=out")[0] == 2
    assert (shell.folder / "out" / "config.yaml").is_file()
    status, said = shell(*SMALL, "splits=[test]", "hydra.run.dir=out")
    assert status == 0, said
    assert EmbeddingStore("out").splits == ("test",)


def test_another_checkpoint_in_the_same_place_is_refused(shell, trained):
    typed = ["embed", f"checkpoint={trained}", "splits=test", "hydra.run.dir=out"]
    assert shell(*typed)[0] == 0
    file = trained / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(file, weights_only=True)
    checkpoint["state_dict"]["encoder.head.layers.0.bias"] += 1
    torch.save(checkpoint, file)
    status, said = shell(*typed)
    assert status == 2
    assert "holds embeddings with other weights" in said


def nearest_by_brute_force(rows, gallery, k, own):
    """Cosines in float64; each row without itself if `own`."""
    rows, gallery = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (rows, gallery))
    scores = rows @ gallery.T
    if own:
        np.fill_diagonal(scores, -np.inf)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return order, np.take_along_axis(scores, order, axis=1)


@pytest.fixture
def matrix(shell):
    """Rows without ties in a file of one's own."""
    rows = np.random.default_rng(0).standard_normal((300, 16)).astype(np.float32)
    np.save(shell.folder / "mine.npy", rows)
    return rows


def graph_in(folder):
    read = [np.load(folder / f"{n}.npy", allow_pickle=False) for n in ("neighbours", "scores")]
    return *read, json.loads((folder / "index.json").read_text())


def test_the_graph_of_an_own_file_is_that_of_brute_force(shell, matrix):
    status, said = shell("knn", "embeddings=mine.npy", "k=7", "csv=true", "hydra.run.dir=out")
    assert status == 0, said
    assert "rows/s" in said
    neighbours, scores, facts = graph_in(shell.folder / "out")
    expected, values = nearest_by_brute_force(matrix.astype(np.float64), matrix, 7, own=True)
    assert neighbours.dtype == np.int64
    assert scores.dtype == np.float32
    np.testing.assert_array_equal(neighbours, expected)
    np.testing.assert_allclose(scores, values, atol=1e-6)
    assert (facts["k"], facts["metric"], facts["recall"]) == (7, "cosine", None)
    typed = ["knn", "embeddings=mine.npy", "k=7", "precision=fast", "hydra.run.dir=fast"]
    assert shell(*typed)[0] == 0
    fast = graph_in(shell.folder / "fast")
    np.testing.assert_array_equal(fast[0], neighbours)
    np.testing.assert_array_equal(fast[1], scores)
    assert fast[2]["precision"] == "fast"
    assert facts["rows"]["rows"] == 300
    table = pd.read_csv(shell.folder / "out" / "neighbours.csv")
    assert table["query"].tolist() == np.repeat(np.arange(300), 7).tolist()
    assert table["rank"].tolist() == list(range(1, 8)) * 300
    assert table["neighbour"].tolist() == expected.ravel().tolist()


def test_a_search_that_was_killed_is_done_again_in_its_folder(shell, matrix, monkeypatch):
    from noisyml.embeddings import neighbours

    typed = ["knn", "embeddings=mine.npy", "k=7", "hydra.run.dir=out"]

    class Killed(BaseException):
        pass

    def killed(*_, **__):
        raise Killed

    for moment in ("_search", "write_atomically"):  # before anything is there, and at the end
        with monkeypatch.context() as patched:
            patched.setattr(neighbours, moment, killed)
            with pytest.raises(Killed):
                shell(*typed)
        if moment == "_search":
            # As a kill leaves it, and with files of a kill before it was a run.
            (shell.folder / "out" / "config.yaml").unlink()
            (shell.folder / "out" / "status.json").unlink()
    status, said = shell(*typed)
    assert status == 0, said
    expected, _ = nearest_by_brute_force(matrix.astype(np.float64), matrix, 7, own=True)
    np.testing.assert_array_equal(graph_in(shell.folder / "out")[0], expected)
    before = (shell.folder / "out" / "neighbours.npy").stat().st_mtime_ns
    status, said = shell(*typed)
    assert (status, "finished already" in said) == (0, True), said
    assert (shell.folder / "out" / "neighbours.npy").stat().st_mtime_ns == before
    status, said = shell(*typed, "metric=l2")
    assert status == 2
    assert "holds neighbours found with another metric" in said


@pytest.mark.parametrize("index", ["ivf", "ivfpq", "hnsw"])
def test_a_gallery_is_searched_whole_and_an_approximation_says_its_recall(shell, matrix, index):
    np.save(shell.folder / "queries.npy", matrix[:50] + np.float32(0.01))
    typed = ["knn", "embeddings=queries.npy", "gallery=mine.npy", "k=3"]
    assert shell(*typed, "hydra.run.dir=exact")[0] == 0
    neighbours, _, facts = graph_in(shell.folder / "exact")
    rows = np.load(shell.folder / "queries.npy").astype(np.float64)
    np.testing.assert_array_equal(neighbours, nearest_by_brute_force(rows, matrix, 3, False)[0])
    assert neighbours[:, 0].tolist() == list(range(50))
    assert facts["gallery"]["rows"] == 300

    status, said = shell(*typed, f"index={index}", "csv=true", "hydra.run.dir=near")
    assert status == 0, said
    found, _, facts = graph_in(shell.folder / "near")
    shared = np.mean([len(set(a) & set(b)) / 3 for a, b in zip(found, neighbours, strict=True)])
    assert facts["recall"] == pytest.approx(shared)
    assert f"recall {shared:.4f}" in said
    metrics = json.loads((shell.folder / "near" / "metrics.json").read_text())
    assert metrics["knn/recall"] == pytest.approx(shared)


def test_embedding_and_neighbours_in_one_command_equal_two(shell):
    status, said = shell(*SMALL, "knn=4", "hydra.run.dir=out")
    assert status == 0, said
    for split in ("train", "val", "test"):
        shell("knn", "embeddings=out", f"split={split}", "k=4", f"hydra.run.dir=apart/{split}")
        together, apart = (graph_in(shell.folder / place / split) for place in ("out/knn", "apart"))
        np.testing.assert_array_equal(together[0], apart[0])
        np.testing.assert_array_equal(together[1], apart[1])
        rows = EmbeddingStore("out").split(split)[:].astype(np.float64)
        expected, values = nearest_by_brute_force(rows, rows, 4, own=True)
        np.testing.assert_allclose(together[1], values, atol=1e-6)
        # Digits have near-doubles, whose order float64 does not decide.
        assert (together[0] == expected).mean() > 0.999


@pytest.mark.parametrize(
    ("typed", "sentence"),
    [
        (["embeddings=nowhere.npy"], "There is no nowhere.npy"),
        (["embeddings=."], "holds no embeddings: give the folder that `noisyml embed`"),
        (["embeddings=text.npy"], "text.npy cannot be read"),
        (["embeddings=pickled.npy"], "pickled.npy cannot be read"),
        (["embeddings=flat.npy"], "flat.npy does not hold one matrix"),
        (["embeddings=mine.npy", "k=300"], "k=300 asks for more neighbours than the 299 other"),
        (["embeddings=mine.npy", "gallery=mine.npy", "k=301"], "the 300 rows of the gallery"),
        (["embeddings=mine.npy", "gallery=narrow.npy", "k=1"], "embed both with the same model"),
        (["embeddings=mine.npy", "k=0"], "k=0 must be a whole number of at least 1"),
        (
            ["embeddings=mine.npy", "metric=cosin"],
            "metric=cosin must be cosine, ip or l2. Did you mean 'cosine'?",
        ),
        (["embeddings=mine.npy", "split=test"], "mine.npy is a file and has no splits"),
        (["embeddings=mine.npy", "gallery_split=test"], "gallery_split=... needs gallery="),
        (["embeddings=bad.npy", "k=1"], "first: row 2"),
        ([], "A value for 'embeddings' is needed"),
    ],
)
def test_mistakes_of_a_search_are_one_sentence(shell, matrix, typed, sentence):
    (shell.folder / "text.npy").write_text("no array")
    np.save("pickled.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    np.save("flat.npy", np.zeros(5, np.float32))
    np.save("narrow.npy", np.zeros((5, 3), np.float32))
    bad = np.ones((4, 3), np.float32)
    bad[2, 1] = np.nan
    np.save("bad.npy", bad)
    status, said = shell("knn", *typed)
    assert status == 2, said
    assert sentence in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("typed", "sentence"),
    [
        (["checkpoint=nowhere"], "nowhere belongs to no run folder"),
        (["splits=[tset]"], "no split 'tset'. Did you mean 'test'? It has: "),
        (["splits=[]"], "splits=[] embeds nothing"),
        (["dtype=float8"], "dtype=float8 must be float32 or float16"),
        (["rows_per_shard=0"], "rows_per_shard=0 must be a whole number of at least 1"),
        (["knn=2000"], "knn=2000 asks for more neighbours than the"),
        (["knn=few"], "knn=few must be a whole number of at least 1 or null"),
        (["data.eval_batch_siz=1"], "Did you mean 'data.eval_batch_size'?"),
        (["resume=nowhere"], "nowhere holds no run (no config.yaml); nothing to resume."),
        (["hydra.run.dir=full"], "full holds something else already (mine.txt)"),
        (["hydra.run.dir=run"], "holds another kind of run; choose another hydra.run.dir"),
        (["trainer.num_nodes=2"], "start it with torchrun or srun"),
    ],
)
def test_mistakes_are_one_sentence(shell, typed, sentence):
    (shell.folder / "full").mkdir()
    (shell.folder / "full" / "mine.txt").write_text("precious")
    (shell.folder / "run").mkdir()
    (shell.folder / "run" / "config.yaml").write_text("method: prism")
    status, said = shell(*SMALL, *typed)
    assert status == 2, said
    assert sentence in said
    assert "Traceback" not in said
