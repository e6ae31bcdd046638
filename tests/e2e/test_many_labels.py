"""Several labels per image, as typed: train, evaluate, embed, report, and what is refused."""

import json
from typing import ClassVar

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from noisyml.embeddings.store import EmbeddingStore
from noisyml.noise.manifest import NoiseManifest
from noisyml.reports.artefacts import read_judgements, read_manifest
from noisyml.reports.sections.artefacts.thumbnails import read_thumbnails
from noisyml.runs.folder import RunFolder
from noisyml.selectors.base import Selection, Selector
from noisyml.storage.parquet import from_column

MOSAICS = [
    "method=multilabel",
    "dataset=mosaic",
    "dataset.num_train=400",
    "dataset.num_val=60",
    "dataset.num_test=200",
    "backbone=mlp",
    "backbone.image_size=[8,24]",
    "backbone.hidden_features=[64]",
    "noise=multilabel_mixed",
    "sampler.batch_size=50",
    "optimizer.lr=0.01",
    "trainer.max_epochs=4",
]
QUIET = "report=false"
FEW = ["dataset.num_train=200", "dataset.num_test=60", "trainer.max_epochs=2"]
ENTRIES = "selector._target_=e2e.test_many_labels.SmallEntries"
SAMPLES = "selector._target_=e2e.test_many_labels.SmallSamples"


class SmallEntries(Selector):
    """Keeps the entries with the smaller losses."""

    needs: ClassVar[frozenset[str]] = frozenset({"entry_loss"})
    target_kinds = frozenset({"multi"})

    @torch.no_grad()
    def select(self, evidence):
        p_clean = (-evidence.entry_loss).exp()
        # Where labels are sparse, leaving out more than a few takes all positives.
        return Selection(p_clean >= p_clean.quantile(0.05), p_clean)


class SmallSamples(Selector):
    """Keeps the samples with the smaller losses."""

    target_kinds = frozenset({"multi"})

    @torch.no_grad()
    def select(self, evidence):
        p_clean = (-evidence.sample_loss).exp()
        return Selection(p_clean > p_clean.quantile(0.4), p_clean)


def metrics(run):
    return json.loads((run / "metrics.json").read_text())


def printed(said):
    return json.loads(said[said.index("{") : said.rindex("}") + 1])


def test_train_report_evaluate_and_embed(shell):
    status, said = shell("train", *MOSAICS)
    assert status == 0, said
    assert "mAP macro" in said
    (run,) = shell.runs()
    trained = metrics(run)
    assert trained["test/map_macro"] > 0.4
    assert trained["noise/added_rate"] == pytest.approx(0.3, abs=0.01)
    assert trained["noise/removed_rate"] == pytest.approx(0.3, abs=0.01)
    assert trained["selection/kept"] == 1.0
    history = pd.read_csv(run / "history.csv")["val/map_macro"].dropna()
    assert trained["best/epoch"] == 1 + int(history.to_numpy().argmax())
    assert (run / "report.html").stat().st_size > 10_000
    table = pd.read_parquet(run / "embedding_map.parquet")
    assert " + ".join(["1", "8"]) not in set(table["label"])
    assert table["label_name"].str.contains(" + ", regex=False).any()

    status, said = shell("evaluate", f"checkpoint={run}", "evaluators.multilabel.per_class=true")
    assert status == 0, said
    repeated = printed(said)
    each = {f"test/{metric}/{i}" for metric in ("ap", "f1") for i in range(10)}
    assert repeated.keys() - trained.keys() == each
    for name, value in repeated.items():
        if name not in each:
            assert value == pytest.approx(trained[name], abs=1e-9), name
    for metric, mean in (("ap", "map_macro"), ("f1", "f1_macro")):
        found = np.mean([repeated[f"test/{metric}/{i}"] for i in range(10)])
        assert found == pytest.approx(repeated[f"test/{mean}"])

    status, said = shell("embed", f"checkpoint={run}", "knn=3")
    assert status == 0, said
    (folder,) = shell.folder.glob("outputs/embed/*/*/embeddings")
    manifest = NoiseManifest.load(run / "noise.parquet")
    np.testing.assert_array_equal(EmbeddingStore(folder).split("train").labels, manifest.observed)

    # The same labels from the file.
    replay = [setting for setting in MOSAICS if not setting.startswith("noise")]
    again = [*replay, "noise=manifest", f"noise.path={run / 'noise.parquet'}", QUIET, "name=again"]
    again.append("data.noisy_val=false")
    status, said = shell("train", *again)
    assert status == 0, said
    (other,) = [found for found in shell.runs() if found.parent.name == "again"]
    assert NoiseManifest.load(other / "noise.parquet").sha256 == manifest.sha256
    assert metrics(other)["test/map_macro"] == trained["test/map_macro"]


@pytest.mark.further
def test_judged_entries_are_logged_listed_and_shown(shell):
    status, said = shell("train", *MOSAICS, *FEW, ENTRIES)
    assert status == 0, said
    (run,) = shell.runs()
    trained = metrics(run)
    assert trained["selection/kept"] == pytest.approx(0.95, abs=0.01)
    assert trained["selection/auroc"] > 0.6
    assert {"selection/precision_macro", "selection/recall_macro"} <= set(trained)
    judged = pq.read_table(run / "selection.parquet")
    assert from_column(judged["kept"]).shape == (2 * 200, 10)
    assert len(pd.read_csv(run / "selection_by_class.csv")) == 10

    manifest = NoiseManifest.load(run / "noise.parquet")
    suspects = pd.read_csv(run / "suspects.csv", dtype={"label": str})
    assert len(suspects) == 2000
    assert suspects["p_clean"].is_monotonic_increasing
    for row in suspects.head(5).itertuples():
        sample = manifest.keys.index(row.key)
        assert manifest.observed[sample, int(row.label)] == row.marked

    folder = RunFolder(run)
    found = read_judgements(folder)
    assert (found.entries, found.truth_known, found.samples) == (True, True, 200)
    last = found.last
    assert len(last) == 2000
    wrong = manifest.changed[last["index"] // 10, last["index"] % 10]
    np.testing.assert_array_equal(last["wrong"], wrong)
    thumbs = read_thumbnails(folder)
    assert all(
        right == (seen == true)
        for right, seen, true in zip(
            thumbs.right, thumbs.observed_name, thumbs.clean_name, strict=True
        )
    )
    assert any(name.startswith("no ") for name in [*thumbs.observed_name, *thumbs.clean_name])
    assert "entries (a class of a sample)" in (run / "report.html").read_text()


def test_judged_samples_are_wrong_if_any_entry_is(shell):
    status, said = shell("train", *MOSAICS, *FEW, SAMPLES, QUIET)
    assert status == 0, said
    (run,) = shell.runs()
    manifest = NoiseManifest.load(run / "noise.parquet")
    found = read_judgements(RunFolder(run))
    last = found.last
    np.testing.assert_array_equal(last["wrong"], manifest.wrong[last["index"]])
    kept = last["kept"]
    assert metrics(run)["selection/precision"] == pytest.approx(1 - last["wrong"][kept].mean())
    table = read_manifest(RunFolder(run))
    np.testing.assert_array_equal(table["changed"], manifest.wrong)
    suspects = pd.read_csv(run / "suspects.csv", keep_default_na=False)
    assert len(suspects) == 200
    assert suspects["label"].str.contains(" + ", regex=False).any()
    thumbs = read_thumbnails(RunFolder(run))
    assert not all(thumbs.right)
    assert any(thumbs.right)


def test_a_table_of_ones_own_with_several_labels(shell):
    rng = np.random.default_rng(0)
    for i in range(60):
        Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).save(
            shell.folder / f"{i}.png"
        )
    tags = [";".join(rng.permutation(["sea", "ship", "tree"])[: i % 4]) for i in range(60)]
    rows = "\n".join(f"{i}.png,{tag}" for i, tag in enumerate(tags))
    (shell.folder / "tags.csv").write_text(f"path,labels\n{rows}\n")
    table = ["dataset=csv", "dataset.path=tags.csv"]
    for verb in ("check", "show"):
        status, said = shell("data", verb, *table)
        assert status == 0, said
    assert "labels per" in said
    status, said = shell(
        "train",
        *table,
        "method=multilabel",
        "backbone=mlp",
        "backbone.in_channels=3",
        "sampler.batch_size=8",
        "trainer.max_epochs=1",
    )
    assert status == 0, said
    # Nobody knows which of these labels are right.
    (run,) = [found for found in shell.runs() if "train" in found.parts]
    assert "noise/actual_rate" not in metrics(run)
    assert (NoiseManifest.load(run / "noise.parquet").clean == -1).all()


@pytest.mark.parametrize(
    ("typed", "sentence"),
    [
        (["noise=symmetric"], "choose e.g. noise=multilabel_mixed"),
        (["dataset=digits", "noise=none"], "MultiLabel learns from several labels per image"),
        (["method=prism"], "Prism learns from one label per image"),
        (["selector=prism_proxy"], "PrismProxy judges one label per image"),
        (["evaluator=classification"], "ClassificationEvaluator compares with one label"),
        (["sampler=m_per_class"], "use sampler=shuffle"),
        (["backbone.image_size=8"], "set backbone.image_size=[8,24] and backbone.in_channels=1"),
    ],
)
def test_parts_that_do_not_go_together_are_refused(shell, typed, sentence):
    digits = "dataset=digits" in typed
    settings = [s for s in MOSAICS if not (digits and s.startswith(("dataset.", "backbone.image")))]
    if any(s.startswith(("method=", "sampler=")) for s in typed):
        settings = [s for s in settings if not s.startswith("sampler.")]
    status, said = shell("train", *settings, QUIET, *typed)
    assert status == 2, said
    assert sentence in said
    assert "Traceback" not in said
