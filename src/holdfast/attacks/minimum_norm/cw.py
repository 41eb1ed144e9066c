"""Carlini and Wagner's attacks: Adam on size plus c times the margin, in a space that has no
box."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from holdfast.attacks.attack import Access, Attack, Problem, option
from holdfast.norms import wide

_CUT = 0.3  # of the free features, the share that the first search in L0 does without, and the most
_EDGE = 0.9  # the box's edges lie at tanh = ±0.9, where the slope is a fifth of the middle's


class Walk(NamedTuple):
    d: Tensor  # the current point, [n, *shape]
    w: Tensor  # the same in tanh space
    mean: Tensor  # of the gradient there
    square: Tensor  # of its square
    age: Tensor  # steps since this search began, [n]
    c: Tensor  # weight of the margin, [n]
    unit: Tensor  # the clean margin, [n]; 0 until it is asked


class Weighing(NamedTuple):
    walk: Walk
    factor: Tensor  # by which the next search changes c, [n]
    rose: Tensor  # whether it rose after the last search, [n] bool
    met: Tensor  # whether the goal was met since the last check, [n] bool
    checked: Tensor  # the objective then


class Cutting(NamedTuple):
    walk: Walk
    share: Tensor  # of the smallest size found, above which an entry costs, [n]
    met: Tensor  # whether this search has met the goal, at any size, [n] bool


class Fixing(NamedTuple):
    walk: Walk
    free: Tensor  # the features that may move, [n, *shape] bool
    kept: Tensor  # those of the last success; all before the first
    worth: Tensor  # of each feature then; inf before, and for those that could not be missed alone
    back: Tensor  # the point of the last success, in tanh space
    cut: Tensor  # share of the kept features that the next search does without, [n]
    ends: Tensor  # whether worth counts how far a feature can go, not how far it went, [n] bool


@dataclass(frozen=True)
class CW(Attack):
    """Carlini and Wagner's attacks (2017, arXiv:1608.04644, sections V-C and VI, confidence 0).

    In L2 searches differ in c. In Linf one pays for what exceeds a limit, which follows the
    smallest size found. In L0 one is a search in L2 that moves only the free features; a success
    fixes those of the least worth, the product of the margin's gradient and the change.

    Cost: one forward and one backward a step and row, and one forward for the last point, in every
    norm.
    Differs from the paper: the margin is measured in units of the clean one; the box's edges lie at
    finite points of the tanh space; the steps are shared by all searches, each of which goes on
    from the point where the last one ended, and starts early, for its row alone, where that one is
    done (the steps saved serve more searches). L2: no step is longer than a tenth of the smallest
    size found; c is not bracketed, since a success by chance would close the bracket for good, but
    multiplied or divided by a factor, at first 10, of which each change of direction takes the
    root, down to 1.2. The paper runs 9 searches of 10,000 steps, that is `cw(steps=90000,
    searches=9)`; with few steps more and shorter searches do better. Linf: any smaller size is a
    success; a failure takes the root of the limit's share of the size found, at first 0.9, and
    makes c 10 times as large where the goal was never met, else a tenth; no step exceeds what the
    limit is short. L0: a search does without a share of the free features, half as many after a
    failure; one that could not be missed alone stays. When all of them do, all are free again, and
    worth is by how far the box lets a feature change. Steps are 10 times as long, and a failure
    makes c 10 times as large.
    """

    needs = Access.GRADIENTS
    norms: ClassVar = frozenset({"l2", "linf", "l0"})
    bounded: ClassVar = False
    random: ClassVar = False

    steps: int = option(1000, "gradient steps of all searches")
    searches: int = option(20, "which share the steps; more where some end early", at_least=1)
    c: float = option(1e-3, "first weight of the margin", above=0)
    rate: float = option(0.01, "Adam's, in tanh space", above=0)

    @property
    def span(self) -> int:
        """The most steps of one search."""
        return max(self.steps // self.searches, 1)

    def start(self, p: Problem) -> Any:
        return self.variant(p).start(self, p)

    def step(self, p: Problem, s: Any, t: int) -> Any:
        return self.variant(p).step(self, p, s, t)


class Weigh:
    """L2: the square of the size, and a search for c."""

    def start(self, a: CW, p: Problem) -> Weighing:
        walk = _start(p, a.c)
        none = walk.age
        return Weighing(
            walk, factor=none + 10, rose=none == 0, met=none > 0, checked=none + torch.inf
        )

    def step(self, a: CW, p: Problem, s: Weighing, t: int) -> Weighing:
        gap, g, walk = _margin(p, s.walk, t)
        loss, g = _hinge(p, walk, gap, g)
        u = walk.d / p.width
        loss = loss + u.flatten(1).square().sum(1)
        met = s.met | p.met
        check = walk.age % max(a.span // 10, 1) == 0
        over = (walk.age + 1 >= a.span) | (check & (loss > 0.9999 * s.checked))
        turned = over & (met == s.rose)
        factor = torch.where(turned, s.factor.sqrt().clamp_min(1.2), s.factor)
        walk = walk._replace(
            c=torch.where(over, torch.where(met, walk.c / factor, walk.c * factor), walk.c)
        )
        return Weighing(
            _descend(p, walk, 2 * u + g, a.rate, over, p.best()[1] / 10),
            factor=factor,
            rose=torch.where(over, ~met, s.rose),
            met=met & ~check & ~over,
            checked=torch.where(over, torch.inf, torch.where(check, loss, s.checked)),
        )


class Cut:
    """Linf: what exceeds the limit, and a limit below what has been found."""

    def start(self, a: CW, p: Problem) -> Cutting:
        walk = _start(p, a.c)
        return Cutting(walk, share=walk.age + 0.9, met=walk.age > 0)

    def step(self, a: CW, p: Problem, s: Cutting, t: int) -> Cutting:
        known = p.best()[1]
        gap, g, walk = _margin(p, s.walk, t)
        _, g = _hinge(p, walk, gap, g)
        best = p.best()[1]
        won, late, met = best < known, walk.age + 1 >= a.span, s.met | p.met
        over = won | late
        failed = late & ~won
        share = torch.where(failed, s.share.sqrt().clamp_max(0.998), s.share)
        walk = walk._replace(
            c=torch.where(failed, torch.where(met, walk.c / 10, walk.c * 10), walk.c)
        )
        above = walk.d.abs() > wide(share * best, walk.d)
        walk = _descend(p, walk, walk.d.sign() * above + g, a.rate, over, (1 - share) * best)
        return Cutting(walk, share, met & ~over)


class Fix:
    """L0: the square of the size over the free features, fewer after each success."""

    def start(self, a: CW, p: Problem) -> Fixing:
        walk = _start(p, a.c)
        none, each = walk.age, torch.ones_like(p.x, dtype=torch.bool)
        worth = torch.full_like(p.x, torch.inf)
        return Fixing(
            walk, free=each, kept=each, worth=worth, back=walk.w, cut=none + _CUT, ends=none > 0
        )

    def step(self, a: CW, p: Problem, s: Fixing, t: int) -> Fixing:
        gap, g, walk = _margin(p, s.walk, t)
        over = p.met | (walk.age + 1 >= a.span)
        lost, won = over & ~p.met, wide(p.met, g)
        missed = s.kept & ~s.free  # what this search did without
        needed = missed & wide(lost & (missed.flatten(1).sum(1) == 1), g)
        kept = torch.where(won, s.free, s.kept)
        step = torch.where(wide(s.ends, g), torch.where(g > 0, p.hi, p.lo), walk.d)
        worth = torch.where(won, g * step, s.worth.masked_fill(needed, torch.inf))
        cut = torch.where(p.met, (1.5 * s.cut).clamp_max(_CUT), torch.where(lost, s.cut / 2, s.cut))
        least = (
            torch.where(kept, worth, torch.inf)
            .flatten(1)
            .argsort(dim=1, stable=True)
            .argsort(1)
            .view_as(g)
        )
        few = (cut * kept.flatten(1).sum(1)).floor().clamp_min(1)
        fewer = kept & ~((least < wide(few, g)) & worth.isfinite())
        back = torch.where(won, walk.w, s.back)
        anew = needed.flatten(1).any(1) & (fewer == kept).flatten(1).all(1)
        new, walk = (
            wide(anew, g),
            walk._replace(c=torch.where(lost, 10 * walk.c, walk.c).clamp_max(1e10)),
        )
        g = (2 * walk.d / p.width + _hinge(p, walk, gap, g)[1]) * s.free
        free = torch.where(wide(over, g), fewer | new, s.free)
        walk = walk._replace(w=torch.where(wide(lost, g), back, walk.w))
        walk = _descend(p, walk, g, 10 * a.rate, over, torch.full_like(gap, torch.inf))
        return Fixing(
            walk._replace(d=walk.d * free),
            free=free,
            kept=kept | new,
            worth=worth.masked_fill(new, torch.inf),
            back=back,
            cut=cut.masked_fill(anew, _CUT),
            ends=s.ends ^ anew,
        )


def _start(p: Problem, c: float) -> Walk:
    """A walk that begins at x."""
    d = torch.zeros_like(p.x)
    none = torch.zeros_like(p.eps.flatten())
    w = (_EDGE * (-2 * p.lo / p.width - 1)).atanh()
    return Walk(d, w, mean=d, square=d, age=none, c=none + c, unit=none)


def _margin(p: Problem, s: Walk, t: int) -> tuple[Tensor, Tensor, Walk]:
    """The margin below the goal (above 0: met), its gradient, and the walk that knows the clean
    one."""
    gap, g = p.gradient(s.d, "margin")
    return gap, g, s if t else s._replace(unit=gap.abs())  # the first question is about x


def _hinge(p: Problem, s: Walk, gap: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """c max(margin, 0) in clean margins, and its gradient in widths."""
    pull = torch.where(gap < 0, s.c / torch.where(s.unit > 0, s.unit, 1), 0)
    return -pull * gap, -wide(pull, g) * g * p.width


def _descend(p: Problem, s: Walk, g: Tensor, rate: float, over: Tensor, most: Tensor) -> Walk:
    """One step of Adam, of at most this size, against the gradient g by d / width.

    It forgets its past where a search is over.
    """
    bend = (1 - s.w.tanh().square()) / (2 * _EDGE)
    g = g * bend
    age = s.age + 1
    mean, square = 0.9 * s.mean + 0.1 * g, 0.999 * s.square + 0.001 * g.square()
    step = (
        rate * (mean / wide(1 - 0.9**age, g)) / ((square / wide(1 - 0.999**age, g)).sqrt() + 1e-8)
    )
    length = p.norm.size(step * bend) * p.width
    step = step * wide(torch.where(length > most, most / length, 1), step)
    far = math.atanh(_EDGE)
    w = (s.w - step).clamp(-far, far)
    again = wide(over, w)
    return s._replace(
        d=(p.lo + (p.hi - p.lo) * (w.tanh() / _EDGE + 1) / 2).clamp(p.lo, p.hi),
        w=w,
        mean=torch.where(again, 0, mean),
        square=torch.where(again, 0, square),
        age=torch.where(over, 0, age),
    )


CW.variants = {"l2": Weigh(), "linf": Cut(), "l0": Fix()}
