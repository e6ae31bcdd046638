"""Time and memory of InsCLR's memory loss and of reading its bank, beside the form of the release.

The peer loops over the rows of the batch with masked selections over the memory, and takes a copy
of the drawn rows after a set difference over all images, as the released code does; the script
fails unless loss and gradient agree. Ours and the peer take turns in one process; seconds are
processor time summed over threads. Memory is the most that is held beyond the bank while a step
reads it.

    python scripts/bench_insclr.py --rows loss bank --out outputs/bench/insclr.json
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from noisyml.losses.self_supervised.instance_contrast import memory_instance_contrast
from noisyml.similarity.instance_bank import drawn, far_images

#: Margin of the paper; a positive closer than this to 1 is the image itself.
MARGIN, SAME = 0.4, 1e-6


def seconds(work: Callable[[], Any]) -> float:
    """Processor time of one call, over all threads."""
    start = time.process_time()
    work()
    return time.process_time() - start


def row_by_row(rows: Tensor, labels: Tensor, memory: Tensor, memory_labels: Tensor) -> Tensor:
    """The loss by a loop over the rows, four selections each, left to autograd."""
    mine = labels > 0
    rows, labels = rows[mine], labels[mine]
    similarities = rows @ memory.T
    total = []
    for i in range(len(labels)):
        positive = torch.masked_select(similarities[i], memory_labels == labels[i])
        positive = torch.masked_select(positive, positive < 1 - SAME)
        negative = torch.masked_select(similarities[i], memory_labels != labels[i])
        negative = torch.masked_select(negative, negative > MARGIN)
        total.append((1 - positive).sum() + negative.sum())
    return torch.stack(total).sum() / len(labels)


def unit_rows(n: int, dim: int) -> Tensor:
    """Rows with a common direction, so that some pass the margin."""
    rows = torch.empty(n, dim)
    for part in rows.split(50_000):
        part.copy_(F.normalize(torch.randn(part.shape) + 0.8, dim=1))
    return rows


def loss(settings: argparse.Namespace) -> dict[str, Any]:
    """The loss against M rows, forward and backward."""
    memory = unit_rows(settings.memory, settings.dim)
    memory_labels = torch.full((settings.memory,), 10**7)
    labels = torch.arange(settings.batch // 4).repeat(4) + 1
    memory_labels[: len(labels)] = labels
    made = unit_rows(settings.batch, settings.dim)
    leaves = [made.clone().requires_grad_() for _ in range(2)]

    def run(leaf: Tensor, value: Callable[[Tensor], Tensor]) -> Tensor:
        leaf.grad = None
        result = value(leaf)
        result.backward()
        return result.detach()

    def ours() -> Tensor:
        return run(
            leaves[0], lambda x: memory_instance_contrast(x, labels, memory, memory_labels).loss
        )

    def peer() -> Tensor:
        return run(leaves[1], lambda x: row_by_row(x, labels, memory, memory_labels))

    torch.testing.assert_close(ours(), peer(), rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(leaves[0].grad, leaves[1].grad, rtol=1e-3, atol=1e-2)
    pairs = [(seconds(ours), seconds(peer)) for _ in range(settings.repeats)]
    return {
        "batch": settings.batch,
        "memory": settings.memory,
        "dim": settings.dim,
        "ours_s": statistics.median(a for a, _ in pairs),
        "peer_s": statistics.median(b for _, b in pairs),
        "times_as_fast": statistics.median(b / a for a, b in pairs),
    }


class Highest:
    """The most anonymous memory of this process, looked at in a thread (Linux)."""

    def __enter__(self) -> Highest:
        self.before = self.most = self._now()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    @staticmethod
    def _now() -> float:
        status = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in status if line.startswith("RssAnon:")) / 1024

    def _watch(self) -> None:
        while not self._stop.wait(0.01):
            self.most = max(self.most, self._now())

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def peak_mib(self) -> float:
        """The most beyond what was held before."""
        return round(self.most - self.before)


def bank(settings: argparse.Namespace) -> dict[str, Any]:
    """Negatives drawn from a bank of N images, and the loss against them, without gradient."""
    n, dim = settings.n, settings.bank_dim
    rows = unit_rows(n, dim)
    written = torch.ones(n, dtype=torch.int64)
    neighbours = torch.randint(n, (n, 50), dtype=torch.int32)
    index = torch.randperm(n)[: settings.batch]
    labels = torch.arange(settings.batch // 4).repeat(4) + 1
    batch = unit_rows(settings.batch, dim)

    def ours() -> None:
        found = drawn(far_images(written, neighbours, index), settings.memory, None)
        memory_instance_contrast(batch, labels, rows, torch.full_like(found, n + 1), index=found)

    def peer() -> None:
        near = torch.unique(neighbours[index].flatten().long())
        usable = written.nonzero().flatten()
        pool = usable[~torch.isin(usable, near)]
        found = pool[torch.randperm(len(pool))[: settings.memory]]
        copied = rows[found]
        row_by_row(batch, labels, copied, torch.full((len(found),), n + 1))

    peaks = {}
    for name, work in (("ours", ours), ("peer", peer)):
        with Highest() as highest:
            work()
        peaks[f"{name}_peak_mib"] = highest.peak_mib
    pairs = [(seconds(ours), seconds(peer)) for _ in range(settings.repeats)]
    return {
        "n": n,
        "dim": dim,
        "bank_mib": round(rows.numel() * 4 / 2**20),
        "drawn": settings.memory,
        "drawn_rows_mib": round(settings.memory * dim * 4 / 2**20),
        **peaks,
        "ours_s": statistics.median(a for a, _ in pairs),
        "peer_s": statistics.median(b for _, b in pairs),
        "times_as_fast": statistics.median(b / a for a, b in pairs),
    }


ROWS = {"loss": loss, "bank": bank}


def main() -> None:
    """Measure the rows that are asked for, print them and write them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--memory", type=int, default=100_000, help="M")
    parser.add_argument("--dim", type=int, default=512, help="D")
    parser.add_argument("--n", type=int, default=1_223_195, help="images of the bank")
    parser.add_argument("--bank-dim", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=None)
    settings = parser.parse_args()
    torch.set_num_threads(settings.threads)
    torch.manual_seed(0)
    found: dict[str, Any] = {
        "machine": platform.processor() or platform.machine(),
        "threads": settings.threads,
        "torch": torch.__version__,
    }
    for name in settings.rows:
        found[name] = ROWS[name](settings)
        print(name, json.dumps(found[name]), flush=True)
    if settings.out is not None:
        settings.out.parent.mkdir(parents=True, exist_ok=True)
        settings.out.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
