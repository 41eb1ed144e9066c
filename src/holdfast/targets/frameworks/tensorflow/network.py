"""A TensorFlow function as torch functions, for proofs: its graph, one operation after the other.

What does not depend on the input is computed by TensorFlow. An operation that is not here is
refused by its name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import Proxy, symbolic_trace
from torch.nn import functional as F

from holdfast.errors import InputError
from holdfast.targets.adapter import need
from holdfast.targets.frameworks.pytorch import layers


def network(graph: Any) -> Callable[[Tensor], Tensor]:
    """A concrete function of one tensor [1, *shape], its weights constants, as a module of torch.

    Raises:
        InputError: an operation is not known here, or rounds as bounds do not expect.
    """
    tf = need("tensorflow", "tensorflow", "a TensorFlow model")
    if tf.config.list_physical_devices("GPU"):
        raise InputError(
            "not supported: proofs of a TensorFlow model on a GPU, whose rounding is not bounded "
            "here; set CUDA_VISIBLE_DEVICES to nothing."
        )
    return symbolic_trace(lambda x: _run(tf, graph, x))


def _run(tf: Any, graph: Any, x: Proxy) -> Any:
    """What a graph gives for its input."""
    varying: dict[str, Any] = {graph.inputs[0].name: x}

    def known(t: Any) -> Any:
        """A tensor that does not depend on the values of the input, as an array."""
        value = tf.get_static_value(t)
        return np.asarray(graph.prune([], t)() if value is None else value)

    def value(t: Any) -> Any:
        if t.name in varying:
            return varying[t.name]
        array = known(t)
        return torch.from_numpy(array.copy()) if array.ndim else array.item()

    for step in _needed(graph.outputs[0]):
        if step.type == "IdentityN":  # of a function with a gradient of its own, such as silu
            pairs = zip(step.inputs, step.outputs, strict=True)
            varying |= {made.name: varying[t.name] for t, made in pairs if t.name in varying}
        elif step.type != "Shape" and any(t.name in varying for t in step.inputs):
            if step.type not in _OPERATIONS:
                raise InputError(f"not supported: operation {step.type} of TensorFlow.")
            made = step.outputs[0]
            if made.dtype not in (tf.float32, tf.float64):
                name = made.dtype.name
                raise InputError(f"not supported: operation {step.type} of TensorFlow to {name}.")
            varying[made.name] = _OPERATIONS[step.type](_Step(step, value, known))
    return varying[graph.outputs[0].name]


def _needed(result: Any) -> list[Any]:
    """The operations that a tensor depends on, in their order."""
    required, open_ = set(), [result.op]
    while open_:
        step = open_.pop()
        if step not in required:
            required.add(step)
            open_ += [t.op for t in step.inputs]
    return [step for step in result.graph.get_operations() if step in required]


class _Step:
    """An operation of a graph: what it is given, and how it is set."""

    def __init__(self, step: Any, value: Callable[[Any], Any], known: Any) -> None:
        self.step, self.value, self._known = step, value, known
        self.shape, self.made = (tuple(t.shape) for t in (step.inputs[0], step.outputs[0]))

    def __getitem__(self, i: int) -> Any:
        """An argument: a proxy, a tensor, or one number."""
        return self.value(self.step.inputs[i])

    def known(self, i: int) -> list[int]:
        """An argument of whole numbers, such as axes."""
        return np.atleast_1d(self._known(self.step.inputs[i])).tolist()

    def set(self, name: str) -> Any:
        return self.step.get_attr(name)

    @property
    def last(self) -> bool:
        """Whether the channels come last."""
        return self.set("data_format") == b"NHWC"

    def pads(self, window: Sequence[int], strides: Sequence[int]) -> layers.Pads:
        """Padding of each axis."""
        kind = self.set("padding")
        if kind == b"SAME":
            return layers.same(self.shape, window, strides)
        flat = list(self.set("explicit_paddings")) if kind == b"EXPLICIT" else [0] * 8
        return list(zip(flat[::2], flat[1::2], strict=True))


def _conv(o: _Step) -> Any:
    w = o[1]
    if not isinstance(w, Tensor):
        raise InputError("not supported: a convolution by weights that depend on the input.")
    order = [0, 3, 1, 2] if o.last else [0, 1, 2, 3]
    strides, gaps = ([o.set(name)[i] for i in order[2:]] for name in ("strides", "dilations"))
    groups = o.shape[order[1]] // w.shape[2]
    if o.step.type == "DepthwiseConv2dNative":
        groups = w.shape[2]
        w = w.reshape(*w.shape[:2], 1, -1)
    window, each = [1] * 4, [1] * 4
    for place, size, gap, step in zip(order[2:], w.shape, gaps, strides, strict=False):
        window[place], each[place] = (size - 1) * gap + 1, step
    pads = o.pads(window, each)
    x = layers.permuted(o[0], order)
    w = w.permute(3, 2, 0, 1)
    z = layers.convolved(x, w, strides, [pads[i] for i in order[2:]], gaps, groups)
    return layers.permuted(z, np.argsort(order).tolist())


def _pool(largest: bool) -> Callable[[_Step], Any]:
    def pool(o: _Step) -> Any:
        window, strides = list(o.set("ksize")), list(o.set("strides"))
        pads = o.pads(window, strides)
        z = layers.pooled(o[0], o.shape, window, strides, pads, largest=largest)
        if largest:
            return z
        ones = torch.ones(o.shape)
        return z / layers.pooled(ones, o.shape, window, strides, pads, largest=False)

    return pool


def _reduced(call: Callable[[Any, list[int]], Any]) -> Callable[[_Step], Any]:
    return lambda o: call(o[0], o.known(1)).reshape(o.made)


def _max(o: _Step) -> Any:
    axes = [axis % len(o.shape) for axis in o.known(1)]
    window = [side if i in axes else 1 for i, side in enumerate(o.shape)]
    still = [1] * len(window)
    pads = [(0, 0)] * len(window)
    return layers.pooled(o[0], o.shape, window, still, pads, largest=True).reshape(o.made)


def _norm(o: _Step) -> Any:
    if o.set("is_training"):
        raise InputError("not supported: batch normalisation by the statistics of the batch.")
    order = [0, 3, 1, 2] if o.last else [0, 1, 2, 3]
    scale, shift, mean, var = (o[i] for i in (1, 2, 3, 4))
    x, epsilon = layers.permuted(o[0], order), float(o.set("epsilon"))
    z = F.batch_norm(x, mean, var, scale, shift, training=False, eps=epsilon)
    return layers.permuted(z, np.argsort(order).tolist())


def _product(o: _Step) -> Any:
    turns = (
        [o.set(n) for n in ("transpose_a", "transpose_b")]
        if o.step.type == "MatMul"
        else [o.set(n) for n in ("adj_x", "adj_y")]
    )
    a, b = (o[i].mT if turn else o[i] for i, turn in enumerate(turns))
    return torch.matmul(a, b)


def _bias(o: _Step) -> Any:
    first = not o.last and len(o.shape) > 2
    return torch.add(o[0], o[1].reshape([-1, *[1] * (len(o.shape) - 2)]) if first else o[1])


def _pad(o: _Step) -> Any:
    flat = np.asarray(o.known(1)).reshape(-1, 2)[::-1].ravel().tolist()
    return F.pad(o[0], flat, value=float(o[2]) if o.step.type == "PadV2" else 0.0)


def _both(call: Callable[[Any, Any], Any]) -> Callable[[_Step], Any]:
    return lambda o: call(o[0], o[1])


def _extreme(call: Callable[[Any, Any], Any]) -> Callable[[_Step], Any]:
    return lambda o: call(o[0], o[1]) if isinstance(o[0], Proxy) else call(o[1], o[0])


def _joined(o: _Step) -> Any:
    *parts, axis = range(len(o.step.inputs))
    return torch.cat([o[i] for i in parts], o.known(axis)[0])


def _clipped(o: _Step) -> Any:
    return torch.clamp_max(torch.clamp_min(o[0], o[1]), o[2])


def _enlarged(o: _Step) -> Any:
    """Images of which each pixel is repeated as often along an axis."""
    times = [made // side for made, side in zip(o.made, o.shape, strict=True)]
    whole = [n * t for n, t in zip(o.shape, times, strict=True)] == list(o.made)
    if o.set("align_corners") or not whole:
        raise InputError("not supported: nearest neighbours of images not enlarged whole times.")
    return o[0].repeat_interleave(times[1], 1).repeat_interleave(times[2], 2)


def _reshaped(o: _Step) -> Any:
    return o[0].reshape(o.made)


_OPERATIONS: dict[str, Callable[[_Step], Any]] = {
    "Identity": lambda o: o[0],
    "StopGradient": lambda o: o[0],
    "Cast": lambda o: o[0],
    "MatMul": _product,
    "BatchMatMulV2": _product,
    "BiasAdd": _bias,
    "Conv2D": _conv,
    "DepthwiseConv2dNative": _conv,
    "FusedBatchNormV3": _norm,
    "Relu": lambda o: torch.relu(o[0]),
    "Relu6": lambda o: F.relu6(o[0]),
    "Elu": lambda o: F.elu(o[0]),
    "Selu": lambda o: F.selu(o[0]),
    "Softplus": lambda o: F.softplus(o[0]),
    "Abs": lambda o: torch.abs(o[0]),
    "Square": lambda o: torch.square(o[0]),
    "Pow": lambda o: torch.pow(o[0], o[1]),
    "Erf": lambda o: torch.erf(o[0]),
    "Erfc": lambda o: 1 - torch.erf(o[0]),
    "ClipByValue": _clipped,
    "ResizeNearestNeighbor": _enlarged,
    "Tile": lambda o: o[0].repeat(*o.known(1)),
    "LeakyRelu": lambda o: F.leaky_relu(o[0], o.set("alpha")),
    "Sigmoid": lambda o: torch.sigmoid(o[0]),
    "Tanh": lambda o: torch.tanh(o[0]),
    "MaxPool": _pool(largest=True),
    "AvgPool": _pool(largest=False),
    "Mean": _reduced(lambda x, axes: x.mean(axes)),
    "Sum": _reduced(lambda x, axes: x.sum(axes)),
    "Max": _max,
    "Reshape": _reshaped,
    "Squeeze": _reshaped,
    "ExpandDims": _reshaped,
    "Transpose": lambda o: layers.permuted(o[0], o.known(1)),
    "ConcatV2": _joined,
    "Pad": _pad,
    "PadV2": _pad,
    "Neg": lambda o: -o[0],
    "AddV2": _both(torch.add),
    "Add": _both(torch.add),
    "Sub": _both(torch.sub),
    "Mul": _both(torch.mul),
    "RealDiv": _both(torch.div),
    "Maximum": _extreme(torch.clamp_min),
    "Minimum": _extreme(torch.clamp_max),
}
