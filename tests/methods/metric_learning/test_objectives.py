"""Instance discrimination as options of InsCLR, and pairs that are wrong on purpose."""

import functools

import numpy as np
import pytest
import torch
from support.parts import parts_for
from support.ranks import run_ranks
from support.vectors import close as close_to
from torch import nn

from noisyml.losses.self_supervised.info_nce import nt_xent, queue_info_nce
from noisyml.methods.metric_learning.insclr import InsCLR
from noisyml.methods.metric_learning.neighbour_graph import NeighbourGraph
from noisyml.methods.metric_learning.objectives import MoCo, SimCLR
from noisyml.metrics.retrieval_evaluator import RetrievalEvaluator
from noisyml.models.heads import unit_norm

close = functools.partial(close_to, rtol=1e-5, atol=1e-6)


class Rows(nn.Module):
    """An encoder of vectors: a linear layer and the unit sphere."""

    def __init__(self, seed=0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(4, 6, generator=generator))
        self.out_features = 4

    def forward(self, batch):
        """[b, 6] to [b, 4]."""
        return unit_norm(batch["image"] @ self.weight.T)


def batch(n, seed=0):
    return {"image": torch.randn(n, 6, generator=torch.Generator().manual_seed(seed))}


def test_simclr_is_the_loss_of_two_views():
    encoder = Rows()
    parts = parts_for(encoder, evaluator=RetrievalEvaluator())
    graph = functools.partial(NeighbourGraph, stored=2)
    objective = functools.partial(SimCLR, temperature=0.3)
    method = InsCLR(parts, graph=graph, pairs="views", num_neighbours=1, objective=objective)
    index = torch.tensor([3, 5, 8, 3, 5, 8])
    found = method.training_step({"index": index, **batch(6)}, 0)
    close(found["loss"], nt_xent(encoder(batch(6)), index, 0.3))
    assert list(found["terms"]) == ["batch_loss"]


def test_moco_keeps_keys_of_a_slow_encoder():
    encoder = Rows()
    moco = MoCo(encoder, seed=1, temperature=0.2, queue=5, momentum=0.9)
    first_queue = moco.queue.clone()
    close(first_queue.norm(dim=1), torch.ones(5))
    with torch.no_grad():
        encoder.weight += 1.0
    moco.begin()
    slow = encoder.weight.detach().clone()
    for step in range(3):
        rows = batch(4, step)
        with torch.no_grad():
            encoder.weight += 0.5
        slow = 0.9 * slow + 0.1 * encoder.weight.detach()
        keys = unit_norm(rows["image"] @ slow.T)[2:]
        queue = moco.queue.clone()
        embeddings = encoder(rows)
        found = moco.loss(rows, embeddings, torch.tensor([1, 2, 1, 2]), anchors=2)
        close(found.detach(), queue_info_nce(embeddings[:2], keys[:, None], queue, 0.2).detach())
        found.backward()
        moco.after_backward()
        places = [(2 * step) % 5, (2 * step + 1) % 5]
        close(moco.queue[places], keys)
    assert encoder.weight.grad.abs().sum() > 0
    assert not any(p.requires_grad for p in moco.parameters())
    assert moco.place == 1
    again = MoCo(Rows(), seed=9, queue=5)
    again.load_state_dict(moco.state_dict())
    close(again.queue, moco.queue)
    again.begin()
    close(again.teacher.averages["encoder"].weight, slow)


def test_a_queue_shorter_than_a_batch_keeps_the_last_keys():
    moco = MoCo(Rows(), queue=3)
    keys = unit_norm(torch.randn(5, 4))
    moco._made = keys
    moco.after_backward()
    assert {tuple(row) for row in moco.queue.tolist()} == {tuple(row) for row in keys[2:].tolist()}


def _steps(rank, world, folder):
    encoder = Rows()
    moco = MoCo(encoder, queue=6, momentum=0.5)
    for step in range(2):
        rows = batch(8, step)
        mine = {"image": rows["image"].tensor_split(world)[rank]}
        embeddings = encoder(rows)
        moco.loss(mine, embeddings, torch.tensor([1, 2, 3, 4] * 2), anchors=4)
        moco.after_backward()
    torch.save(moco.queue, folder / f"{world}-{rank}.pt")


def test_two_processes_keep_one_queue(tmp_path):
    _steps(0, 1, tmp_path)
    run_ranks(_steps, 2, tmp_path, tmp_path)
    alone = torch.load(tmp_path / "1-0.pt")
    for rank in range(2):
        close(torch.load(tmp_path / f"2-{rank}.pt"), alone)


# -- wrong pairs -----------------------------------------------------------------------------------


class Known(NeighbourGraph):
    """A graph of two rings of twenty images, in which neighbours have neighbours in common."""

    def _search(self, method, loader):
        n = len(self.neighbours)
        near = np.empty((n, self.stored), dtype=np.int64)
        for row in range(n):
            ring, place = divmod(row, 20)
            steps = [s for k in range(1, 10) for s in (k, -k)][: self.stored]
            near[row] = [ring * 20 + (place + s) % 20 for s in steps]
        self.neighbours.copy_(torch.from_numpy(near))


@pytest.mark.parametrize("share", [0.2, 0.4])
def test_a_share_of_the_edges_is_exchanged(share):
    clean = Known(40, stored=8)
    clean.find(None, None)
    noisy = Known(40, stored=8, random_edges=share, seed=3)
    noisy.find(None, None)
    changed = (clean.neighbours != noisy.neighbours).float().mean()
    assert changed == pytest.approx(share, abs=0.06)
    again = Known(40, stored=8, random_edges=share, seed=3)
    again.find(None, None)
    assert torch.equal(again.neighbours, noisy.neighbours)


def test_supported_neighbours_come_first():
    settings = {"stored": 8, "random_edges": 0.4, "seed": 3}
    noisy, chosen = Known(40, **settings), Known(40, **settings, min_shared=2, shared_among=8)
    for graph in (noisy, chosen):
        graph.find(None, None)
    right = [
        (graph.neighbours[:, :3] // 20 == torch.arange(40)[:, None] // 20).float().mean()
        for graph in (noisy, chosen)
    ]
    assert right[0] < 0.9
    assert right[1] > right[0] + 0.1
    for row in range(40):
        assert sorted(noisy.neighbours[row].tolist()) == sorted(chosen.neighbours[row].tolist())
