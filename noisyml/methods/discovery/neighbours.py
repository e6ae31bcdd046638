"""Nearest rows of a ring memory, kept up to date as rows are overwritten.

A step changes a few rows of the memory; the similarities of all others with each other stay. Each
row keeps more neighbours than are asked for, and a floor: all rows of the memory at least as
similar as it are in the list. What is overwritten leaves the lists, new rows enter them, and a list
that has become too short is made anew. The answers are exact.
"""

from __future__ import annotations

import torch
from torch import Tensor

from noisyml.checks import Count
from noisyml.similarity.memory_bank import MemoryBank
from noisyml.similarity.pinned_buffers import PinnedBuffers


class MemoryNeighbours(PinnedBuffers):
    """Lists of the most similar rows of a memory for each of its rows.

    Args:
        size: rows M of the memory.
        neighbours: k that is asked for at most.
        spare: times as many are kept.
        dtype: of the memory.

    Attributes:
        similarity: [M, S], falling; -inf where a list is shorter.
        slot: rows of the memory [M, S] int64.
        floor: [M]; see above.
    """

    similarity: Tensor
    slot: Tensor
    floor: Tensor

    def __init__(
        self, size: Count, neighbours: Count, dtype: torch.dtype, spare: Count = 6
    ) -> None:
        super().__init__()
        kept = min(neighbours * spare, size)
        self.neighbours = min(neighbours, kept)
        nothing = torch.full((size, kept), -torch.inf, dtype=dtype)
        self.register_buffer("similarity", nothing)
        self.register_buffer("slot", torch.zeros(size, kept, dtype=torch.int64))
        self.register_buffer("floor", nothing[:, 0].clone())

    @torch.no_grad()
    def renew(self, slots: Tensor, rows: Tensor) -> None:
        """Take in that rows of the memory were written.

        Args:
            slots: numbers [u] int64 of the written rows, each once.
            rows: the memory as it is now [L, D], its filled rows.
        """
        length = len(rows)
        similarity, slot, floor = (
            part[:length] for part in (self.similarity, self.slot, self.floor)
        )
        written = torch.zeros(len(self.slot), dtype=torch.bool, device=slots.device)
        written[slots] = True
        fresh = rows[slots] @ rows.T
        fresh[torch.arange(len(slots), device=slots.device), slots] = -torch.inf

        found = torch.cat([similarity.masked_fill(written[slot], -torch.inf), fresh.T], dim=1)
        whose = torch.cat([slot, slots.expand(length, -1)], dim=1)
        self._store(slice(length), found.masked_fill(found < floor[:, None], -torch.inf), whose)

        self.floor[slots] = -torch.inf
        everybody = torch.arange(length, device=slots.device)
        self._store(slots, fresh, everybody.expand(len(slots), -1))
        wanted = min(self.neighbours, length - 1)
        if wanted < 1:
            return
        short = self.similarity[:length, wanted - 1].isneginf().nonzero().flatten()
        if len(short):
            again = rows[short] @ rows.T
            again[torch.arange(len(short), device=short.device), short] = -torch.inf
            self.floor[short] = -torch.inf
            self._store(short, again, everybody.expand(len(short), -1))

    def _store(self, where: slice | Tensor, found: Tensor, whose: Tensor) -> None:
        """Keep the best of what was found, and raise the floor to what is left out."""
        kept = self.similarity.shape[1]
        best = found.topk(min(kept, found.shape[1]), dim=1)
        width = best.values.shape[1]
        self.similarity[where] = -torch.inf
        self.similarity[where, :width] = best.values
        self.slot[where, :width] = whose.gather(1, best.indices)
        if found.shape[1] > kept:
            self.floor[where] = torch.maximum(self.floor[where], best.values[:, -1])

    @torch.no_grad()
    def nearest(self, queries: Tensor, rows: Tensor, k: Count) -> Tensor:
        """The k nearest other nodes of queries and memory, see `nearest_nodes`.

        Args:
            queries: [Q, D].
            rows: the memory as it was renewed last [L, D].
            k: at most `neighbours` and Q + L - 1.

        Returns:
            [Q + L, k] int64; nodes are the queries, then the memory.
        """
        number, length = len(queries), len(rows)
        between = queries @ rows.T
        among = queries @ queries.T
        among.fill_diagonal_(-torch.inf)
        of_queries = torch.cat([among, between], dim=1).topk(k, dim=1).indices
        listed = min(k, self.similarity.shape[1])
        found = torch.cat([between.T, self.similarity[:length, :listed]], dim=1)
        place = found.topk(k, dim=1).indices
        stored = self.slot[:length, :listed].gather(1, (place - number).clamp(min=0))
        return torch.cat([of_queries, torch.where(place < number, place, stored + number)])


def written_slots(bank: MemoryBank, number: int) -> Tensor:
    """Rows of a ring that the next batch of so many rows will overwrite, [min(number, M)] int64."""
    device = bank.embeddings.device
    if number >= bank.size:
        return torch.arange(bank.size, device=device)
    return (bank.pointer + torch.arange(number, device=device)) % bank.size
