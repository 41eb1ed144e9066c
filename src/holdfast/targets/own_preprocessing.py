"""Preprocessing of the user's own: any function or module with a name, with a gradient or without
one."""

from __future__ import annotations

import functools
import hashlib
import inspect
import marshal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from holdfast import usercode
from holdfast.errors import InputError, SpecError
from holdfast.targets.frameworks.pytorch.module import content_of, frozen, state_content
from holdfast.targets.target import Bounds, asking

TAKES = {
    "tensor": "a batch of torch tensors [n, *shape]",
    "image": "one image at a time, as a numpy array of bytes [h, w, c], or [h, w] if it is grey",
    "array": "a batch as one numpy array [n, *shape]",
}
# what a function may read besides its input
_CONSTANTS = (bool, int, float, str, bytes, tuple, list, dict, np.ndarray, Tensor)
Substitute = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Own:
    """A function or module of the user's before the model; make it with `Own.of`.

    How it is called is what `takes` says, or is found once, when the target learns the shape of its
    inputs: a batch of tensors is tried first, then one image, or for other inputs a batch of
    arrays. Inputs are in raw units, images with their channels first, but for `image`, which gets
    bytes [h, w, c]. What it returns is passed on as it is; bytes of an `image` become raw units
    again.

    A function without a gradient is passed straight through (BPDA: Athalye et al. 2018,
    arXiv:1802.00420): forwards it is what it is, backwards a linear map that was fitted to it,
    which mixes and scales the channels of an image as it does, and resizes as it does; of other
    inputs each feature is scaled. Where it changes the shape in another way there is no such map,
    and the model gives scores alone.
    """

    name: str  # file:function
    sha256: str  # of its source and what that holds on to, or of a module's weights
    takes: str = "auto"
    function: Any = field(repr=False, compare=False, kw_only=True)
    box: Bounds = field(default=Bounds(), repr=False, compare=False, kw_only=True)
    straight_through: bool = field(
        default=False, repr=False, compare=False, kw_only=True
    )  # it has no gradient
    substitute: Substitute | None = field(
        default=None, repr=False, compare=False, kw_only=True
    )  # for its gradient

    @staticmethod
    def of(function: Any, takes: str = "auto") -> Own:
        """The step that calls a function or module.

        Raises:
            InputError: it has no name, or cannot be called.
            SpecError: `takes` is none of `auto`, `tensor`, `image` and `array`.
        """
        if takes not in ("auto", *TAKES):
            raise SpecError(f"takes is {takes!r}; it is auto, {', '.join(TAKES)}.")
        if not callable(function) or isinstance(function, type):
            kind = function.__name__ if isinstance(function, type) else type(function).__name__
            raise InputError(
                f"preprocess holds {kind}, which is no function, module or known step; give an "
                "instance."
            )
        name = _name(function)
        digest = hashlib.sha256()
        for part in _content(function):
            digest.update(part)
        if isinstance(function, nn.Module):
            function = frozen(function, None)
        return Own(name, digest.hexdigest()[:16], takes, function=function)

    @property
    def remark(self) -> tuple[str, str]:
        """What a report says of it: check, text."""
        gradient_note = "Its own gradient was followed."
        if self.straight_through:
            gradient_note = (
                "It has no gradient: the gradient of a linear map fitted to it was used (BPDA, "
                "arXiv:1802.00420)."
            )
        if not self.differentiable:
            gradient_note = (
                "It has no gradient and changes the shape of its inputs, so the model gives scores "
                "alone."
            )
        return (
            "preprocess",
            f"{self.name} comes before the model and is called with {TAKES[self.takes]}. "
            f"{gradient_note}",
        )

    @property
    def differentiable(self) -> bool:
        return not self.straight_through or self.substitute is not None

    def __call__(self, x: Tensor) -> Tensor:
        """What the model sees of inputs x [n, *shape]."""
        with asking(f"the preprocessing {self.name}"):
            if self.straight_through:
                return _BPDA.apply(x, self)
            return self.plainly(x)

    def plainly(self, x: Tensor) -> Tensor:
        """What the function gives, with its own gradient if it has one.

        Raises:
            InputError: it is no array with a row for each of x.
        """
        if self.takes == "tensor":
            y = self.function(x.clone())
        elif self.takes == "array":
            y = self.function(x.detach().cpu().numpy().copy())
        else:
            y = np.stack([self._image(row) for row in x.detach().cpu()])
        if isinstance(y, (np.ndarray, np.generic)):
            y = torch.from_numpy(np.array(y)).to(x.device, x.dtype)
        if not isinstance(y, Tensor) or y.shape[:1] != x.shape[:1]:
            shape = f" of shape {list(y.shape)}" if isinstance(y, Tensor) else ""
            raise InputError(
                f"the preprocessing {self.name} gives a {type(y).__name__}{shape} for {len(x)} "
                "inputs."
            )
        return y

    def _image(self, row: Tensor) -> np.ndarray:
        """One image [c, h, w] through a function of bytes, its channels first again."""
        low, width = self.box.low, self.box.high - self.box.low
        levels = (
            ((row.double() - low) / width * 255)
            .round()
            .clamp(0, 255)
            .to(torch.uint8)
            .movedim(0, -1)
            .numpy()
        )
        y = np.asarray(self.function((levels[..., 0] if levels.shape[-1] == 1 else levels).copy()))
        y = y[None] if y.ndim == 2 else np.moveaxis(y, -1, 0)
        return y.astype(np.float64) / 255 * width + low if y.dtype == np.uint8 else y

    def bound(self, x: Tensor, box: Bounds, *, raw: bool) -> Own:
        """This step, knowing how it is called and differentiated; found by calling it on inputs x
        [n, *shape].

        `raw` says that x is what the bounds speak of, and no step before has changed its range.

        Raises:
            InputError: it can be called in no way.
        """
        if isinstance(self.function, nn.Module):
            self.function.to(x.device)
        pictures = x.ndim == 4 and x.shape[1] in (1, 3, 4) and raw
        kinds = [self.takes]
        if self.takes == "auto":
            kinds = ["tensor", {True: "image", False: "array"}[pictures]]
        if self.takes == "image" and not pictures:
            raise InputError(
                f"{self.name} takes images of bytes: it comes first, and images have 1, 3 or 4 "
                "channels."
            )
        failed: list[str] = []
        for kind in kinds:
            step = replace(self, takes=kind, box=box)
            for straight_through in {"tensor": (False, True)}.get(kind, (True,)):
                try:
                    with asking(f"the preprocessing {self.name}", learning=True):
                        found = step._tried(x, straight_through=straight_through)
                except Exception as error:  # noqa: BLE001 - it may raise anything
                    failed += [
                        f"with {TAKES[kind]}: "
                        f"{(str(error).strip() or type(error).__name__).splitlines()[0]}"
                    ]
                    continue
                if found is not None:
                    return found
        raise InputError(
            f"the preprocessing {self.name} fails {'; '.join(dict.fromkeys(failed))}. Say what it "
            "takes (tensor, image or array): "
            "--preprocess \"own('file.py:function', takes='image')\" (in Python: Own.of(function, "
            "takes='image'))."
        )

    def _tried(self, x: Tensor, *, straight_through: bool) -> Own | None:
        """This step with or without a gradient of its own; None where it has none and should."""
        with torch.inference_mode(False), torch.set_grad_enabled(not straight_through):
            y = self.plainly(x.detach().requires_grad_(not straight_through))
        if straight_through:
            return replace(self, straight_through=True, substitute=_fitted(x.detach(), y.detach()))
        return self if y.requires_grad else None


def own(function: str, takes: str = "auto") -> Own:
    """The step of the function that `path/file.py:function` or `package.module:function` names."""
    found = usercode.find(function)
    if isinstance(found, type):
        found = usercode.call(function, found)
    return Own.of(found, takes)


class _BPDA(torch.autograd.Function):
    """The function's values, with the gradient of its substitute."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, step: Own) -> Tensor:
        ctx.step, ctx.like = step, x.detach()
        # what watches a forward pass cannot follow it here
        with torch._C.DisableTorchFunction(), torch.no_grad():
            return step.plainly(x.detach())

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor, None]:
        if ctx.step.substitute is None:
            return torch.zeros_like(ctx.like), None
        again = torch.is_grad_enabled()
        with torch.enable_grad():
            leaf = torch.zeros_like(ctx.like).requires_grad_()
            pulled = (ctx.step.substitute(leaf) * cotangents[0]).sum()
            return torch.autograd.grad(pulled, leaf, create_graph=again)[0], None


@dataclass(frozen=True)
class _Channels:
    """Images resized to h x w, their channels mixed by weights [c', c]."""

    weights: Tensor
    size: tuple[int, int]

    def __call__(self, x: Tensor) -> Tensor:
        return torch.einsum("oc,nchw->nohw", self.weights.to(x), _resized(x, self.size))


@dataclass(frozen=True)
class _Features:
    """Each feature scaled by its own slope [*shape]."""

    slopes: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return x * self.slopes.to(x)


def _resized(x: Tensor, size: tuple[int, int]) -> Tensor:
    return (
        x
        if x.shape[2:] == size
        else F.interpolate(x, size, mode="bilinear", antialias=True, align_corners=False)
    )


def _fitted(x: Tensor, y: Tensor) -> Substitute | None:
    """The map nearest to what gives y [n, ...] for x [n, ...] of the possible substitutes; None:
    none has that form."""
    x, y = x.double().cpu(), y.double().cpu()
    if not bool(y.isfinite().all()):
        return None
    if x.ndim == y.ndim == 4:
        size = (y.shape[2], y.shape[3])
        rows, target = (part.movedim(1, -1).flatten(0, 2) for part in (_resized(x, size), y))
        # [c, c']
        solved = torch.linalg.lstsq(rows - rows.mean(0), target - target.mean(0)).solution
        return _Channels(solved.T.contiguous(), size) if bool(solved.any()) else None
    if x.shape != y.shape:
        return None
    off = x - x.mean(0)
    slopes = (off * (y - y.mean(0))).sum(0) / off.square().sum(0).clamp_min(1e-300)
    return _Features(slopes)


def _name(function: Any) -> str:
    """file:function, the same however the file was imported."""
    inner = function
    while isinstance(inner, functools.partial):
        inner = inner.func
    inner = inspect.unwrap(inner)
    code = getattr(inner, "__code__", None)
    named = inner if hasattr(inner, "__qualname__") else type(inner)
    if "<lambda>" in named.__qualname__:
        raise InputError(
            "preprocess holds a lambda, which has no name that the manifest could hold; define it "
            "with def, in a file."
        )
    file = Path(code.co_filename).stem if code is not None else usercode.stem(named.__module__)
    return f"{file}:{named.__qualname__.replace('<locals>.', '')}"


def _content(function: Any) -> Iterator[Any]:
    """All that decides what a function gives, as far as it can be read, in bytes."""
    if isinstance(function, nn.Module):
        yield from content_of(function)
        return
    if isinstance(function, functools.partial):
        yield from state_content("arguments", [function.args, function.keywords])
        yield from _content(function.func)
        return
    inner = inspect.unwrap(function)
    yield from state_content("self", getattr(inner, "__self__", None))
    code = getattr(inner, "__code__", None)
    try:
        yield inspect.getsource(inner if code is not None else type(inner)).encode()
    except (OSError, TypeError):  # typed at a prompt, or compiled
        yield type(inner).__qualname__.encode() if code is None else marshal.dumps(code)
    if code is None:
        yield from state_content("object", inner)
        return
    values = {name: inner.__globals__.get(name) for name in code.co_names}
    yield from state_content(
        "constants", {n: v for n, v in values.items() if isinstance(v, _CONSTANTS)}
    )
    cells = getattr(inner, "__closure__", None) or ()
    yield from state_content("closure", [cell.cell_contents for cell in cells])
    yield from state_content(
        "defaults", [getattr(inner, "__defaults__", None), getattr(inner, "__kwdefaults__", None)]
    )
