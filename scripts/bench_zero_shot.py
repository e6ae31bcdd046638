"""Memory and time of choosing among many classes for many images.

Embeddings of images lie in a file, as `noisyml embed` leaves them, and are read block by block; the
nearest ten of all classes and the flat hits are counted as `noisyml evaluate images=...` does.

    python scripts/bench_zero_shot.py --classes 20000 --images 1000000 --out outputs/zero_shot.json
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from pathlib import Path

KS = (1, 2, 5, 10)


def write_embeddings(file: Path, images: int, width: int, centres: object) -> None:
    """Embeddings [images, width] float16 near the class whose number is the row's, modulo C."""
    import numpy as np
    import torch

    assert isinstance(centres, torch.Tensor)
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

    import numpy as np
    import torch

    from noisyml.metrics.zero_shot import PromptBank, flat_hits

    torch.set_num_threads(typed.threads)
    centres = torch.nn.functional.normalize(
        torch.randn(typed.classes, typed.width, generator=torch.Generator().manual_seed(0))
    )
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "embeddings.f16"
        write_embeddings(file, typed.images, typed.width, centres)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        began = time.perf_counter()
        bank = PromptBank.of(centres, torch.arange(typed.classes))
        hits = torch.zeros(len(KS), dtype=torch.float64)
        for at in range(0, typed.images, typed.block):
            # Opened anew, so that pages of the file do not count as memory of the process.
            rows = np.memmap(file, np.float16, "r", shape=(typed.images, typed.width))
            block = torch.from_numpy(np.array(rows[at : at + typed.block])).float()
            nearest, _ = bank.nearest(torch.nn.functional.normalize(block), max(KS))
            truth = torch.arange(at, at + len(block))[:, None] % typed.classes
            hits += flat_hits(nearest, truth, KS).sum(0)
        seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    report = {
        "classes": typed.classes,
        "images": typed.images,
        "width": typed.width,
        "threads": typed.threads,
        "seconds": seconds,
        "peak_extra_bytes": (peak - before) * 1024,
        "peak_bytes": peak * 1024,
        **{f"fh_at_{k}": float(hit) for k, hit in zip(KS, hits / typed.images, strict=True)},
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
