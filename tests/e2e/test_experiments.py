"""Experiments that combine: a setting (data, network, length) and a claim to look at in it."""

import yaml


def test_a_sweep_over_a_setting_alone_and_a_setting_with_a_claim(shell):
    pairs = "unseen_digits,[unseen_digits,student_triplet]"
    short = ["trainer.max_epochs=1", "sampler.batches_per_epoch=2"]
    status, said = shell("train", "-m", f"experiment={pairs}", *short, "report=false")
    assert status == 0, said
    assert "[2/2] experiment=[unseen_digits,student_triplet]" in said
    found = [yaml.safe_load((run / "config.yaml").read_text()) for run in shell.runs()]
    targets = [config["loss"]["_target_"].rpartition(".")[2] for config in found]
    assert targets == ["MemoryContrastiveLoss", "TripletLoss"]
    assert [config["head"]["out_features"] for config in found] == [32, 8]
    assert {config["dataset"]["split"] for config in found} == {"zero_shot"}
