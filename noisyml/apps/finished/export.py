"""Write the network of a run for use elsewhere, and check that its outputs agree.

``noisyml export RUN --to onnx`` writes the embedding network, with the classifier where the run has
one, as ONNX or TorchScript; ``--to safetensors`` its weights; ``--to cleanlab`` the labels and
predicted probabilities of the training split. Beside it lies ``input.json``: what the network
takes, and by how much its outputs differ from those of the run.
"""

from __future__ import annotations

import argparse
from pathlib import Path

FORMATS = ("onnx", "safetensors", "torchscript", "cleanlab")


def main(arguments: list[str]) -> int:
    """Run ``noisyml export RUN --to onnx|safetensors|torchscript|cleanlab``.

    Raises:
        UserError: no such run or checkpoint, a package is missing, or outputs do not agree.
    """
    parser = argparse.ArgumentParser(prog="noisyml export", description=__doc__)
    parser.add_argument("run", type=Path, metavar="RUN", help="a run folder, or a checkpoint in it")
    parser.add_argument("--to", choices=FORMATS, required=True)
    parser.add_argument("--which", default="last", help="checkpoint: last or best")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: RUN/export/FORMAT")
    typed = parser.parse_args(arguments)

    from noisyml.apps.finished._exported import Exported, write_export
    from noisyml.runs.folder import locate_checkpoint, locate_run

    run = locate_run(typed.run)
    folder = typed.out or run.path / "export" / typed.to
    exported = Exported.load(run, locate_checkpoint(typed.run, typed.which))
    for line in write_export(exported, typed.to, folder):
        print(line)
    return 0
