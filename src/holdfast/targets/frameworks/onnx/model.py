"""ONNX files: scores by onnxruntime, gradients by the same graph run in torch.

The torch graph is held against onnxruntime when the file is opened, and what an attack counts as a
success is always asked of onnxruntime. A graph with an operator that is not in `OPERATORS` gives
scores alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from holdfast.errors import InputError, first_line
from holdfast.targets.adapter import (
    Adapter,
    autograd_vjp,
    chosen,
    need,
    reading,
    tensor,
)
from holdfast.targets.frameworks.onnx.graph import ALL, Graph
from holdfast.targets.frameworks.onnx.operators import OPERATORS
from holdfast.targets.target import Access, Pullback
from holdfast.tasks import side_by_side

_LINEAR = ("Gemm", "MatMul", "Conv")
TOLERANCE = 1e-4  # between torch and onnxruntime, as a share of the largest score


class OnnxModel(Adapter):
    """One graph with one input. A graph of one fixed row is tried with more, and asked row by row
    if it refuses.

    Args:
        model: the path of a file, a ModelProto, or an InferenceSession: its file or bytes are
            opened again, on the CPU.
        output: which of several outputs are the scores, by name or place; `ALL`: all of them, side
            by side.

    Raises:
        InputError: damaged, several inputs, or a session whose model cannot be had again.
    """

    approximate, libraries = True, ("onnx", "onnxruntime")

    def __init__(self, model: Any, *, output: str | int | None = None) -> None:
        path = model if isinstance(model, Path) else f"the {type(model).__name__}"
        onnx, runtime = (need(name, "onnx", f"{path}") for name in ("onnx", "onnxruntime"))
        content, place = _content(model)
        self._digest = hashlib.sha256(content).digest()
        with reading(path, "ONNX model"):
            proto = onnx.load_model_from_string(content)
            if place is not None:
                onnx.load_external_data_for_model(proto, str(place.parent))
        known = {weight.name for weight in proto.graph.initializer}
        inputs = [value for value in proto.graph.input if value.name not in known]
        if len(inputs) != 1:
            names = ", ".join(value.name for value in inputs)
            raise InputError(f"{path} takes {len(inputs)} inputs ({names}); one is expected.")
        self.given, self.entry, self.output = model, inputs[0].name, output
        self.exits = [value.name for value in proto.graph.output]
        sides = [side.dim_value for side in inputs[0].type.tensor_type.shape.dim]
        if len(sides) > 1 and all(sides[1:]):
            self.shape = tuple(sides[1:])
        if len(sides) == 4 and self.shape and self.shape[-1] in (1, 3, 4):
            self.layout = "nhwc"
        self.ending, linear = _without_activation(onnx, proto, self.exits, output)
        if linear:
            self.probabilities = False
        opened = (place or content) if self.ending is None else proto.SerializeToString()
        self.session, self.rows = _session(runtime, proto, self.entry, sides, path, opened)
        self._convert(onnx, proto)

    def infer(self, x: Tensor) -> Tensor:
        step = self.rows or max(len(x), 1)
        return torch.cat([self._run(x[i : i + step]) for i in range(0, len(x), step)])

    def whole(self) -> Adapter:
        many = len(self.exits) > 1 and self.output is None
        return OnnxModel(self.given, output=ALL) if many else self

    def vjp(self, x: Tensor) -> tuple[Tensor, Pullback]:
        assert self.graph is not None
        return autograd_vjp(self.graph, x)

    def network(self, example: Tensor) -> Callable[[Tensor], Tensor]:
        if self.graph is None:
            return super().network(example)
        return self.single.of_shape(example)

    def _run(self, x: Tensor) -> Tensor:
        found = self.session.run(None, {self.entry: x.detach().numpy()})
        outputs = dict(zip(self.exits, found, strict=True))
        if self.output != ALL:
            return tensor(chosen(outputs, self.output))
        z, self.form = side_by_side({name: tensor(part) for name, part in outputs.items()})
        return z

    def _convert(self, onnx: Any, proto: Any) -> None:
        self.graph: Callable[[Tensor], Tensor] | None = None
        missing = sorted({node.op_type for node in proto.graph.node} - OPERATORS.keys())
        reason = f"its operators {', '.join(missing)} are not known here" if missing else None
        if not missing:
            self.single = Graph(onnx, proto, self.entry, self.exits, self.output)
            self.graph, reason = self._answering(self.single)
        if reason is not None:
            self.access, self.approximate = Access.SCORES, False
            self.remarks = (("no_gradients", f"The ONNX graph gives scores alone: {reason}."),)

    def _answering(self, single: Graph) -> tuple[Callable[[Tensor], Tensor] | None, str | None]:
        """The graph in the form that answers as onnxruntime does; or why there is none."""
        if self.shape is None:
            return single, None
        x = torch.rand(3, *self.shape, generator=torch.Generator().manual_seed(0))
        reason = "its results in torch differ from those of onnxruntime"
        for graph in (single, _row_by_row(single)):
            try:
                z, exact = graph(x), self.infer(x)
                most = TOLERANCE * exact.abs().max().clamp_min(1)
                if z.shape == exact.shape and (z - exact).abs().max() <= most:
                    return graph, None
            except Exception as error:  # noqa: BLE001  # whatever a graph leads torch to
                reason = f"its graph fails in torch: {first_line(error)}"
        return None, reason


def _without_activation(
    onnx: Any, proto: Any, exits: list[str], output: str | int | None
) -> tuple[str | None, bool]:
    """Take the last softmax or sigmoid out of a graph: which one it was, and whether the graph ends
    in a linear layer.

    A softmax over another axis than that of the classes stays.
    """
    makers = {name: node for node in proto.graph.node for name in node.output}
    only = exits[0] if len(exits) == 1 else "logits"
    output_name = only if output is None else str(output)
    node = makers.get(output_name)
    while node is not None and node.op_type in (
        "Identity",
        "Reshape",
        "Flatten",
        "Squeeze",
        "Unsqueeze",
        "Dropout",
    ):
        node = makers.get(node.input[0])
    if node is None:
        return None, False
    if node.op_type == "Add":
        return None, any(makers[name].op_type in _LINEAR for name in node.input if name in makers)
    axis = next((a.i for a in node.attribute if a.name == "axis"), -1)
    if node.op_type not in ("Softmax", "Sigmoid") or (
        node.op_type == "Softmax" and axis not in (-1, 1)
    ):
        return None, node.op_type in _LINEAR
    if (
        node.op_type == "Softmax"
        and output_name not in node.output
        and not _over_classes(onnx, proto, node, axis)
    ):
        return None, False
    kind, node.op_type = node.op_type.lower(), "Identity"
    del node.attribute[:]
    return kind, False


def _over_classes(onnx: Any, proto: Any, node: Any, axis: int) -> bool:
    """Whether the axis of a softmax is the only one, besides that of the rows, that is longer than
    one."""
    try:
        known = onnx.shape_inference.infer_shapes(proto).graph.value_info
    except Exception:  # noqa: BLE001  # onnx's own of graphs that it cannot follow, or too large
        return False
    shape = next(
        (value.type.tensor_type.shape.dim for value in known if value.name == node.output[0]), ()
    )
    other = [side.dim_value for i, side in enumerate(shape) if i not in (0, axis % len(shape))]
    return len(shape) > 1 and all(side == 1 for side in other)


def _content(model: Any) -> tuple[bytes, Path | None]:
    """The bytes of a model, and its file where it has one."""
    path: Any = model if isinstance(model, Path) else getattr(model, "_model_path", None)
    if path is not None:
        return Path(path).read_bytes(), Path(path)
    serialize = getattr(model, "SerializeToString", None)
    if serialize is not None:
        return serialize(), None
    content = getattr(model, "_model_bytes", None)
    if content is None:
        raise InputError(
            "the InferenceSession does not say what it was made of; pass the path of its .onnx "
            "file."
        )
    return content, None


def _session(
    runtime: Any, proto: Any, entry: str, sides: list[int], path: object, opened: Path | bytes
) -> tuple[Any, int | None]:
    """A session, and the rows that it must be given at once (None: any number)."""
    options = runtime.SessionOptions()
    options.log_severity_level = 4  # what a trial of more rows leads to is no news
    options.intra_op_num_threads = torch.get_num_threads()
    where = ["CPUExecutionProvider"]
    try:
        session = runtime.InferenceSession(opened, options, providers=where)
    except Exception as error:  # onnxruntime's own family
        raise InputError(f"onnxruntime cannot open {path}: {first_line(error)}.") from error
    if not sides or not sides[0]:
        return session, None
    fixed = sides[0]
    free = type(proto)()
    free.CopyFrom(proto)
    for value in (*free.graph.input, *free.graph.output):
        if value.type.tensor_type.shape.dim:
            value.type.tensor_type.shape.dim[0].ClearField("dim_value")
            value.type.tensor_type.shape.dim[0].dim_param = "rows"
    del free.graph.value_info[:]
    try:
        loose = runtime.InferenceSession(free.SerializeToString(), options, providers=where)
        x = np.random.default_rng(0).random((fixed + 2, *sides[1:]), np.float32)
        together = loose.run(None, {entry: x})[0]
        alone = [session.run(None, {entry: x[i : i + fixed]})[0] for i in (0, 2)]
        if together.shape[0] == len(x) and all(
            np.allclose(together[i : i + fixed], part, atol=1e-5, rtol=1e-5)
            for i, part in zip((0, 2), alone, strict=True)
        ):
            return loose, None
    except Exception:  # noqa: BLE001  # the graph needs its fixed number of rows
        pass
    if fixed != 1:
        raise InputError(
            f"{path} takes exactly {fixed} rows at once; export it with one row, or any number."
        )
    return session, 1


def _row_by_row(graph: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """A graph made for one row, on many."""
    return torch.func.vmap(lambda row: graph(row[None])[0])
