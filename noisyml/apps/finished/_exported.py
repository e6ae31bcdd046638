"""The network of a run as one module from images (or vectors) to outputs, and its files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from noisyml.assembly.saved import saved_config
from noisyml.errors import UserError
from noisyml.runs.folder import RunFolder
from noisyml.storage.files import atomic, write_atomically

if TYPE_CHECKING:
    from noisyml.data.datamodule import DataModule
    from noisyml.methods.base import Method

#: Samples that outputs are compared on.
CHECKED = 16
#: Greatest difference of outputs, relative to the largest one, that passes.
TOLERANCE = 1e-4


class Network(nn.Module):
    """Embeddings, and class scores where the method has a classifier, of a batch of inputs.

    Args:
        method: trained, in evaluation mode.
        key: of the inputs in a batch: ``image`` (uint8 [B, C, H, W]) or ``vector`` [B, D].
    """

    def __init__(self, method: Method, key: str) -> None:
        super().__init__()
        self.encoder = method.encoder
        classifier = getattr(method, "classifier", None)
        self.classifier = classifier if isinstance(classifier, nn.Linear) else None
        self.key = key

    def forward(self, inputs: Tensor) -> tuple[Tensor, ...]:
        """Outputs of inputs: embeddings [B, D], and perhaps class scores [B, C]."""
        embeddings: Tensor = self.encoder({self.key: inputs})
        if self.classifier is None:
            return (embeddings,)
        return embeddings, self.classifier(embeddings)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the outputs."""
        return ("embeddings",) if self.classifier is None else ("embeddings", "logits")


@dataclass(frozen=True)
class Exported:
    """A run's network with its data.

    Attributes:
        network: in evaluation mode.
        method: it belongs to.
        data: of the run.
        inputs: of some test samples.
    """

    network: Network
    method: Method
    data: DataModule
    inputs: Tensor

    @classmethod
    def load(cls, run: RunFolder, checkpoint: Path) -> Exported:
        """Build the network of a run and load its weights."""
        import lightning

        from noisyml.apps._common.quiet import quiet
        from noisyml.assembly.build import assemble
        from noisyml.assembly.trusted import admit, admitting

        quiet()
        config = saved_config(run, "train")
        with admitting():
            admit(config)
            lightning.seed_everything(config.seed, workers=True, verbose=False)
            assembly = assemble(config, training=False)
        method = assembly.method
        method.load_trained(checkpoint)
        method.eval()
        batch = next(iter(assembly.data.predict_dataloader("test")))
        key = next((name for name in ("image", "vector") if name in batch), None)
        if key is None:
            raise UserError(
                f"{run.path} cannot be exported: its batches hold {', '.join(sorted(batch))}, and "
                f"neither images nor vectors (features of a frozen backbone are computed once; "
                f"train with backbone.frozen=false to export the whole network)."
            )
        return cls(Network(method, key), method, assembly.data, batch[key][:CHECKED])

    @torch.no_grad()
    def outputs(self) -> list[Tensor]:
        """Outputs of the run's own network for `inputs`."""
        return list(self.network(self.inputs))

    def convention(self) -> dict[str, Any]:
        """Inputs and outputs of the network."""
        key = self.network.key
        return {
            "input": key,
            "dtype": str(self.inputs.dtype).removeprefix("torch."),
            "shape": ["N", *self.inputs.shape[1:]],
            "layout": "channels, height, width; 0..255, normalised inside"
            if key == "image"
            else "features",
            "outputs": {
                name: ["N", *out.shape[1:]]
                for name, out in zip(self.network.names, self.outputs(), strict=True)
            },
            "class_names": list(getattr(self.method, "class_names", [])),
        }


def write_export(exported: Exported, to: str, folder: Path) -> Iterator[str]:
    """Write one format into a folder; sentences on what was written.

    Raises:
        UserError: a package is missing, or outputs do not agree.
    """
    folder.mkdir(parents=True, exist_ok=True)
    writers = {
        "onnx": _onnx,
        "safetensors": _safetensors,
        "torchscript": _torchscript,
        "cleanlab": _cleanlab,
    }
    file, difference = writers[to](exported, folder)
    facts = {**exported.convention(), "file": file.name, "largest_difference": difference}
    write_atomically(folder / "input.json", json.dumps(facts, indent=2) + "\n")
    yield f"{to}  {file}"
    if difference is not None:
        yield f"outputs agree to {difference:.2g} on {len(exported.inputs)} test samples"


def _torchscript(exported: Exported, folder: Path) -> tuple[Path, float | None]:
    file = folder / "network.pt"
    traced = torch.jit.trace(exported.network, exported.inputs, check_trace=False)
    with atomic(file) as temporary:
        torch.jit.save(traced, str(temporary))
    with torch.no_grad():
        found = torch.jit.load(str(file))(exported.inputs)
    return file, _agreement(exported, [out.numpy() for out in found])


def _onnx(exported: Exported, folder: Path) -> tuple[Path, float | None]:
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError(
            "Exporting to ONNX needs the packages onnx and onnxruntime: "
            "pip install 'noisyml[onnx]' onnxruntime."
        ) from error
    file = folder / "network.onnx"
    names = list(exported.network.names)
    with atomic(file) as temporary:
        torch.onnx.export(
            exported.network,
            (exported.inputs,),
            str(temporary),
            input_names=["inputs"],
            output_names=names,
            dynamic_axes={name: {0: "N"} for name in ["inputs", *names]},
            dynamo=False,
        )
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    found = session.run(names, {"inputs": exported.inputs.numpy()})
    return file, _agreement(exported, found)


def _safetensors(exported: Exported, folder: Path) -> tuple[Path, float | None]:
    from safetensors.torch import load_file, save_file

    file = folder / "network.safetensors"
    state = {name: t.contiguous().clone() for name, t in exported.network.state_dict().items()}
    with atomic(file) as temporary:
        save_file(state, str(temporary))
    before = exported.outputs()
    exported.network.load_state_dict(load_file(str(file)))
    after = exported.outputs()
    gaps = [float((a - b).abs().max()) for a, b in zip(before, after, strict=True)]
    return file, max(gaps)


def _cleanlab(exported: Exported, folder: Path) -> tuple[Path, float | None]:
    """Labels and probabilities as `cleanlab.filter.find_label_issues` takes them."""
    network = exported.network
    if network.classifier is None:
        raise UserError("Only runs that classify have probabilities for cleanlab.")
    data = exported.data
    found, index = [], []
    with torch.no_grad():
        for batch in data.predict_dataloader("train"):
            found.append(network(batch[network.key])[1].softmax(dim=1))
            index.append(batch["index"])
    order = torch.cat(index).argsort()
    probabilities = torch.cat(found)[order].numpy()
    file = folder / "cleanlab.npz"
    with atomic(file) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(
            stream,
            labels=data.manifest.observed,
            pred_probs=probabilities,
            class_names=np.array(list(getattr(exported.method, "class_names", []))),
        )
    return file, None


def _agreement(exported: Exported, found: list[Any]) -> float:
    """The greatest difference from the run's own outputs.

    Raises:
        UserError: it is too great.
    """
    gaps = []
    for name, own, other in zip(exported.network.names, exported.outputs(), found, strict=True):
        expected = own.numpy()
        gap = float(np.abs(expected - other).max())
        gaps.append(gap)
        if gap > TOLERANCE * max(1.0, float(np.abs(expected).max())):
            raise UserError(f"The exported network differs from the run's in {name} by {gap:.2g}.")
    return max(gaps)
