"""All that an attack may know: the rows, the geometry, the noise, and the questions it may ask.

Every question goes to live rows only, is charged to their budgets and judged for success here, so
an attack never checks success, counts, stops early, keeps a best iterate, branches on a norm or
touches a generator. Answers for settled rows are zeros.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor

from holdfast.attacks.counts import Counts, meets
from holdfast.attacks.result import UNLIMITED, SearchResult
from holdfast.bounds import Graph, graph_of
from holdfast.errors import SpecError
from holdfast.losses import EVERY_LOSS, Loss, without
from holdfast.norms import Norm, wide
from holdfast.rng import Keys
from holdfast.targets.batch import Batch, Part, Rows, part_of, picked, places, rows_of
from holdfast.targets.target import Access, Target
from holdfast.targets.truth import objects_at
from holdfast.targets.wrappers import itself
from holdfast.threats.threat import Targeted, Threat

Pool = tuple[Tensor, Tensor]  # inputs [m, *shape] that an attacker holds, and their classes [m]


class Problem:
    """The search problem of n rows (those still searched); perturbations d are [n, *shape] in raw
    units.

    Args:
        result: where questions are counted and what they find is kept; None: nowhere.
        budget: the most forwards that a row may cost, [n]; None: no limit.
        stop: whether a row's search ends at its first success within eps.
        drafts: whether questions are about rows of a table before their repair, which cost far
            less: see `Threat.drafted`. `points` are repaired all the same.
    """

    def __init__(
        self,
        target: Target,
        rows: Rows,
        y: Tensor,
        threat: Threat,
        keys: Keys,
        *,
        restart: int | Tensor = 0,
        warm_start: Tensor | None = None,
        result: SearchResult | None = None,
        budget: Tensor | None = None,
        stop: bool = True,
        pool: Pool | None = None,
        drafts: bool = False,
        widest: float = 0.0,
    ) -> None:
        batch, threat = Batch.of(rows), threat.in_layout(target.inputs.layout)
        x = threat.origin(batch.x)
        self.target, self.threat, self.norm, self.keys = target, threat, threat.norm, keys
        self._widest, self._drafts = widest, drafts and threat.schema is not None
        self.layout = target.inputs.layout if threat.spatial is None else "nchw"
        # attacks see what may change, and nothing else
        self._context, self._images = batch.context, batch.x
        if threat.additive:
            self._images = x.new_empty(len(x), 0)  # d adds to the inputs, and nothing else
        # inputs [n, *shape] from which an attack that starts at the `best` known point goes on
        self.warm_start = warm_start
        self.pool = None if pool is None else (threat.origin(pool[0].to(batch.x)), pool[1].to(y))
        self.features = math.prod(x.shape[1:])  # of one row
        eps = torch.as_tensor(threat.eps, dtype=x.dtype, device=x.device)
        self.eps = wide(eps.expand(len(x)), x)
        # where nothing may change, the box is a point
        self._mask = None if threat.mask is None else threat.mask.to(x)
        low, high = threat.sides(batch.x, target.bounds)
        self.lo, self.hi = self._masked(low - x), self._masked(high - x)
        # a paper's lengths for [0, 1] are multiples of it
        self.width = 1.0 if threat.schema else target.bounds.high - target.bounds.low
        self.t = 0  # how many steps came before
        # how many runs of each row came before, [n]
        self.restart = torch.as_tensor(restart, device=x.device).expand(len(x))
        goal = goal_classes(threat, y)
        self.aim = goal  # the class that is to win, [n]: the goal, or another; None: any
        self._counts = Counts(target, threat.norm, x, y, goal, result, budget, stop=stop)
        self._asked: Tensor | None = None  # what the last question was about

    @property
    def x(self) -> Tensor:
        """Where the search starts: the inputs [n, *shape]; of a spatial threat, its parameters."""
        return self._counts.x

    @property
    def rows(self) -> Tensor:
        """What the model sees where nothing has changed: [n, *shape]."""
        return self.threat.apply(self._images, self.x)

    @property
    def y(self) -> Tensor:
        """The true classes: [n]."""
        return self._counts.y

    @property
    def goal(self) -> Tensor | None:
        """The class that each row must be driven to, [n]; None: any wrong one."""
        return self._counts.goal

    @property
    def live(self) -> Tensor:
        """Whether a row is still searched: [n] bool."""
        return self._counts.live

    @property
    def asking(self) -> Tensor:
        """Whether a row is still searched, and `stop_asking` has not ended that: [n] bool."""
        return self._counts.live & ~self._counts.over

    @property
    def met(self) -> Tensor:
        """Whether the point last asked about (of probes: any) met the goal: [n] bool."""
        return self._counts.met

    @cached_property
    def graph(self) -> Graph:
        """The target's network, as proofs follow it.

        Raises:
            InputError: as `graph_of`.
        """
        return graph_of(itself(self.target), self.threat)

    # ------------------------------------------------------------------ geometry

    def project(self, d: Tensor) -> Tensor:
        """The nearest legal perturbation."""
        return self.norm.project(d, self.eps, self.lo, self.hi)

    def repair(self, d: Tensor) -> Tensor:
        """The d that the model is really asked about: of a table that of a legal row nearby, 0
        where there is none; on a threat's grid the nearest on it."""
        return self.points(d) - self.x

    def points(self, d: Tensor) -> Tensor:
        """What `origin(x) + d` becomes before the model is asked: see `repair`."""
        return self._legal(slice(0, len(d)), d)

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
        if where == "best" and self.warm_start is not None:
            return self.project(self.warm_start - self.x)
        if where in ("zero", "best"):
            return torch.zeros_like(self.x)
        draw = {"ball": self.norm.sample, "sphere": self.norm.sphere}[where]
        return self.project(self.eps * draw(self.noise(where), self.x))

    def after_first(self, start: Callable[[], Tensor]) -> Tensor:
        """The start d of all runs of a row but the first, which begins at 0."""
        d, later = torch.zeros_like(self.x), self.restart > 0
        return torch.where(wide(later, d), start(), d) if bool(later.any()) else d

    def noise(self, name: str) -> Keys:
        """Random keys of this step; each name gives an independent draw."""
        return self.keys.fold(self.t, name)

    # ------------------------------------------------------------------ questions

    def gradient(
        self, d: Tensor, loss: str | Callable[..., Tensor], *columns: Tensor, within: bool = False
    ) -> tuple[Tensor, Tensor]:
        """The loss at d, and its gradient: [n], [n, *shape]. One forward and one backward a row.

        The loss is a name, or a function of (z, y, t) and of the rows' parts of `columns` ([n, ...]
        each). `within`: a success beyond eps is none, nor is the model under test asked about it.
        """
        function = _function(loss)
        target = (
            self.target.ascending(loss)
            if isinstance(loss, str) and loss in self.target.losses
            else self.target
        )

        def ask(rows: Part) -> tuple[Tensor, Tensor]:
            x, value = self._point(rows, part_of(d, rows)), d.new_zeros(0)

            def losses(z: Tensor) -> Tensor:
                own = (column[rows] for column in columns)
                return function(z, *self._sides(rows, z), *own)[:, None]

            def cotangent(z: Tensor) -> Tensor:
                nonlocal value
                value, (slope,) = self._cotangents(rows, z, losses)
                return slope

            # It may run out of memory and be asked again: no counts before.
            z, pulled = target.pull(self._batch(rows, x), cotangent)
            pulled = self._pulled(rows, x, pulled)
            self._count(rows, x, self._against(rows, z), within=within)
            return value[:, 0], self._masked(self._counts.gradients(rows, pulled))

        value, g = self._each(d, ask, (), d.shape[1:], gradients=1)
        return value, g

    def class_gaps(self, d: Tensor, m: int) -> tuple[Tensor, Tensor]:
        """How far the m best wrong classes are from winning at d (above 0: won), and the gradients
        of these gaps.

        [n, m], [n, m, *shape], the best first; one forward and m backwards a row. With an aim there
        is one such class, and never more than k - 1.
        """
        m = min(m, self.target.task.k - 1) if self.aim is None else 1

        def ask(rows: Part) -> tuple[Tensor, Tensor]:
            x = self._point(rows, part_of(d, rows))

            def gaps(z: Tensor) -> Tensor:
                y, t = self._sides(rows, z)
                best = without(z, y).topk(m, 1).indices if t is None else t[:, None]
                return z.gather(1, best) - z.gather(1, y[:, None])

            z, pullback = self.target.linearize(self._batch(rows, x))
            found, cotangents = self._cotangents(rows, z, gaps)
            pulled = [self._pulled(rows, x, pullback(c)) for c in cotangents]
            self._count(rows, x, self._against(rows, z))
            slopes = [self._masked(self._counts.gradients(rows, slope)) for slope in pulled]
            return found, torch.stack(slopes, 1)

        gap, g = self._each(d, ask, (m,), (m, *d.shape[1:]), gradients=m)
        return gap, g

    def scores(self, d: Tensor) -> Tensor:
        """Scores at d: [n, k]. One forward a row."""
        ask = self._answered
        return self._each(d, lambda rows: (ask(rows, d),), (self.target.task.k,))[0]

    def value(self, d: Tensor, loss: str | Loss) -> Tensor:
        """The loss at d: [n]. One forward a row; scores are enough."""

        def ask(rows: Part) -> tuple[Tensor]:
            z = self._answered(rows, d)
            return (_function(loss)(z, *self._sides(rows, z)),)

        return self._each(d, ask, ())[0]

    def adversarial(self, d: Tensor, among: Tensor | None = None) -> Tensor:
        """Whether d meets the goal: [n] bool. One forward a row; labels are enough.

        Of all rows, or of those `among` ([n] bool) alone: the others cost nothing.
        """

        def ask(rows: Part) -> tuple[Tensor]:
            return (self._counts.meet(rows, self._answered(rows, d)),)

        return self._each(d, ask, (), among=among, dtype=torch.bool)[0]

    def probes(self, d: Tensor, loss: str | Loss | None = None) -> Tensor:
        """The loss at m points a row, d [n, m, *shape]: [n, m]; without a loss, whether they meet
        the goal (bool).

        m forwards a row, asked and counted together, also those after a success. Scores are enough
        for a loss, labels for the goal. A row whose budget ends among them is asked about the first
        points only; the rest gives zeros.
        """
        m = d.shape[1]
        few = max(1, self.target.batcher.size // m)
        kind = torch.bool if loss is None else d.dtype

        def ask(rows: Tensor) -> Tensor:
            count = self._counts.left(rows, m)
            asked = torch.arange(m, device=d.device) < count[:, None]
            row = rows.repeat_interleave(count)
            x = self._point(row, d[rows][asked])
            z = torch.cat(
                list(self.target.batcher.parts(lambda at: self._answers(row[at], x[at]), len(x)))
            )
            found = self._counts.probes(rows, count, asked, x, z)
            if loss is not None:
                found = _function(loss)(z, *self._sides(row, z)).to(d.dtype)
            return torch.zeros_like(asked, dtype=kind).masked_scatter(asked, found)

        def parts(rows: Part) -> tuple[Tensor]:
            return (torch.cat([ask(part) for part in places(rows, d.device).split(few)]),)

        return self._each(d, parts, (m,), dtype=kind)[0]

    def stop_asking(self, rows: Tensor) -> None:
        """Ask no more about these rows ([n] bool): the attack's own rule says that their search is
        over."""
        self._counts.over |= rows

    def best(self) -> tuple[Tensor, Tensor]:
        """The smallest d that met the goal so far, and its size ([n]): zeros and inf where there is
        none yet."""
        d, size = part_of(self._counts.result.best, self._counts.rows) - self.x, self.smallest
        return d.mul_(wide(size.isfinite(), d)), size

    @property
    def smallest(self) -> Tensor:
        """The size of the smallest d that met the goal so far: [n]; inf where there is none yet."""
        return self._counts.result.size[self._counts.rows].to(self.x.dtype)

    def beyond(self, share: float) -> Tensor:
        """Whether the smallest d that met the goal so far, if there is one, is beyond so many times
        the largest eps that is asked about: [n] bool."""
        limit = share * self.eps.flatten().clamp_min(self._widest)
        return (self.smallest > limit) & self.smallest.isfinite()

    # ------------------------------------------------------------------ inside

    def _each(
        self,
        d: Tensor,
        ask: Callable[[Part], tuple[Tensor, ...]],
        *shapes: tuple[int, ...],
        among: Tensor | None = None,
        gradients: int = 0,
        dtype: torch.dtype | None = None,
    ) -> list[Tensor]:
        """Put a question, with some gradients, to the live rows (of those `among`) whose budget
        allows it, in parts. Its answers, of these shapes a row, in d's dtype or another."""
        self._asked = d if among is None else None
        rows, dtype = self._counts.open(among, gradients), dtype or d.dtype
        count = len(d) if isinstance(rows, slice) else len(rows)

        def part(at: slice) -> tuple[Tensor, ...]:
            return ask(at if isinstance(rows, slice) else rows[at])

        found = list(self.target.batcher.parts(part, count))
        if isinstance(rows, slice) and len(found) == 1:
            return [answer.to(dtype).contiguous() for answer in found[0]]
        every = [torch.zeros(len(d), *form, dtype=dtype, device=d.device) for form in shapes]
        for i, column in enumerate(every if found else []):
            column[rows] = torch.cat([answers[i] for answers in found]).to(dtype)
        return every

    def _point(self, rows: Part, d: Tensor) -> Tensor:
        """The inputs of d [m, *shape] at these rows [m] that a question is about."""
        if not self._drafts:
            return self._legal(rows, d)
        point = self.x[rows] + d.clamp(self.lo[rows], self.hi[rows])
        return self.threat.drafted(self._images[rows], point, self.eps.flatten()[rows])

    def _legal(self, rows: Part, d: Tensor) -> Tensor:
        """The inputs of d [m, *shape] at these rows [m], inside the box to the last
        bit; on the threat's grid, or repaired, where it has one, or a schema."""
        x = part_of(self.x, rows)
        if self.threat.schema is not None:
            point = x + d.clamp(self.lo[rows], self.hi[rows])
            return self.threat.repaired(self._images[rows], point, self.eps.flatten()[rows])
        point = (x + d).clamp_(*self.target.bounds.sides(x))
        if self.threat.spatial is not None and self.threat.spatial.avoids:
            batch = Batch(self._images[rows], rows_of(self._context, rows))
            return self.threat.spatial.settled(point, objects_at(self.target, batch))
        if not self.threat.grid:
            return point
        limit = legal_size(self.threat, self.target, len(x), self.eps.flatten()[rows])
        return _rounded(self.target, self.norm, limit, x, point)

    def _batch(self, rows: Part, x: Tensor) -> Batch:
        """What the target sees of these rows at points x."""
        seen = self.threat.apply(part_of(self._images, rows), x)
        return Batch(seen, rows_of(self._context, rows))

    def _pulled(self, rows: Part, x: Tensor, g: Tensor) -> Tensor:
        """A gradient on what the target saw of these rows as one on their points x."""
        return self.threat.pullback(self._images[rows], x, g)

    def _masked(self, g: Tensor) -> Tensor:
        """0 where nothing may change."""
        return g if self._mask is None else g * self._mask

    def _answers(self, rows: Part, x: Tensor) -> Tensor:
        """What the target says of these rows at points x: scores [n, k] as the adversary meets
        them, or labels [n], where it gives no more."""
        batch = self._batch(rows, x)
        if self.target.access < Access.SCORES:
            return self.target.labels(batch)
        return self._against(rows, self.target.scores(batch))

    def _answered(self, rows: Part, d: Tensor) -> Tensor:
        """The same at d, counted."""
        x = self._point(rows, part_of(d, rows))
        z = self._answers(rows, x)
        self._counts.answers(rows, x, z)
        return z

    def _count(self, rows: Part, x: Tensor, z: Tensor, *, within: bool = False) -> None:
        """Count the scores that came with a gradient at points x."""
        again = self._answers if self.target.gradients.approximate else None
        self._counts.answers(rows, x, z, again=again, within=within)

    def _against(self, rows: Part, z: Tensor) -> Tensor:
        """The target's scores as the adversary meets them: a refusal counts with the right
        class."""
        return self.target.task.against(z, self.y[rows])

    def _sides(self, rows: Part, z: Tensor) -> tuple[Tensor, Tensor | None]:
        """Which class [n] is to lose, and which is to win, if that matters."""
        if self.goal is None:
            return self.y[rows], picked(self.aim, rows)
        t = self.goal[rows]
        return without(z, t).argmax(1), t  # whichever other class now scores best

    def _cotangents(
        self, rows: Part, z: Tensor, function: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """A function [n, m] of scores as the adversary meets them, and the cotangent of each of
        its m columns on the target's scores z."""
        with torch.enable_grad():
            leaf = z.detach().requires_grad_()
            value = function(self._against(rows, leaf))
            slopes = [
                torch.autograd.grad(column.sum(), leaf, retain_graph=True)[0]
                for column in value.unbind(1)
            ]
        return value.detach(), slopes


def _function(loss: str | Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A loss by its name, or as it is."""
    return EVERY_LOSS[loss] if isinstance(loss, str) else loss


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
    return meets(label, y, goal_classes(threat, y))


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

    See `Threat.legal_eps`: what rounding the sum x + d to float32 adds is half a unit in the last
    place of the largest input. Where eps is inf, the largest number there is.
    """
    size = threat.legal_eps(target.shape or (), target.bounds.ulp, eps)
    return size.to(target.batcher.device).clamp_max(UNLIMITED).expand(n)
