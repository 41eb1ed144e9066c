"""ONNX files: scores by onnxruntime, gradients by the same graph run in torch.

The torch graph is held against onnxruntime when the file is opened, and what an attack counts as a
success is always asked of onnxruntime. A graph with an operator that is not in `OPERATORS` gives
scores alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from holdfast.errors import InputError
from holdfast.targets.frameworks.bridge import (
    Foreign,
    autograd_vjp,
    chosen,
    need,
    tensor,
    versions_of,
)
from holdfast.targets.target import Access, Pullback

TOLERANCE = 1e-4  # between torch and onnxruntime, as a share of the largest score


class OnnxModel(Foreign):
    """One graph with one input. A graph of one fixed row is tried with more, and asked row by row
    if it refuses.

    Args:
        model: the path of a file, a ModelProto, or an InferenceSession: its file or bytes are
            opened again, on the CPU.
        output: which of several outputs are the scores, by name or place.

    Raises:
        InputError: damaged, several inputs, or a session whose model cannot be had again.
    """

    approximate = True

    def __init__(self, model: Any, *, output: str | int | None = None) -> None:
        path = model if isinstance(model, Path) else f"the {type(model).__name__}"
        onnx, runtime = (need(name, "onnx", f"{path}") for name in ("onnx", "onnxruntime"))
        content, place = _content(model)
        self._digest = hashlib.sha256(content).digest()
        try:
            proto = onnx.load_model_from_string(content)
            if place is not None:
                onnx.load_external_data_for_model(proto, str(place.parent))
        except Exception as error:  # protobuf's own, and onnx's checks of paths
            raise InputError(f"{path} is no ONNX model, or damaged: {_first(error)}.") from error
        known = {weight.name for weight in proto.graph.initializer}
        inputs = [value for value in proto.graph.input if value.name not in known]
        if len(inputs) != 1:
            names = ", ".join(value.name for value in inputs)
            raise InputError(f"{path} takes {len(inputs)} inputs ({names}); one is expected.")
        self.entry, self.output = inputs[0].name, output
        self.exits = [value.name for value in proto.graph.output]
        sides = [side.dim_value for side in inputs[0].type.tensor_type.shape.dim]
        self.shape = tuple(sides[1:]) if len(sides) > 1 and all(sides[1:]) else None
        self.layout = (
            "nhwc"
            if self.shape and len(self.shape) == 3 and self.shape[-1] in (1, 3, 4)
            else "nchw"
        )
        self.ending, linear = _without_activation(onnx, proto, self.exits, output)
        self.probabilities = False if linear else None
        opened = (place or content) if self.ending is None else proto.SerializeToString()
        self.session, self.rows = _session(runtime, proto, self.entry, sides, path, opened)
        self._convert(onnx, proto)

    def infer(self, x: Tensor) -> Tensor:
        step = self.rows or max(len(x), 1)
        parts = [self._run(x[i : i + step]) for i in range(0, len(x), step)]
        return torch.cat(parts)

    def vjp(self, x: Tensor) -> tuple[Tensor, Pullback]:
        return autograd_vjp(self.graph, x)

    @property
    def versions(self) -> dict[str, str]:
        return versions_of("onnx", "onnxruntime")

    def digest(self) -> bytes:
        return self._digest

    def _run(self, x: Tensor) -> Tensor:
        found = self.session.run(None, {self.entry: x.detach().numpy()})
        return tensor(chosen(dict(zip(self.exits, found, strict=True)), self.output))

    def _convert(self, onnx: Any, proto: Any) -> None:
        self.graph: Callable[[Tensor], Tensor] = lambda x: x
        missing = sorted({node.op_type for node in proto.graph.node} - OPERATORS.keys())
        reason = f"its operators {', '.join(missing)} are not known here" if missing else None
        if reason is None and self.shape is not None:
            single = Graph(onnx, proto, self.entry, self.exits, self.output)
            x = torch.rand(3, *self.shape, generator=torch.Generator().manual_seed(0))
            reason = "its results in torch differ from those of onnxruntime"
            for graph in (single, _row_by_row(single)):
                try:
                    z, exact = graph(x), self.infer(x)
                    if z.shape == exact.shape and (
                        z - exact
                    ).abs().max() <= TOLERANCE * exact.abs().max().clamp_min(1):
                        self.graph, reason = graph, None
                        break
                except Exception as error:  # noqa: BLE001  # whatever a foreign graph leads torch to
                    reason = f"its graph fails in torch: {_first(error)}"
        if reason is not None:
            self.access, self.approximate = Access.SCORES, False
            self.remarks = (("no_gradients", f"The ONNX graph gives scores alone: {reason}."),)


def _first(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


def _without_activation(
    onnx: Any, proto: Any, exits: list[str], output: str | int | None
) -> tuple[str | None, bool]:
    """Take the last softmax or sigmoid out of a graph: which one it was, and whether the graph ends
    in a linear layer.

    A softmax over another axis than that of the classes stays.
    """
    makers = {name: node for node in proto.graph.node for name in node.output}
    only = exits[0] if len(exits) == 1 else "logits"
    wanted = only if output is None else str(output)
    node = makers.get(wanted)
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
        before = [makers[name].op_type for name in node.input if name in makers]
        return None, bool({"MatMul", "Gemm", "Conv"} & set(before))
    axis = next((a.i for a in node.attribute if a.name == "axis"), -1)
    if node.op_type not in ("Softmax", "Sigmoid") or (
        node.op_type == "Softmax" and axis not in (-1, 1)
    ):
        return None, node.op_type in ("Gemm", "MatMul", "Conv")
    if (
        node.op_type == "Softmax"
        and wanted not in node.output
        and not _over_classes(onnx, proto, node, axis)
    ):
        return None, False
    kind, node.op_type = node.op_type.lower(), "Identity"
    del node.attribute[:]
    return kind, False


def _over_classes(onnx: Any, proto: Any, node: Any, axis: int) -> bool:
    """Whether the axis of a softmax is the only one, beside that of the rows, that is longer than
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


def is_onnx(model: Any) -> bool:
    """Whether a live model is a ModelProto of onnx or an InferenceSession of onnxruntime."""
    return type(model).__name__ in ("ModelProto", "InferenceSession") and type(
        model
    ).__module__.startswith("onnx")


def _content(model: Any) -> tuple[bytes, Path | None]:
    """The bytes of a model, and its file where it has one."""
    path: Any = model if isinstance(model, Path) else getattr(model, "_model_path", None)
    if path is not None:
        return Path(path).read_bytes(), Path(path)
    content = getattr(model, "_model_bytes", None)
    serialize: Any = getattr(model, "SerializeToString", None)
    if content is None and serialize is None:
        raise InputError(
            "the InferenceSession does not say what it was made of; pass the path of its .onnx "
            "file."
        )
    return (serialize() if content is None else content), None


def _session(
    runtime: Any, proto: Any, entry: str, sides: list[int], path: object, opened: Path | bytes
) -> tuple[Any, int | None]:
    """A session, and the rows that it must be given at once (None: any number)."""
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    where = ["CPUExecutionProvider"]
    try:
        session = runtime.InferenceSession(opened, options, providers=where)
    except Exception as error:  # onnxruntime's own family
        raise InputError(f"onnxruntime cannot open {path}: {_first(error)}.") from error
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


# ---------------------------------------------------------------- operators: (inputs in order, attributes by name)


def _padded(x: Tensor, window: list[int], o: Mapping[str, Any], fill: float = 0.0) -> Tensor:
    """x with the explicit or automatic padding of a convolution or a pool."""
    n, auto = len(window), o.get("auto_pad", "NOTSET")
    pads = list(o.get("pads", [0] * 2 * n))
    if auto.startswith("SAME"):
        strides, sizes = o.get("strides", [1] * n), x.shape[2:]
        need_ = [
            max((-(-s // t) - 1) * t + w - s, 0)
            for s, t, w in zip(sizes, strides, window, strict=True)
        ]
        less, more = [p // 2 for p in need_], [p - p // 2 for p in need_]
        pads = less + more if auto == "SAME_UPPER" else more + less
    if o.get("ceil_mode") and fill != 0.0:
        strides = o.get("strides", [1] * n)
        for i, (s, t, w) in enumerate(zip(x.shape[2:], strides, window, strict=True)):
            pads[n + i] += -(s + pads[i] + pads[n + i] - w) % t
    if not any(pads):
        return x
    return F.pad(
        x, [side for i in reversed(range(n)) for side in (pads[i], pads[n + i])], value=fill
    )


def _conv(x: Tensor, w: Tensor, b: Tensor | None = None, **o: Any) -> Tensor:
    n = w.ndim - 2
    dilations = o.get("dilations", [1] * n)
    x = _padded(x, [(k - 1) * d + 1 for k, d in zip(w.shape[2:], dilations, strict=True)], o)
    call = (F.conv1d, F.conv2d, F.conv3d)[n - 1]
    return call(x, w, b, o.get("strides", [1] * n), 0, dilations, o.get("group", 1))


def _conv_transpose(x: Tensor, w: Tensor, b: Tensor | None = None, **o: Any) -> Tensor:
    n = w.ndim - 2
    pads = o.get("pads", [0] * 2 * n)
    if o.get("auto_pad", "NOTSET") != "NOTSET" or pads[:n] != pads[n:] or "output_shape" in o:
        raise ValueError("ConvTranspose with automatic or uneven padding")
    call = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[n - 1]
    strides, extra = o.get("strides", [1] * n), o.get("output_padding", [0] * n)
    return call(x, w, b, strides, pads[:n], extra, o.get("group", 1), o.get("dilations", [1] * n))


def _max_pool(x: Tensor, **o: Any) -> Tensor:
    window = o["kernel_shape"]
    n = len(window)
    x = _padded(x, window, o, -torch.inf)
    call = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[n - 1]
    return call(x, window, o.get("strides", [1] * n), 0, o.get("dilations", [1] * n))


def _average_pool(x: Tensor, **o: Any) -> Tensor:
    window = o["kernel_shape"]
    n, strides = len(window), o.get("strides", [1] * len(window))
    if o.get("ceil_mode"):
        raise ValueError("AveragePool with ceil_mode")
    call = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[n - 1]
    mean = call(_padded(x, window, o), window, strides)
    if o.get("count_include_pad"):
        return mean
    return mean / call(_padded(torch.ones_like(x), window, o), window, strides)


def _gemm(a: Tensor, b: Tensor, c: Tensor | None = None, **o: Any) -> Tensor:
    a, b = a.T if o.get("transA") else a, b.T if o.get("transB") else b
    z = o.get("alpha", 1.0) * (a @ b)
    return z if c is None else z + o.get("beta", 1.0) * c


def _batch_norm(x: Tensor, scale: Tensor, b: Tensor, mean: Tensor, var: Tensor, **o: Any) -> Tensor:
    return F.batch_norm(x, mean, var, scale, b, False, 0.0, o.get("epsilon", 1e-5))


def _layer_norm(x: Tensor, scale: Tensor, b: Tensor | None = None, **o: Any) -> Tensor:
    axis = o.get("axis", -1) % x.ndim
    return F.layer_norm(x, x.shape[axis:], scale, b, o.get("epsilon", 1e-5))


def _reshape(x: Tensor, shape: Tensor, **o: Any) -> Tensor:
    sides = [
        x.shape[i] if s == 0 and not o.get("allowzero") else s for i, s in enumerate(_ints(shape))
    ]
    return x.reshape(sides)


def _flatten(x: Tensor, axis: int = 1) -> Tensor:
    return x.reshape(int(np.prod(x.shape[:axis])), -1) if axis != 1 else x.flatten(1)


def _ints(t: Tensor | list[int]) -> list[int]:
    return [int(v) for v in (t.tolist() if isinstance(t, Tensor) else t)]


def _axes(given: Tensor | None, o: Mapping[str, Any]) -> list[int] | None:
    axes = given if given is not None else o.get("axes")
    return None if axes is None else _ints(axes)


def _squeeze(x: Tensor, axes: Tensor | None = None, **o: Any) -> Tensor:
    found = _axes(axes, o)
    return x.squeeze() if found is None else x.squeeze(tuple(found))


def _unsqueeze(x: Tensor, axes: Tensor | None = None, **o: Any) -> Tensor:
    found = _axes(axes, o) or []
    rank = x.ndim + len(found)
    for axis in sorted(a % rank for a in found):
        x = x.unsqueeze(axis)
    return x


def _reduce(call: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def reduce(x: Tensor, axes: Tensor | None = None, **o: Any) -> Tensor:
        found = _axes(axes, o)
        if found is None and o.get("noop_with_empty_axes"):
            return x
        return call(
            x,
            dim=tuple(range(x.ndim) if found is None else found),
            keepdim=bool(o.get("keepdims", 1)),
        )

    return reduce


def _slice(x: Tensor, *given: Tensor | None, **o: Any) -> Tensor:
    starts, ends, axes, steps = (*given, None, None, None, None)[:4]
    first = _ints(o["starts"] if starts is None else starts)
    last = _ints(o["ends"] if ends is None else ends)
    where = _axes(axes, o) or list(range(len(first)))
    by = _ints(steps) if steps is not None else [1] * len(first)
    for a, b, axis, step in zip(first, last, where, by, strict=True):
        picked = range(x.shape[axis])[
            slice(a, None if step < 0 and b < -x.shape[axis] else b, step)
        ]
        x = x.index_select(axis, torch.tensor(list(picked), dtype=torch.int64, device=x.device))
    return x


def _gather(x: Tensor, at: Tensor, axis: int = 0) -> Tensor:
    at = torch.where(at < 0, at + x.shape[axis], at).long()
    picked = x.index_select(axis, at.flatten())
    return picked.reshape([*x.shape[: axis % x.ndim], *at.shape, *x.shape[axis % x.ndim + 1 :]])


def _split(x: Tensor, sizes: Tensor | None = None, **o: Any) -> tuple[Tensor, ...]:
    axis, given = o.get("axis", 0), sizes if sizes is not None else o.get("split")
    if given is None:
        raise ValueError("Split without sizes")
    return x.split(_ints(given), axis)


def _pad(
    x: Tensor, pads: Tensor | None = None, value: Tensor | None = None, *_: Any, **o: Any
) -> Tensor:
    sides = _ints(o["pads"] if pads is None else pads)
    n = len(sides) // 2
    flat = [side for i in reversed(range(n)) for side in (sides[i], sides[n + i])]
    mode = o.get("mode", "constant")
    fill = float(value) if value is not None else o.get("value", 0.0)
    if mode == "constant":
        return F.pad(x, flat, value=fill)
    while len(flat) > 2 and flat[-2:] == [0, 0] and len(flat) > 2 * (x.ndim - 2):
        flat = flat[:-2]
    return F.pad(x, flat, mode={"reflect": "reflect", "edge": "replicate"}[mode])


def _clip(x: Tensor, low: Tensor | None = None, high: Tensor | None = None, **o: Any) -> Tensor:
    low = o.get("min") if low is None else low  # pyright: ignore[reportAssignmentType]
    high = o.get("max") if high is None else high  # pyright: ignore[reportAssignmentType]
    return x if low is None and high is None else x.clamp(low, high)


def _resize(x: Tensor, *given: Tensor | None, **o: Any) -> Tensor:
    _, scales, sizes = (*given, None, None, None)[:3]
    to = _ints(sizes)[2:] if sizes is not None else None
    if to is None:
        assert scales is not None
        to = [int(s * k) for s, k in zip(x.shape[2:], scales.tolist()[2:], strict=True)]
    mode, how = o.get("mode", "nearest"), o.get("coordinate_transformation_mode", "half_pixel")
    if mode == "nearest" and how == "asymmetric" and o.get("nearest_mode") == "floor":
        return F.interpolate(x, to, mode="nearest")
    if (
        mode == "linear"
        and x.ndim == 4
        and how in ("half_pixel", "pytorch_half_pixel", "align_corners")
    ):
        return F.interpolate(x, to, mode="bilinear", align_corners=how == "align_corners")
    raise ValueError(f"Resize in mode {mode}, {how}")


def _cast(x: Tensor, to: int, **_: Any) -> Tensor:
    kinds = {
        1: torch.float32,
        6: torch.int32,
        7: torch.int64,
        9: torch.bool,
        10: torch.float16,
        11: torch.float64,
    }
    return x.to(kinds[to])


def _softmax(call: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda x, axis=-1: call(x, axis)


def _of_many(call: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    def fold(first: Tensor, *more: Tensor) -> Tensor:
        for other in more:
            first = call(first, other)
        return first

    return fold


def _hard_sigmoid(x: Tensor, alpha: float = 0.2, beta: float = 0.5) -> Tensor:
    return (alpha * x + beta).clamp(0, 1)


OPERATORS: dict[str, Callable[..., Any]] = {
    "Abs": torch.abs,
    "Add": torch.add,
    "ArgMax": lambda x, axis=0, keepdims=1, **_: x.argmax(axis, bool(keepdims)),
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "Cast": _cast,
    "Clip": _clip,
    "Concat": lambda *parts, axis: torch.cat(parts, axis),
    "Constant": lambda: None,
    "ConstantOfShape": lambda shape, value=0.0: torch.full(_ints(shape), value),
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Div": lambda a, b: (
        torch.div(a, b) if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")
    ),
    "Dropout": lambda x, *_, **__: x,
    "Elu": lambda x, alpha=1.0: F.elu(x, alpha),
    "Equal": torch.eq,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Expand": lambda x, shape: x * torch.ones(_ints(shape), dtype=x.dtype, device=x.device),
    "Flatten": _flatten,
    "Floor": torch.floor,
    "Gather": _gather,
    "Gelu": lambda x, approximate="none": F.gelu(x, approximate=approximate),
    "Gemm": _gemm,
    "GlobalAveragePool": lambda x: x.mean(tuple(range(2, x.ndim)), keepdim=True),
    "GlobalMaxPool": lambda x: x.amax(tuple(range(2, x.ndim)), keepdim=True),
    "Greater": torch.gt,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": lambda x: x * _hard_sigmoid(x, 1 / 6),
    "Identity": lambda x: x,
    "LayerNormalization": _layer_norm,
    "LeakyRelu": lambda x, alpha=0.01: F.leaky_relu(x, alpha),
    "Less": torch.lt,
    "Log": torch.log,
    "LogSoftmax": _softmax(F.log_softmax),
    "MatMul": torch.matmul,
    "Max": _of_many(torch.maximum),
    "MaxPool": _max_pool,
    "Min": _of_many(torch.minimum),
    "Mul": torch.mul,
    "Neg": torch.neg,
    "PRelu": lambda x, slope: torch.where(x < 0, slope * x, x),
    "Pad": _pad,
    "Pow": torch.pow,
    "Reciprocal": torch.reciprocal,
    "ReduceMax": _reduce(torch.amax),
    "ReduceMean": _reduce(torch.mean),
    "ReduceMin": _reduce(torch.amin),
    "ReduceSum": _reduce(torch.sum),
    "Relu": torch.relu,
    "Reshape": _reshape,
    "Resize": _resize,
    "Round": torch.round,
    "Selu": lambda x, **o: F.selu(x) if not o else o["gamma"] * F.elu(x, o["alpha"]),
    "Shape": lambda x, start=0, end=None: torch.tensor(list(x.shape[start:end])),
    "Sigmoid": torch.sigmoid,
    "Sign": torch.sign,
    "Slice": _slice,
    "Softmax": _softmax(F.softmax),
    "Softplus": F.softplus,
    "Split": _split,
    "Sqrt": torch.sqrt,
    "Squeeze": _squeeze,
    "Sub": torch.sub,
    "Sum": _of_many(torch.add),
    "Tanh": torch.tanh,
    "Tile": lambda x, times: x.repeat(_ints(times)),
    "Transpose": lambda x, perm=None: x.permute(perm or list(reversed(range(x.ndim)))),
    "Unsqueeze": _unsqueeze,
    "Where": torch.where,
}
