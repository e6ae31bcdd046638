"""The ranks of a gloo group, in processes that start at once."""

from datetime import timedelta

import torch
import torch.distributed as dist

from noisyml.conformance import forked


def run_ranks(work, world, folder, *arguments):
    """Call ``work(rank, world, *arguments)`` on each rank of a group; refuse a rank that fails.

    Args:
        work: a function of the test's module.
        world: number of ranks.
        folder: receives the store of the group and what ranks print.
        *arguments: must pickle.
    """
    store = folder / "store"
    logs = [folder / f"{rank}.log" for rank in range(world)]
    ranks = [
        forked.start(_rank, work, rank, world, str(store), arguments, out=log)
        for rank, log in enumerate(logs)
    ]
    ended = [forked.finish(rank, 200) for rank in ranks]
    said = "\n".join(log.read_text() for log in logs)
    assert ended == [0] * world, said


def _rank(work, rank, world, store, arguments):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{store}",
        rank=rank,
        world_size=world,
        timeout=timedelta(seconds=60),
    )
    work(rank, world, *arguments)
    dist.destroy_process_group()
