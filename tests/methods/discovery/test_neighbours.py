"""Neighbours within a ring memory, kept up to date, against a search of everything."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from noisyml.methods.discovery.neighbours import MemoryNeighbours, written_slots
from noisyml.similarity.diffusion import nearest_nodes
from noisyml.similarity.memory_bank import MemoryBank


@pytest.mark.parametrize(
    ("size", "batch", "k", "spare"),
    [(40, 8, 5, 2), (41, 9, 3, 1), (64, 16, 4, 6), (20, 7, 6, 1), (12, 30, 3, 2)],
)
def test_lists_are_exact_whatever_was_overwritten(size, batch, k, spare):
    generator = torch.Generator().manual_seed(size)
    bank = MemoryBank(size, 6, 1, dtype="float64")
    lists = MemoryNeighbours(size, k, torch.float64, spare)
    centres = torch.randn(5, 6, generator=generator, dtype=torch.float64)
    for step in range(25):
        # What is seen drifts, so that lists run short.
        centres = centres + 0.3 * torch.randn(5, 6, generator=generator, dtype=torch.float64)
        number = batch if step % 4 else max(1, batch // 3)
        noise = torch.randn(2 * number, 6, generator=generator, dtype=torch.float64)
        drawn = torch.randint(5, (2 * number,), generator=generator)
        queries, rows = F.normalize(centres[drawn] + noise, dim=1).split(number)
        if len(bank):
            memory = bank.filled().embeddings
            most = min(k, number + len(memory) - 1)
            found = lists.nearest(queries, memory, most)
            expected = nearest_nodes(torch.cat([queries, memory]), most)
            assert torch.equal(found.sort().values, expected.sort().values)
        slots = written_slots(bank, number)
        bank.enqueue(rows, torch.zeros(number, dtype=torch.int64), torch.arange(number))
        lists.renew(slots, bank.filled().embeddings)


def test_lists_go_on_from_a_checkpoint():
    rows = F.normalize(torch.randn(30, 4, generator=torch.Generator().manual_seed(0)), dim=1)
    lists = MemoryNeighbours(30, 3, torch.float32)
    lists.renew(torch.arange(30), rows)
    again = MemoryNeighbours(30, 3, torch.float32)
    again.load_state_dict(lists.state_dict())
    assert torch.equal(again.nearest(rows[:2], rows, 3), lists.nearest(rows[:2], rows, 3))
    assert again.half().similarity.dtype == torch.float32
