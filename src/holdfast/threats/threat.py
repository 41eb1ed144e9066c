"""What the adversary may do: a norm, a size, a mask and a goal. The box is the target's bounds."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from holdfast import spec
from holdfast.errors import InputError, SpecError
from holdfast.norms import NORMS, Linf, Norm
from holdfast.tensors import as_tensor
from holdfast.threats.spatial import Spatial
from holdfast.threats.table.schema import Schema

ArrayLike = Any  # a tensor, a NumPy array, a list or a Series

RULES = ("least-likely", "random")  # by which each row gets a class of its own to reach
GRIDS = ("", "8bit")


@dataclass(frozen=True)
class Untargeted:
    """Any wrong decision is a success."""


@dataclass(frozen=True)
class Targeted:
    """Only class `t` is a success: one class for all rows, or one a row ([n]).

    Or a rule that gives each row its own, which `evaluate` and `attack` follow: "least-likely", the
    class to which the model gives the lowest score on the clean input, or "random", drawn by the
    row's identity and the seed. Both leave out the true class.
    """

    t: int | str | Tensor  # or an array, list or Series

    def __post_init__(self) -> None:
        # a number that is no class is refused by the threat, by its name
        if isinstance(self.t, (int, float, str)):
            return
        aims = as_tensor(self.t, "a target")
        if aims.ndim > 1 or aims.is_floating_point() or aims.dtype == torch.bool:
            raise SpecError(
                f"the target has shape {tuple(aims.shape)} and type {aims.dtype}; expected one "
                f"whole number, or one a row."
            )
        object.__setattr__(self, "t", int(aims) if aims.ndim == 0 else aims.long())


@dataclass(frozen=True, eq=False)
class Threat:
    """All that an adversary may do to one input.

    eps is in raw input units, the same as the bounds of the target: one number, or one a row ([n]);
    `inf` asks for the smallest perturbation. `mask` ([*shape] of bool) names the features that may
    change; None: all. In Linf eps may count in units of each feature's own: `Threat.linf(1.0,
    scale=sizes)`, with sizes [*shape]. What is one a row or one a feature is a tensor, or a NumPy
    array, list or Series, which becomes one.

    With a `schema` inputs are rows of a table: sizes count in the units of its features, and only
    rows that it calls legal are adversarial. The search then moves in these units, and what it
    proposes is repaired before the model is asked.

    Raises:
        SpecError: eps is negative, zero or not a number, the norm is unknown, or an array holds
            what is no number.
    """

    norm: Norm
    eps: float | Tensor
    goal: Untargeted | Targeted = Untargeted()
    mask: Tensor | None = None
    grid: str = ""  # "8bit": only images that a file of 8 bits holds are legal
    spatial: Spatial | None = None  # how parameters change an image; None: d adds to the input
    schema: Schema | None = None  # what the rows of a table may be; None: anything in the box

    def __post_init__(self) -> None:
        if not isinstance(self.norm, Norm):
            raise SpecError(
                f"the norm of a threat is {self.norm!r}; expected a Norm, which "
                "Threat.parse('linf(0.1)') or Threat.linf(0.1) makes."
            )
        if not isinstance(self.schema, Schema | None):
            raise SpecError(
                f"the schema of a threat is {self.schema!r:.60}; expected a Schema, which "
                "Schema.load('schema.toml') makes."
            )
        _check_target(getattr(self.goal, "t", 0), self.norm)
        if self.grid not in GRIDS:
            raise SpecError(
                f"the grid of a {self.norm} threat is {self.grid!r}; it is 8bit, or left out."
            )
        if self.schema is not None and (self.grid or self.spatial is not None):
            raise SpecError(
                "a schema is of tables, and a grid or a movement of images; a threat has one of "
                "them."
            )
        if self.mask is not None:
            object.__setattr__(self, "mask", as_tensor(self.mask, "a mask").bool())
        if not isinstance(self.eps, (int, float, Tensor, str)) and self.eps is not None:
            eps = as_tensor(self.eps, "eps")
            object.__setattr__(self, "eps", float(eps) if eps.ndim == 0 else eps)
        sizes = self.eps.flatten().tolist() if isinstance(self.eps, Tensor) else [self.eps]
        for eps in sizes:
            if not isinstance(eps, (int, float)) or isinstance(eps, bool) or not eps > 0:
                raise SpecError(
                    f"eps is {eps!r} in a {self.norm} threat, but a perturbation needs a size "
                    f"above 0, in raw input units (for example linf(8/255))."
                )

    @staticmethod
    def parse(text: str) -> Threat:
        """A threat from text such as `linf(8/255)`, `l2(0.5)`, `linf(0.3, target=7)`."""
        makers = {name: _maker(norm) for name, norm in NORMS.items()}
        meant = _meant(text)
        try:
            name = spec.call(text, "norm")[0].lower()
        except SpecError as error:
            raise SpecError(f"{error} {meant}".rstrip()) from None
        if name not in makers and meant:
            raise SpecError(f"cannot read {text!r} as a threat. {meant}")
        return spec.build(text, makers, "norm")

    @staticmethod
    def linf(
        eps: float | ArrayLike,
        *,
        scale: ArrayLike | None = None,
        target: Any = None,
        **options: Any,
    ) -> Threat:
        """Each feature changes by at most eps, or eps times its own `scale` ([*shape], 0: not at
        all).

        Of all norms: `target` is a class to reach, one a row ([n], of any framework),
        "least-likely" or "random"; None: any wrong one.
        """
        return _threat("linf", eps, target, options).limited(scale=scale)

    @staticmethod
    def l2(eps: float | ArrayLike, *, target: Any = None, **options: Any) -> Threat:
        """An input moves by at most eps in Euclidean length; `target` as in `linf`."""
        return _threat("l2", eps, target, options)

    @staticmethod
    def l1(eps: float | ArrayLike, *, target: Any = None, **options: Any) -> Threat:
        """The changes add up to at most eps; `target` as in `linf`."""
        return _threat("l1", eps, target, options)

    @staticmethod
    def l0(
        eps: float | ArrayLike, *, group: str = "", target: Any = None, **options: Any
    ) -> Threat:
        """At most eps features change, each by any amount within the box; `target` as in `linf`.

        With group="pixel" the channels of a pixel count as one, as in one-pixel attacks.
        """
        threat = _threat("l0", eps, target, options)
        return replace(threat, norm=threat.norm.grouped(group))

    def limited(self, *, scale: ArrayLike | None = None, mask: ArrayLike | None = None) -> Threat:
        """This threat with a scale or a mask, [*shape] each; in place of its own mask.

        Raises:
            SpecError: the norm is not Linf, or the scale holds what is no size.
        """
        mask = self.mask if mask is None else as_tensor(mask, "a mask").bool()
        if scale is None:
            return replace(self, mask=mask)
        scale = as_tensor(scale, "a scale")
        if not self.norm.boxed:
            raise SpecError(
                "a scale gives each feature an eps of its own, which means something in linf, not "
                f"in {self}."
            )
        if not bool((scale.isfinite() & (scale >= 0)).all()) or not bool((scale > 0).any()):
            raise SpecError(
                "a scale holds a finite number of at least 0 for each feature, and not 0 for all."
            )
        if not bool((scale > 0).all()):
            mask = (scale > 0) if mask is None else mask & (scale > 0)
        return replace(self, norm=Linf(torch.where(scale > 0, scale, 1)), mask=mask)

    @property
    def limits(self) -> dict[str, Tensor]:
        """What of it is said for each feature: `scale` and `mask`."""
        parts = {"scale": getattr(self.norm, "scale", None), "mask": self.mask}
        return {name: part.cpu() for name, part in parts.items() if part is not None}

    @property
    def bounded(self) -> bool:
        """Whether eps is finite; else the smallest perturbation is asked for."""
        return bool(torch.as_tensor(self.eps).isfinite().all())

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Refuse a scale or a mask of another shape than the input's, and a mask that lets nothing
        change."""
        if self.mask is not None and not bool(self.mask.any()):
            raise SpecError("the mask lets no feature change; it is true where one may.")
        if self.norm.group and len(shape) != 3:
            raise SpecError(
                f"{self} counts the {self.norm.group}s of images with channels, but an input that "
                f"may change is {tuple(shape)}; leave out group, and every value counts."
            )
        if self.schema is not None:
            self._check_columns(shape)
        for name, part in self.limits.items():
            if tuple(part.shape) != tuple(shape):
                raise SpecError(
                    f"the {name} has shape {tuple(part.shape)}, but an input that may change is "
                    f"{tuple(shape)}."
                )

    def _check_columns(self, shape: tuple[int, ...]) -> None:
        assert self.schema is not None
        if tuple(shape) != (len(self.schema.names),):
            raise SpecError(
                f"the schema names {len(self.schema.names)} columns, but an input that may change "
                f"is {tuple(shape)}."
            )

    def in_layout(self, layout: str) -> Threat:
        """This threat to inputs in this layout, `nchw` or `nhwc`."""
        return replace(self, norm=self.norm.in_layout(layout))

    @property
    def additive(self) -> bool:
        """Whether d is what is added to the input itself, in its own units."""
        return self.spatial is None and self.schema is None

    def origin(self, x: Tensor) -> Tensor:
        """The points at which inputs x [n, *shape] are unchanged, from which a search moves by d:
        x itself; parameters [n, *form] of a spatial threat; or a table's rows in the units of their
        features, float64."""
        if self.schema is not None:
            return x.double() / self.schema.unit.to(x.device)
        return x if self.spatial is None else self.spatial.origin(x)

    def apply(self, x: Tensor, point: Tensor) -> Tensor:
        """What the model sees of inputs x [n, *shape] at points `origin(x) + d`: [n, *shape].

        The sum itself; or, under a spatial threat, the images as these parameters change them; or
        rows in the units of the table.
        """
        if self.schema is not None:
            return (point * self.schema.unit.to(x.device)).to(x.dtype)
        return point if self.spatial is None else self.spatial.apply(x, point)

    def pullback(self, x: Tensor, point: Tensor, g: Tensor) -> Tensor:
        """A gradient [n, *shape] on what the model sees as one on these points.

        Through the repair of a table it goes straight, as if that changed nothing but the features
        that formulas determine (BPDA: Athalye et al. 2018, arXiv:1802.00420).
        """
        if self.schema is not None:
            return self.schema.gradient(self.apply(x, point), g) * self.schema.unit.to(g.device)
        return g if self.spatial is None else self.spatial.pullback(x, point, g)

    def located(self, x: Tensor, shown: Tensor) -> Tensor:
        """The points at which the model sees `shown` of inputs x, of a threat that has no
        transform."""
        if self.schema is not None:
            return self.origin(shown)
        return shown

    def sides(self, x: Tensor, bounds: Any) -> tuple[Any, Any]:
        """The lowest and the highest point of inputs x, to broadcast against [n, *form]: those of
        the bounds, or how far each feature of a row may go."""
        if self.schema is None:
            return bounds.sides(x)
        start, unit = self.origin(x), self.schema.unit.to(x.device)
        low, high = (side / unit for side in self.schema.limits(x))
        still = self.schema.determined  # they follow the others
        low[:, still] = high[:, still] = start[:, still]
        return low, high

    def repaired(self, x: Tensor, point: Tensor, eps: Tensor) -> Tensor:
        """Points of legal rows near these points of a table's rows x, of a size of at most eps
        [n], or that of the point itself where it is larger; `origin(x)` where there is none."""
        assert self.schema is not None
        start, unit = self.origin(x), self.schema.unit.to(x.device)
        limit = torch.maximum(eps.double() * (1 + 1e-6), self.norm.size(point - start))
        return self.located(x, self.schema.repaired(x, point * unit, self.norm.size, limit))

    def drafted(self, x: Tensor, point: Tensor, eps: Tensor) -> Tensor:
        """Points near these points of a table's rows x whose derived features follow from the
        others, at little cost: see `repaired`, which makes them legal."""
        assert self.schema is not None
        unit = self.schema.unit.to(x.device)
        return self.located(x, self.schema.drafted(x, point * unit, self.norm.size, eps.double()))

    def accepts(self, x: Tensor) -> Tensor:
        """Which inputs x [n, *shape] a search may start from: all but rows that break the schema
        themselves; [n] bool."""
        if self.schema is None:
            return torch.ones(len(x), dtype=torch.bool, device=x.device)
        return self.schema.legal(x, x)

    def form(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of one d for inputs of this shape."""
        return shape if self.spatial is None else self.spatial.form

    def legal_eps(
        self, shape: tuple[int, ...], ulp: float | Tensor, eps: float | Tensor | None = None
    ) -> Tensor:
        """The largest size that counts as within eps (default: its own), in float64: eps and one
        part in a million, plus what an error of `ulp` in every feature of an input of this shape
        adds."""
        eps = torch.as_tensor(self.eps if eps is None else eps, dtype=torch.float64)
        if self.schema is not None:
            ulp = 0.0  # sizes are those of the rows as they are stored
        return eps * (1 + 1e-6) + self.norm.rounding(math.prod(self.form(shape)), ulp)

    def at(self, eps: float) -> Threat:
        return replace(self, eps=eps)

    def of_eps(self, at: Tensor) -> Threat:
        """This threat with the eps of rows `at`, where it is one a row."""
        if isinstance(self.eps, Tensor):
            return replace(self, eps=self.eps[at.to(self.eps.device)])
        return self

    def of_rows(self, at: Tensor) -> Threat:
        """This threat for rows `at` alone, where eps or goal are one a row."""
        goal = self.goal
        if isinstance(goal, Targeted) and isinstance(goal.t, Tensor):
            goal = Targeted(goal.t[at.to(goal.t.device)])
        return replace(self.of_eps(at), goal=goal)

    def towards(self, target: Any) -> Threat:
        """This threat with another goal: see `linf`."""
        return replace(self, goal=_goal(target))

    def check_classes(self, k: int) -> None:
        """Refuse a goal that a model of k classes does not have."""
        if isinstance(self.goal, Targeted) and not isinstance(self.goal.t, str):
            aims = torch.as_tensor(self.goal.t)
            wrong = [t for t in (int(aims.min()), int(aims.max())) if not 0 <= t < k]
            if wrong:
                raise SpecError(f"the goal is class {wrong[0]}, but the model knows 0 to {k - 1}.")

    def check_grid(self, bounds: Any, *, moves: bool) -> None:
        """Refuse a grid where inputs have none: bounds of each feature's own, or no image
        (`moves`)."""
        if self.grid and (moves or bounds.each is not None):
            what = "what may change is no image" if moves else "each feature has bounds of its own"
            raise SpecError(
                f"the grid {self.grid} is that of an image's values, but here {what}; leave it out."
            )

    def check_box(self, low: float, high: float, shape: tuple[int, ...]) -> None:
        """Refuse an eps that reaches past the whole box: the adversary could then show any input at
        all."""
        if self.schema is not None:
            return  # its features have units of their own
        widest = float(self.norm.size(torch.full((1, *shape), high - low)))
        top = float(torch.as_tensor(self.eps).max())
        if widest < top < math.inf:
            raise InputError(
                f"eps {spec.number(top)} is larger than the whole box: no two inputs within the "
                "bounds "
                f"[{low:g}, {high:g}] are more than {widest:g} apart in {self.norm}. Is eps in "
                f"0-255 units, and are the bounds?"
            )

    def __repr__(self) -> str:
        eps = (
            f"[{self.eps.numel()} sizes]"
            if isinstance(self.eps, Tensor)
            else spec.number(float(self.eps))
        )
        goal = ""
        if isinstance(self.goal, Targeted):
            goal = f", target={self.goal.t!r}"
            if isinstance(self.goal.t, Tensor):
                goal = ", target=[one a row]"
        if self.norm.group:
            goal += f", group={self.norm.group!r}"
        if self.grid:
            goal += f", grid={self.grid!r}"
        if self.limits:
            content = b"".join(np.float64(part).tobytes() for part in self.limits.values())
            goal += f", limits={hashlib.sha256(content).hexdigest()[:8]}"
        if self.schema is not None:
            goal += f", schema={self.schema.digest[:8]}"
        return f"{self.norm}({eps}{goal})"


def as_threat(threat: Threat | str) -> Threat:
    """A threat, or its text.

    Raises:
        SpecError: neither, or a text that cannot be understood.
    """
    if isinstance(threat, Threat):
        return threat
    if isinstance(threat, (int, float)):
        threat = spec.number(float(threat))
    if not isinstance(threat, str):
        raise SpecError(
            f"the threat is a {type(threat).__name__}; expected a Threat, or text such as "
            "linf(8/255)."
        )
    return Threat.parse(threat)


def _threat(norm: str, eps: Any, target: Any, options: dict[str, Any]) -> Threat:
    if target is not None:
        options = options | {"goal": _goal(target)}
    return Threat(NORMS[norm], eps, **options)


def _goal(target: Any) -> Untargeted | Targeted:
    """The goal that a `target` says: see `Threat.linf`."""
    if target is None:
        return Untargeted()
    return Targeted(target)


def _check_target(target: int | str | Tensor, norm: Norm) -> None:
    if isinstance(target, str) and target not in RULES:
        raise SpecError(
            f"the target of a {norm} threat is {target!r}, but it is a class, {' or '.join(RULES)}."
        )
    if not isinstance(target, (str, Tensor)) and (
        isinstance(target, bool) or not isinstance(target, int)
    ):
        raise SpecError(
            f"the target of a {norm} threat is {target!r}, but a class is a whole number."
        )


_SPELLINGS = {
    "inf": "linf",
    "infinity": "linf",
    "infty": "linf",
    "∞": "linf",
    "0": "l0",
    "1": "l1",
    "2": "l2",
}
_NORM = re.compile(
    r"^\W*(?:l[ _-]?(?:p[ _-]?)?)?(infinity|infty|inf|∞|(?<=l)[012]|(?<=l[ _-])[012])(?![\d.])",
    re.I,
)
_SIZE = re.compile(r"(?<![\w.])(\d+(?:\.\d*)?|\.\d+)(?:e[+-]?\d+)?(?:\s*/\s*\d+)?(?![\w.])", re.I)


def _meant(text: str) -> str:
    """The threat that a text such as `linf 0.1`, `l∞(0.1` or `8/255` probably means, as a question;
    or nothing."""
    norm = _NORM.search(text)
    size = _SIZE.search(text, norm.end() if norm else 0)
    if size is None or (norm is None and size.span() != (0, len(text))):
        return ""
    eps = size[0].replace(" ", "")
    if norm is None:
        return f"A size needs its norm: did you mean linf({eps}), or l2({eps})?"
    return f"Did you mean {_SPELLINGS[norm[1].lower()]}({eps})?"


def _maker(norm: Norm) -> Callable[..., Threat]:
    def make(
        eps: float, target: int | str | None = None, grid: str = "", group: str = ""
    ) -> Threat:
        return Threat(norm.grouped(group), eps, _goal(target), grid=grid)

    return make
