"""What searches by labels alone share: a point that meets the goal, the way back to the boundary,
and its normal."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from holdfast.attacks.attack import L2, Problem, option, wide

DRAWS = 25  # of noise, before a row is given up
SHARES = (0.125, 0.25, 0.5, 1.0)  # of a draw, blended with x
GAP = 1e-4  # left to the boundary by those that need no finer, a share of the point
FINEST = 8  # units in the last place of the box's width: no length is told apart below it
PART = 2**15  # features of a row that are probed together


def start_option() -> Any:
    """The field `start_at` of an attack: the word that `find_start` takes."""
    return option(
        "noise",
        "noise, or best: the best point known before, where it meets the goal",
        choices=("noise", "best"),
    )


def find_start(p: Problem, start_at: str = "noise") -> Tensor:
    """A perturbation that meets the goal, [n, *shape]; the search of a row that has none is over.

    Uniform noise in the box, each draw blended with x in growing shares; with `best` first the
    point known before. Up to 4 forwards a draw, and 25 draws.
    """
    d = torch.zeros_like(p.x)
    lost = torch.ones(len(d), dtype=torch.bool, device=d.device)
    for draw in range(0 if start_at == "noise" else -1, DRAWS):
        if not bool((lost & p.live).any()):
            break  # nobody asks any more
        if draw >= 0:
            far = p.lo + (p.hi - p.lo) * p.noise(f"start {draw}").uniform(p.x.shape[1:], p.x.dtype)
        else:
            far = d if p.warm_start is None else (p.warm_start - p.x).clamp(p.lo, p.hi)
        for share in SHARES:
            met = p.adversarial(share * far, lost)
            d, lost = torch.where(wide(met, d), share * far, d), lost & ~met
    p.stop_asking(lost)
    return d


def bisect(
    p: Problem,
    path: Callable[[Tensor], Tensor],
    high: Tensor,
    gap: Tensor,
    among: Tensor,
) -> Tensor:
    """Where between 0, which is taken to miss the goal, and `high`, which meets it, `path` still
    meets it: [n].

    Each row of `among` asks until its interval is no longer than its `gap`: log2(high / gap)
    forwards.
    """
    low = torch.zeros_like(high)
    while True:
        asked = among & p.live & (high - low > gap)
        if not bool(asked.any()):  # nobody asks any more
            return high
        middle = (low + high) / 2
        met = p.adversarial(path(middle), asked)
        low = torch.where(asked & ~met, middle, low)
        high = torch.where(met, middle, high)


def nearer(p: Problem, d: Tensor, gap: Tensor, among: Tensor | None = None) -> Tensor:
    """d, which meets the goal, pulled towards x until the boundary is within this share of it
    ([n])."""
    one = torch.ones_like(gap)
    if among is None:
        among = one.bool()
    share = bisect(p, lambda share: p.norm.shrink(d, share), one, gap, among)
    return p.norm.shrink(d, share)


def ball_start(p: Problem, start_at: str, share: float) -> Tensor:
    """The start of searches whose probes differ by this share of the box's width: a boundary point
    that they see."""
    d = find_start(p, start_at)
    return nearer(p, d, within(p, d, ball(p, share)))


def arc(p: Problem, d: Tensor, v: Tensor, angle: Tensor) -> Tensor:
    """The point at this angle ([n], seen from x) of the circle whose diameter is d, towards the
    unit v across d.

    At 0 it is d, at a right angle x; all between is nearer to x than d is.
    """
    across = L2.size(d) * angle.cos() * angle.sin()
    return (wide(angle.cos().square(), d) * d + wide(across, d) * v).clamp(p.lo, p.hi)


def across(g: Tensor, d: Tensor) -> Tensor:
    """The part of g across d, at L2 length 1."""
    u = L2.steepest(d)
    g = L2.steepest(g)
    return L2.steepest(g - wide((g * u).flatten(1).sum(1), g) * u)


def finest(p: Problem) -> float:
    """The shortest length that the numbers resolve around inputs."""
    return FINEST * torch.finfo(p.x.dtype).eps * p.width


def ball(p: Problem, share: float) -> float:
    """The L2 radius of probes that differ by this share of the box's width in each feature."""
    return max(share * p.width, finest(p)) * math.sqrt(p.features)


def within(p: Problem, d: Tensor, radius: float) -> Tensor:
    """A quarter of the probes' radius as a share of each d, [n]: so near the boundary must be for
    them to see it."""
    size = L2.size(d).clamp_min(torch.finfo(d.dtype).tiny)
    return (radius / 4 / size).clamp(finest(p) / p.width, 0.5)


def directions(p: Problem, m: int) -> Iterator[Tensor]:
    """m directions a row, each of L2 length 1 and uniform: [n, part, *shape] at a time."""
    part = max(1, PART // p.features)
    for first in range(0, m, part):
        count = min(part, m - first)
        u = p.noise(f"probe {first}").normal((count, *p.x.shape[1:]), p.x.dtype)
        yield L2.steepest(u.flatten(0, 1)).view_as(u)


def normal(p: Problem, d: Tensor, radius: Tensor, m: int) -> Tensor:
    """The boundary's normal near d, towards the goal, by Monte Carlo: [n, *shape], of any length. m
    forwards a row.

    HopSkipJump's estimate (arXiv:1904.02144, equation 16): m probes at this radius ([n]) around d,
    each counted by its answer, 1 or -1, less the mean answer, unless all agree. Each row has probes
    and a radius of its own.
    """
    r, room = wide(radius, d)[:, None], ((p.lo - d)[:, None], (p.hi - d)[:, None])
    answers, unsigned, signed = torch.zeros_like(radius), torch.zeros_like(d), torch.zeros_like(d)
    for u in directions(p, m):
        v = (r * u).clamp(*room)
        answer = p.probes(d[:, None] + v).to(d.dtype) * 2 - 1
        answers, unsigned = answers + answer.sum(1), unsigned + v.sum(1)
        signed = signed + (v * answer.view(*answer.shape, *[1] * (d.ndim - 1))).sum(1)
    mean = answers / m
    return signed - wide(torch.where(mean.abs() == 1, 0, mean), d) * unsigned
