"""Cost of the ledger: what noting every sample adds to the training of a small network.

One epoch over `--samples` vectors of 64 values by a perceptron 64-256-256-10; the ledger's work is
timed apart from the steps, in the same process: loss, margin and prediction of each batch, the row
group written at the end of the epoch, and the file joined at the end of training. Any network of
photographs takes many times longer for a step, and the ledger the same.

    python scripts/bench_ledger.py --samples 1000000
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import nn

from noisyml.callbacks.selection_log import SelectionLog
from noisyml.selectors.base import Selection
from noisyml.selectors.training_dynamics import training_facts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=1_000_000)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--threads", type=int, default=1)
    typed = parser.parse_args()
    torch.set_num_threads(typed.threads)
    torch.manual_seed(0)
    inputs = torch.randn(typed.samples, 64)
    labels = torch.randint(10, (typed.samples,))
    network = nn.Sequential(
        nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10)
    )
    optimizer = torch.optim.Adam(network.parameters())
    trainer = SimpleNamespace(callbacks=[], is_global_zero=True, current_epoch=0)
    steps, facts, log = 0.0, 0.0, 0.0
    with tempfile.TemporaryDirectory() as folder:
        ledger = SelectionLog(str(Path(folder) / "selection.parquet"))
        for index in torch.randperm(typed.samples).split(typed.batch):
            began = time.process_time()
            logits = network(inputs[index])
            loss = F.cross_entropy(logits, labels[index], reduction="none")
            optimizer.zero_grad()
            loss.mean().backward()
            optimizer.step()
            steps += time.process_time() - began

            began = time.process_time()
            noted = training_facts(logits.detach(), labels[index], loss.detach())
            facts += time.process_time() - began
            began = time.process_time()
            selection = Selection.keep_everything(labels[index])
            outputs = {"selection": selection, "index": index, "facts": noted}
            ledger.on_train_batch_end(trainer, None, outputs, None, 0)  # type: ignore[arg-type]
            log += time.process_time() - began
        began = time.process_time()
        ledger.on_train_epoch_end(trainer, None)  # type: ignore[arg-type]
        ledger.on_train_end(trainer, None)  # type: ignore[arg-type]
        written = time.process_time() - began
        size = ledger.file.stat().st_size
    total = facts + log + written
    print(
        json.dumps(
            {
                "samples": typed.samples,
                "training_seconds": round(steps, 2),
                "facts_seconds": round(facts, 2),
                "collecting_seconds": round(log, 2),
                "writing_seconds": round(written, 2),
                "share_of_training": round(total / steps, 4),
                "bytes_a_sample": round(size / typed.samples, 1),
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
