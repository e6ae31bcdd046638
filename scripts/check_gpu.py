"""Everything of which a CPU says nothing, on one card, in under 10 minutes.

* search: the 10 exact nearest others of N rows (clusters) by the bfloat16 filter with its proven
  bound, as a share of the card's bfloat16 rate, and beside faiss, cuVS and FlashLib where they are
  installed: those search --queries rows, and their time is scaled to N;
* one_rank: search and retrieval metrics of a process group of one rank (NCCL) give the bits of the
  search without a group;
* methods: the run of seconds of each method, see `noisyml.conformance.recipes`, in bf16-mixed, and
  its first --steps steps in bf16-mixed (on a card in 16-mixed too) beside the same steps in full
  precision: the difference of the losses and the cosine between the gradients;
* embedding: images a second of `Encoder` around a ResNet-50 (224 pixels) in bfloat16 beside the
  same backbone alone.

Any part that fails is written down, the others go on, and the exit status is 1. On a CPU the same
code runs at a small size:

    python scripts/check_gpu.py --out outputs/bench/gpu.json
    python scripts/check_gpu.py --device cpu --n 2000 --methods classification --side 32 --images 4
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from bench_similarity import (
    TOLERANCE,
    by_noisyml,
    embeddings_of,
    product_ceiling,
    synchronise,
)
from torch import Tensor

from noisyml.assembly.saved import saved_config
from noisyml.conformance.precision import compare, first_steps
from noisyml.conformance.recipes import (
    SETTINGS,
    TINY,
    Recipe,
    of_methods,
    option_of,
    write_recipes,
)
from noisyml.metrics.retrieval import retrieval_metrics
from noisyml.runs.folder import RunFolder
from noisyml.runs.processes import free_port
from noisyml.similarity.search import self_topk
from noisyml.similarity.sharded import sharded_self_topk

DIM, NEIGHBOURS = 512, 10


def by_faiss(rows: Tensor, queries: Tensor, k: int) -> Any:
    import faiss

    flat = faiss.IndexFlatIP(rows.shape[1])
    if rows.device.type == "cuda":
        flat = faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), rows.device.index or 0, flat)
    flat.add(rows.cpu().numpy())
    return flat.search(queries.cpu().numpy(), k)[1]


def by_cuvs(rows: Tensor, queries: Tensor, k: int) -> Any:
    from cuvs.neighbors import brute_force

    return brute_force.search(brute_force.build(rows, metric="inner_product"), queries, k)[1]


def by_flashlib(rows: Tensor, queries: Tensor, k: int) -> Any:
    from flashlib import NearestNeighbors

    return NearestNeighbors(n_neighbors=k).fit(rows).kneighbors(queries, n_neighbors=k)[1]


#: Exact search of other libraries for neighbours [m, k] of queries, by the module to install.
PEERS: dict[str, Callable[[Tensor, Tensor, int], Any]] = {
    "faiss": by_faiss,
    "cuvs": by_cuvs,
    "flashlib": by_flashlib,
}


def seconds(work: Callable[[], Any], device: torch.device) -> tuple[float, Any]:
    """Of one call, and what it returns."""
    synchronise(device)
    began = time.perf_counter()
    found = work()
    synchronise(device)
    return time.perf_counter() - began, found


def scores_of(rows: Tensor, queries: Tensor, found: Tensor) -> Tensor:
    """Inner products [m, k] with the rows that were found, descending."""
    columns = [(queries * rows[item]).sum(1) for item in found.to(torch.int64).T]
    return torch.stack(columns, 1).sort(dim=1, descending=True).values


def search(options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    rows = embeddings_of("clustered", options.n, DIM, None).to(device)
    ceiling = product_ceiling(device, options.n, DIM)
    fast = by_noisyml("fast")
    fast(rows[: min(options.n, 20_000)], NEIGHBOURS)  # loads what is loaded once
    spent, (scores, _) = seconds(lambda: fast(rows, NEIGHBOURS), device)
    result: dict[str, Any] = {
        "seconds": spent,
        "bfloat16_flop_per_second": ceiling["flop_per_second"],
        "share_of_bfloat16_rate": ceiling["seconds_of_half_the_matrix"] / spent,
        "peers": {},
    }
    queries = rows[: options.queries]
    for name, peer in PEERS.items():
        if importlib.util.find_spec(name) is None:
            result["peers"][name] = "not installed"
            continue
        try:
            spent, found = seconds(partial(peer, rows, queries, NEIGHBOURS + 1), device)
            theirs = scores_of(rows, queries, torch.as_tensor(found, device=device))
            # Their first is the row itself, or a copy of it.
            apart = float((theirs[:, 1:] - scores[: len(queries)]).abs().max())
            result["peers"][name] = {
                "seconds_for_all_rows": spent * options.n / len(queries),
                "largest_difference_of_scores": apart,
                "agrees": apart <= TOLERANCE,
            }
        except Exception as error:
            result["peers"][name] = f"{type(error).__name__}: {error}"
    return result


@contextmanager
def group_of_one(device: torch.device) -> Iterator[str]:
    """A process group of this process alone; yields its backend."""
    import torch.distributed as dist

    backend = "nccl" if device.type == "cuda" else "gloo"
    meeting = f"tcp://127.0.0.1:{free_port()}"
    dist.init_process_group(backend, init_method=meeting, rank=0, world_size=1)
    try:
        yield backend
    finally:
        dist.destroy_process_group()


def one_rank(options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    rows = embeddings_of("clustered", min(options.n, 20_000), DIM, None).to(device)
    labels = torch.arange(len(rows), device=device) // 5

    def metrics() -> dict[str, float]:
        return retrieval_metrics(rows, labels, share_over_ranks=True)

    alone = self_topk(rows, NEIGHBOURS, precision="fast"), metrics()
    with group_of_one(device) as backend:
        shared = sharded_self_topk(rows, NEIGHBOURS, precision="fast"), metrics()
    same = {
        "index": torch.equal(alone[0].index, shared[0].index),
        "scores": torch.equal(alone[0].scores, shared[0].scores),
        "metrics": alone[1] == shared[1],
    }
    if not all(same.values()):
        raise AssertionError(f"{backend} on one rank changes the answer: {same}")
    return {"backend": backend, "same_bits": same}


#: Mixed precisions, the one that any processor has first.
PRECISIONS = ("bf16-mixed", "16-mixed")


def methods(options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    chosen = {name: TINY[name] for name in options.methods or TINY}
    with tempfile.TemporaryDirectory() as temporary:
        runs, said = runs_of_seconds(chosen, Path(temporary), device)
        found = {name: first_steps_of(run, options.steps, device) for name, run in runs.items()}
    wrong = {name: entry["wrong"] for name, entry in found.items() if entry["wrong"]}
    if wrong:
        print(json.dumps(found, indent=1), flush=True)
        raise AssertionError(f"in mixed precision: {wrong}; {said[-2000:]}")
    # Said, not refused: where a threshold or a choice of neighbours stands behind a first step,
    # rounding can change it.
    apart = {
        f"{name}, {precision}": entry[precision]["apart"]
        for name, entry in found.items()
        for precision in PRECISIONS
        if precision in entry and entry[precision]["apart"]
    }
    return {"finished": len(found), "apart": apart, "steps": found}


def runs_of_seconds(
    chosen: Mapping[str, Recipe], folder: Path, device: torch.device
) -> tuple[dict[str, Path], str]:
    """The folder of a whole run of each method in bf16-mixed, and what the command said."""
    settings = [typed for typed in SETTINGS if "precision" not in typed and "dtype" not in typed]
    settings += [f"trainer={'gpu' if device.type == 'cuda' else 'cpu'}"]
    settings += ["trainer.precision=bf16-mixed"]
    write_recipes(of_methods(chosen), folder / "conf" / "experiment")
    command = [sys.executable, "-m", "noisyml", "train", "-m"]
    command += ["--config-dir", str(folder / "conf"), *settings]
    command += [f"experiment={','.join(map(option_of, chosen))}"]
    command += [f"hydra.sweep.dir={folder / 'runs'}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return {name: folder / "runs" / str(i) for i, name in enumerate(chosen)}, done.stderr


def first_steps_of(run: Path, steps: int, device: torch.device) -> dict[str, Any]:
    """How a whole run in bf16-mixed ended, and its first steps beside those in full precision."""
    folder = RunFolder(run)
    status = folder.status()
    if status.get("state") != "finished":
        return {"wrong": [f"{status.get('state', 'not begun')}: {status.get('error')}"]}
    lost = {k: v for k, v in folder.metrics().items() if "loss" in k and not math.isfinite(v)}
    entry: dict[str, Any] = {"wrong": [f"{lost} of the run"] if lost else []}
    config = saved_config(folder, "train")
    full = first_steps(config, "32-true", steps)
    for precision in PRECISIONS if device.type == "cuda" else PRECISIONS[:1]:
        try:
            found = compare(full, first_steps(config, precision, steps))
        except Exception as error:
            entry["wrong"].append(f"{precision}: {type(error).__name__}: {error}")
            continue
        entry[precision] = found._asdict() | {"apart": found.apart}
        if found.wrong:
            entry["wrong"].append(f"{precision}: {found.wrong}")
    return entry


def embedding(options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    from noisyml.models.backbones.from_torchvision import resnet
    from noisyml.models.encoder import Encoder
    from noisyml.models.heads import IdentityHead

    encoder = Encoder(resnet("resnet50"), IdentityHead(2048, normalise=True))
    encoder = encoder.eval().to(device, memory_format=torch.channels_last)
    shape = (options.images, 3, options.side, options.side)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)
    floats = images.to(torch.float32).contiguous(memory_format=torch.channels_last)
    contenders: dict[str, Callable[[], Tensor]] = {
        "encoder": lambda: encoder({"image": images}),
        "body": lambda: encoder.backbone.body(floats),
    }
    rates: dict[str, Any] = {}
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16):
        for name, work in contenders.items():
            work()
            times = [seconds(work, device)[0] for _ in range(options.passes)]
            rates[name] = options.images / statistics.median(times)
    share = rates["encoder"] / rates["body"]
    return {"images_per_second": rates, "share": share, "batch": options.images}


#: What is checked, by the name typed after ``--parts``.
PARTS: dict[str, Callable[[argparse.Namespace, torch.device], dict[str, Any]]] = {
    "search": search,
    "one_rank": one_rank,
    "methods": methods,
    "embedding": embedding,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--n", type=int, default=1_000_000, help="rows of the search")
    parser.add_argument("--queries", type=int, default=65_536, help="rows that peers search")
    parser.add_argument("--methods", nargs="+", choices=list(TINY), help="default: all")
    parser.add_argument("--steps", type=int, default=5, help="of a method, compared")
    parser.add_argument("--images", type=int, default=256, help="of a batch to embed")
    parser.add_argument("--side", type=int, default=224, help="pixels")
    parser.add_argument("--passes", type=int, default=20, help="timed, of the embedding")
    parser.add_argument("--out", type=Path, help="write the results here as JSON")
    options = parser.parse_args()
    device = torch.device(options.device)
    cuda = device.type == "cuda"
    if cuda and not torch.cuda.is_available():
        raise SystemExit("There is no CUDA here: say --device cpu and a small --n.")
    card = torch.cuda.get_device_name(device) if cuda else "cpu"
    report: dict[str, Any] = {"device": card, "torch": torch.__version__, "n": options.n}
    failed = False
    for name in options.parts:
        began = time.perf_counter()
        try:
            report[name] = PARTS[name](options, device)
        except Exception:
            report[name] = {"failed": traceback.format_exc()}
            failed = True
        report[name]["clock_seconds"] = round(time.perf_counter() - began, 1)
        print(name, json.dumps(report[name], indent=1), flush=True)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
