"""ONNX operators in torch: inputs in their order, attributes by name."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


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
        pads = {"SAME_UPPER": less + more, "SAME_LOWER": more + less}[auto]
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
    n, pads = len(window), o.get("pads", [])
    call = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[n - 1]
    known = "ceil_mode" not in o and o.get("auto_pad", "NOTSET") == "NOTSET"
    halves = all(2 * side <= size for side, size in zip(pads, window * 2, strict=False))
    if known and pads[:n] == pads[n:] and halves:  # as proofs follow it
        strides, dilations = o.get("strides", [1] * n), o.get("dilations", [1] * n)
        return call(x, window, strides, pads[:n] or 0, dilations)
    x = _padded(x, window, o, -torch.inf)
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


def _layer_norm(x: Tensor, scale: Tensor, b: Tensor | None = None, **o: Any) -> Tensor:
    axis = o.get("axis", -1) % x.ndim
    return F.layer_norm(x, x.shape[axis:], scale, b, o.get("epsilon", 1e-5))


def _reshape(x: Tensor, shape: Tensor, **o: Any) -> Tensor:
    sides = [
        x.shape[i] if s == 0 and not o.get("allowzero") else s for i, s in enumerate(_ints(shape))
    ]
    return x.reshape(sides)


def _ints(t: Tensor | Iterable[int]) -> list[int]:
    return t.tolist() if isinstance(t, Tensor) else list(t)  # a trace would not read its entries


def _given(value: Any, o: Mapping[str, Any], name: str, default: Any = None) -> Any:
    """An input of a node, or the attribute that it was in older versions of its operator."""
    return o.get(name, default) if value is None else value


def _squeeze(x: Tensor, axes: Tensor | None = None, **o: Any) -> Tensor:
    return x.squeeze(tuple(_ints(_given(axes, o, "axes", range(x.ndim)))))


def _unsqueeze(x: Tensor, axes: Tensor | None = None, **o: Any) -> Tensor:
    found = _ints(_given(axes, o, "axes", ()))
    rank = x.ndim + len(found)
    for axis in sorted(a % rank for a in found):
        x = x.unsqueeze(axis)
    return x


def _reduce(call: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def reduce(x: Tensor, axes: Tensor | None = None, **o: Any) -> Tensor:
        found = _ints(_given(axes, o, "axes", ()))
        if not found and o.get("noop_with_empty_axes"):
            return x
        return call(x, dim=tuple(found or range(x.ndim)), keepdim=bool(o.get("keepdims", 1)))

    return reduce


def _slice(x: Tensor, *given: Tensor | None, **o: Any) -> Tensor:
    starts, ends, axes, steps = (*given, None, None, None, None)[:4]
    first, last = _ints(_given(starts, o, "starts")), _ints(_given(ends, o, "ends"))
    where = _ints(_given(axes, o, "axes", range(len(first))))
    by = _ints(_given(steps, o, "steps", [1] * len(first)))
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
    given = _given(sizes, o, "split")
    if given is None:
        raise ValueError("Split without sizes")
    return x.split(_ints(given), o.get("axis", 0))


def _pad(
    x: Tensor, pads: Tensor | None = None, value: Tensor | None = None, *_: Any, **o: Any
) -> Tensor:
    sides = _ints(_given(pads, o, "pads"))
    n = len(sides) // 2
    flat = [side for i in reversed(range(n)) for side in (sides[i], sides[n + i])]
    mode = o.get("mode", "constant")
    if mode == "constant":
        return F.pad(x, flat, value=float(_given(value, o, "value", 0.0)))
    while len(flat) > 2 and flat[-2:] == [0, 0] and len(flat) > 2 * (x.ndim - 2):
        flat = flat[:-2]
    return F.pad(x, flat, mode={"reflect": "reflect", "edge": "replicate"}[mode])


def _clip(x: Tensor, low: Tensor | None = None, high: Tensor | None = None, **o: Any) -> Tensor:
    low, high = _given(low, o, "min"), _given(high, o, "max")
    return x if low is None and high is None else x.clamp(low, high)


def _resize(x: Tensor, *given: Tensor | None, **o: Any) -> Tensor:
    _, scales, sizes = (*given, None, None, None)[:3]
    if sizes is None:
        assert scales is not None
        sizes = [int(s * k) for s, k in zip(x.shape, scales.tolist(), strict=True)]
    to = _ints(sizes)[2:]
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


def _softmax(call: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda x, axis=-1: call(x, axis)


def _of_many(call: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    def fold(first: Tensor, *more: Tensor) -> Tensor:
        for other in more:
            first = call(first, other)
        return first

    return fold


def _prelu(x: Tensor, slope: Tensor) -> Tensor:
    a_channel = slope.ndim > 0 and slope.numel() == slope.shape[0] == x.shape[1] != 1
    if slope.numel() == 1 or (a_channel and slope.ndim == x.ndim - 1):
        return F.prelu(x, slope.flatten())
    return torch.where(x < 0, slope * x, x)


def _hard_sigmoid(x: Tensor, alpha: float = 0.2, beta: float = 0.5) -> Tensor:
    return (alpha * x + beta).clamp(0, 1)


_TYPES = {
    1: torch.float32,
    6: torch.int32,
    7: torch.int64,
    9: torch.bool,
    10: torch.float16,
    11: torch.float64,
}
OPERATORS: dict[str, Callable[..., Any]] = {
    "Abs": torch.abs,
    "Add": torch.add,
    "ArgMax": lambda x, axis=0, keepdims=1, **_: x.argmax(axis, bool(keepdims)),
    "AveragePool": _average_pool,
    "BatchNormalization": lambda x, scale, b, mean, var, epsilon=1e-5, **_: F.batch_norm(
        x, mean, var, scale, b, eps=epsilon
    ),
    "Cast": lambda x, to, **_: x.to(_TYPES[to]),
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
    "Flatten": lambda x, axis=1: x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:])),
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
    "PRelu": _prelu,
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
