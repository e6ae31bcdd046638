"""Gather and shards on 2 and 3 gloo processes, one of them with nothing."""

import pytest
import torch
import torch.multiprocessing as mp

from noisyml import distributed

SHARDS = {2: (3, 4), 3: (2, 0, 5)}


def _work(rank, world, file, out):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{file}", rank=rank, world_size=world
    )
    torch.manual_seed(0)
    whole = torch.randn(sum(SHARDS[world]), 4, dtype=torch.float64)
    weight = torch.randn(4, 4, dtype=torch.float64)
    start = sum(SHARDS[world][:rank])
    mine = whole[start : start + SHARDS[world][rank]]

    parameter = weight.clone().requires_grad_()
    gathered = distributed.gather(mine @ parameter)
    # A loss that couples all samples, computed alike on every rank.
    loss = (gathered @ gathered.T).square().sum()
    loss.backward()
    average = distributed.all_reduce_sum(parameter.grad) / world  # what DDP does

    alone = weight.clone().requires_grad_()
    expected = ((whole @ alone) @ (whole @ alone).T).square().sum()
    expected.backward()
    labels = torch.arange(len(whole)) % 3
    mine_labels = labels[start : start + len(mine)]
    sums, counts = distributed.class_statistics(mine.float(), mine_labels, 4)
    # Three equal values in different shards, and a NaN, which is never small.
    values = whole[:, 1].clone()
    values[[0, len(whole) // 2, len(whole) - 1]] = -9.0
    values[1] = float("nan")
    kept = distributed.k_smallest(values[start : start + len(mine)], 2)
    all_but_one = distributed.k_smallest(values[start : start + len(mine)], len(whole) - 1)
    draw = torch.rand(3, generator=distributed.agreed_generator(0, 1, 2))
    own = torch.rand(3, generator=distributed.own_generator(0, 1, 2))

    results = {
        "sums": torch.equal(
            sums,
            torch.stack([whole.float()[labels == c].double().sum(0).float() for c in range(4)]),
        ),
        "counts": counts.tolist() == [int((labels == c).sum()) for c in range(4)],
        "ties": distributed.gather(kept).nonzero().flatten().tolist() == [0, len(whole) // 2],
        "nan": distributed.gather(all_but_one).logical_not().nonzero().tolist() == [[1]],
        "agreed": torch.equal(distributed.gather(draw[None]), draw.expand(world, 3)),
        "own": len(distributed.gather(own[None]).unique(dim=0)) == world,
        "values": torch.allclose(gathered, whole @ weight),
        "loss": torch.allclose(loss, expected),
        "gradient": torch.allclose(average, alone.grad),
        "labels": torch.equal(
            distributed.gather(torch.arange(start, start + len(mine))), torch.arange(len(whole))
        ),
        "masks": torch.equal(distributed.gather(mine[:, 0] > 0), whole[:, 0] > 0),
        "sizes": distributed.shard_sizes(len(mine), mine.device) == list(SHARDS[world]),
        "slice": distributed.gather(torch.arange(10)[distributed.shard_slice(10)]).tolist()
        == list(range(10)),
        "rank": distributed.rank() == rank and distributed.world_size() == world,
    }
    torch.save(results, f"{out}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_see_the_global_batch_and_its_gradient(tmp_path, world):
    mp.spawn(_work, args=(world, str(tmp_path / "store"), str(tmp_path)), nprocs=world)
    for rank in range(world):
        results = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert all(results.values()), (rank, results)


def test_one_process_gathers_itself():
    x = torch.randn(3, 2, requires_grad=True)
    assert distributed.gather(x) is x
    assert distributed.shard_slice(7) == slice(0, 7)
    assert distributed.shard_sizes(5, x.device) == [5]
    assert not distributed.is_distributed()


def test_one_process_counts_and_chooses_for_itself():
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], requires_grad=True)
    sums, counts = distributed.class_statistics(x, torch.tensor([1, 0, 1]), 3)
    assert sums.tolist() == [[3.0, 4.0], [6.0, 8.0], [0.0, 0.0]]
    assert counts.tolist() == [1, 2, 0]
    assert not sums.requires_grad
    losses = torch.tensor([2.0, 1.0, 1.0, 3.0])
    assert distributed.k_smallest(losses, 1).tolist() == [False, True, False, False]
    assert distributed.k_smallest(losses, 0).sum() == 0
    for k in (-1, 5):
        with pytest.raises(ValueError, match="between 0 and"):
            distributed.k_smallest(losses, k)


def test_generators_follow_seed_epoch_and_step():
    def draws(make, *where):
        return torch.rand(4, generator=make(*where)).tolist()

    places = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]
    for make in (distributed.agreed_generator, distributed.own_generator):
        found = [draws(make, *place) for place in places]
        assert found == [draws(make, *place) for place in places]
        assert len({tuple(numbers) for numbers in found}) == len(places)
    assert draws(distributed.agreed_generator, 0, 0, 0) != draws(distributed.own_generator, 0, 0, 0)
