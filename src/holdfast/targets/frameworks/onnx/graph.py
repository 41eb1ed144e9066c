"""The nodes of an ONNX graph, run in torch one after the other."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from holdfast.targets.adapter import (
    chosen,
)
from holdfast.targets.frameworks.onnx.operators import OPERATORS


class Graph:
    """The nodes of a graph, run one after the other."""

    def __init__(
        self, onnx: Any, proto: Any, entry: str, exits: list[str], output: str | int | None
    ) -> None:
        self.entry, self.exits, self.output = entry, exits, output
        self.weights = {
            w.name: torch.from_numpy(onnx.numpy_helper.to_array(w).copy())
            for w in proto.graph.initializer
        }
        self.nodes: list[tuple[str, list[str], list[str], dict[str, Any]]] = []
        for node in proto.graph.node:
            options = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
            options = {k: v.decode() if isinstance(v, bytes) else v for k, v in options.items()}
            if node.op_type == "Constant":
                value = options.get("value")
                array = (
                    onnx.numpy_helper.to_array(value)
                    if value is not None
                    else np.array(next(iter(options.values())))
                )
                self.weights[node.output[0]] = torch.from_numpy(np.array(array))
            else:
                if node.op_type == "ConstantOfShape":
                    held = options.get("value")
                    options["value"] = (
                        0.0 if held is None else onnx.numpy_helper.to_array(held).item()
                    )
                self.nodes.append((node.op_type, list(node.input), list(node.output), options))

    def __call__(self, x: Tensor) -> Tensor:
        known: dict[str, Tensor | None] = {"": None, self.entry: x} | self.weights
        for kind, inputs, outputs, options in self.nodes:
            answer = OPERATORS[kind](*(known[name] for name in inputs), **options)
            known.update(
                zip(outputs, answer if isinstance(answer, tuple) else (answer,), strict=False)
            )
        return chosen({name: known[name] for name in self.exits}, self.output)
