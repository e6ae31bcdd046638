"""Several processes write the embeddings that one process writes, byte for byte."""

import json

import numpy as np
import pytest
from PIL import Image
from support.shell import shell

__all__ = ["shell"]

SETTINGS = [
    "backbone=small_cnn",
    "dataset=image_folder",
    "dataset.path=photos",
    "dataset.val_fraction=0",
    "data.on_broken=skip",
    "data.eval_batch_size=8",
    "rows_per_shard=24",
]


def contents(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted((folder / "embeddings").rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def photos(shell):
    """90 images to train (one of them broken) and 10 to test: one shard for three processes."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 45), ("test", 5)):
        for name in ("a", "b"):
            folder = shell.folder / "photos" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 256, (12, 12), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{i:02d}.png")
    (shell.folder / "photos" / "train" / "a" / "30.png").write_bytes(b"no picture")
    return shell.folder


def test_three_processes_write_the_bytes_of_one(shell, photos):
    status, said = shell("embed", *SETTINGS, "hydra.run.dir=one")
    assert status == 0, said
    three = ["trainer=ddp_cpu", "trainer.devices=3", "hydra.run.dir=three"]
    ranks = shell.ranks(3, "embed", *SETTINGS, *three)
    for done in [rank.wait() for rank in ranks]:
        assert done.returncode == 0, done.stderr
    one, three = contents(photos / "one"), contents(photos / "three")
    assert {name for name in one if name.endswith(".npy")} == {
        *(f"embeddings/train/{number:05d}.npy" for number in range(4)),
        "embeddings/test/00000.npy",
    }
    assert three == one
    index = json.loads(one["embeddings/train/index.json"])
    assert (index["rows"], index["broken"]) == (89, [30])
    listed = [(photos / name / "broken_images.csv").read_text() for name in ("one", "three")]
    assert listed[0] == listed[1]
    assert "train,30," in listed[0]

    # Interrupted, and continued by another number of processes than there are shards to do.
    for gone in ("train/index.json", "train/00002.npy"):
        (photos / "one" / "embeddings" / gone).unlink()
    for shard in index["shards"]:
        number = shard["file"].removesuffix(".npy")
        broken = [30] if number == "00001" else []
        facts = {"rows": shard["rows"], "broken": broken, "sha256": shard["sha256"]}
        (photos / "one" / "embeddings" / "train" / f"{number}.json").write_text(json.dumps(facts))
    two = ["trainer=ddp_cpu", "hydra.run.dir=one"]
    for done in [rank.wait() for rank in shell.ranks(2, "embed", *SETTINGS, *two)]:
        assert done.returncode == 0, done.stderr
    assert contents(photos / "one") == three
