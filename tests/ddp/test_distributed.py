"""Gather and shards on 2 and 3 gloo processes, one of them with nothing."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from support.ranks import run_ranks

from noisyml import distributed
from noisyml.callbacks.broken_images import BrokenImages

SHARDS = {2: (3, 4), 3: (2, 0, 5)}


def _work(rank, world, out):
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
    # A derivative of the gradient crosses the ranks as the gradient does.
    curved = weight.clone().requires_grad_()
    rows = distributed.gather(mine @ curved)
    (slope,) = torch.autograd.grad((rows @ rows.T).square().sum(), curved, create_graph=True)
    (curvature,) = torch.autograd.grad(slope, curved, weight.cos())
    curvature = distributed.all_reduce_sum(curvature) / world
    again = weight.clone().requires_grad_()
    value = ((whole @ again) @ (whole @ again).T).square().sum()
    (slope,) = torch.autograd.grad(value, again, create_graph=True)
    (bent,) = torch.autograd.grad(slope, again, weight.cos())
    draw = torch.rand(3, generator=distributed.agreed_generator(0, 1, 2))

    results = {
        "agreed": torch.equal(distributed.gather(draw[None]), draw.expand(world, 3)),
        "values": torch.allclose(gathered, whole @ weight),
        "loss": torch.allclose(loss, expected),
        "gradient": torch.allclose(average, alone.grad),
        "curvature": torch.allclose(curvature, bent),
        "labels": torch.equal(
            distributed.gather(torch.arange(start, start + len(mine))), torch.arange(len(whole))
        ),
        "masks": torch.equal(distributed.gather(mine[:, 0] > 0), whole[:, 0] > 0),
        "sizes": distributed.shard_sizes(len(mine), mine.device) == list(SHARDS[world]),
        "slice": distributed.gather(torch.arange(10)[distributed.shard_slice(10)]).tolist()
        == list(range(10)),
        "broken": _broken_everywhere(rank, world, out),
        "rank": distributed.rank() == rank and distributed.world_size() == world,
    }
    torch.save(results, f"{out}/{rank}.pt")


def _broken_everywhere(rank, world, out):
    """Each rank meets one broken image of its own; all are listed and stored."""
    split = SimpleNamespace(keys=[f"{i}.png" for i in range(world)])
    data = SimpleNamespace(splits={"train": split, "val": split}, broken=dict)
    trainer = SimpleNamespace(datamodule=data, is_global_zero=rank == 0)
    callback = BrokenImages(f"{out}/broken.csv")
    callback.setup(trainer, None, "fit")
    callback.on_train_batch_end(trainer, None, None, {"broken": torch.tensor([rank])}, 0)
    # A rank without broken images takes part.
    positions = torch.tensor([1] if rank == 1 else [], dtype=torch.int64)
    callback.found["val"].update(positions.tolist())
    stored = callback.state_dict()["found"]
    callback.on_train_end(trainer, None)
    torch.distributed.barrier()
    lines = Path(f"{out}/broken.csv").read_text().splitlines()
    everything = [f"train,{i},{i}.png" for i in range(world)] + ["val,1,1.png"]
    return stored == {"train": list(range(world)), "val": [1]} and lines[1:] == everything


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_see_the_global_batch_and_its_gradient(tmp_path, world):
    run_ranks(_work, world, tmp_path, str(tmp_path))
    for rank in range(world):
        results = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert all(results.values()), (rank, results)


def test_one_process_gathers_itself():
    x = torch.randn(3, 2, requires_grad=True)
    assert distributed.gather(x) is x
    assert distributed.shard_slice(7) == slice(0, 7)
    assert distributed.shard_sizes(5, x.device) == [5]
    assert not distributed.is_distributed()


def test_generators_follow_seed_epoch_and_step():
    def draws(*where):
        return torch.rand(4, generator=distributed.agreed_generator(*where)).tolist()

    places = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]
    found = [draws(*place) for place in places]
    assert found == [draws(*place) for place in places]
    assert len({tuple(numbers) for numbers in found}) == len(places)
