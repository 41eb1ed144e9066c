"""A JAX function as torch functions, for proofs: its jaxpr, one operator after the other.

What does not depend on the input is computed by JAX. An operator that is not here is refused by its
name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.fx import Proxy, symbolic_trace
from torch.nn import functional as F
from torch.utils._pytree import tree_map

from holdfast.errors import InputError
from holdfast.targets.adapter import need
from holdfast.targets.frameworks.pytorch import layers

_CALLS = {"jit": "jaxpr", "pjit": "jaxpr", "closed_call": "call_jaxpr", "core_call": "call_jaxpr"}
_CALLS |= {"custom_jvp_call": "call_jaxpr", "custom_vjp_call": "call_jaxpr", "checkpoint": "jaxpr"}
_CALLS |= {"remat2": "jaxpr", "custom_lin": "jaxpr"}


def network(function: Callable[[Any], Any], example: Tensor) -> Callable[[Tensor], Tensor]:
    """A function of one array [1, *shape], such as `example`, as a module of torch.

    Raises:
        InputError: an operator is not known here, or rounds as bounds do not expect.
    """
    jax = need("jax", "jax", "a JAX function")
    if jax.default_backend() != "cpu":
        raise InputError(
            f"not supported: proofs of a JAX function on {jax.default_backend()}, whose rounding "
            "is not bounded here; set JAX_PLATFORMS=cpu."
        )
    closed = jax.make_jaxpr(function)(example.numpy())
    return symbolic_trace(lambda x: _run(closed.jaxpr, closed.consts, [x])[0])


def _run(jaxpr: Any, consts: Sequence[Any], given: Sequence[Any]) -> list[Any]:
    """What a jaxpr gives for arguments: proxies of tensors, and arrays where they are known."""
    known = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *given), strict=True))

    def value(variable: Any) -> Any:
        return variable.val if hasattr(variable, "val") else known[variable]

    for step in _needed(jaxpr):
        made = _step(step, [value(variable) for variable in step.invars])
        known.update(zip(step.outvars, made, strict=True))
    return [value(variable) for variable in jaxpr.outvars]


def _needed(jaxpr: Any) -> list[Any]:
    """The steps that the results depend on."""
    required, steps = {id(variable) for variable in jaxpr.outvars}, []
    for step in reversed(jaxpr.eqns):
        if any(id(variable) in required for variable in step.outvars):
            required |= {id(variable) for variable in step.invars}
            steps.append(step)
    return steps[::-1]


def _step(step: Any, given: list[Any]) -> list[Any]:
    """The results of one operator."""
    name, params = step.primitive.name, step.params
    if name in _CALLS:
        inner = params[_CALLS[name]]
        if isinstance(given[0], Proxy) and _is_of_jax(step, params.get("name"), inner):
            return [_ACTIVATIONS[params["name"]](*given)]
        return _run(getattr(inner, "jaxpr", inner), getattr(inner, "consts", ()), given)
    if not any(isinstance(part, Proxy | _Above) for part in given):
        made = step.primitive.bind(*given, **params)
        return list(made) if step.primitive.multiple_results else [made]
    if name not in _OPERATORS:
        raise InputError(f"not supported: operator {name} of JAX.")
    shapes = [tuple(variable.aval.shape) for variable in (*step.invars, *step.outvars)]
    odd = [variable.aval.dtype for variable in step.outvars if name not in _COMPARISONS]
    if any(kind not in (np.float32, np.float64) for kind in odd):
        raise InputError(f"not supported: operator {name} of JAX to {odd[0]}.")
    precision = str(params.get("precision"))
    if any(kind in precision for kind in ("F16", "TF32")):
        raise InputError(f"not supported: operator {name} of JAX in {precision}.")
    params = tree_map(lambda part: int(part) if isinstance(part, np.integer) else part, params)
    made = _OPERATORS[name](*map(_tensor, given), shapes=shapes, **params)
    return list(made) if step.primitive.multiple_results else [made]


def _is_of_jax(step: Any, name: str | None, inner: Any) -> bool:
    """Whether a function that is called is the activation of `jax.nn` that it is named after, of a
    value and of numbers: their operators are the same."""
    if name not in _ACTIVATIONS or any(v.aval.shape for v in step.invars[1:]):
        return False
    jax = need("jax", "jax", "a JAX function")
    given = [
        jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype, weak_type=v.aval.weak_type)
        for v in step.invars
    ]
    own = jax.make_jaxpr(getattr(jax.nn, name))(*given).eqns[0].params
    return str(own.get("jaxpr")) == str(inner)


def _tensor(value: Any) -> Any:
    """A known array as a tensor, one number as such."""
    if isinstance(value, Proxy | _Above):
        return value
    array = np.asarray(value)
    return torch.from_numpy(array.copy()) if array.ndim else array.item()


class _Above:
    """Where a value is above 0."""

    def __init__(self, x: Proxy) -> None:
        self.x = x


def _compared(x: Any, limit: Any, **_: Any) -> _Above:
    if not isinstance(x, Proxy) or limit != 0:
        raise InputError("not supported: a comparison of JAX with another number than 0.")
    return _Above(x)


def _select(above: Any, low: Any, high: Any, **_: Any) -> Any:
    """A leaky ReLU: its argument where that is above 0, else a product of it."""
    if isinstance(above, _Above) and isinstance(low, Proxy) and isinstance(high, Proxy):
        x, (call, args) = above.x.node, (low.node.target, low.node.args)
        slopes = [part for part in args if isinstance(part, float)]
        if high.node is x and call is torch.mul and x in args and slopes:
            return F.leaky_relu(cast("Any", high), slopes[0])
    raise InputError("not supported: operator select_n of JAX, but for a leaky ReLU.")


def _extreme(call: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    def chosen(a: Any, b: Any, **_: Any) -> Any:
        return call(*((a, b) if isinstance(a, Proxy) else (b, a)))

    return chosen


def _dot(a: Any, b: Any, *, shapes: Any, dimension_numbers: Any, **_: Any) -> Any:
    (left, right), (left_rows, right_rows) = dimension_numbers
    a_free = [i for i in range(len(shapes[0])) if i not in (*left, *left_rows)]
    b_free = [i for i in range(len(shapes[1])) if i not in (*right, *right_rows)]
    n = [shapes[0][i] for i in left_rows]
    terms = int(np.prod([shapes[0][i] for i in left]))
    a = layers.permuted(a, [*left_rows, *a_free, *left])
    b = layers.permuted(b, [*right_rows, *right, *b_free])
    if len(shapes[0]) == len(shapes[1]) == len(n) + 2 == 2:
        return torch.matmul(a, b)
    made = torch.matmul(a.reshape(*n, -1, terms), b.reshape(*n, terms, -1))
    return made.reshape(shapes[2])


def _conv(x: Any, w: Any, *, shapes: Any, dimension_numbers: Any, **o: Any) -> Any:
    rows, weights, made = dimension_numbers
    if any(side != 1 for side in o["lhs_dilation"]) or o["batch_group_count"] != 1:
        raise InputError("not supported: a transposed convolution of JAX.")
    x, w = layers.permuted(x, rows), layers.permuted(w, weights)
    strides, groups = o["window_strides"], o["feature_group_count"]
    z = layers.convolved(x, w, strides, o["padding"], o["rhs_dilation"], groups)
    return layers.permuted(z, np.argsort(made).tolist())


def _window(largest: bool) -> Callable[..., Any]:
    def pool(x: Any, *, shapes: Any, **o: Any) -> Any:
        if any(side != 1 for side in (*o["base_dilation"], *o["window_dilation"])):
            raise InputError("not supported: windows with gaps of JAX.")
        window, strides = o["window_dimensions"], o["window_strides"]
        return layers.pooled(x, shapes[0], window, strides, o["padding"], largest=largest)

    return pool


def _reduce_max(x: Any, *, shapes: Any, axes: Sequence[int], **_: Any) -> Any:
    window = [side if i in axes else 1 for i, side in enumerate(shapes[0])]
    still = [1] * len(window)
    made = layers.pooled(x, shapes[0], window, still, [(0, 0)] * len(window), largest=True)
    return made.reshape(shapes[1])


def _broadcast(x: Any, *, shapes: Any, shape: Any, broadcast_dimensions: Any, **_: Any) -> Any:
    sides = dict(zip(broadcast_dimensions, shapes[0], strict=True))
    return x.reshape([sides.get(i, 1) for i in range(len(shape))]).expand(shape)


def _slice(x: Any, *, start_indices: Any, limit_indices: Any, strides: Any, **_: Any) -> Any:
    steps = strides or [1] * len(start_indices)
    return x[tuple(map(slice, start_indices, limit_indices, steps))]


def _pad(x: Any, fill: Any, *, padding_config: Any, **_: Any) -> Any:
    if any(inner for _, _, inner in padding_config) or isinstance(fill, Proxy):
        raise InputError("not supported: padding between entries of JAX.")
    flat = [side for low, high, _ in reversed(padding_config) for side in (low, high)]
    return F.pad(x, flat, value=float(fill))


def _reshaped(x: Any, *, shapes: Any, **_: Any) -> Any:
    return x.reshape(shapes[-1])


def _same(x: Any, **_: Any) -> Any:
    return x


_ACTIVATIONS: dict[str, Callable[..., Any]] = {
    "elu": lambda x, alpha=1.0: F.elu(x, float(alpha)),
    "celu": lambda x, alpha=1.0: F.celu(x, float(alpha)),
    "selu": F.selu,
    "softplus": F.softplus,
    "mish": F.mish,
    "log_sigmoid": F.logsigmoid,
    "hard_silu": F.hardswish,
    "hard_tanh": F.hardtanh,
}
_COMPARISONS = dict.fromkeys(("ge", "gt"), _compared)
_OPERATORS: dict[str, Callable[..., Any]] = _COMPARISONS | {
    "add": lambda a, b, **_: torch.add(a, b),
    "add_any": lambda a, b, **_: torch.add(a, b),
    "sub": lambda a, b, **_: torch.sub(a, b),
    "mul": lambda a, b, **_: torch.mul(a, b),
    "div": lambda a, b, **_: torch.div(a, b),
    "neg": lambda x, **_: -x,
    "max": _extreme(torch.clamp_min),
    "min": _extreme(torch.clamp_max),
    "clamp": lambda low, x, high, **_: torch.clamp_max(torch.clamp_min(x, low), high),
    "abs": lambda x, **_: torch.abs(x),
    "square": lambda x, **_: torch.square(x),
    "integer_pow": lambda x, *, y, **_: torch.pow(x, y),
    "erf": lambda x, **_: torch.erf(x),
    "erfc": lambda x, **_: 1 - torch.erf(x),
    "logistic": lambda x, **_: torch.sigmoid(x),
    "tanh": lambda x, **_: torch.tanh(x),
    "select_n": _select,
    "dot_general": _dot,
    "conv_general_dilated": _conv,
    "reduce_window_max": _window(largest=True),
    "reduce_window_sum": _window(largest=False),
    "reduce_max": _reduce_max,
    "reduce_sum": lambda x, *, axes, **_: x.sum(tuple(axes)),
    "broadcast_in_dim": _broadcast,
    "reshape": _reshaped,
    "squeeze": _reshaped,
    "expand_dims": _reshaped,
    "transpose": lambda x, *, permutation, **_: layers.permuted(x, permutation),
    "concatenate": lambda *parts, dimension, **_: torch.cat(parts, dimension),
    "slice": _slice,
    "split": lambda x, *, sizes, axis, **_: torch.split(x, list(sizes), axis),
    "pad": _pad,
    "rev": lambda x, *, dimensions, **_: x.flip(tuple(dimensions)),
    "stop_gradient": _same,
    "copy": _same,
    "convert_element_type": lambda x, *, new_dtype, **_: x,
}
