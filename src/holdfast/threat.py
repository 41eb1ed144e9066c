"""What the adversary may do: a norm, a size, a mask and a goal. The box is the target's bounds."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from holdfast import spec
from holdfast.errors import InputError, SpecError
from holdfast.norms import NORMS, Norm, Scaled
from holdfast.tensors import as_tensor

ArrayLike = Any  # a tensor, a NumPy array, a list or a Series


@dataclass(frozen=True)
class Untargeted:
    """Any wrong decision is a success."""


@dataclass(frozen=True)
class Targeted:
    """Only class `t` is a success: one class for all rows, or one a row ([n])."""

    t: int | Tensor  # or an array, list or Series

    def __post_init__(self) -> None:
        if not isinstance(self.t, (int, float, str, Tensor)):  # which a threat refuses with its own name
            aims = as_tensor(self.t, "a target")
            if aims.is_floating_point() or aims.dtype == torch.bool:
                raise SpecError(f"a target holds {aims.dtype} values, but a class is a whole number.")
            object.__setattr__(self, "t", int(aims) if aims.ndim == 0 else aims.long())


@dataclass(frozen=True, eq=False)
class Threat:
    """All that an adversary may do to one input.

    eps is in raw input units, the same as the bounds of the target: one number, or one a row ([n]); `inf` asks for
    the smallest perturbation. `mask` ([*shape] of bool) names the features that may change; None: all. In Linf eps may
    count in units of each feature's own: `Threat.linf(1.0, scale=sizes)`, with sizes [*shape]. What is one a row or one
    a feature is a tensor, or a NumPy array, list or Series, which becomes one.

    Raises:
        SpecError: eps is negative, zero or not a number, the norm is unknown, or an array holds what is no number.
    """

    norm: Norm
    eps: float | Tensor
    goal: Untargeted | Targeted = Untargeted()
    mask: Tensor | None = None

    def __post_init__(self) -> None:
        if self.mask is not None:
            object.__setattr__(self, "mask", as_tensor(self.mask, "a mask").bool())
        if not isinstance(self.eps, (int, float, Tensor, str)) and self.eps is not None:
            eps = as_tensor(self.eps, "eps")
            object.__setattr__(self, "eps", float(eps) if eps.ndim == 0 else eps)
        aim = self.goal.t if isinstance(self.goal, Targeted) else 0
        if not isinstance(aim, Tensor) and (isinstance(aim, bool) or not isinstance(aim, int)):
            raise SpecError(f"the target of a {self.norm} threat is {aim!r}, but a class is a whole number.")
        sizes = self.eps.flatten().tolist() if isinstance(self.eps, Tensor) else [self.eps]
        for eps in sizes:
            if not isinstance(eps, (int, float)) or isinstance(eps, bool) or not eps > 0:
                raise SpecError(
                    f"eps is {eps!r} in a {self.norm} threat, but a perturbation needs a size above 0, "
                    f"in raw input units (for example linf(8/255))."
                )

    @staticmethod
    def parse(text: str) -> Threat:
        """A threat from text such as `linf(8/255)`, `l2(0.5)`, `linf(0.3, target=7)`."""
        return spec.build(text, {name: _maker(norm) for name, norm in NORMS.items()}, "norm")

    @staticmethod
    def linf(eps: float | ArrayLike, *, scale: ArrayLike | None = None, **options: object) -> Threat:
        """Each feature changes by at most eps, or eps times its own `scale` ([*shape], 0: not at all)."""
        threat = Threat(NORMS["linf"], eps, **options)  # pyright: ignore[reportArgumentType]
        return threat.limited(scale=scale)

    @staticmethod
    def l2(eps: float | ArrayLike, **options: object) -> Threat:
        return Threat(NORMS["l2"], eps, **options)  # pyright: ignore[reportArgumentType]

    @staticmethod
    def l1(eps: float | ArrayLike, **options: object) -> Threat:
        return Threat(NORMS["l1"], eps, **options)  # pyright: ignore[reportArgumentType]

    @staticmethod
    def l0(eps: float | ArrayLike, **options: object) -> Threat:
        """At most eps features change, each by any amount within the box."""
        return Threat(NORMS["l0"], eps, **options)  # pyright: ignore[reportArgumentType]

    def limited(self, *, scale: ArrayLike | None = None, mask: ArrayLike | None = None) -> Threat:
        """This threat with a scale or a mask, [*shape] each; in place of its own mask.

        Raises:
            SpecError: the norm is not Linf, or the scale holds what is no size.
        """
        mask = self.mask if mask is None else as_tensor(mask, "a mask").bool()
        if scale is None:
            return replace(self, mask=mask)
        scale = as_tensor(scale, "a scale")
        if self.norm.name != "linf":
            raise SpecError(
                f"a scale gives each feature an eps of its own, which means something in linf, not in {self}."
            )
        if not bool((scale.isfinite() & (scale >= 0)).all()) or not bool((scale > 0).any()):
            raise SpecError("a scale holds a finite number of at least 0 for each feature, and not 0 for all.")
        if not bool((scale > 0).all()):
            mask = (scale > 0) if mask is None else mask & (scale > 0)
        return replace(self, norm=Scaled(torch.where(scale > 0, scale, 1)), mask=mask)

    @property
    def limits(self) -> dict[str, Tensor]:
        """What of it is said for each feature: `scale` and `mask`."""
        scale = self.norm.scale if isinstance(self.norm, Scaled) else None
        return {name: part.cpu() for name, part in (("scale", scale), ("mask", self.mask)) if part is not None}

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Refuse a scale or a mask of another shape than the input's, and a mask that lets nothing change."""
        if self.mask is not None and not bool(self.mask.any()):
            raise SpecError("the mask lets no feature change; it is true where one may.")
        for name, part in self.limits.items():
            if tuple(part.shape) != tuple(shape):
                raise SpecError(
                    f"the {name} has shape {tuple(part.shape)}, but an input that may change is {tuple(shape)}."
                )

    def at(self, eps: float) -> Threat:
        return replace(self, eps=eps)

    def check_classes(self, k: int) -> None:
        """Refuse a goal that a model of k classes does not have."""
        if isinstance(self.goal, Targeted):
            aims = torch.as_tensor(self.goal.t)
            if int(aims.min()) < 0 or int(aims.max()) >= k:
                wrong = int(aims.min()) if int(aims.min()) < 0 else int(aims.max())
                raise SpecError(f"the goal is class {wrong}, but the model knows 0 to {k - 1}.")

    def check_box(self, low: float, high: float, shape: tuple[int, ...]) -> None:
        """Refuse an eps that reaches past the whole box: the adversary could then show any input at all."""
        widest = float(self.norm.size(torch.full((1, *shape), high - low)))
        top = float(torch.as_tensor(self.eps).max())
        if widest < top < math.inf:
            raise InputError(
                f"eps {spec.number(top)} is larger than the whole box: no two inputs within the bounds "
                f"[{low:g}, {high:g}] are more than {widest:g} apart in {self.norm}. Is eps in 0-255 units, and are "
                f"the bounds?"
            )

    def __repr__(self) -> str:
        eps = f"[{self.eps.numel()} sizes]" if isinstance(self.eps, Tensor) else spec.number(float(self.eps))
        goal = ""
        if isinstance(self.goal, Targeted):
            t = self.goal.t
            goal = f", target={'[one a row]' if isinstance(t, Tensor) else t}"
        digest = hashlib.sha256(b"".join(np.float64(part).tobytes() for part in self.limits.values()))
        limits = f", limits={digest.hexdigest()[:8]}" if self.limits else ""
        return f"{self.norm}({eps}{goal}{limits})"


def _maker(norm: Norm) -> Callable[..., Threat]:
    def make(eps: float, target: int | None = None) -> Threat:
        return Threat(norm, eps, Untargeted() if target is None else Targeted(target))

    return make
