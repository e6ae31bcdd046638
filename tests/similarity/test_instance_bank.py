"""The bank of InsCLR and the mining in it, beside the released code."""

import functools

import pytest
import torch
from support import paths, vectors
from support.vectors import close

from noisyml.errors import UserError
from noisyml.similarity.instance_bank import (
    InstanceBank,
    MiningRule,
    NeighbourLists,
    drawn,
    far_images,
    grow_positives,
    mine_bank,
)
from noisyml.similarity.search import self_topk

load = functools.partial(vectors.tensors, paths.GOLDEN / "insclr")
SELECT = load("xbmv2_select.npz")


def test_the_pool_of_neighbours():
    case = load("candidate_pool.npz")
    scores, index = self_topk(case["features"], int(case["topk"]), metric="ip")
    assert torch.equal(index, case["neighbor"])
    close(scores, case["similarity"], atol=1e-6)


def test_negatives_alone():
    case = load("xbmv1_steps.npz")
    bank = InstanceBank(int(case["size"]), int(case["dim"]))
    generator = torch.Generator().manual_seed(0)
    for step in range(int(case["n_steps"])):
        index = case[f"s{step}_indices"]
        bank.write(index, case[f"s{step}_features"])
        assert torch.equal(bank.embeddings, case[f"s{step}_bank"])
        assert torch.equal(bank.written, case[f"s{step}_counter"].to(torch.int64))
        excluded = int(case["potential_positive"])
        found = far_images(bank.written, case["neighbors"], index, excluded_neighbours=excluded)
        assert torch.equal(found, case[f"s{step}_negative_indices"])
        few = drawn(found, 3, generator)
        assert len(few) == int(case[f"s{step}_num_returned_size3"])
        assert set(few.tolist()) <= set(found.tolist())
        without = far_images(
            bank.written, case["neighbors"], index, excluded_neighbours=excluded, exclude_batch=True
        )
        assert set(without.tolist()) == set(found.tolist()) - set(index.tolist())


@pytest.mark.parametrize("number", range(int(SELECT["n_cases"])))
def test_growing_positives(number):
    case = {name: SELECT[f"{name}_{number}"] for name in ("batch", "candidates", "init")}
    rule = MiningRule.parse(SELECT[f"mode_{number}"])
    trusted = {
        "batch": case["batch"],
        "batch_positives": torch.cat([case["batch"], case["init"]]),
        "anchor_positives": torch.cat([case["batch"][:1], SELECT[f"anchor_init_{number}"]]),
    }[rule.start]
    # Another label with a longer list beside it must change nothing.
    rows = [case["candidates"], torch.randn(30, 6, dtype=torch.float64)]
    candidates = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    present = torch.arange(30) < torch.tensor([[len(rows[0])], [30]])
    queries = torch.nn.utils.rnn.pad_sequence([trusted, torch.zeros(20, 6)], batch_first=True)
    there = torch.arange(queries.shape[1]) < torch.tensor([[len(trusted)], [20]])
    found = grow_positives(candidates, present, queries, there, rule)
    assert torch.equal(found[0, : len(rows[0])], SELECT[f"selected_mask_{number}"])
    assert not found[0, len(rows[0]) :].any()


@pytest.mark.parametrize("name", ["xbmv2_steps_a", "xbmv2_steps_b"])
def test_mined_rows(name):
    case = load(name)
    thresholds = float(case["positive_thresh"]), float(case["negative_thresh"])
    lists = NeighbourLists.cut(case["neighbors"], case["similarities"], *thresholds)
    assert torch.equal(lists.positives, case["positive_boundary"].long())
    assert torch.equal(lists.candidates, case["negative_boundary"].long())
    bank = InstanceBank(int(case["size"]), int(case["dim"]), plain=True, dtype=torch.float64)
    bank.write(case["init_indices"], case["init_features"], case["init_noaug_features"])
    options = {
        "rule": MiningRule.parse(case["mode"]),
        "negative_label": int(case["size"]) + 1,
        "negatives": bool(case["use_negative"]),
    }
    for step in range(int(case["n_steps"])):
        index, labels = case[f"s{step}_indices"], case[f"s{step}_labels"]
        bank.write(index, case[f"s{step}_features"], case[f"s{step}_noaug_features"])
        mined = mine_bank(bank, lists, index, labels, **options)
        positive = mined.labels != options["negative_label"]
        assert torch.equal(mined.index[positive], case[f"s{step}_positive_indices"])
        assert torch.equal(mined.labels[positive], case[f"s{step}_positive_labels"])
        negatives = mined.index[~positive].sort().values
        assert torch.equal(negatives, case[f"s{step}_negative_indices"])
        generator = torch.Generator().manual_seed(step)
        small = int(case[f"s{step}_small_size"])
        few = mine_bank(bank, lists, index, labels, **options, size=small, generator=generator)
        positive = few.labels != options["negative_label"]
        assert int(positive.sum()) == int(case[f"s{step}_small_num_positive"])
        assert int((~positive).sum()) == int(case[f"s{step}_small_num_negative"])
        assert len(torch.unique(few.index)) == len(few.index)
    assert torch.equal(bank.written, case["final_counter"].long())


def test_the_batch_can_be_left_out_and_so_can_rows_never_written():
    case = load("xbmv2_steps_b")
    thresholds = float(case["positive_thresh"]), float(case["negative_thresh"])
    lists = NeighbourLists.cut(case["neighbors"], case["similarities"], *thresholds)
    bank = InstanceBank(int(case["size"]), int(case["dim"]), plain=True, dtype=torch.float64)
    bank.write(case["init_indices"], case["init_features"], case["init_noaug_features"])
    index, labels = case["s0_indices"], case["s0_labels"]
    rule = MiningRule.parse(case["mode"])
    mined = functools.partial(mine_bank, bank, lists, index, labels, rule, negative_label=10**6)
    accepted = index[labels > 0]
    assert torch.isin(mined().index, accepted).any()
    assert not torch.isin(mined(exclude_batch=True).index, accepted).any()
    assert not (bank.written[mined(only_written=True).index] == 0).any()


@pytest.mark.parametrize(
    "mode", ["b+i", "b+i_tr0_avg0.60_k05", "b+j_tr1_avg0.60_k05", "b+i_tr1_avg.6_k5"]
)
def test_a_misspelt_rule_is_refused(mode):
    with pytest.raises(UserError, match="is no rule of candidates"):
        MiningRule.parse(mode)


def test_thresholds_must_be_in_order():
    near = torch.zeros(1, 1, dtype=torch.int64)
    with pytest.raises(UserError, match="lies below negative_threshold"):
        NeighbourLists.cut(near, torch.ones(1, 1), 0.2, 0.5)
