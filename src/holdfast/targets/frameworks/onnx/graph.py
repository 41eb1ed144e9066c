"""The nodes of an ONNX graph, run in torch one after the other."""

from __future__ import annotations

from copy import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor

from holdfast.targets.adapter import chosen
from holdfast.targets.frameworks.onnx.operators import OPERATORS
from holdfast.tasks import side_by_side

ALL = "*"  # the outputs that are taken: all of them, side by side


class Graph:
    """The nodes of a graph, run one after the other."""

    def __init__(
        self, onnx: Any, proto: Any, entry: str, exits: list[str], output: str | int | None
    ) -> None:
        self.entry, self.exits, self.output = entry, exits, output
        self.weights: dict[str, Any] = {
            w.name: torch.from_numpy(onnx.numpy_helper.to_array(w).copy())
            for w in proto.graph.initializer
        }
        self.nodes: list[tuple[str, list[str], list[str], dict[str, Any]]] = []
        for node in proto.graph.node:
            options = {a.name: _value(onnx, a) for a in node.attribute}
            if node.op_type == "Constant":
                value = np.array(next(iter(options.values())))
                self.weights[node.output[0]] = torch.from_numpy(value)
            else:
                if "value" in options and node.op_type == "ConstantOfShape":
                    options["value"] = options["value"].item()
                self.nodes.append((node.op_type, list(node.input), list(node.output), options))

    def __call__(self, x: Tensor) -> Tensor:
        known = self._values(x)
        found = {name: known[name] for name in self.exits}
        if self.output != ALL:
            return chosen(found, self.output)
        return side_by_side({name: z for name, z in found.items() if z is not None})[0]

    def of_shape(self, x: Tensor) -> Graph:
        """The same graph for inputs of the shape of x: what depends on no more than that, such as
        the sizes that it reshapes to, is computed."""
        known, varying, fixed = self._values(x), {self.entry}, copy(self)
        fixed.weights, fixed.nodes = dict(self.weights), []
        for node in self.nodes:
            kind, inputs, outputs, _ = node
            if kind != "Shape" and not varying.isdisjoint(inputs):
                varying.update(outputs)
                fixed.nodes.append(node)
            else:
                fixed.weights |= {name: known[name] for name in outputs if name in known}
        return fixed

    def _values(self, x: Tensor) -> dict[str, Any]:
        known: dict[str, Tensor | None] = {"": None, self.entry: x} | self.weights
        for kind, inputs, outputs, options in self.nodes:
            answer = OPERATORS[kind](*(known[name] for name in inputs), **options)
            known.update(
                zip(outputs, answer if isinstance(answer, tuple) else (answer,), strict=False)
            )
        return known


def _value(onnx: Any, attribute: Any) -> Any:
    """What an attribute of a node holds: text as such, tensors as arrays."""
    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, onnx.TensorProto):
        return onnx.numpy_helper.to_array(value)
    return value
