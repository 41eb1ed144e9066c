"""The geometry of Linf, L2, L1 and L0: size, dual, projection, steepest step, nearest hyperplane,
sampling.

The only place that knows a norm. Perturbations are [n, *shape]; everything is per row; `eps`
broadcasts against them as [n, 1, ...]. A box is a pair (lo, hi) of bounds on the perturbation with
lo <= 0 <= hi.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from holdfast.errors import SpecError
from holdfast.rng import Keys


class Norm(ABC):
    """One norm. What it counts as one is a unit: a feature, or a group of them; columns [n, u] hold
    a value of each. Instances are stateless; use `LINF`, `L2`, `L1`, `L0`, `NORMS[name]` or
    `Linf(scale)`."""

    name: str
    scales: bool = True  # the size of s d is |s| times that of d
    grain: float = 0.0  # sizes are multiples of it
    dense: bool = True  # its steepest step moves every feature
    boxed: bool = False  # its ball is a box, so that each feature may have an eps of its own
    noise: str = ""  # the kind under which a majority of votes holds within a radius of it
    group: str = ""  # which features count as one: those of a `pixel` of an image
    polar: Norm  # the norm that `dual` measures in

    @abstractmethod
    def size(self, d: Tensor) -> Tensor:
        """The norm of each row: [n]."""

    @abstractmethod
    def dual(self, g: Tensor) -> Tensor:
        """The dual norm of each row, max of <g, d> over size(d) <= 1: [n]."""

    @abstractmethod
    def steepest(self, g: Tensor) -> Tensor:
        """The d of size at most 1 that attains the dual norm; 0 where g is 0."""

    @abstractmethod
    def project(self, d: Tensor, eps: Tensor, lo: Tensor, hi: Tensor) -> Tensor:
        """The Euclidean-nearest point to d in {size <= eps} and the box, exactly."""

    @abstractmethod
    def reach(self, g: Tensor, gap: Tensor, lo: Tensor, hi: Tensor) -> Tensor:
        """The smallest v in the box with <g, v> = gap ([n], of either sign), exactly; the nearest
        to it if none is."""

    @abstractmethod
    def shrink(self, d: Tensor, share: Tensor) -> Tensor:
        """The path from d (share 1) to 0 (share 0; [n]) that lowers the size most for how far it
        leaves d."""

    @abstractmethod
    def sample(self, keys: Keys, like: Tensor) -> Tensor:
        """Uniform in the unit ball."""

    @abstractmethod
    def extreme(self, keys: Keys, like: Tensor) -> Tensor:
        """A random extreme point of the unit ball (a corner, for Linf and L1)."""

    @abstractmethod
    def least(self, g: Tensor, eps: Tensor, lo: Tensor, hi: Tensor) -> Tensor:
        """The smallest <g, d> over {size <= eps} and the box: [n]; never above it but by rounding,
        and with the minimiser as its slope on g."""

    def hull(self, eps: Tensor, lo: Tensor, hi: Tensor) -> tuple[Tensor, Tensor]:
        """The smallest box that holds {size <= eps} and the box."""
        return torch.maximum(lo, -eps), torch.minimum(hi, eps)

    def corner(self, t: int, like: Tensor) -> Tensor:
        """The t-th corner in a fixed order, one that visits them all (for L2: the axes)."""
        d = torch.zeros_like(like).flatten(1)
        d[:, (t // 2) % d.shape[1]] = 1 - 2 * (t % 2)
        return d.view_as(like)

    def stride(self, g: Tensor, share: float, eps: Tensor, lo: Tensor, hi: Tensor) -> Tensor:
        """The step of size share * eps that leads fastest to where <g, d> is largest in the ball
        and box."""
        return self.steepest(g).mul_(share * eps)

    def across(self, g: Tensor, gap: Tensor) -> Tensor:
        """The smallest v with <g, v> = gap ([n]) where no box stops it; 0 where g is 0."""
        slope = self.dual(g)
        return wide(torch.where(slope > 0, gap / slope, 0), g) * self.steepest(g)

    def along(
        self, d: Tensor, g: Tensor, gap: Tensor, share: Tensor, lo: Tensor, hi: Tensor
    ) -> Tensor:
        """From d towards 0 by at most this share [n] of its length, then to where <g, v - d> >= gap
        [n], in the box."""
        v = self.shrink(d, self._long(d, share))
        gap = gap - ((v - d) * g).flatten(1).sum(1)  # below 0 where v, so near 0, is there already
        return (v + self.reach(g, gap.clamp_min(0), lo - v, hi - v)).clamp(lo, hi)

    def _long(self, d: Tensor, share: Tensor) -> Tensor:
        """By how much [n] d shrinks when it moves by this share of its L2 length."""
        radius, low, high = share * L2.size(d), torch.zeros_like(share), torch.ones_like(share)
        for _ in range(24):
            middle = (low + high) / 2
            far = L2.size(d - self.shrink(d, middle)) > radius
            low, high = torch.where(far, middle, low), torch.where(far, high, middle)
        return high

    def prox(self, d: Tensor, weight: Tensor) -> Tensor:
        """argmin over v of |v - d|^2 / 2 + weight * size(v), with the weight [n, 1, ...] a row."""
        far = torch.full_like(d, torch.inf)
        return d - self.polar.project(d, weight, -far, far)  # Moreau's decomposition

    def grouped(self, group: str) -> Norm:
        """This norm with the features of each `group` counted as one.

        Raises:
            SpecError: it has no such group.
        """
        if group:
            raise SpecError(
                f"group is {group!r}, but only l0 counts some features as one: 'pixel'."
            )
        return self

    def per_unit(self, a: Tensor) -> Tensor:
        """The sums of values a [n, *shape] over each unit: [n, u]."""
        return a.flatten(1)

    def spread(self, column: Tensor, like: Tensor) -> Tensor:
        """The value of its unit, of [n, u], at each feature: [n, *shape]."""
        return column.view_as(like)

    def changed(self, d: Tensor) -> Tensor:
        """Which units change: [n, u] bool."""
        return (d != 0).flatten(1)

    def pooled(self, a: Tensor) -> Tensor:
        """At each feature the sum of values a [n, *shape] over its unit: [n, *shape]."""
        return a

    def in_layout(self, layout: str) -> Norm:
        """This norm of inputs in this layout, `nchw` or `nhwc`."""
        return self

    def rounding(self, features: int, ulp: float | Tensor) -> float:
        """The most that an error of `ulp` (one, or [*shape]) in every feature adds to a size."""
        return float(
            self.size(torch.as_tensor(ulp, dtype=torch.float64).flatten().expand(features)[None])
        )

    def sphere(self, keys: Keys, like: Tensor) -> Tensor:
        """A point of size exactly 1, in the direction of a uniform one."""
        d = self.sample(keys, like)
        return d / wide(self.size(d), d)

    def __repr__(self) -> str:
        return self.name


def wide(column: Tensor, like: Tensor) -> Tensor:
    """A [n] column shaped to broadcast against [n, ...]."""
    return column.reshape(-1, *[1] * (like.ndim - 1))


def largest(a: Tensor) -> Tensor:
    """The largest absolute entry of each row of [n, ...]: [n]; NaN where there is one."""
    flat = a.flatten(1)
    return flat.amax(1).maximum(-flat.amin(1))


def scaled(g: Tensor) -> Tensor:
    """g over its largest entry, so that sums and squares of tiny or huge gradients neither vanish
    nor overflow."""
    top = wide(largest(g), g)
    return g / torch.where(top > 0, top, 1)


def _slopes(g: Tensor, gap: Tensor, lo: Tensor, hi: Tensor) -> tuple[Tensor, ...]:
    """What moves give on the way to <g, v> = gap: the sign of each entry's move [n, *shape], its
    slope over the steepest and how far the box lets it go [n, f], and the gap over the steepest
    [n, 1]."""
    g = g * wide(gap.sign(), g)
    top = largest(g)
    cap = torch.where(g > 0, hi, -lo).expand_as(g).flatten(1)
    need = (gap.abs() / torch.where(top > 0, top, 1))[:, None]
    return g.sign(), scaled(g).flatten(1).abs(), cap, need


def _evenly(g: Tensor, gap: Tensor, lo: Tensor, hi: Tensor, speed: Tensor) -> Tensor:
    """Move every entry at its own speed [n, *shape], each until the box stops it, until <g, v> =
    gap."""
    sign, steep, cap, need = _slopes(g, gap, lo, hi)
    speed = speed.flatten(1)
    full, rate = steep * cap, steep * speed
    # What is given rises ever slower with the time, so that Newton's steps come from below: with
    # the entries held fixed that have stopped by then, the next time solves a linear equation.
    time, most = torch.zeros_like(need), torch.finfo(need.dtype).max
    for _ in range(100):
        stopped = torch.ge(speed * time, cap, out=torch.empty_like(cap))
        given = (full * stopped).sum(1, keepdim=True)
        going = stopped.neg_().add_(1).mul_(rate).sum(1, keepdim=True)
        later = torch.where(going > 0, (need - given) / going, most).clamp_max(most).maximum(time)
        if torch.equal(later, time):
            break
        time = later
    return (speed * time).minimum(cap * (steep > 0)).view_as(g).mul_(sign)


def _in_order(g: Tensor, gap: Tensor, lo: Tensor, hi: Tensor, *, by_gain: bool) -> Tensor:
    """Move entries to the box one by one, the steepest (or that which gives most) first, until <g,
    v> = gap."""
    sign, steep, cap, need = _slopes(g, gap, lo, hi)
    gain = steep * cap
    worth = gain if by_gain else steep
    least = _largest(worth, lambda flags: flags.mul_(gain).sum(1, keepdim=True) >= need)
    whole, equal = _flags(worth, least)
    equal.mul_(gain)
    left = need - (whole * gain).sum(1, keepdim=True) - (equal.cumsum(1) - equal)
    part = torch.where(equal > 0, left / steep, 0).clamp_min(0).minimum(cap)
    return (whole * cap + part).view_as(g) * sign


def _lowered(size: Tensor, budget: Tensor, cap: Tensor | None = None) -> Tensor:
    """By which amount [n, 1], from 0, sizes [n, f] are lowered, then cut to 0 and to a cap, for
    their sum to be the budget [n] at most.

    That sum falls piecewise linearly with the amount: Newton's steps, and half of the known
    interval where these would leave it. A row stops by what it holds itself, so that no other row
    changes it.
    """
    budget, left, free = budget[:, None], torch.empty_like(size), torch.empty_like(size)
    slack = 4 * torch.finfo(size.dtype).eps * budget
    low, high = torch.zeros_like(budget), size.amax(1, keepdim=True)
    amount, end = low, torch.full_like(budget, torch.inf)
    for _ in range(100):
        torch.sub(size, amount, out=left).clamp_min_(0)
        slope = torch.gt(left, 0, out=free)
        if cap is not None:
            slope = slope.mul_(torch.lt(left, cap, out=torch.empty_like(left)))
            left = torch.minimum(left, cap, out=left)
        over = left.sum(1, keepdim=True) - budget
        low, high = torch.where(over > 0, amount, low), torch.where(over < 0, amount, high)
        step = amount + over / slope.sum(1, keepdim=True)  # NaN or inf where none is free
        stays = step == amount  # no number is nearer; but the sum is not to lie above the budget
        step = torch.where(stays & (over > 0), amount.nextafter(end), step)
        middle = (low + high) / 2
        half = torch.where(middle > low, middle, high)
        after = torch.where((step > low) & (step < high), step, half)
        done = (over.abs() <= slack) | ((over < 0) & ((amount == 0) | stays))
        after = torch.where(done, amount, after)
        if torch.equal(after, amount):
            break
        amount = after
    return amount


def _largest(values: Tensor, enough: Callable[[Tensor], Tensor]) -> Tensor:
    """The largest number [n, 1] of each row, of at least 0, so that those of values [n, f] that are
    no smaller are enough; 0 where there is none, NaN where even no value is enough. `enough` [n, 1]
    bool is asked with flags [n, f], 1 or 0.

    Bit by bit from the highest, since bits are in the order of the numbers: to sort takes up to ten
    times as long.
    """
    bits = 8 * values.element_size() - 1
    whole = {15: torch.int16, 31: torch.int32, 63: torch.int64}[bits]
    found = torch.zeros(len(values), 1, dtype=whole, device=values.device)
    flags = torch.empty_like(values)
    for bit in reversed(range(bits)):
        more = found | (1 << bit)
        found = more.where(enough(torch.ge(values, more.view(values.dtype), out=flags)), found)
    return found.view(values.dtype)


def _flags(values: Tensor, least: Tensor) -> tuple[Tensor, Tensor]:
    """Which values [n, f] are above a number [n, 1], and which are it: 1 or 0."""
    above = torch.gt(values, least, out=torch.empty_like(values))
    return above, torch.eq(values, least, out=torch.empty_like(values))


def _over_box(g: Tensor, lo: Tensor, hi: Tensor) -> Tensor:
    """The smallest <g, d> over the box alone: [n]."""
    return (g.clamp_min(0) * lo + g.clamp_max(0) * hi).flatten(1).sum(1)


def sparse(g: Tensor, k: Tensor, room: Tensor) -> Tensor:
    """The L1 unit step that the k [n] steepest entries with room [n, *shape] share evenly, k
    rounded down, at least 1.

    Steeper entries without room step as far as all of those together: so a projection leaves them
    where they are.
    """
    free, steep = (room > 0).flatten(1), g.flatten(1).abs()
    ranked = steep.masked_fill(~free, 0).sort(1, descending=True).values
    least = ranked.gather(1, (k.long() - 1).clamp(0, ranked.shape[1] - 1)[:, None])
    chosen = (steep >= least) & (steep > 0)
    shared = (chosen & free).sum(1, keepdim=True).clamp_min(1)
    return (chosen.to(g.dtype) / torch.where(free, shared, 1)).view_as(g) * g.sign()


class Linf(Norm):
    """The largest change of a feature, each counted in units of its own `scale` [*shape], above 0;
    None: all in 1."""

    name = "linf"
    boxed = True

    def __init__(self, scale: Tensor | None = None) -> None:
        self.scale = scale

    def units(self, like: Tensor) -> Tensor | float:
        return 1.0 if self.scale is None else self.scale.to(like)

    def size(self, d: Tensor) -> Tensor:
        return largest(d if self.scale is None else d / self.units(d))

    def dual(self, g: Tensor) -> Tensor:
        return (g * self.units(g)).flatten(1).abs().sum(1)

    def steepest(self, g: Tensor) -> Tensor:
        return g.sign() if self.scale is None else g.sign() * self.units(g)

    def project(self, d: Tensor, eps: Tensor, lo: Tensor, hi: Tensor) -> Tensor:
        most = eps * self.units(d)
        ball = torch.minimum(d, most)
        return torch.maximum(ball, -most, out=ball).clamp_(lo, hi)

    def hull(self, eps: Tensor, lo: Tensor, hi: Tensor) -> tuple[Tensor, Tensor]:
        return super().hull(eps * self.units(lo), lo, hi)

    def least(self, g: Tensor, eps: Tensor, lo: Tensor, hi: Tensor) -> Tensor:
        return _over_box(g, *self.hull(eps, lo, hi))

    def reach(self, g: Tensor, gap: Tensor, lo: Tensor, hi: Tensor) -> Tensor:
        return _evenly(g, gap, lo, hi, torch.ones_like(g) * self.units(g))

    def shrink(self, d: Tensor, share: Tensor) -> Tensor:
        level = wide(share * self.size(d), d) * self.units(d)
        return d.clamp(-level, level)

    def prox(self, d: Tensor, weight: Tensor) -> Tensor:
        if self.scale is None:
            level = wide(_lowered(d.flatten(1).abs(), weight.flatten().expand(len(d))), d)
            return d.minimum(level).maximum(-level)
        # Moreau: what the projection onto the dual ball, sum of scale_i |v_i| <= weight, leaves of
        # d. That one takes one amount a row times the scale off every entry; of the amounts that
        # its kinks give, the largest is it.
        flat, units = d.flatten(1).abs(), self.scale.to(d).expand_as(d).flatten(1)
        order = (flat / units).argsort(dim=1, descending=True, stable=True)
        mass, square = ((units * part).gather(1, order).cumsum(1) for part in (flat, units))
        amount = ((mass - weight.flatten(1)) / square).amax(1).clamp_min(0)
        level = wide(amount, d) * self.units(d)
        return d.clamp(-level, level)

    def rounding(self, features: int, ulp: float | Tensor) -> float:
        ulp = torch.as_tensor(ulp, dtype=torch.float64)
        return float((ulp / self.units(ulp)).max())

    def sample(self, keys: Keys, like: Tensor) -> Tensor:
        return (keys.uniform(like.shape[1:], like.dtype) * 2 - 1) * self.units(like)

    def extreme(self, keys: Keys, like: Tensor) -> Tensor:
        return keys.signs(like.shape[1:], like.dtype) * self.units(like)

    def corner(self, t: int, like: Tensor) -> Tensor:
        bits = [(t >> i) & 1 for i in range(math.prod(like.shape[1:]))]
        signs = (like.new_tensor(bits) * 2 - 1).reshape(like.shape[1:])
        return (signs * self.units(like)).expand_as(like)


class _L2(Norm):
    name = "l2"
    noise = "gaussian"

    def size(self, d: Tensor) -> Tensor:
        length = torch.linalg.vector_norm(d.flatten(1), dim=1)
        odd = self._odd(length)
        if not bool(odd.any()):
            return length
        rows = d[odd]
        exact = scaled(rows).flatten(1).square().sum(1).sqrt() * largest(rows)
        return length.index_put((odd,), exact)

    @staticmethod
    def _odd(length: Tensor) -> Tensor:
        """Of which lengths [n] the squares may have vanished or overflown: [n] bool."""
        return ~((length > 1e-15) & (length < 1e15))

    def _long(self, d: Tensor, share: Tensor) -> Tensor:
        return 1 - share

    def dual(self, g: Tensor) -> Tensor:
        return self.size(g)

    def steepest(self, g: Tensor) -> Tensor:
        length = torch.linalg.vector_norm(g.flatten(1), dim=1)
        odd = self._odd(length)
        unit = g / wide(length, g)
        if bool(odd.any()):
            rows = scaled(g[odd])
            length = wide(rows.flatten(1).square().sum(1).sqrt(), rows)
            unit[odd] = rows / torch.where(length > 0, length, 1)
        return unit

    def project(self, d: Tensor, eps: Tensor, lo: Tensor, hi: Tensor) -> Tensor:
        # The nearest point is clip(s d) for one scale s in [0, 1] a row. With the clipped entries
        # of the last s held fixed, the next s solves a quadratic from below, so s rises to the root
        # in finitely many rounds.
        inside = d.clamp(lo, hi)
        budget = eps.flatten().expand(len(d)).square()
        legal = inside.flatten(1).square().sum(1) <= budget
        if bool(legal.all()):
            return inside
        flat, low, high = d.flatten(1), lo.expand_as(d).flatten(1), hi.expand_as(d).flatten(1)
        s = self._risen(flat, budget, low, high, 1)
        return (d * wide(torch.where(legal, 1, s), d)).clamp_(lo, hi)

    @staticmethod
    def _risen(flat: Tensor, budget: Tensor, low: Tensor, high: Tensor, most: float) -> Tensor:
        """The largest s up to `most` with |clip(s flat)|^2 <= budget: [n]."""
        point, free, other = (torch.empty_like(flat) for _ in range(3))
        slope = flat.square().sum(1)  # from 0, where nothing is clipped
        s = torch.where(slope > 0, (budget / slope).sqrt(), most).clamp_max(most)
        for _ in range(100):
            torch.mul(flat, s[:, None], out=point)
            # 1 where it is between its limits, or 0; as numbers, since to compute with a mask of
            # bool takes longer
            torch.gt(point, low, out=free).mul_(torch.lt(point, high, out=other))
            torch.maximum(free, torch.eq(point, 0, out=other), out=free)
            clipped = torch.neg(free, out=other).add_(1).mul_(point.clamp_(low, high))
            fixed = clipped.square_().sum(1)
            slope = free.mul_(flat).square_().sum(1)
            root = ((budget - fixed).clamp_min(0) / slope).sqrt()
            risen = torch.where(slope > 0, root, most).clamp_max(most).maximum(s)
            if torch.equal(risen, s):
                break
            s = risen
        return s

    def least(self, g: Tensor, eps: Tensor, lo: Tensor, hi: Tensor) -> Tensor:
        # The minimiser is clip(-s g) for one s a row. What Lagrange's dual says for any s > 0 lies
        # below the minimum, so that an s which is not quite it does no harm.
        with torch.no_grad():
            top = g.flatten(1).abs().amax(1)
            budget = eps.flatten().expand(len(g)).square()
            low, high = lo.expand_as(g).flatten(1), hi.expand_as(g).flatten(1)
            s = self._risen(-scaled(g).flatten(1), budget, low, high, 1e12).clamp_min(1e-12)
            d = (-scaled(g).flatten(1) * s[:, None]).clamp(low, high)
            unspent = (budget - d.square().sum(1)) * top / (2 * s)
        return torch.maximum((g.flatten(1) * d).sum(1) - unspent, _over_box(g, lo, hi))

    def prox(self, d: Tensor, weight: Tensor) -> Tensor:
        length = wide(self.size(d), d)
        return d * (1 - weight / torch.where(length > 0, length, 1)).clamp_min(0)

    def reach(self, g: Tensor, gap: Tensor, lo: Tensor, hi: Tensor) -> Tensor:
        return _evenly(g, gap, lo, hi, scaled(g).abs())

    def shrink(self, d: Tensor, share: Tensor) -> Tensor:
        return wide(share, d) * d

    def sample(self, keys: Keys, like: Tensor) -> Tensor:
        direction = self.steepest(keys.normal(like.shape[1:], like.dtype))
        # The largest of f uniforms is one to the power 1 / f; a power's last bits would depend on
        # the batch.
        radius = keys.fold("length").uniform(like.shape[1:], like.dtype).flatten(1).amax(1)
        return direction * wide(radius, like)

    def extreme(self, keys: Keys, like: Tensor) -> Tensor:
        return self.sphere(keys, like)


class _OneFeature(Norm):
    """What L1 and L0 share: a unit step moves one feature."""

    dense = False

    def dual(self, g: Tensor) -> Tensor:
        return largest(g)

    def steepest(self, g: Tensor) -> Tensor:
        flat = g.flatten(1)
        at = flat.abs().argmax(1, keepdim=True)
        return torch.zeros_like(flat).scatter(1, at, flat.gather(1, at).sign()).view_as(g)

    def extreme(self, keys: Keys, like: Tensor) -> Tensor:
        at = keys.integers(math.prod(like.shape[1:]))[:, None]
        sign = keys.fold("signs").signs((1,), like.dtype)
        return torch.zeros_like(like.flatten(1)).scatter(1, at, sign).view_as(like)


class _L1(_OneFeature):
    name = "l1"
    noise = "uniform"

    def size(self, d: Tensor) -> Tensor:
        return d.flatten(1).abs().sum(1)

    def stride(self, g: Tensor, share: float, eps: Tensor, lo: Tensor, hi: Tensor) -> Tensor:
        # The best point fills entries to the box in the order of their gradients until eps is
        # spent. One entry alone would soon be at the box, so all those entries share the step:
        # half of it by their gradients, half by how far these exceed the best entry left out, which
        # is what shifts size between them.
        cap = torch.where(g > 0, hi, -lo).flatten(1)
        steep = scaled(g).flatten(1).abs().masked_fill(cap <= 0, 0)
        order = steep.argsort(dim=1, descending=True, stable=True)
        ranked = cap.gather(1, order)
        chosen = torch.zeros_like(cap).scatter(
            1, order, (ranked.cumsum(1) - ranked < eps.flatten()[:, None]).to(cap)
        )
        excess = steep - (steep * (1 - chosen)).amax(1, keepdim=True)
        parts = [
            part / part.sum(1, keepdim=True).clamp_min(1e-12)
            for part in (steep * chosen, excess * chosen)
        ]
        return share * eps * (parts[0] + parts[1]).view_as(g) / 2 * g.sign()

    def least(self, g: Tensor, eps: Tensor, lo: Tensor, hi: Tensor) -> Tensor:
        steep, order = g.flatten(1).abs().sort(1, descending=True)
        cap = torch.where(g > 0, -lo, hi).flatten(1).gather(1, order)
        spent = cap.cumsum(1) - cap  # on steeper entries
        return -(steep * (eps.reshape(-1, 1) - spent).clamp_min(0).minimum(cap)).sum(1)

    def project(self, d: Tensor, eps: Tensor, lo: Tensor, hi: Tensor) -> Tensor:
        # Croce and Hein 2021 (arXiv:2103.01208), section 3: shrink every entry by one amount a row,
        # then cap it at the box.
        size, sign = d.flatten(1).abs(), torch.ones_like(d).copysign(d).flatten(1)
        low, high = (side.expand_as(d).flatten(1) for side in (lo, hi))
        cap = (sign * low).maximum(sign * high)
        left = (size - _lowered(size, eps.flatten().expand(len(d)), cap)).clamp_min_(0)
        return left.minimum(cap).mul_(sign).view_as(d)

    def prox(self, d: Tensor, weight: Tensor) -> Tensor:
        return d - d.minimum(weight).maximum(-weight)

    def reach(self, g: Tensor, gap: Tensor, lo: Tensor, hi: Tensor) -> Tensor:
        return _in_order(g, gap, lo, hi, by_gain=False)

    def shrink(self, d: Tensor, share: Tensor) -> Tensor:
        return d - LINF.shrink(d, 1 - share)

    def sample(self, keys: Keys, like: Tensor) -> Tensor:
        # Exponentials over their sum and one more are uniform in the simplex (Devroye 1986).
        e = -torch.log1p(-keys.uniform(like.shape[1:], like.dtype))
        rest = -torch.log1p(-keys.fold("rest").uniform((), like.dtype))
        return (
            e
            * keys.fold("signs").signs(like.shape[1:], like.dtype)
            / wide(e.flatten(1).sum(1) + rest, like)
        )


class _L0(_OneFeature):
    """The number of features that change. Not convex; dual, steepest step and samples are those of
    one feature."""

    name = "l0"
    scales = False
    grain = 1.0

    def grouped(self, group: str) -> Norm:
        return self if not group else _grouped(group)

    def size(self, d: Tensor) -> Tensor:
        return self.changed(d).sum(1).to(d.dtype)

    def hull(self, eps: Tensor, lo: Tensor, hi: Tensor) -> tuple[Tensor, Tensor]:
        return lo, hi

    def least(self, g: Tensor, eps: Tensor, lo: Tensor, hi: Tensor) -> Tensor:
        gain = self.per_unit(g.abs() * torch.where(g > 0, -lo, hi)).sort(1, descending=True).values
        place = torch.arange(gain.shape[1], device=g.device)
        return -torch.where(place < eps.reshape(-1, 1).floor(), gain, 0).sum(1)

    def project(self, d: Tensor, eps: Tensor, lo: Tensor, hi: Tensor) -> Tensor:
        inside = d.clamp(lo, hi)
        # or the squares of tiny entries would tie with zeros
        few = self.size(inside) <= eps.flatten()
        if bool(few.all()):
            return inside
        # Keeping a unit spares its squares, but for what the box takes of them.
        spared = self.per_unit(d.square() - (d - inside).square())
        k = eps.flatten().expand(len(d)).floor()[:, None]
        least = _largest(spared, lambda flags: flags.sum(1, keepdim=True) >= k)
        chosen, equal = _flags(spared, least)
        spare = k - chosen.sum(1, keepdim=True)  # the first of those that are equal
        chosen += equal * (equal.cumsum(1) <= spare)
        return torch.where(wide(few, d), inside, inside * self.spread(chosen, d))

    def reach(self, g: Tensor, gap: Tensor, lo: Tensor, hi: Tensor) -> Tensor:
        return _in_order(g, gap, lo, hi, by_gain=True)

    def along(
        self, d: Tensor, g: Tensor, gap: Tensor, share: Tensor, lo: Tensor, hi: Tensor
    ) -> Tensor:
        # This share of the changed units, those that lead least far, fall to 0. Of the others
        # those that are changed move first, which costs nothing, then as few more as the gap asks
        # for.
        changed = self.changed(d)
        worth = torch.where(changed, self.per_unit(g * d), torch.inf)
        rank = worth.argsort(dim=1, stable=True).argsort(dim=1)
        out = (rank < (share * self.size(d)).ceil()[:, None]) & changed
        dropped = self.spread(out, d)
        gap, v = gap + torch.where(dropped, g * d, 0).flatten(1).sum(1), torch.where(dropped, 0, d)
        kept = self.spread(self.changed(v), v)
        for free in (kept, ~kept):
            low, high = torch.where(free, lo - v, 0), torch.where(free, hi - v, 0)
            v = (v + self.reach(g, gap.clamp_min(0), low, high)).clamp(lo, hi)
            # what not even all of them give
            gap = gap - torch.maximum(g * low, g * high).flatten(1).sum(1)
        return v

    def shrink(self, d: Tensor, share: Tensor) -> Tensor:
        return torch.where(d.abs() > wide((1 - share) * LINF.size(d), d), d, 0)

    def prox(self, d: Tensor, weight: Tensor) -> Tensor:
        """Of the sum of |v|^(2/3) in size's place: also what is kept shrinks, so that a search goes
        on.

        v = s^3 solves s^4 - |d| s + 2/3 weight = 0: Newton from above the largest root, with
        operations that round alike in every place of a batch.
        """
        far = d.abs()
        s = far.sqrt().maximum(far.sqrt().sqrt())
        third = weight * 2 / 3
        cube, value, other = (torch.empty_like(far) for _ in range(3))
        for _ in range(8):
            torch.mul(s, s, out=cube).mul_(s)
            torch.mul(s, cube, out=value).sub_(torch.mul(far, s, out=other)).add_(third)
            s.sub_(value.div_(torch.mul(cube, 4, out=other).sub_(far)))
        v = s * s * s
        kept = (v - far).square() / 2 + weight * s * s < far.square() / 2
        return torch.where(kept, v * d.sign(), 0)

    def rounding(self, features: int, ulp: float | Tensor) -> float:
        return 0.0  # x + 0 is x

    def sample(self, keys: Keys, like: Tensor) -> Tensor:
        return self.extreme(keys, like) * wide(keys.fold("length").uniform((), like.dtype), like)


class Pixels(_L0):
    """The number of pixels of images that change, whichever of their channels do; these are at
    `axis` of [n, *shape]. Dual, steepest step and samples are those of one pixel."""

    group = "pixel"

    def __init__(self, axis: int = 1) -> None:
        self.axis = axis

    def in_layout(self, layout: str) -> Norm:
        return Pixels({"nhwc": -1}.get(layout, 1))

    def per_unit(self, a: Tensor) -> Tensor:
        return a.sum(self.axis).reshape(len(a), -1)

    def spread(self, column: Tensor, like: Tensor) -> Tensor:
        one = like.select(self.axis, 0)
        return column.view(len(like), *one.shape[1:]).unsqueeze(self.axis).expand_as(like)

    def pooled(self, a: Tensor) -> Tensor:
        return a.sum(self.axis, keepdim=True).expand_as(a)

    def changed(self, d: Tensor) -> Tensor:
        return (d != 0).any(self.axis).reshape(len(d), -1)

    def dual(self, g: Tensor) -> Tensor:
        return self.per_unit(g.abs()).amax(1)

    def steepest(self, g: Tensor) -> Tensor:
        steep = self.per_unit(scaled(g).abs())
        first = torch.zeros_like(steep).scatter(1, steep.argmax(1, keepdim=True), 1)
        return self.spread(first, g) * g.sign()

    def extreme(self, keys: Keys, like: Tensor) -> Tensor:
        none = self.per_unit(torch.zeros_like(like))
        at = keys.integers(none.shape[1])[:, None]
        signs = keys.fold("signs").signs(like.shape[1:], like.dtype)
        return self.spread(none.scatter(1, at, 1), like) * signs

    def corner(self, t: int, like: Tensor) -> Tensor:
        none, c = self.per_unit(torch.zeros_like(like)), like.shape[self.axis]
        none[:, (t >> c) % none.shape[1]] = 1
        bits = like.new_tensor([(t >> i) & 1 for i in range(c)]) * 2 - 1
        along = [1] * like.ndim
        along[self.axis] = c
        return self.spread(none, like) * bits.view(along)

    def reach(self, g: Tensor, gap: Tensor, lo: Tensor, hi: Tensor) -> Tensor:
        # pixel by pixel, that which gives most first; the channels of the last one go equally far
        sign, steep, cap, need = _slopes(g, gap, lo, hi)
        room = cap.view_as(g)
        gain = self.per_unit(steep.view_as(g) * room)
        order = gain.argsort(dim=1, descending=True, stable=True)
        gained = gain.gather(1, order)
        left = need - (gained.cumsum(1) - gained)
        part = torch.where(gained > 0, left / gained, 0).clamp(0, 1)
        return self.spread(torch.zeros_like(gain).scatter(1, order, part), g) * room * sign

    def shrink(self, d: Tensor, share: Tensor) -> Tensor:
        far = self._lengths(d)
        kept = far > (1 - share)[:, None] * far.amax(1, keepdim=True)
        return torch.where(self.spread(kept, d), d, 0)

    def prox(self, d: Tensor, weight: Tensor) -> Tensor:
        far = self._lengths(d)
        shorter = super().prox(far, weight.flatten(1))
        return d * self.spread(shorter / torch.where(far > 0, far, 1), d)

    def _lengths(self, d: Tensor) -> Tensor:
        """The Euclidean length of the change of each pixel: [n, u]."""
        top = d.abs().amax(self.axis, keepdim=True)
        ratio = (d / torch.where(top > 0, top, 1)).square()
        return self.per_unit(ratio).sqrt() * top.reshape(len(d), -1)


def _grouped(group: str) -> Norm:
    if group != "pixel":
        raise SpecError(f"group is {group!r}, but l0 counts features, or by group='pixel' pixels.")
    return Pixels()


LINF, L2, L1, L0 = Linf(), _L2(), _L1(), _L0()
LINF.polar, L2.polar, L1.polar, L0.polar = L1, L2, LINF, LINF
Pixels.polar = LINF
NORMS: dict[str, Norm] = {norm.name: norm for norm in (LINF, L2, L1, L0)}
