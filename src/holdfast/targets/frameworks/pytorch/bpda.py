"""Straight through: gradients of a torch model as if its steps were slopes, and which steps it
takes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from holdfast.errors import InputError
from holdfast.norms import wide
from holdfast.targets.adapter import Adapter
from holdfast.targets.batch import Batch, Rows
from holdfast.targets.frameworks.pytorch.gradients import back
from holdfast.targets.frameworks.pytorch.target import TorchTarget
from holdfast.targets.target import Access, GradientInfo, Pullback, Target, sealed
from holdfast.targets.truth import WithTruth
from holdfast.targets.wrappers import Around, ExpectationOverTransformation

_ROUND = {"round", "floor", "ceil", "trunc", "fix"}
_SIGN = {"sign", "sgn", "heaviside"}
_ABOVE = {"gt", "ge", "greater", "greater_equal", "__gt__", "__ge__"}
_BELOW = {"lt", "le", "less", "less_equal", "__lt__", "__le__"}
_CAST = {
    "to",
    "float",
    "double",
    "half",
    "bfloat16",
    "type",
    "type_as",
    "long",
    "int",
    "short",
    "byte",
}
_SELECT = {
    "argmax",
    "argmin",
    "topk",
    "sort",
    "argsort",
    "kthvalue",
    "bucketize",
    "searchsorted",
    "one_hot",
}
_CUT = {"detach", "detach_", "numpy", "tolist"}
_WITHIN = {"grad", "backward"}  # autograd inside the model: what it gives is cut from the graph
_HARD = _ROUND | _SIGN | _ABOVE | _BELOW | _SELECT | _CUT | _WITHIN
_MIXES = {
    "where",
    "mul",
    "__mul__",
    "__rmul__",
    "multiply",
    "cat",
    "stack",
    "sum",
    "mean",
    "matmul",
    "sub",
    "__rsub__",
}
# a lead of the best score over the next, past which a softmax has no gradient worth following
_STEEP = 30.0


class Straightened(Around):
    """A torch model whose gradient goes straight through what has none.

    Backward pass differentiable approximation (Athalye et al. 2018, arXiv:1802.00420), found for
    the model instead of written for it: rounding passes the gradient on as it is, thresholds and
    signs as that of a slope around the step, `detach` and `no_grad` as if they were not there,
    autograd inside the model with a graph of its own, and a softmax that is all zeros and ones as
    that of a flatter one. What it takes for a success is asked of the model itself.

    Raises:
        InputError: the model is not one of torch.
    """

    def __init__(self, inner: Target) -> None:
        if (
            not isinstance(inner, TorchTarget)
            or isinstance(inner.model, Adapter)
            or inner.access < Access.GRADIENTS
        ):
            raise InputError("only a torch model can be differentiated straight through its steps.")
        super().__init__(inner)
        self._flattens = False

    @property
    def gradients(self) -> GradientInfo:
        # of a flatter softmax the order is that of the model, the margins are not
        return replace(self.inner.gradients, approximate=True, substitute=self._flattens)

    def linearize(self, x: Rows) -> tuple[Tensor, Pullback]:
        assert isinstance(self.inner, TorchTarget)
        batch = Batch.of(x)
        with torch.inference_mode(False), torch.enable_grad():
            leaf = batch.x.detach().clone().requires_grad_()
            mode = _BPDAMode(len(leaf))
            with mode:
                z = self.inner.outputs(batch.with_x(leaf))
        self._flattens = mode.flattens
        return z.detach(), lambda cotangent: back(leaf, z, cotangent, again=True)


def with_bpda(target: Target) -> Target | None:
    """A target straight through its steps, also where it is a mean of draws or held to a truth;
    None where that cannot be."""
    if isinstance(target, ExpectationOverTransformation):
        inner = with_bpda(target.inner)
        if inner is None:
            return None
        return ExpectationOverTransformation(inner, target.times)
    if isinstance(target, WithTruth):
        inner = with_bpda(target.inner)
        return None if inner is None else target.around(inner)
    try:
        return Straightened(target)
    except InputError:
        return None


def hard_steps(target: Target, x: Rows) -> list[str]:
    """The functions without a useful gradient that a torch model puts its inputs x [n, *shape]
    through, in order."""
    while isinstance(target, Around):
        target = target.inner
    if not isinstance(target, TorchTarget) or isinstance(target.model, Adapter):
        return []
    batch = Batch.of(x)
    with sealed(0), torch.enable_grad():
        seen = _Seen()
        with seen:
            target.outputs(batch.with_x(batch.x.detach().clone().requires_grad_()))
    return list(dict.fromkeys(seen.names))


class _Seen(TorchFunctionMode):
    """Notes the steps that depend on the input."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        depends = any(t.requires_grad for t in _tensors(args, kwargs))
        out = func(*args, **kwargs)
        if depends and (
            name in _HARD
            or (name in _CAST and isinstance(out, Tensor) and not out.is_floating_point())
        ):
            self.names.append(name.strip("_"))
        elif name.endswith("_like") or name.startswith("new_"):  # which take the shape alone
            return out
        elif (
            depends
            and isinstance(out, Tensor)
            and out.is_floating_point()
            and not out.requires_grad
        ):
            self.names.append("no_grad")
        return out


class _BPDAMode(TorchFunctionMode):
    """Runs a forward pass of n rows with slopes in the place of steps. What a step gives stays what
    it is."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.n = n
        self.flattens = False  # whether a softmax was met whose scores may be made flatter

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        with torch.enable_grad():
            if name in _CUT and name.startswith("detach"):
                return args[0]
            if name == "grad":
                return func(*args, **{**kwargs, "create_graph": True})
            if name in _ROUND and args[0].is_floating_point():
                return _as_if(func(*args, **kwargs), args[0])
            if name in _SIGN:
                return _as_if(func(*args, **kwargs), _slope(args[0], self.n))
            if name in _ABOVE | _BELOW and len(args) > 1:
                gap = (args[0] - args[1]) if name in _ABOVE else (args[1] - args[0])
                return _marked(func(*args, **kwargs), _slope(gap, self.n) / 2)
            if name in _CAST and isinstance(args[0], Tensor) and args[0].requires_grad:
                return _marked(func(*args, **kwargs), args[0])
            if name in _CAST:
                out = func(*args, **kwargs)
                soft = _soft(args[0])
                if soft is None or out.dtype == torch.bool:
                    return out
                return soft.to(out.dtype) if out.is_floating_point() else _marked(out, soft)
            if name in ("logical_not", "bitwise_not", "__invert__") and _soft(args[0]) is not None:
                return _marked(func(*args, **kwargs), -_soft(args[0]))
            if name == "where" and _soft(args[0]) is not None and len(args) == 3:
                return _soft(args[0]) * args[1] + (1 - _soft(args[0])) * args[2]
            if name in _MIXES:
                args = _swapped(args)
            if name in ("softmax", "log_softmax"):
                self.flattens |= args[0].ndim == 2
                args = (_flatter(args[0]), *args[1:])
            return func(*args, **kwargs)


def _tensors(args: Any, kwargs: Any) -> Iterator[Tensor]:
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from (v for v in value if isinstance(v, Tensor))


def _as_if(value: Tensor, slope: Tensor) -> Tensor:
    """A value with the gradient of another."""
    return slope + (value - slope).detach()


def _slope(gap: Tensor, n: int) -> Tensor:
    """What rises from -1 to 1 around a step at 0, half of it within half the mean distance of a row
    of n from the step: so no scale of the inputs, or of a layer, makes it too steep or too flat."""
    unit: Tensor | float = 1.0
    if gap.ndim > 1 and len(gap) == n and gap.is_floating_point():
        unit = wide(gap.detach().abs().flatten(1).mean(1) / 2, gap)
        unit = unit.clamp_min(torch.finfo(gap.dtype).tiny)
    return gap / (unit + gap.abs())


def _marked(step: Any, slope: Tensor) -> Any:
    """A tensor of bool or integers that remembers which numbers it would be if it had a
    gradient; any other as it is."""
    if isinstance(step, Tensor) and slope.requires_grad and not step.is_floating_point():
        soft = _as_if(step.to(slope.dtype), slope)
        step.soft = soft  # pyright: ignore[reportAttributeAccessIssue]
    return step


def _soft(value: Any) -> Any:
    return getattr(value, "soft", None)


def _swapped(args: tuple[Any, ...]) -> tuple[Any, ...]:
    def one(value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return type(value)(one(v) for v in value)
        return getattr(value, "soft", value)

    return tuple(one(value) for value in args)


def _flatter(z: Tensor) -> Tensor:
    """Scores [n, k] whose softmax is not all zeros and ones, in the same order."""
    if z.ndim != 2 or z.shape[1] < 2:
        return z
    top = z.detach().topk(2, 1).values
    return z / ((top[:, :1] - top[:, 1:]) / _STEEP).clamp_min(1)
