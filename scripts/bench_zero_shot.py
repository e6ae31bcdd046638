"""Memory and time of choosing among many classes for many images.

Embeddings of images lie in a file, as `noisyml embed` leaves them, and are read block by block; the
nearest ten of all classes and the flat hits are counted as `noisyml evaluate images=...` does. The
peer is a product of each block of images with all classes and `torch.topk`. Both take turns, a
stretch of images each, so that they meet the same machine; memory is the peak beyond what the
process held when a turn began.

    python scripts/bench_zero_shot.py --classes 20000 --images 1000000 --out outputs/zero_shot.json
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

KS = (1, 2, 5, 10)
#: Images of a turn.
STRETCH = 65_536


@dataclass
class Tally:
    """What a contender took and found.

    Attributes:
        seconds, processor_seconds: of all its turns.
        peak_extra_bytes: the greatest growth of resident memory in a turn.
        hits: sums of flat hits at `KS`.
    """

    seconds: float = 0.0
    processor_seconds: float = 0.0
    peak_extra_bytes: int = 0
    hits: list[float] = field(default_factory=lambda: [0.0] * len(KS))


def kibibytes(line: str) -> int:
    """A line of this process's status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(found for found in lines if found.startswith(line)).split()[1])


def turn(
    nearest: Callable[[Tensor], Tensor],
    file: Path,
    rows: range,
    shape: tuple[int, int],
    classes: int,
    block: int,
    tally: Tally,
) -> None:
    """Name the images of some rows and add what that took to `tally`."""
    import numpy as np
    import torch

    from noisyml.metrics.zero_shot import flat_hits

    Path("/proc/self/clear_refs").write_text("5")
    before = kibibytes("VmRSS")
    began, worked = time.perf_counter(), time.process_time()
    for at in range(rows.start, rows.stop, block):
        # Opened anew, so that pages of the file do not count as memory of the process.
        stored = np.memmap(file, np.float16, "r", shape=shape)
        images = torch.from_numpy(np.array(stored[at : min(at + block, rows.stop)])).float()
        found = nearest(torch.nn.functional.normalize(images))
        truth = torch.arange(at, at + len(images))[:, None] % classes
        hits = flat_hits(found, truth, KS).sum(0).tolist()
        tally.hits = [all_of + some for all_of, some in zip(tally.hits, hits, strict=True)]
    tally.seconds += time.perf_counter() - began
    tally.processor_seconds += time.process_time() - worked
    grown = (kibibytes("VmHWM") - before) * 1024
    tally.peak_extra_bytes = max(tally.peak_extra_bytes, grown)


def write_embeddings(file: Path, images: int, width: int, centres: Tensor) -> None:
    """Embeddings [images, width] float16 near the class whose number is the row's, modulo C."""
    import numpy as np
    import torch

    out = np.memmap(file, np.float16, "w+", shape=(images, width))
    draw = torch.Generator().manual_seed(1)
    for at in range(0, images, 4096):
        rows = torch.arange(at, min(at + 4096, images))
        noise = torch.randn(len(rows), width, generator=draw) / width**0.5
        out[at : at + len(rows)] = (centres[rows % len(centres)] + 3 * noise).half().numpy()
    out.flush()


def main(arguments: list[str]) -> int:
    """Run the benchmark and write or print its JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--classes", type=int, default=20_000)
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--block", type=int, default=1024, help="images at a time")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path)
    typed = parser.parse_args(arguments)

    import torch

    from noisyml.metrics.zero_shot import PromptBank

    torch.set_num_threads(typed.threads)
    centres = torch.nn.functional.normalize(
        torch.randn(typed.classes, typed.width, generator=torch.Generator().manual_seed(0))
    )
    bank = PromptBank.of(centres, torch.arange(typed.classes))
    most = max(KS)
    contenders: dict[str, Callable[[Tensor], Tensor]] = {
        "ours": lambda images: bank.nearest(images, most)[0],
        "product": lambda images: (images @ bank.embeddings.T).topk(most).indices,
    }
    tallies = {name: Tally() for name in contenders}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "embeddings.f16"
        write_embeddings(file, typed.images, typed.width, centres)
        for at in range(0, typed.images, STRETCH):
            rows = range(at, min(at + STRETCH, typed.images))
            for name, nearest in contenders.items():
                shape = (typed.images, typed.width)
                turn(nearest, file, rows, shape, typed.classes, typed.block, tallies[name])
    results: dict[str, Any] = {}
    for name, tally in tallies.items():
        shares = {f"fh_at_{k}": hits / typed.images for k, hits in zip(KS, tally.hits, strict=True)}
        results[name] = {
            "seconds": tally.seconds,
            "processor_seconds": tally.processor_seconds,
            "peak_extra_bytes": tally.peak_extra_bytes,
            **shares,
        }
    mine, peer = tallies["ours"], tallies["product"]
    report = {
        "classes": typed.classes,
        "images": typed.images,
        "width": typed.width,
        "threads": typed.threads,
        "results": results,
        "product_over_ours": peer.processor_seconds / mine.processor_seconds,
    }
    text = json.dumps(report, indent=2) + "\n"
    if typed.out is None:
        print(text, end="")
    else:
        typed.out.parent.mkdir(parents=True, exist_ok=True)
        typed.out.write_text(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
