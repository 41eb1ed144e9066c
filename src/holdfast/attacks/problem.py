"""All that an attack may know: the rows, the geometry, the noise, and the questions it may ask.

Every question goes to live rows only, is charged to their budgets and judged for success here, so
an attack never checks success, counts, stops early, keeps a best iterate, branches on a norm or
touches a generator. Answers for settled rows are zeros.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from holdfast.attacks.counts import Ledger, Outcome
from holdfast.decisions import REFUSED
from holdfast.errors import SpecError
from holdfast.losses import LOSSES, Loss
from holdfast.norms import Norm, wide
from holdfast.rng import Keys
from holdfast.targets.target import Access, Target, together
from holdfast.tasks import silent, without
from holdfast.threats.threat import Targeted, Threat

# the largest legal size where eps is inf: that of anything found
UNLIMITED = torch.finfo(torch.float64).max


class Problem:
    """The search problem of n rows (those still in memory); perturbations d are [n, *shape] in raw
    units."""

    def __init__(
        self,
        target: Target,
        x: Tensor,
        y: Tensor,
        threat: Threat,
        keys: Keys,
        *,
        aim: Tensor | None = None,
        near: Tensor | None = None,
        ledger: Ledger | None = None,
        budget: Tensor | None = None,
        stop: bool = True,
    ) -> None:
        n = len(x)
        self.held, x = target.apart(x)  # attacks see what may change, and nothing else
        self.target, self.norm, self.x, self.y, self.keys = target, threat.norm, x, y, keys
        self.aim, self.near = aim, None if near is None else target.apart(near)[1]
        self.goal = goal_classes(threat, y)
        pool = target.pool
        self.pool = None if pool is None else (target.apart(pool[0].to(x))[1], pool[1].to(y))
        self.eps = wide(torch.as_tensor(threat.eps, dtype=x.dtype, device=x.device).expand(n), x)
        self.mask = None if threat.mask is None else threat.mask.to(x)
        low, high = target.bounds.sides(x)
        self.lo, self.hi = low - x, high - x
        if self.mask is not None:
            self.lo, self.hi = self.lo * self.mask, self.hi * self.mask
        self.grid = threat.grid
        self.ledger, self.budget, self.stop = ledger, budget, stop
        self.rows = torch.arange(n, device=x.device)  # where each row stands in the ledger
        self.live = torch.ones(n, dtype=torch.bool, device=x.device)
        self.over = torch.zeros_like(self.live)  # whether the attack has no more to ask
        # whether the point last asked about (of probes: any) met the goal
        self.met = torch.zeros_like(self.live)
        # a paper's lengths for [0, 1] are multiples of it
        self.width = target.bounds.high - target.bounds.low
        self.t = 0
        self.restart = 0  # how many runs of this search came before
        self._asked: Tensor | None = None

    # ------------------------------------------------------------------ geometry

    def project(self, d: Tensor) -> Tensor:
        """The nearest legal perturbation."""
        return self.norm.project(d, self.eps, self.lo, self.hi)

    def steepest(self, g: Tensor) -> Tensor:
        """The unit direction of steepest ascent."""
        return self.norm.steepest(g)

    def stride(self, g: Tensor, share: float) -> Tensor:
        """A step of this share of eps in the direction of steepest ascent, within what the box
        allows."""
        return self.norm.stride(g, share, self.eps, self.lo, self.hi)

    def random_start(self, where: str = "ball") -> Tensor:
        """A legal d: uniform in the `ball`, or on its `sphere` before the box; `zero`; or the
        `best` known before."""
        if where == "zero" or (where == "best" and self.near is None):
            return torch.zeros_like(self.x)
        if where == "best":
            assert self.near is not None
            return self.project(self.near - self.x)
        draw = {"ball": self.norm.sample, "sphere": self.norm.sphere}[where]
        return self.project(self.eps * draw(self.noise(where), self.x))

    def noise(self, name: str) -> Keys:
        """Random keys of this step; each name gives an independent draw."""
        return self.keys.fold(self.t, name)

    def others(self, m: int) -> Tensor:
        """Inputs of other classes than the row's, drawn from the target's pool: [n, m, *shape].

        A row's draws are its own, and the pool is the same whichever rows are attacked.
        """
        assert self.pool is not None
        x, y = self.pool
        before = (y != self.y[:, None]).cumsum(1)  # [n, pool]: how many such lie up to each place
        nth = self.noise("others").uniform((m,), torch.float64) * before[:, -1:]
        return x[(before[:, None] > nth[:, :, None]).int().argmax(2)]

    # ------------------------------------------------------------------ questions

    def gradient(
        self, d: Tensor, loss: str | Callable[..., Tensor], *columns: Tensor, within: bool = False
    ) -> tuple[Tensor, Tensor]:
        """The loss at d, and its gradient: [n], [n, *shape]. One forward and one backward a row.

        The loss is a name, or a function of (z, y, t) and of the rows' parts of `columns` ([n, ...]
        each). `within`: a success beyond eps is none, nor is the model under test asked about it.
        """
        value, g = d.new_zeros(len(d)), torch.zeros_like(d)

        def ask(rows: Tensor) -> None:
            x = self._point(d, rows)

            def cotangent(z: Tensor) -> Tensor:
                value[rows], slope = self._loss(rows, z, loss, columns)
                return slope

            # It may run out of memory and be asked again: no books before.
            z, pulled = self.target.pull(self._whole(rows, x), cotangent)
            self._note(
                rows, x, self._against(rows, z), exact=not self.target.approximate, within=within
            )
            g[rows] = self._clean(rows, pulled)

        self._each(d, ask, slopes=1)
        return value, g

    def rivals(self, d: Tensor, m: int) -> tuple[Tensor, Tensor]:
        """How far the m best wrong classes are from winning at d (above 0: won), and the gradients
        of these gaps.

        [n, m], [n, m, *shape], the best first; one forward and m backwards a row. With an aim or a
        goal there is one rival, and never more than k - 1.
        """
        m = 1 if self.aim is not None or self.goal is not None else min(m, self.target.task.k - 1)
        gap, g = d.new_zeros(len(d), m), d.new_zeros(len(d), m, *d.shape[1:])

        def ask(rows: Tensor) -> None:
            x = self._point(d, rows)
            raw, pullback = self.target.linearize(self._whole(rows, x))
            z = self._against(rows, raw)
            y, t = self._sides(rows, z)
            t = without(z, y).topk(m, 1).indices if t is None else t[:, None]
            own = z.gather(1, y[:, None])
            unit = torch.zeros_like(z).scatter(1, y[:, None], -1)
            ways = [self._back(rows, raw, unit.scatter(1, t[:, j : j + 1], 1)) for j in range(m)]
            pulled = [pullback(way) for way in ways]
            self._note(rows, x, z, exact=not self.target.approximate)
            gap[rows] = (z.gather(1, t) - own).to(gap.dtype)
            for j in range(m):
                g[rows, j] = self._clean(rows, pulled[j])

        self._each(d, ask, slopes=m)
        return gap, g

    def nearest(self, d: Tensor, m: int) -> tuple[Tensor, Tensor]:
        """Of the `rivals` the one whose boundary, linearised at d, is nearest: its gap and
        gradient, [n], [n, *shape].

        A rival whose gradient is zero is out of reach.
        """
        gap, g = self.rivals(d, m)
        slope = self.norm.dual(g.flatten(0, 1)).view_as(gap)
        first = torch.where(slope > 0, gap.abs() / slope, torch.inf).argmin(1)
        rows = torch.arange(len(d), device=d.device)
        return gap[rows, first], g[rows, first]

    def scores(self, d: Tensor) -> Tensor:
        """Scores at d: [n, k]. One forward a row."""
        z = d.new_zeros(len(d), self.target.task.k)

        def ask(rows: Tensor) -> None:
            x = self._point(d, rows)
            z[rows] = self._scores(rows, x).to(z.dtype)
            self._note(rows, x, z[rows])

        self._each(d, ask)
        return z

    def value(self, d: Tensor, loss: str | Loss) -> Tensor:
        """The loss at d: [n]. One forward a row; scores are enough."""
        value = d.new_zeros(len(d))

        def ask(rows: Tensor) -> None:
            x = self._point(d, rows)
            z = self._scores(rows, x)
            self._note(rows, x, z)
            function = LOSSES[loss] if isinstance(loss, str) else loss
            value[rows] = function(z, *self._sides(rows, z)).to(value.dtype)

        self._each(d, ask)
        return value

    def adversarial(self, d: Tensor, among: Tensor | None = None) -> Tensor:
        """Whether d meets the goal: [n] bool. One forward a row; labels are enough.

        Of all rows, or of those `among` ([n] bool) alone: the others cost nothing, so each row
        keeps its pace.
        """
        hit = torch.zeros(len(d), dtype=torch.bool, device=d.device)

        def ask(rows: Tensor) -> None:
            x = self._point(d, rows)
            if self.target.access >= Access.SCORES:
                z = self._scores(rows, x)
                self._note(rows, x, z)
                noted = self.ledger is not None
                hit[rows] = self.met[rows] if noted else self._wins(rows, z) & z.isfinite().all(1)
            else:
                hit[rows] = self._hear(rows, x, self.target.labels(self._whole(rows, x)))

        self._each(d, ask, among)
        return hit

    def probes(self, d: Tensor, loss: str | Loss | None = None) -> Tensor:
        """The loss at m points a row, d [n, m, *shape]: [n, m]; without a loss, whether they meet
        the goal (bool).

        m forwards a row, asked and booked together, also those after a success. Scores are enough
        for a loss, labels for the goal. A row whose budget ends among them is asked about the first
        points only; the rest gives zeros.
        """
        n, m = d.shape[:2]
        answer = torch.zeros(n, m, dtype=torch.bool if loss is None else d.dtype, device=d.device)
        function = LOSSES[loss] if isinstance(loss, str) else loss
        graded = self.target.access >= Access.SCORES

        def ask(rows: Tensor) -> None:
            count = self._left(rows, m)
            asked = torch.arange(m, device=d.device) < count[:, None]
            row = rows.repeat_interleave(count)
            x = self._input(row, d[rows][asked])
            question = (
                self._scores if graded else lambda at, x: self.target.labels(self._whole(at, x))
            )
            z = torch.cat(list(self.target.batched(lambda at: question(row[at], x[at]), len(x))))
            met = self._book(rows, count, asked, x, z)
            found = met if function is None else function(z, *self._sides(row, z)).to(d.dtype)
            answer[rows] = torch.zeros_like(answer[rows]).masked_scatter(asked, found)

        few = max(1, self.target.batch_size // m)
        self._each(d, lambda rows: [ask(part) for part in rows.split(few)])
        return answer

    def finish(self, rows: Tensor) -> None:
        """Ask no more about these rows ([n] bool): the attack's own rule says that their search is
        over."""
        self.over = self.over | rows

    def best(self) -> tuple[Tensor, Tensor]:
        """The smallest d that met the goal so far, and its size ([n]): zeros and inf where there is
        none yet."""
        assert self.ledger is not None
        size = self.ledger.size[self.rows].to(self.x.dtype)
        found = self.ledger.best[self.rows] - self.x
        return torch.where(wide(size.isfinite(), found), found, 0), size

    # ------------------------------------------------------------------ for the loop

    def tighten(self) -> None:
        """Pull the smallest point found so far towards x, along its ray, by up to a tenth: five
        forwards a row."""
        d, size = self.best()
        self.live &= size.isfinite()
        self.over = torch.zeros_like(self.over)
        low, high = torch.full_like(size, 0.9), torch.ones_like(size)
        for _ in range(5):
            middle = (low + high) / 2
            met = self.adversarial(d * wide(middle, d))
            low, high = torch.where(met, low, middle), torch.where(met, middle, high)

    def known(self, clean: Tensor) -> None:
        """Settle at size 0 the rows whose clean scores [n, k], asked for elsewhere, meet the goal
        already."""
        if self.ledger is None:
            return
        clean = self.target.task.against(clean, self.y)
        met = self._meets(self.rows, self.target.task.predict(clean)) & clean.isfinite().all(1)
        margin = self.target.task.margin(clean, self.y).double()
        self.ledger.margin[self.rows] = torch.where(margin.isfinite(), margin, torch.inf)
        self.ledger.record(
            self.rows[met], self.x[met], torch.zeros_like(self.ledger.size[self.rows[met]])
        )
        self.live &= ~met

    def last(self, d: Tensor) -> None:
        """Judge the final point, unless it was the last one asked about."""
        if self.ledger is None:
            return
        if d is not self._asked:
            self.adversarial(d)
        if self.target.access < Access.SCORES:
            quiet = self.ledger.size[self.rows].isinf()
            self.ledger.best[self.rows[quiet]] = self._point(self.project(d), quiet)

    def take(self, keep: Tensor) -> None:
        """Forget all rows but `keep`."""
        self.x, self.y, self.eps, self.lo, self.hi = (
            column[keep] for column in (self.x, self.y, self.eps, self.lo, self.hi)
        )
        self.held = None if self.held is None else self.held[keep]
        self.aim = None if self.aim is None else self.aim[keep]
        self.goal = None if self.goal is None else self.goal[keep]
        self.near = None if self.near is None else self.near[keep]
        self.keys, self.rows, self.live = self.keys.take(keep), self.rows[keep], self.live[keep]
        self.over, self.met = self.over[keep], self.met[keep]
        self._asked = None

    # ------------------------------------------------------------------ inside

    def _each(
        self,
        d: Tensor,
        ask: Callable[[Tensor], object],
        among: Tensor | None = None,
        slopes: int = 0,
    ) -> None:
        """Put a question, with some gradients, to the live rows (of those `among`) whose budget
        allows it, in parts."""
        self._asked, self.met = d if among is None else None, torch.zeros_like(self.met)
        wanted = self.live if among is None else self.live & among
        if self.ledger is not None and self.budget is not None:
            most = (
                self.target.passes * (2 if self.target.approximate else 1)
                + slopes * self.target.pull_passes
            )
            spent = wanted & (self.ledger.forwards[self.rows] + most > self.budget[self.rows])
            self.ledger.end(self.rows[spent], Outcome.SPENT)
            self.live &= ~spent
        # all rows without a count, which would wait for the device
        whole = self.ledger is None and among is None
        rows = self.rows if whole else (wanted & self.live & ~self.over).nonzero()[:, 0]
        for _ in self.target.batched(lambda part: ask(rows[part]), len(rows)):
            pass

    def _left(self, rows: Tensor, m: int) -> Tensor:
        """How many of m points the budgets of these rows still allow."""
        if self.ledger is None or self.budget is None:
            return torch.full_like(rows, m)
        at = self.rows[rows]
        return ((self.budget[at] - self.ledger.forwards[at]) // self.target.passes).clamp(0, m)

    def _point(self, d: Tensor, rows: Tensor) -> Tensor:
        """The input that d stands for, inside the box to the last bit."""
        return self._input(rows, d[rows])

    def _input(self, rows: Tensor, d: Tensor) -> Tensor:
        """The inputs that d [m, *shape] stand for at these rows [m]; on the threat's grid, where it
        has one."""
        x = self.x[rows]
        near = self.target.bounds.clamp(x + d)
        if not self.grid:
            return near
        limit = legal_size(self.norm, self.eps.flatten()[rows], self.target, len(x))
        return _rounded(self.target, self.norm, limit, x, near)

    def _whole(self, rows: Tensor, x: Tensor) -> Tensor:
        """These rows' inputs as the target takes them."""
        return together(None if self.held is None else self.held[rows], x)

    def _scores(self, rows: Tensor, x: Tensor) -> Tensor:
        """Scores [n, k] of these rows' inputs x, as the adversary meets them."""
        return self._against(rows, self.target.scores(self._whole(rows, x)))

    def _against(self, rows: Tensor, z: Tensor) -> Tensor:
        """The target's scores as the adversary meets them: a refusal stands with the right
        class."""
        return self.target.task.against(z, self.y[rows])

    def _back(self, rows: Tensor, z: Tensor, cotangent: Tensor) -> Tensor:
        """A cotangent on scores as the adversary meets them as one on the target's scores z."""
        if z.shape == cotangent.shape:
            return cotangent
        with torch.enable_grad():
            leaf = z.detach().requires_grad_()
            return torch.autograd.grad((self._against(rows, leaf) * cotangent).sum(), leaf)[0]

    def _sides(self, rows: Tensor, z: Tensor) -> tuple[Tensor, Tensor | None]:
        """Which class [n] is to fall, and which is to win, if that matters."""
        if self.goal is None:
            return self.y[rows], None if self.aim is None else self.aim[rows]
        t = self.goal[rows]
        return without(z, t).argmax(1), t  # whichever class now stands above the goal

    def _loss(
        self,
        rows: Tensor,
        z: Tensor,
        loss: str | Callable[..., Tensor],
        columns: tuple[Tensor, ...],
    ) -> tuple[Tensor, Tensor]:
        """The loss on scores z and its cotangent."""
        y, t = self._sides(rows, self._against(rows, z))
        with torch.enable_grad():
            leaf = z.detach().requires_grad_()
            function = LOSSES[loss] if isinstance(loss, str) else loss
            value = function(self._against(rows, leaf), y, t, *(column[rows] for column in columns))
            cotangent = torch.autograd.grad(value.sum(), leaf)[0]
        return value.detach().to(self.x.dtype), cotangent

    def _clean(self, rows: Tensor, g: Tensor) -> Tensor:
        """Charge a backward pass; rows with a non-finite gradient fail, zero gradients are
        counted."""
        g = self.target.apart(g)[1]
        flat = g.flatten(1)
        top = flat.abs().amax(1)  # NaN and inf carry through
        if self.ledger is not None:
            estimated = self.target.pull_passes
            backwards = 0 if estimated else self.target.passes
            self.ledger.charge(
                self.rows[rows], queries=estimated, forwards=estimated, backwards=backwards
            )
            self.ledger.dull[self.rows[rows]] += top == 0
        bad = ~top.isfinite()
        if self.ledger is None or bool(bad.any()):
            g = g.masked_fill(wide(bad, g), 0)
        if self.ledger is not None and bool(bad.any()):
            self._drop(rows[bad], Outcome.FAILED)
        return g if self.mask is None else g * self.mask

    def _note(
        self, rows: Tensor, x: Tensor, z: Tensor, *, exact: bool = True, within: bool = False
    ) -> None:
        """Book the scores at inputs x; what looks like a success in approximate ones is asked
        again."""
        if self.ledger is None:
            return
        finite = z.isfinite().all(1)
        if not bool(finite.all()):
            self._drop(rows[~finite], Outcome.FAILED)
        hit = self._wins(rows, z) & finite
        if within:
            hit &= (
                self.norm.size(x.double() - self.x[rows].double())
                <= self.ledger.limit[self.rows[rows]]
            )
        told = None if exact or not self.target.lent else hit.clone()  # by the model under test
        if not exact and bool(hit.any()):
            z = z.clone()
            z[hit] = self._scores(rows[hit], x[hit]).to(z.dtype)
            self.ledger.charge(self.rows[rows[hit]], forwards=self.target.passes)
            hit &= self._wins(rows, z) & z.isfinite().all(1)
        margin = self.target.task.margin(z, self.y[rows])
        self._settle(rows, x, hit, margin if told is None else margin.where(told, torch.inf))

    def _hear(self, rows: Tensor, x: Tensor, labels: Tensor) -> Tensor:
        """Book decisions at inputs x: whether they meet the goal. A negative one is none, and its
        row fails."""
        none = silent(labels)
        if self.ledger is not None and bool(none.any()):
            self._drop(rows[none], Outcome.FAILED)
        hit = self._meets(rows, labels) & ~none
        self._settle(rows, x, hit, None)
        return hit

    def _book(self, rows: Tensor, count: Tensor, asked: Tensor, x: Tensor, z: Tensor) -> Tensor:
        """Book `count` points of each of these rows (x and z: one after the other); which meet the
        goal.

        All are charged; two a row are noted: the legal one of the lowest margin, and the smallest
        that meets the goal.
        """
        row, graded = rows.repeat_interleave(count), self.target.access >= Access.SCORES
        finite = z.isfinite().all(1) if graded else ~silent(z)
        met = (self._wins(row, z) if graded else self._meets(row, z)) & finite
        if self.ledger is None:
            return met
        first, none = (
            count.cumsum(0) - count,
            torch.full(asked.shape, torch.inf, dtype=torch.float64, device=x.device),
        )
        size = self.norm.size(x.double() - self.x[row].double())
        margin = (
            self.target.task.margin(z, self.y[row]).double() if graded else torch.zeros_like(size)
        )
        legal = finite & (size <= self.ledger.limit[self.rows[row]])
        lowest = first + none.masked_scatter(asked, torch.where(legal, margin, torch.inf)).argmin(1)
        smallest = first + none.masked_scatter(asked, torch.where(met, size, torch.inf)).argmin(1)
        if not bool(finite.all()):
            self._drop(row[~finite].unique(), Outcome.FAILED)
        hit = met[smallest]
        self._settle(
            rows, x[lowest], torch.zeros_like(hit), margin[lowest] if graded else None, count
        )
        at = smallest[hit]
        self._settle(rows[hit], x[at], met[at], margin[at] if graded else None, 0)
        return met

    def _settle(
        self, rows: Tensor, x: Tensor, hit: Tensor, margin: Tensor | None, count: int | Tensor = 1
    ) -> None:
        ledger = self.ledger
        if ledger is None:
            return
        at = self.rows[rows]
        ledger.charge(at, queries=count, forwards=count * self.target.passes)
        limit = ledger.limit[at]
        if margin is not None:
            legal = self.norm.size(x - self.x[rows]).double() <= limit
            low, known = (
                torch.where(margin.isfinite() & legal, margin.double(), torch.inf),
                ledger.margin[at],
            )
            lower = ((low < known) & ledger.size[at].isinf()).nonzero()[:, 0]
            ledger.margin[at] = low.minimum(known)
            ledger.best[at[lower]] = x[lower]
        self.met[rows] = hit
        new = hit.nonzero()[:, 0]
        if len(new):
            found, start = x[new], self.x[rows[new]]
            ledger.record(at[new], found, self.norm.size(found.double() - start.double()))
            if self.stop:
                self.live[rows[(ledger.size[at] <= limit) & (limit < UNLIMITED)]] = False

    def _drop(self, rows: Tensor, outcome: Outcome) -> None:
        self.live[rows] = False
        if self.ledger is not None:
            self.ledger.end(self.rows[rows], outcome)

    def _wins(self, rows: Tensor, z: Tensor) -> Tensor:
        """Whether scores meet the goal, by as much as the target says is no luck."""
        met = self._meets(rows, self.target.task.predict(z))
        if self.target.caution:
            best = z.topk(2, 1).values
            met &= best[:, 0] - best[:, 1] >= self.target.caution
        return met

    def _meets(self, rows: Tensor, labels: Tensor) -> Tensor:
        if self.goal is not None:
            return labels == self.goal[rows]
        return (labels != self.y[rows]) & (labels != REFUSED)


def goal_classes(threat: Threat, y: Tensor) -> Tensor | None:
    """The class that each row must be driven to, [n]; None for an untargeted threat."""
    if not isinstance(threat.goal, Targeted):
        return None
    if isinstance(threat.goal.t, str):
        raise SpecError(
            f"{threat} aims at another class for each row; evaluate and attack find out which."
        )
    return torch.as_tensor(threat.goal.t, dtype=torch.int64, device=y.device).expand(len(y))


def on_8bit(target: Target, threat: Threat, x: Tensor, found: Tensor) -> Tensor:
    """Inputs `found` for inputs x [n, *shape] as images of 8 bits, within the threat where that can
    be."""
    held, moving = target.apart(found)
    limit = legal_size(threat.norm, threat.eps, target, len(x))
    return together(held, _rounded(target, threat.norm, limit, target.apart(x)[1], moving))


def _rounded(target: Target, norm: Norm, limit: Tensor, x: Tensor, found: Tensor) -> Tensor:
    """`found` at the nearest levels of 8 bits; where that leads out of the limit [n], at those on
    the side of x."""
    rounded = target.bounds.as_8bit(found)
    over = norm.size(rounded.double() - x.double()) > limit.to(x.device)
    return torch.where(wide(over, x), target.bounds.as_8bit(found, x), rounded)


def legal_size(norm: Norm, eps: float | Tensor, target: Target, n: int) -> Tensor:
    """The largest size that counts as within eps, [n] float64.

    eps and one part in a million, plus what rounding the sum x + d to float32 adds: half a unit in
    the last place of the largest input, in every feature. Where eps is inf, the largest number
    there is.
    """
    rounding = norm.rounding(math.prod(target.free or target.shape or ()), target.bounds.ulp)
    eps = torch.as_tensor(eps, dtype=torch.float64, device=target.device)
    return (eps * (1 + 1e-6) + rounding).clamp_max(UNLIMITED).expand(n)
