"""The activation at the end of a torch model: the logits before it, read while the model runs.

A softmax or a sigmoid rounds large logits to exactly 0 and 1, where no gradient is left and no loss
can be computed. So the input of the last one is read, wherever it stands: in a layer, a nested
module, a function, an exported program.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from holdfast.targets.head import LINEAR, LOG_SOFTMAX, SIGMOID, SOFTMAX

_EXP, _TOTAL, _ONE_MORE = "exp", "sum of exp", "1 + exp"  # parts of a formula of the user's own

_SOFTMAXES = {
    "softmax": SOFTMAX,
    "_softmax": SOFTMAX,
    "special_softmax": SOFTMAX,
    "log_softmax": LOG_SOFTMAX,
    "_log_softmax": LOG_SOFTMAX,
    "special_log_softmax": LOG_SOFTMAX,
}
_SIGMOIDS = {"sigmoid", "special_expit"}
_LINEARS = {
    "linear",
    "addmm",
    "mm",
    "matmul",
    "__matmul__",
    "conv1d",
    "conv2d",
    "conv3d",
    "convolution",
}
_AFFINE = {
    "add",
    "__add__",
    "__radd__",
    "sub",
    "__sub__",
    "__rsub__",
    "rsub",
    "mul",
    "__mul__",
    "__rmul__",
    "div",
} | {
    "__truediv__",
    "neg",
    "__neg__",
    "batch_norm",
    "mean",
    "sum",
    "adaptive_avg_pool2d",
}
_SHAPES = {
    "reshape",
    "view",
    "_unsafe_view",
    "flatten",
    "squeeze",
    "unsqueeze",
    "permute",
    "transpose",
    "movedim",
} | {
    "contiguous",
    "clone",
    "alias",
    "detach",
    "float",
    "double",
    "to",
    "type",
    "_to_copy",
    "cpu",
}
_LIMITS = {"clamp", "clip", "clamp_min"}
_INVERSES = {"__rdiv__", "__rtruediv__"}
_PARTS = {"__getitem__", "select", "narrow", "slice"}
# classes up to which a part of a softmax is turned into log-odds: that needs k x k numbers a row
_MOST = 64


@dataclass(frozen=True)
class Before:
    """What a tensor is made of: `kind` of the logits, in the tensor's own shape. `version`: not
    changed in place."""

    kind: str
    logits: Tensor | None  # None where there is no activation
    version: int


class Reading(TorchFunctionMode):
    """While it is active, tensors that come out of a softmax or a sigmoid remember the logits: see
    `before`."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if not args and "input" in kwargs:  # torch.softmax(input=z, dim=1)
            args = (kwargs.pop("input"),)
        out = func(*args, **kwargs)
        if isinstance(out, Tensor) and args and out.is_floating_point():
            # of an exported program: softmax.int
            name = getattr(func, "__name__", "").partition(".")[0]
            made = _made(name, func, args, kwargs, out)
            if made is not None:
                known = Before(*made, _version(out))
                out.before = known  # pyright: ignore[reportAttributeAccessIssue]
        return out


def before(out: Any) -> Before | None:
    """What a tensor that was computed under `Reading` is made of, where that is known."""
    found = getattr(out, "before", None)
    if isinstance(found, Before) and found.version == _version(out):
        return found
    return None


def logits_of(out: Tensor) -> Tensor:
    """The logits before the activation that gave `out` under `Reading`; `out` itself where none is
    known."""
    found = before(out)
    if found is None or found.logits is None:
        return out
    return found.logits


def _version(out: Tensor) -> int:
    """How often a tensor was changed in place; inference mode does not count."""
    return 0 if out.is_inference() else out._version


def applied(kind: str, z: Tensor) -> Tensor:
    """The activation of this kind of logits [n, k]."""
    if kind == SIGMOID:
        return z.sigmoid()
    return {SOFTMAX: torch.softmax, LOG_SOFTMAX: torch.log_softmax}[kind](z, -1)


def ending(out: Tensor) -> str | None:
    """How a model ends that gave `out` [n] or [n, k] under `Reading`; None where that cannot be
    seen."""
    found = before(out)
    if found is None or found.kind in (_EXP, _TOTAL, _ONE_MORE):
        return None
    z = found.logits
    if z is None:
        return LINEAR
    narrow = z.ndim != 2 or z.shape[1] < 2
    if (narrow and found.kind != SIGMOID) or not gives(found.kind, z, out):
        return None
    return found.kind


def gives(kind: str, z: Tensor, out: Tensor) -> bool:
    """Whether the activation of this kind of logits z [n, k] is `out`, but for rounding."""
    if z.shape != out.shape:
        return False
    loose = 1e-2 if torch.finfo(out.dtype).bits < 32 or torch.finfo(z.dtype).bits < 32 else 1e-4
    return bool(
        (applied(kind, z.double()) - out.double()).nan_to_num(0, 0, 0).abs().amax() <= loose
    )


class Bare:
    """A model that gives the logits itself. Its answers remember them as those under `Reading`
    do."""

    def __init__(self, kind: str, model: Callable[[Tensor], Tensor]) -> None:
        self.kind, self.model = kind, model

    def __call__(self, x: Tensor) -> Tensor:
        z = self.model(x)
        out = z.view_as(z)
        known = Before(self.kind, z, out._version)
        out.before = known  # pyright: ignore[reportAttributeAccessIssue]
        return out


def scripted(model: Any) -> Bare | None:
    """A copy of a TorchScript program without its last activation; None where that is not seen."""
    if not isinstance(model, torch.jit.ScriptModule):
        return None
    kinds = {f"aten::{kind}": kind for kind in (SOFTMAX, SIGMOID, LOG_SOFTMAX)}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # torch advises to export instead
            bare = torch.jit.freeze(model, optimize_numerics=False)
        node = next(bare.graph.outputs()).node()
        while node.kind().removeprefix("aten::") in _SHAPES:
            node = next(node.inputs()).node()
        if node.kind() not in kinds:
            return None
        node.output().replaceAllUsesWith(next(node.inputs()))
    except (RuntimeError, StopIteration):
        return None
    return Bare(kinds[node.kind()], bare)


def traced(model: nn.Module, kind: str) -> nn.Module | None:
    """A copy of a module without its last activation, of this kind, as torch.fx traces it; None
    where it cannot."""
    from torch.fx import symbolic_trace

    try:
        bare = symbolic_trace(model)
    except Exception:  # noqa: BLE001  # whatever a trace of a user's code may raise
        return None
    node = next(n for n in bare.graph.nodes if n.op == "output").args[0]
    while (
        getattr(node, "op", None) in ("call_method", "call_function")
        and _fx_name(bare, node) in _SHAPES
    ):
        node = _fx_source(node)
    if not hasattr(node, "op") or _fx_name(bare, node).replace("_", "") != kind.replace("_", ""):
        return None
    node.replace_all_uses_with(_fx_source(node))
    bare.graph.erase_node(node)
    bare.recompile()
    return bare


def _fx_source(node: Any) -> Any:
    """What a step is given."""
    return (*node.args, node.kwargs.get("input"))[0]


def _fx_name(graph: Any, node: Any) -> str:
    if node.op == "call_module":
        return type(graph.get_submodule(node.target)).__name__.lower()
    return str(getattr(node.target, "__name__", node.target))


def _made(
    name: str, func: Any, args: Any, kwargs: Any, out: Tensor
) -> tuple[str, Tensor | None] | None:
    """Kind and logits of what this call gives."""
    if name in _SOFTMAXES and _over_classes(*args, **kwargs):
        return _SOFTMAXES[name], args[0]
    if name in _SIGMOIDS and _is_head(args[0]):
        return SIGMOID, args[0]
    if name in _LINEARS:
        return LINEAR, None
    if name in ("cat", "stack"):
        return _together(func, args, kwargs)
    found = before(args[0])
    own = _of_formula(name, found, args)
    if own is not None:
        return own
    if name in _AFFINE and any((b := before(a)) is not None and b.kind == LINEAR for a in args[:2]):
        return LINEAR, None
    reshapes = name in _SHAPES or name in _PARTS
    if found is None or (found.logits is None and not reshapes):
        return None
    if found.logits is None:
        return LINEAR, None
    if name in _PARTS and out.numel() != found.logits.numel() and found.kind != SIGMOID:
        found = _odds(found)
    if found is None or found.logits is None:
        return None
    if reshapes:
        return found.kind, func(found.logits, *args[1:], **kwargs)
    if name in _LIMITS and found.kind in (SOFTMAX, SIGMOID) and _at_the_ends(*args[1:], **kwargs):
        return found.kind, found.logits
    if name in ("rsub", "__rsub__") and found.kind == SIGMOID and args[1:] in ((1,), (1.0,)):
        return SIGMOID, -found.logits
    return (LOG_SOFTMAX, found.logits) if name == "log" and found.kind == SOFTMAX else None


def _at_the_ends(min: Any = None, max: Any = None) -> bool:
    """Whether limits of probabilities only keep them from 0 and 1, which changes no decision."""
    return (min is None or (isinstance(min, (int, float)) and min <= 1e-4)) and (
        max is None or (isinstance(max, (int, float)) and max >= 1 - 1e-4)
    )


def _over_classes(z: Tensor, dim: Any = None, *_: Any, **__: Any) -> bool:
    """Whether a softmax called with these arguments is one of rows [n, k]."""
    if dim is None and z.ndim == 2:
        dim = 1  # as torch takes it
    return isinstance(dim, int) and z.ndim > 1 and dim % z.ndim > 0 and _is_head(z)


def _of_formula(name: str, found: Before | None, args: Any) -> tuple[str, Tensor] | None:
    """The steps of exp(z) / sum(exp(z)) and of 1 / (1 + exp(-z)). Whether that is what they are,
    `ending` tries."""
    if name == "exp" and _is_head(args[0]):
        return _EXP, args[0]
    if found is None or found.logits is None:
        return None
    if found.kind == _EXP and name == "sum":
        return _TOTAL, found.logits
    if found.kind == _EXP and name in ("add", "__add__", "__radd__") and args[1:] in ((1,), (1.0,)):
        return _ONE_MORE, found.logits
    if found.kind == _ONE_MORE and (
        name == "reciprocal" or (name in _INVERSES and args[1:] in ((1,), (1.0,)))
    ):
        return SIGMOID, -found.logits
    if (
        found.kind == _EXP
        and name in ("div", "__truediv__")
        and (total := before(args[1])) is not None
        and total.kind == _TOTAL
        and total.logits is found.logits
    ):
        return SOFTMAX, found.logits
    return None


def _is_head(z: Tensor) -> bool:
    """Whether a tensor is [n, k] up to axes of one: attention and gates inside a model need not be
    remembered."""
    return sum(side != 1 for side in z.shape[1:]) <= 1


def _together(func: Any, args: Any, kwargs: Any) -> tuple[str, Tensor] | None:
    """Several sigmoids side by side, such as 1 - p and p."""
    parts = [before(part) for part in args[0]]
    found = [part.logits for part in parts if part is not None and part.kind == SIGMOID]
    return (
        (SIGMOID, func(found, *args[1:], **kwargs)) if found and len(found) == len(parts) else None
    )


def _odds(found: Before) -> Before | None:
    """A softmax of logits [n, k] as the sigmoid of each class's log-odds against all others
    together."""
    z = found.logits
    if z is None or found.kind != SOFTMAX or z.ndim != 2 or z.shape[1] > _MOST:
        return None
    own = torch.eye(z.shape[1], dtype=torch.bool, device=z.device)
    return Before(SIGMOID, z - z[:, None].masked_fill(own, -torch.inf).logsumexp(2), found.version)
