"""Time and memory of TLDR, step and graph apart, beside the form of the released library and faiss.

Each row is one part of a fit at one size. The peers compute the same numbers: the loss by its
cross-correlation matrix and a step with a loss that is read at once, as the released code has them;
neighbours by faiss, in one call and in a hundred pieces as the release asks for them. The script
fails unless values agree. Ours and the peer take turns in one process; seconds are processor time
summed over threads. Memory is the peak of a fresh process beyond what it needed before (Linux).

    python scripts/bench_tldr.py --rows loss step graph memory stream --out outputs/bench/tldr.json
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from noisyml.losses.self_supervised.redundancy import LAMBD, SCALE, redundancy_reduction
from noisyml.methods.vectors.pairs import knn_pairs
from noisyml.methods.vectors.training import train_on_pairs
from noisyml.methods.vectors.twins import Twins
from noisyml.models.dense import encoder_layers
from noisyml.optim import lars, twin_cosine

#: Pieces in which the released library asks faiss for neighbours.
PIECES = 100
#: Words of ``/proc/self/status``.
ANONYMOUS, PEAK = "RssAnon", "VmHWM"


def seconds(work: Callable[[], Any]) -> float:
    """Processor time of one call, over all threads."""
    start = time.process_time()
    work()
    return time.process_time() - start


def turns(ours: Callable[[], Any], peer: Callable[[], Any], repeats: int) -> dict[str, float]:
    """Medians of both, taking turns, and of their ratios."""
    pairs = [(seconds(ours), seconds(peer)) for _ in range(repeats)]
    return {
        "ours_s": statistics.median(a for a, _ in pairs),
        "peer_s": statistics.median(b for _, b in pairs),
        "times_as_fast": statistics.median(b / a for a, b in pairs),
    }


def rows_of(n: int, dim: int, seed: int = 0) -> NDArray[np.float32]:
    """Rows around 50 centres."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(50, dim))
    noise = rng.standard_normal((n, dim), dtype=np.float32)
    return (centres[rng.integers(50, size=n)] + noise).astype(np.float32)


# -- the form of the release -----------------------------------------------------------------------


def by_matrix(first: Tensor, second: Tensor) -> Tensor:
    """The loss by the matrix C [d', d'], its diagonal and the rest taken out of it."""
    correlation = first.T @ second / len(first)
    diagonal = torch.diagonal(correlation)
    on = (diagonal - 1).pow(2).sum() * SCALE
    off = correlation.flatten()[:-1].view(len(correlation) - 1, -1)[:, 1:].flatten()
    return on + LAMBD * (off.pow(2).sum() * SCALE)


class ReleasedTwins(Twins):
    """The projector with the loss of the release."""

    def forward(self, first: Tensor, second: Tensor, inputs: Any, keep: Any = None) -> Tensor:
        """The loss of two sides' codes."""
        return by_matrix(self.bn(self.project(first)), self.bn(self.project(second)))


class ReleasedLARS:
    """LARS parameter by parameter with norms that decide on the host's side of a `where`."""

    def __init__(self, parameters: list[nn.Parameter], lr: float) -> None:
        self.parameters, self.lr = parameters, lr
        self.momentum = [torch.zeros_like(p) for p in parameters]

    @torch.no_grad()
    def step(self) -> None:
        """One step."""
        for parameter, momentum in zip(self.parameters, self.momentum, strict=True):
            gradient = parameter.grad
            assert gradient is not None
            if parameter.ndim != 1:
                gradient = gradient.add(parameter, alpha=1e-6)
                length, steep = parameter.norm(), gradient.norm()
                one = torch.ones_like(length)
                trust = torch.where(steep > 0, 1e-3 * length / steep, one)
                gradient = gradient.mul(torch.where(length > 0, trust, one))
            momentum.mul_(0.9).add_(gradient)
            parameter.add_(momentum, alpha=-self.lr)


# -- rows ------------------------------------------------------------------------------------------


def loss(settings: argparse.Namespace) -> dict[str, Any]:
    """The loss alone, forward and backward."""
    made = [torch.randn(settings.batch, settings.width) for _ in range(2)]
    ours = [(x - x.mean(0)).div(x.std(0)).requires_grad_() for x in made]
    peer = [x.detach().clone().requires_grad_() for x in ours]

    def run(loss: Callable[..., Tensor], sides: list[Tensor]) -> Tensor:
        for side in sides:
            side.grad = None
        value = loss(*sides)
        value.backward()
        return value.detach()

    torch.testing.assert_close(
        run(redundancy_reduction, ours), run(by_matrix, peer), rtol=1e-4, atol=1e-4
    )
    torch.testing.assert_close(ours[0].grad, peer[0].grad, rtol=1e-3, atol=1e-4)
    found = turns(
        lambda: run(redundancy_reduction, ours), lambda: run(by_matrix, peer), settings.repeats
    )
    return {"batch": settings.batch, "width": settings.width, **found}


def step(settings: argparse.Namespace) -> dict[str, Any]:
    """A whole step: networks, loss, LARS, the loss read back by the release."""
    rows = torch.from_numpy(rows_of(2 * settings.batch, settings.dim))
    sides = rows[: settings.batch], rows[settings.batch :]
    word = f"mlp-2-{settings.width}"

    def networks(kind: type[Twins]) -> tuple[nn.Module, Twins, list[nn.Parameter]]:
        torch.manual_seed(0)
        encoder = encoder_layers("linear", settings.dim, settings.codes, "batch")
        twins = kind(settings.codes, settings.dim, word)
        return encoder, twins, [*encoder.parameters(), *twins.parameters()]

    encoder, twins, parameters = networks(Twins)
    optimizer = lars(parameters, lr=0.8, momentum=0.9, trust=1e-3)
    schedule = twin_cosine(
        optimizer,
        total_steps=2000,
        epochs=100,
        warmup_epochs=0,
        num_samples=20 * settings.batch,
        batch_size=settings.batch,
    )

    def ours() -> float:
        return float(next(train_on_pairs(encoder, twins, optimizer, schedule, [sides])))

    other, released, theirs = networks(ReleasedTwins)
    peer_optimizer = ReleasedLARS(theirs, 0.8)

    def peer() -> float:
        value = released(other(sides[0]), other(sides[1]), None)
        for parameter in theirs:
            parameter.grad = None
        value.backward()
        peer_optimizer.step()
        return value.item()

    peaks, first = {}, []
    for name, work in (("ours", ours), ("peer", peer)):
        with _Highest() as highest:
            first.append(work())
        peaks[f"{name}_peak_mib"] = highest.report()["peak_mib"]
    assert abs(first[0] - first[1]) < 1e-3 * abs(first[1]), first
    found = turns(ours, peer, settings.repeats)
    sizes = {"batch": settings.batch, "dim": settings.dim, "codes": settings.codes}
    return {**sizes, "projector": word, **peaks, **found}


def graph(settings: argparse.Namespace) -> dict[str, Any]:
    """Exact neighbours by cosine: ours, faiss in one call, faiss in a hundred pieces."""
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    rows = rows_of(settings.n, settings.dim)
    if settings.peer_queries:
        return _large_graph(settings, rows)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    kept: dict[str, NDArray[Any]] = {}

    def ours() -> None:
        kept["ours"] = knn_pairs(rows, settings.k).index

    def flat(pieces: int) -> Callable[[], None]:
        def search() -> None:
            index = faiss.IndexFlatIP(settings.dim)
            index.add(unit)
            parts = [index.search(part, settings.k + 1)[1] for part in np.array_split(unit, pieces)]
            kept["faiss"] = np.concatenate(parts)[:, 1:]

        return search

    found = turns(ours, flat(1), settings.repeats)
    same = float((kept["ours"] == kept["faiss"]).mean())
    assert same > 0.999, f"{same:.4%} of the neighbours are the same"
    pieces = seconds(flat(PIECES))
    return {
        "n": settings.n,
        "dim": settings.dim,
        "k": settings.k,
        "same_neighbours": same,
        **found,
        "peer_in_pieces_s": pieces,
        "times_as_fast_as_pieces": pieces / found["ours_s"],
    }


def _large_graph(settings: argparse.Namespace, rows: NDArray[np.float32]) -> dict[str, Any]:
    """The same where faiss searches some of the rows alone, and its time is scaled to all."""
    import faiss

    start = time.process_time()
    found = knn_pairs(rows, settings.k).index
    ours = time.process_time() - start
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    index = faiss.IndexFlatIP(settings.dim)
    index.add(rows)
    some = np.random.default_rng(0).choice(len(rows), settings.peer_queries, replace=False)
    start = time.process_time()
    theirs = index.search(rows[some], settings.k + 1)[1][:, 1:]
    peer = (time.process_time() - start) * len(rows) / len(some)
    same = float((found[some] == theirs).mean())
    assert same > 0.999, f"{same:.4%} of the neighbours are the same"
    return {
        "n": settings.n,
        "dim": settings.dim,
        "k": settings.k,
        "same_neighbours": same,
        "peer_queries": len(some),
        "ours_s": ours,
        "peer_scaled_s": peer,
        "times_as_fast": peer / ours,
    }


def memory(settings: argparse.Namespace) -> dict[str, Any]:
    """Peak of a search beyond the rows, by the number of rows, each in a fresh process."""
    peaks = {}
    for n in settings.sizes:
        given = ["--child", "search", "--n", str(n), "--dim", str(settings.dim)]
        peaks[n] = _child([*given, "--k", str(settings.k)])["peak_mib"]
    return {"dim": settings.dim, "k": settings.k, "peak_mib": peaks}


def stream(settings: argparse.Namespace) -> dict[str, Any]:
    """A fit, and neighbours of some rows, on a memory-mapped file, each in a fresh process."""
    with tempfile.TemporaryDirectory(dir=settings.folder) as folder:
        path = Path(folder) / "rows.npy"
        shape = settings.stream_n, settings.stream_dim
        made = np.lib.format.open_memmap(path, "w+", np.float32, shape)
        rng = np.random.default_rng(0)
        for start in range(0, len(made), 20_000):
            block = made[start : start + 20_000]
            block[:] = rng.standard_normal(block.shape, dtype=np.float32)
        made.flush()
        size = path.stat().st_size / 2**20
        del made
        return {
            "n": shape[0],
            "dim": shape[1],
            "file_mib": round(size),
            "fit": _child(["--child", "fit", "--file", str(path)]),
            "neighbours": _child(
                ["--child", "neighbours", "--file", str(path), "--n", str(settings.stream_queries)]
            ),
        }


# -- fresh processes -------------------------------------------------------------------------------


def _child(arguments: list[str]) -> dict[str, Any]:
    command = [sys.executable, __file__, *arguments, "--threads", str(torch.get_num_threads())]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _status(word: str) -> float:
    """MiB of a line of ``/proc/self/status``."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{word}:"):
            return int(line.split()[1]) / 1024
    raise ValueError(word)


class _Highest:
    """The most memory that is not mapped from a file, looked at in a thread."""

    def __enter__(self) -> _Highest:
        import threading

        self.before = self.most = _status(ANONYMOUS)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        self._started = time.perf_counter()
        return self

    def _watch(self) -> None:
        while not self._stop.wait(0.05):
            self.most = max(self.most, _status(ANONYMOUS))

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()
        self.seconds = time.perf_counter() - self._started

    def report(self) -> dict[str, float]:
        """Peaks and time."""
        whole = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        return {
            "peak_mib": round(self.most - self.before),
            "with_mapped_pages_mib": round(whole),
            "seconds": round(self.seconds, 1),
        }


def child(settings: argparse.Namespace) -> dict[str, Any]:
    """The work of a fresh process."""
    # Libraries are loaded, and their buffers made, by a small search.
    knn_pairs(rows_of(512, 16), 3)
    if settings.child == "search":
        rows = rows_of(settings.n, settings.dim)
        with _Highest() as highest:
            knn_pairs(rows, settings.k)
        return highest.report()
    mapped = np.load(settings.file, mmap_mode="r")
    if settings.child == "fit":
        from noisyml.estimators.tldr import TLDR

        n = len(mapped)
        # A search over all rows is measured elsewhere: here the pairs are given.
        given = np.random.default_rng(0).integers(n, size=(n, 5))
        tldr = TLDR(32, projector="mlp-1-512", epochs=1, warmup_epochs=0, batch_size=1024)
        with _Highest() as highest:
            tldr.fit(mapped, knn_graph=given)
        return highest.report()
    from noisyml.similarity.search import topk

    with _Highest() as highest:
        topk(mapped[: settings.n], mapped, 6)
    return {"queries": settings.n, **highest.report()}


ROWS = {"loss": loss, "step": step, "graph": graph, "memory": memory, "stream": stream}


def main() -> None:
    """Measure the rows that are asked for, print them and write them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=["loss", "graph"])
    parser.add_argument("--n", type=int, default=20_000, help="rows of the graph")
    parser.add_argument("--dim", type=int, default=512, help="D")
    parser.add_argument("--codes", type=int, default=128, help="d")
    parser.add_argument("--width", type=int, default=8192, help="of the projector")
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--k", type=int, default=5)
    parser.add_argument(
        "--peer-queries", type=int, default=0, help="rows that faiss searches; 0: all, in turns"
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=[5_000, 10_000, 20_000, 40_000])
    parser.add_argument("--stream-n", type=int, default=200_000)
    parser.add_argument("--stream-dim", type=int, default=2048)
    parser.add_argument("--stream-queries", type=int, default=500)
    parser.add_argument("--folder", default=None, help="for the file that is mapped")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--child", choices=["search", "fit", "neighbours"], help=argparse.SUPPRESS)
    parser.add_argument("--file", help=argparse.SUPPRESS)
    settings = parser.parse_args()
    torch.set_num_threads(settings.threads)
    torch.manual_seed(0)
    if settings.child:
        print(json.dumps(child(settings)))
        return
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
