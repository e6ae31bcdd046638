"""Senseless settings and damaged files: a sentence, never a traceback, never a hang.

Drawn from the seed ``NOISYML_RELIABILITY_SEED`` (0); ``NOISYML_RELIABILITY=10000`` asks for so many
of each instead of a few.
"""

import collections
import os
import random

import numpy as np
import pytest
import torch
import yaml
from omegaconf import OmegaConf
from support.hostile import Overrides, attempt, command, damaged, shown, warm_up

from noisyml.assembly.saved import saved_config
from noisyml.command.config import compose
from noisyml.data.datasets.own.csv_table import CsvTable
from noisyml.embeddings.store import EmbeddingPlan, EmbeddingStore, SplitWriter
from noisyml.methods.checkpoints import load_classifier, read_checkpoint
from noisyml.noise import Symmetric
from noisyml.noise.manifest import NoiseManifest
from noisyml.runs.folder import RunFolder

SEED = int(os.environ.get("NOISYML_RELIABILITY_SEED", "0"))
ASKED = int(os.environ.get("NOISYML_RELIABILITY", "0"))


def check(outcomes, wrong):
    """No attempt may end in anything but a sentence or an object."""
    print(f"seed {SEED}: {dict(collections.Counter(outcomes))}")
    assert not wrong, "\n\n".join(wrong)


def many(default, content, work, file):
    """Read a file again and again, damaged in another way each time."""
    chance = random.Random(SEED)
    outcomes, wrong = [], []
    for number in range(ASKED or default):
        file.write_bytes(damaged(content, chance))
        outcome = attempt(work)
        outcomes.append(outcome.kind)
        if outcome.kind in ("traceback", "hang"):
            wrong.append(f"file {number} of seed {SEED}: {outcome.text}")
    check(outcomes, wrong)
    assert "refused" in outcomes


@pytest.mark.long
def test_random_overrides(tmp_path, monkeypatch):
    monkeypatch.setenv("NOISYML_CACHE", str(tmp_path / "cache"))
    warm_up(tmp_path / "work")
    drawn = Overrides(SEED)
    outcomes, wrong = [], []
    for _ in range(ASKED or 6):
        typed = drawn.draw()
        outcome = command(tmp_path / "work", "train", *typed)
        outcomes.append(outcome.kind)
        if outcome.kind in ("traceback", "hang"):
            wrong.append(shown(["train", *typed], outcome))
    check(outcomes, wrong)


def test_damaged_configurations(tmp_path):
    config = compose("train", ["dataset=digits", "name=x"])
    folder = RunFolder(tmp_path)
    content = OmegaConf.to_yaml(config, resolve=True).encode()
    many(30, content, lambda: saved_config(folder, "train"), folder.config_file)


def test_damaged_metrics(tmp_path):
    folder = RunFolder(tmp_path)
    folder.write_metrics({"test/map_at_r": 0.5, "test/loss": float("nan")})
    many(100, folder.metrics_file.read_bytes(), folder.metrics, folder.metrics_file)


def test_damaged_checkpoints(tmp_path):
    file = tmp_path / "last.ckpt"
    state = {"classifier.weight": torch.zeros(2, 3), "classifier.bias": torch.zeros(2)}
    torch.save({"state_dict": state, "class_names": ["a", "b"], "epoch": 1}, file)

    def read():
        read_checkpoint(file)
        load_classifier(file, ["a", "b"])

    many(100, file.read_bytes(), read, file)


def test_damaged_manifests(tmp_path):
    file = tmp_path / "noise.parquet"
    Symmetric(rate=0.3).inject(np.repeat(np.arange(5), 20), 5).save(file)
    many(100, file.read_bytes(), lambda: NoiseManifest.load(file), file)


@pytest.mark.parametrize("name", ["index.json", "00001.npy", "samples.parquet"])
def test_damaged_embeddings(tmp_path, name):
    folder = tmp_path / "embeddings" / "test"
    words = dict.fromkeys(["precision", "data", "labels", "transform", "encoder"], "")
    plan = EmbeddingPlan("test", 9, 4, "float32", 3, 1, **words)
    writer = SplitWriter(folder, plan)
    writer.begin()
    for shard in range(plan.shards):
        at = plan.positions(shard)
        writer.write(shard, at, np.ones((len(at), 4)))
    writer.finish(np.arange(9) % 2, [f"{i}.png" for i in range(9)], ["a", "b"])

    def read():
        split = EmbeddingStore(tmp_path).split("test")
        return np.asarray(split), split.labels, split.names, split.label_names, split.index

    many(40, (folder / name).read_bytes(), read, folder / name)


def test_damaged_tables(tmp_path):
    rows = "".join(f"{i}.png,{'abc'[i % 3]},{'train' if i % 2 else 'test'}\n" for i in range(30))
    for i in range(30):
        (tmp_path / f"{i}.png").write_bytes(b"")
    file = tmp_path / "labels.csv"
    many(60, f"path,label,split\n{rows}".encode(), lambda: CsvTable(file).splits(), file)


def test_a_configuration_of_anything_at_all(tmp_path):
    """Valid YAML that is no configuration."""
    folder = RunFolder(tmp_path)
    for content in (None, 3, "text", [1], {}, {"a": 1}, {1: {2: 3}}, {"run_dir": ["x"]}):
        folder.config_file.write_text(yaml.safe_dump(content))
        assert attempt(lambda: saved_config(folder, "train")).kind == "refused", content
