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

from holdfast.attacks.counts import UNLIMITED, Counts, Ledger
from holdfast.errors import SpecError
from holdfast.losses import LOSSES, Loss, without
from holdfast.norms import Norm, wide
from holdfast.rng import Keys
from holdfast.targets.batch import Batch, Rows, picked, rows_of
from holdfast.targets.target import Access, Target
from holdfast.threats.threat import Targeted, Threat

Pool = tuple[Tensor, Tensor]  # inputs [m, *shape] that an attacker holds, and their classes [m]


class Problem:
    """The search problem of n rows (those still in memory); perturbations d are [n, *shape] in raw
    units."""

    def __init__(
        self,
        target: Target,
        rows: Rows,
        y: Tensor,
        threat: Threat,
        keys: Keys,
        *,
        aim: Tensor | None = None,
        near: Tensor | None = None,
        ledger: Ledger | None = None,
        budget: Tensor | None = None,
        stop: bool = True,
        pool: Pool | None = None,
    ) -> None:
        batch = Batch.of(rows)
        x = threat.origin(batch.x)
        self.target, self.threat, self.norm, self.keys = target, threat, threat.norm, keys
        self.batch = batch  # attacks see what may change, and nothing else
        self.layout, self.square = target.inputs.layout, None
        if threat.spatial is not None:
            self.layout, self.square = "nchw", threat.spatial.square
        self.aim, self.near = aim, near
        self.pool = None if pool is None else (threat.origin(pool[0].to(batch.x)), pool[1].to(y))
        eps = torch.as_tensor(threat.eps, dtype=x.dtype, device=x.device)
        self.eps = wide(eps.expand(len(x)), x)
        self.mask = None if threat.mask is None else threat.mask.to(x)
        low, high = target.bounds.sides(x)
        self.lo, self.hi = low - x, high - x
        if self.mask is not None:
            self.lo, self.hi = self.lo * self.mask, self.hi * self.mask
        # a paper's lengths for [0, 1] are multiples of it
        self.width = target.bounds.high - target.bounds.low
        self.t = 0
        self.restart = 0  # how many runs of this search came before
        self.counts = Counts(
            target, threat.norm, x, y, goal_classes(threat, y), ledger, budget, stop=stop
        )
        self._asked: Tensor | None = None

    @property
    def x(self) -> Tensor:
        """Where the search starts: the inputs [n, *shape]; of a spatial threat, its parameters."""
        return self.counts.x

    @property
    def y(self) -> Tensor:
        """The true classes: [n]."""
        return self.counts.y

    @property
    def goal(self) -> Tensor | None:
        """The class that each row must be driven to, [n]; None: any wrong one."""
        return self.counts.goal

    @property
    def live(self) -> Tensor:
        """Whether a row is still searched: [n] bool."""
        return self.counts.live

    @property
    def met(self) -> Tensor:
        """Whether the point last asked about (of probes: any) met the goal: [n] bool."""
        return self.counts.met

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
        """Inputs of other classes than the row's, drawn from the pool: [n, m, *shape].

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

            # It may run out of memory and be asked again: no counts before.
            z, pulled = self.target.pull(self._batch(rows, x), cotangent)
            pulled = self._pulled(rows, x, pulled)
            self._note(rows, x, self._against(rows, z), within=within)
            g[rows] = self._slope(rows, pulled)

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
            raw, pullback = self.target.linearize(self._batch(rows, x))
            z = self._against(rows, raw)
            y, t = self._sides(rows, z)
            t = without(z, y).topk(m, 1).indices if t is None else t[:, None]
            own = z.gather(1, y[:, None])
            unit = torch.zeros_like(z).scatter(1, y[:, None], -1)
            ways = [self._back(rows, raw, unit.scatter(1, t[:, j : j + 1], 1)) for j in range(m)]
            pulled = [self._pulled(rows, x, pullback(way)) for way in ways]
            self._note(rows, x, z)
            gap[rows] = (z.gather(1, t) - own).to(gap.dtype)
            for j in range(m):
                g[rows, j] = self._slope(rows, pulled[j])

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
            self.counts.scores(rows, x, z[rows])

        self._each(d, ask)
        return z

    def value(self, d: Tensor, loss: str | Loss) -> Tensor:
        """The loss at d: [n]. One forward a row; scores are enough."""
        value = d.new_zeros(len(d))

        def ask(rows: Tensor) -> None:
            x = self._point(d, rows)
            z = self._scores(rows, x)
            self.counts.scores(rows, x, z)
            function = _function(loss)
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
                self.counts.scores(rows, x, z)
                hit[rows] = self.counts.hits(rows, z)
            else:
                label = self.target.labels(self._batch(rows, x))
                hit[rows] = self.counts.labels(rows, x, label)

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
        kind, function = torch.bool, None
        if loss is not None:
            kind, function = d.dtype, _function(loss)
        answer = torch.zeros(n, m, dtype=kind, device=d.device)
        graded = self.target.access >= Access.SCORES

        def ask(rows: Tensor) -> None:
            count = self.counts.left(rows, m)
            asked = torch.arange(m, device=d.device) < count[:, None]
            row = rows.repeat_interleave(count)
            x = self._input(row, d[rows][asked])
            question = (
                self._scores if graded else lambda at, x: self.target.labels(self._batch(at, x))
            )
            z = torch.cat(
                list(self.target.batcher.parts(lambda at: question(row[at], x[at]), len(x)))
            )
            met = self.counts.several(rows, count, asked, x, z)
            found = met if function is None else function(z, *self._sides(row, z)).to(d.dtype)
            answer[rows] = torch.zeros_like(answer[rows]).masked_scatter(asked, found)

        few = max(1, self.target.batcher.size // m)
        self._each(d, lambda rows: [ask(part) for part in rows.split(few)])
        return answer

    def finish(self, rows: Tensor) -> None:
        """Ask no more about these rows ([n] bool): the attack's own rule says that their search is
        over."""
        self.counts.over |= rows

    def best(self) -> tuple[Tensor, Tensor]:
        """The smallest d that met the goal so far, and its size ([n]): zeros and inf where there is
        none yet."""
        found, size = self.counts.best()
        found = found - self.x
        return torch.where(wide(size.isfinite(), found), found, 0), size

    # ------------------------------------------------------------------ for the loop

    def last(self, d: Tensor) -> None:
        """Judge the final point, unless it was the last one asked about."""
        if d is not self._asked:
            self.adversarial(d)
        if self.target.access < Access.SCORES:
            every = torch.arange(len(d), device=d.device)
            self.counts.keep(self._point(self.project(d), every))

    def take(self, keep: Tensor) -> None:
        """Forget all rows but `keep`."""
        self.eps, self.lo, self.hi = (column[keep] for column in (self.eps, self.lo, self.hi))
        self.aim, self.near = picked(self.aim, keep), picked(self.near, keep)
        self.keys = self.keys.take(keep)
        self.counts.take(keep)
        x = self.x if self.threat.spatial is None else self.batch.x[keep]
        self.batch = Batch(x, rows_of(self.batch.context, keep))
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
        self._asked = d if among is None else None
        rows = self.counts.open(among, slopes)
        for _ in self.target.batcher.parts(lambda part: ask(rows[part]), len(rows)):
            pass

    def _point(self, d: Tensor, rows: Tensor) -> Tensor:
        """The input that d stands for, inside the box to the last bit."""
        return self._input(rows, d[rows])

    def _input(self, rows: Tensor, d: Tensor) -> Tensor:
        """The inputs that d [m, *shape] stand for at these rows [m]; on the threat's grid, where it
        has one."""
        x = self.x[rows]
        near = self.target.bounds.clamp(x + d)
        if not self.threat.grid:
            return near
        limit = legal_size(self.threat, self.target, len(x), self.eps.flatten()[rows])
        return _rounded(self.target, self.norm, limit, x, near)

    def _batch(self, rows: Tensor, x: Tensor) -> Batch:
        """What the target sees of these rows at points x."""
        context = rows_of(self.batch.context, rows)
        if self.threat.spatial is None:
            return Batch(x, context)
        return Batch(self.threat.apply(self.batch.x[rows], x), context)

    def _pulled(self, rows: Tensor, x: Tensor, g: Tensor) -> Tensor:
        """A gradient on what the target saw of these rows as one on their points x."""
        if self.threat.spatial is None:
            return g
        with torch.inference_mode(False), torch.enable_grad():
            leaf = x.detach().clone().requires_grad_()
            shown = self.threat.apply(self.batch.x[rows], leaf)
            return torch.autograd.grad((shown * g).sum(), leaf)[0]

    def _scores(self, rows: Tensor, x: Tensor) -> Tensor:
        """Scores [n, k] of these rows' inputs x, as the adversary meets them."""
        return self._against(rows, self.target.scores(self._batch(rows, x)))

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
            return self.y[rows], picked(self.aim, rows)
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
            function = _function(loss)
            value = function(self._against(rows, leaf), y, t, *(column[rows] for column in columns))
            cotangent = torch.autograd.grad(value.sum(), leaf)[0]
        return value.detach().to(self.x.dtype), cotangent

    def _slope(self, rows: Tensor, g: Tensor) -> Tensor:
        """A gradient at these rows, where something may change."""
        g = self.counts.slopes(rows, g)
        return g if self.mask is None else g * self.mask

    def _note(self, rows: Tensor, x: Tensor, z: Tensor, *, within: bool = False) -> None:
        """Count the scores that came with a gradient at points x."""
        again = self._scores if self.target.gradients.approximate else None
        self.counts.scores(rows, x, z, again=again, within=within)


def _function(loss: str | Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A loss by its name, or as it is."""
    return LOSSES[loss] if isinstance(loss, str) else loss


def goal_classes(threat: Threat, y: Tensor) -> Tensor | None:
    """The class that each row must be driven to, [n]; None for an untargeted threat."""
    if not isinstance(threat.goal, Targeted):
        return None
    if isinstance(threat.goal.t, str):
        raise SpecError(
            f"{threat} aims at another class for each row; evaluate and attack find out which."
        )
    return torch.as_tensor(threat.goal.t, dtype=torch.int64, device=y.device).expand(len(y))


def meets_goal(threat: Threat, label: Tensor, y: Tensor) -> Tensor:
    """Whether decisions [n] are what the adversary wants of rows of classes y [n]."""
    goal = goal_classes(threat, y)
    return (label >= 0) & (label != y if goal is None else label == goal)


def on_8bit(target: Target, threat: Threat, x: Tensor, found: Tensor) -> Tensor:
    """Inputs `found` for inputs x [n, *shape] as images of 8 bits, within the threat where that can
    be."""
    return _rounded(target, threat.norm, legal_size(threat, target, len(x)), x, found)


def _rounded(target: Target, norm: Norm, limit: Tensor, x: Tensor, found: Tensor) -> Tensor:
    """`found` at the nearest levels of 8 bits; where that leads out of the limit [n], at those on
    the side of x."""
    rounded = target.bounds.as_8bit(found)
    over = norm.size(rounded.double() - x.double()) > limit.to(x.device)
    return torch.where(wide(over, x), target.bounds.as_8bit(found, x), rounded)


def legal_size(threat: Threat, target: Target, n: int, eps: float | Tensor | None = None) -> Tensor:
    """The largest size that counts as within eps (default: the threat's), [n] float64.

    eps and one part in a million, plus what rounding the sum x + d to float32 adds: half a unit in
    the last place of the largest input, in every feature. Where eps is inf, the largest number
    there is.
    """
    rounding = threat.norm.rounding(math.prod(threat.form(target.shape or ())), target.bounds.ulp)
    if eps is None:
        eps = threat.eps
    eps = torch.as_tensor(eps, dtype=torch.float64, device=target.batcher.device)
    return (eps * (1 + 1e-6) + rounding).clamp_max(UNLIMITED).expand(n)
