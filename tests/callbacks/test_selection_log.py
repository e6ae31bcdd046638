"""What the selection log stores, how compactly, and what it can score."""

from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from noisyml.callbacks import selection_log
from noisyml.callbacks.selection_log import SelectionLog
from noisyml.noise import MultiLabelMixed, NoNoise
from noisyml.noise.manifest import NoiseManifest
from noisyml.selectors.base import Facts, Selection
from noisyml.selectors.training_dynamics import logit_margin, scored_facts
from noisyml.storage.parquet import last_epoch, row_groups


def test_only_samples_of_known_truth_are_scored(tmp_path):
    log = SelectionLog(str(tmp_path / "selection.parquet"))
    real = NoNoise().inject([0, 1, 2, 0, 1, 2], 3)
    # Right, wrong for another class, wrong for nobody knows which, and three never looked at.
    log.manifest = real.with_unknown_truth(np.array([0, 2, -2, -1, -1, -1]))
    index = torch.arange(6)
    keep = torch.tensor([True, False, True, True, True, False])
    p_clean = torch.tensor([0.9, 0.1, 0.2, 0.0, 0.0, 1.0])
    scores = log._metrics({"index": index, "kept": keep, "p_clean": p_clean})
    assert scores["selection/kept"] == 4 / 6
    assert scores["selection/precision"] == 1 / 2
    assert scores["selection/recall"] == 1.0
    assert scores["selection/auroc"] == 1.0
    log.manifest = real.with_unknown_truth()
    judged = {"index": index, "kept": keep, "p_clean": keep.float()}
    assert list(log._metrics(judged)) == ["selection/kept"]


def test_log_odds_are_stored_where_there_are_any_and_score(tmp_path):
    log = SelectionLog(str(tmp_path / "selection.parquet"))
    log.manifest = NoiseManifest([0] * 6, [0, 0, 0, 1, 1, 1], [False] * 3 + [True] * 3, 2, "x")
    trainer = SimpleNamespace(callbacks=[], is_global_zero=True)
    index, keep = torch.arange(3), torch.ones(3, dtype=torch.bool)
    for epoch in range(2):
        trainer.current_epoch = epoch
        # The first epoch, and the first batch of the second, are a warm-up.
        for part in range(2):
            judged = Selection.keep_everything(index)
            if epoch and part:
                odds = torch.tensor([-900.0, -901.0, -902.0], dtype=torch.float64)
                judged = Selection(keep, torch.zeros(3), log_odds=odds)
            outputs = {"index": index + 3 * part, "selection": judged}
            log.on_train_batch_end(trainer, None, outputs, None, 0)
        log.on_train_epoch_end(trainer, None)
    log.on_train_end(trainer, None)
    stored = pq.read_table(tmp_path / "selection.parquet").to_pandas()
    assert stored["log_odds"].isna().sum() == 9
    assert stored["log_odds"].tolist()[9:] == [-900, -901, -902]
    log.manifest = NoiseManifest([0] * 6, [0] * 5 + [1], [False] * 5 + [True], 2, injector="x")
    judged = {"index": index + 3, "kept": keep, "p_clean": torch.zeros(3)}
    assert log._metrics(judged)["selection/auroc"] == 0.5
    judged["log_odds"] = torch.tensor([-900.0, -901.0, -902.0])
    assert log._metrics(judged)["selection/auroc"] == 1.0


N, C = 500, 19


def trained(log, epochs, networks=False):
    """Let a log see some epochs of 500 samples of 19 entries, or whole samples by two networks."""
    trainer = SimpleNamespace(callbacks=[], is_global_zero=True)
    told = []
    for epoch in epochs:
        trainer.current_epoch = epoch
        generator = torch.Generator().manual_seed(epoch)
        p_clean = torch.rand(N, C, generator=generator)
        index = torch.randperm(N, generator=generator)
        keeps = [p_clean[:, k] > 0.4 for k in range(2)]
        for rows in torch.arange(N).split(64):
            selection = Selection(p_clean[rows] > 0.1, p_clean[rows])
            if networks:
                extras = {"kept_first": keeps[0][rows], "kept_second": keeps[1][rows]}
                selection = Selection(keeps[1][rows], p_clean[rows, 1], extras)
            log.on_train_batch_end(
                trainer, None, {"index": index[rows], "selection": selection}, None, 0
            )
            # As if the run had been interrupted after every step.
            state = log.state_dict()
            log.load_state_dict(state)
        log.on_train_epoch_end(trainer, None)
        told.append((index.numpy(), p_clean.numpy(), [keep.numpy() for keep in keeps]))
    log.on_train_end(trainer, None)
    return told


def test_judged_entries_are_stored_compactly_an_epoch_in_a_row_group(tmp_path):
    file = tmp_path / "selection.parquet"
    told = trained(SelectionLog(str(file)), range(3))
    parquet = pq.ParquetFile(file)
    assert parquet.num_row_groups == 3
    # Random scores of four bytes and an eighth of one; before compression they would be more.
    assert file.stat().st_size < 3 * N * C * 4.0
    for (index, p_clean, _), group in zip(
        told, row_groups(file, ["index", "p_clean", "kept", "epoch"]), strict=True
    ):
        assert np.array_equal(group["index"], index)
        assert np.array_equal(group["p_clean"], p_clean)
        assert np.array_equal(group["kept"], p_clean > np.float32(0.1))
    last = last_epoch(file, ["index", "kept"])
    assert list(last) == ["index", "kept"]
    assert np.array_equal(last["index"], told[2][0])

    # A finished run that trains on: the third epoch again, and a fourth.
    trained(SelectionLog(str(file)), [2, 3])
    assert pq.ParquetFile(file).num_row_groups == 4
    epochs = [group["epoch"] for group in row_groups(file, ["epoch"])]
    assert [(group[0], len(group)) for group in epochs] == [(e, N) for e in range(4)]
    # Row groups of other writers may hold several epochs, or half of one.
    whole = pq.read_table(file)
    pq.write_table(whole, tmp_path / "other.parquet", row_group_size=700)
    for name in ("index", "p_clean"):
        other = last_epoch(tmp_path / "other.parquet", [name])[name]
        assert np.array_equal(other, last_epoch(file, [name])[name])


def test_what_each_of_two_networks_leaves_out_is_stored_and_scored(tmp_path):
    log = SelectionLog(str(tmp_path / "selection.parquet"))
    labels = (np.random.default_rng(0).random((N, C)) < 0.2).astype(np.uint8)
    log.manifest = MultiLabelMixed(rate=0.1, seed=0).inject(labels, C)
    ((index, _, keeps),) = trained(log, [0], networks=True)
    stored = pq.read_table(tmp_path / "selection.parquet").to_pandas()
    wrong = log.manifest.wrong[index]
    out = {"first": ~keeps[0], "second": ~keeps[1]}
    for name, excluded in out.items():
        assert np.array_equal(stored[f"kept_{name}"], ~excluded)
    out |= {"intersection": out["first"] & out["second"], "union": out["first"] | out["second"]}
    found = log.last_metrics
    for name, excluded in out.items():
        precision, recall = wrong[excluded].mean(), excluded[wrong].mean()
        assert found[f"selection/excluded_precision_{name}"] == pytest.approx(precision)
        assert found[f"selection/excluded_recall_{name}"] == pytest.approx(recall)
    for metric in ("excluded_precision", "excluded_recall"):
        assert found[f"selection/{metric}"] == found[f"selection/{metric}_second"]


def told_batches(classes, labels, facts=scored_facts):
    """Outputs of steps of 64 samples that are classified, positions in a random order."""
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(labels), generator=generator)
    logits = torch.randn(len(labels), classes, generator=generator)
    losses = torch.rand(len(labels), generator=generator)
    outputs = []
    for rows in order.split(64):
        noted = {"logits": logits[rows], "labels": labels[rows], "sample_loss": losses[rows]}
        selection = Selection.keep_everything(labels[rows])
        outputs.append({"index": rows, "selection": selection, "facts": Facts(noted, facts)})
    return outputs, logits, losses


@pytest.mark.parametrize("at_once", [1, 10_000, 2**40])
def test_what_is_noted_of_a_sample_does_not_depend_on_its_batch(tmp_path, monkeypatch, at_once):
    monkeypatch.setattr(selection_log, "AT_ONCE", at_once)
    labels = torch.arange(500) % 7
    outputs, logits, losses = told_batches(7, labels)
    log = SelectionLog(str(tmp_path / "selection.parquet"))
    trainer = SimpleNamespace(callbacks=[], is_global_zero=True, current_epoch=0)
    for number, output in enumerate(outputs):
        log.on_train_batch_end(trainer, None, output, None, number)
        if number == 3:
            # A checkpoint within the epoch.
            log.load_state_dict(log.state_dict())
    log.on_train_epoch_end(trainer, None)
    log.on_train_end(trainer, None)
    stored = pq.read_table(tmp_path / "selection.parquet").to_pandas()
    assert stored["index"].tolist() == torch.cat([o["index"] for o in outputs]).tolist()
    stored = stored.sort_values("index")
    probability = logits.softmax(dim=1)[torch.arange(500), labels]
    np.testing.assert_allclose(stored["p_clean"], probability, rtol=1e-5)
    np.testing.assert_allclose(stored["margin"], logit_margin(logits, labels))
    np.testing.assert_array_equal(stored["loss"], losses)
    np.testing.assert_array_equal(stored["prediction"], logits.argmax(dim=1))


def test_a_batch_of_nothing_and_a_batch_of_another_kind_join_the_rest(tmp_path):
    log = SelectionLog(str(tmp_path / "selection.parquet"))
    trainer = SimpleNamespace(callbacks=[], is_global_zero=True, current_epoch=0)
    index, none = torch.arange(4), torch.empty(0, dtype=torch.int64)
    facts = Facts({"loss": torch.rand(4), "margin": torch.rand(4)})
    first = {"index": index, "selection": Selection.keep_everything(index), "facts": facts}
    empty = {"index": none, "selection": Selection.keep_everything(none), "facts": None}
    later = {"index": index + 4, "selection": Selection.keep_everything(index)}
    for output in (first, empty, later):
        log.on_train_batch_end(trainer, None, output, None, 0)
    log.on_train_epoch_end(trainer, None)
    log.on_train_end(trainer, None)
    stored = pq.read_table(tmp_path / "selection.parquet").to_pandas()
    assert stored["index"].tolist() == list(range(8))
    assert stored["loss"].isna().tolist() == [False] * 4 + [True] * 4


def test_a_method_that_judges_nothing_says_so(tmp_path, caplog):
    log = SelectionLog(str(tmp_path / "selection.parquet"))
    trainer = SimpleNamespace(callbacks=[], is_global_zero=True, current_epoch=0)
    log.on_train_batch_end(trainer, None, {"loss": torch.zeros(())}, None, 0)
    log.on_train_epoch_end(trainer, None)
    with caplog.at_level("INFO"):
        log.on_train_end(trainer, SimpleNamespace())
    assert "judges no label, so there is no ledger" in caplog.text
    assert not log.file.exists()


def test_one_epoch_is_the_file_and_a_kill_afterwards_costs_nothing(tmp_path):
    log = SelectionLog(str(tmp_path / "selection.parquet"))
    ((index, p_clean, _),) = trained(log, [0])
    (group,) = row_groups(log.file, ["index", "p_clean", "kept", "epoch"])
    assert (group["index"] == index).all()
    assert (group["p_clean"] == p_clean).all()
    assert not log.parts.exists()
    before = log.file.read_bytes()
    log.parts.mkdir()  # the kill came before the folder went
    log.on_train_end(SimpleNamespace(is_global_zero=True), None)
    assert log.file.read_bytes() == before
    assert not log.parts.exists()
    trained(log, [1])
    assert [int(g["epoch"][0]) for g in row_groups(log.file, ["epoch"])] == [0, 1]
