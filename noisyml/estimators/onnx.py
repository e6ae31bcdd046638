"""Dense encoders as ONNX models, written layer by layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from noisyml.errors import UserError
from noisyml.storage.files import write_atomically

#: Version of the operators; LayerNormalization came with 17.
OPSET = 17


def write_onnx(
    path: Path, layers: nn.Sequential, in_features: int, out_features: int, l2_norm: bool = False
) -> None:
    """Write linear layers, norms and ReLUs in evaluation mode.

    Args:
        path: of the file.
        layers: of `noisyml.models.dense`.
        in_features: columns of the input ``rows``.
        out_features: columns of the output ``codes``.
        l2_norm: bring codes to length 1.

    Raises:
        UserError: the package onnx is not installed.
    """
    try:
        from onnx import TensorProto, checker, helper, numpy_helper
    except ImportError as error:
        raise UserError(
            "Writing ONNX models needs the package onnx: pip install 'noisyml[onnx]'."
        ) from error
    nodes: list[Any] = []
    constants: list[Any] = []

    def constant(name: str, value: Any) -> str:
        array = np.asarray(value.detach().cpu().numpy(), dtype=np.float32)
        constants.append(numpy_helper.from_array(array, name))
        return name

    def names(number: int, layer: nn.Module) -> list[str]:
        state = layer.state_dict()
        wanted = ("weight", "bias", "running_mean", "running_var")
        return [constant(f"{number}.{name}", state[name]) for name in wanted if name in state]

    last = "rows"
    for number, layer in enumerate(layers):
        inputs, output = [last, *names(number, layer)], f"layer{number}"
        if isinstance(layer, nn.Linear):
            nodes.append(helper.make_node("Gemm", inputs, [output], transB=1))
        elif isinstance(layer, nn.BatchNorm1d):
            nodes.append(
                helper.make_node("BatchNormalization", inputs, [output], epsilon=layer.eps)
            )
        elif isinstance(layer, nn.LayerNorm):
            nodes.append(
                helper.make_node("LayerNormalization", inputs, [output], epsilon=layer.eps)
            )
        elif isinstance(layer, nn.ReLU):
            nodes.append(helper.make_node("Relu", inputs, [output]))
        else:
            raise TypeError(f"no ONNX operator is known for {type(layer).__name__}")
        last = output
    if l2_norm:
        nodes.append(helper.make_node("LpNormalization", [last], ["codes"], axis=1, p=2))
    else:
        nodes.append(helper.make_node("Identity", [last], ["codes"]))
    value = TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "encoder",
        [helper.make_tensor_value_info("rows", value, ["N", in_features])],
        [helper.make_tensor_value_info("codes", value, ["N", out_features])],
        constants,
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="noisyml"
    )
    model.ir_version = 8  # of that opset; newer ones are refused by older readers
    checker.check_model(model)
    write_atomically(path, model.SerializeToString())
