"""The counts of one run: per row the best adversarial point, its size, the costs and how it ended.

An attack asks through its `Problem`; what each answer costs and means is settled here.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from holdfast.attacks.result import UNLIMITED, Outcome, SearchResult
from holdfast.norms import Norm, largest, wide
from holdfast.targets.batch import Part, part_of, picked, places
from holdfast.targets.target import Target
from holdfast.tasks import silent

# by more than this share no size in float32 differs from that in float64
SURE = 1e-3


def meets(label: Tensor, y: Tensor, goal: Tensor | None) -> Tensor:
    """Whether decisions [n] on rows of classes y [n] are the goal [n]; without one, wrong
    answers."""
    return (label >= 0) & (label != y if goal is None else label == goal)


class Counts:
    """What n rows have been asked, what that cost, and what it found; of the rows still searched.

    Answers are charged, judged for success and recorded in a result, where there is one. They are
    scores [n, k], or labels [n] where the target gives no more. Points x are those of the search:
    see `Threat.apply`.
    """

    def __init__(
        self,
        target: Target,
        norm: Norm,
        x: Tensor,
        y: Tensor,
        goal: Tensor | None,
        result: SearchResult | None,
        budget: Tensor | None,
        *,
        stop: bool,
    ) -> None:
        self.target, self.norm, self.x, self.y, self.goal = target, norm, x, y, goal
        self.counted, self.budget, self.stop = result is not None, budget, stop
        self.result = result or SearchResult.open(x[:0], x.new_zeros(0))  # that of no rows
        # whether a search goes on past a success, to the lowest margin: see `Classes.enough`
        limited = bool((self.result.limit < UNLIMITED).all())
        self.deeper = stop and target.task.enough > 0 and limited
        self.rows = torch.arange(len(x), device=x.device)  # the place of each row in the result
        self.live = torch.ones(len(x), dtype=torch.bool, device=x.device)
        self.over = torch.zeros_like(self.live)  # whether the attack has no more to ask
        # whether the point last asked about (of probes: any) met the goal
        self.met = torch.zeros_like(self.live)

    def take(self, keep: Tensor) -> None:
        """Forget all rows but `keep`."""
        self.x, self.y, self.rows = part_of(self.x, keep), self.y[keep], self.rows[keep]
        self.goal = picked(self.goal, keep)
        self.live, self.over, self.met = self.live[keep], self.over[keep], self.met[keep]

    # ------------------------------------------------------------------ before a question

    def open(self, among: Tensor | None, gradients: int) -> Part:
        """The live rows (of those `among`) whose budget allows a question with so many gradients;
        the search of the others ends."""
        self.met = torch.zeros_like(self.met)
        every = slice(0, len(self.rows))
        if not self.counted and among is None:
            return every  # without a look at the rows, which would wait for the device
        asked = self.live if among is None else self.live & among
        if self.budget is not None:
            cost = self.target.cost
            most = cost.forwards * (1 + self.target.gradients.approximate)
            most += gradients * cost.pullback
            spent = asked & (self.result.forwards[self.rows] + most > self.budget[self.rows])
            self.result.end(self.rows[spent], Outcome.SPENT)
            self.live &= ~spent
        asked = (asked & self.live & ~self.over).nonzero()[:, 0]
        return every if len(asked) == len(self.rows) else asked

    def left(self, rows: Tensor, m: int) -> Tensor:
        """How many of m points the budgets of these rows still allow."""
        if self.budget is None:
            return torch.full_like(rows, m)
        at = self.rows[rows]
        left = (self.budget[at] - self.result.forwards[at]) // self.target.cost.forwards
        return left.clamp(0, m)

    # ------------------------------------------------------------------ after one

    def answers(
        self,
        rows: Part,
        x: Tensor,
        z: Tensor,
        *,
        again: Callable[[Tensor, Tensor], Tensor] | None = None,
        within: bool = False,
    ) -> None:
        """Answers z at points x. Those with a gradient may be approximate: what looks like a
        success in them is asked `again`. `within`: a success beyond eps is none."""
        if not self.counted:
            return
        given = self._given(z)
        if not bool(given.all()):
            self._fail(rows, ~given)
        hit = self._reached(rows, z) & given
        if within:
            size = self.norm.size(x.double() - part_of(self.x, rows).double())
            hit &= size <= self.result.limit[self.rows[rows]]
        claimed, margin = hit.clone(), self._margin(rows, z)
        asked = hit
        if self.deeper and margin is not None:  # others change nothing
            asked = hit & (margin < self.result.margin[self.rows[rows]])
        if again is not None and bool(asked.any()):
            z, doubted = z.clone(), places(rows, z.device)[asked]
            z[asked] = again(doubted, x[asked]).to(z.dtype)
            self.result.charge(self.rows[doubted], forwards=self.target.cost.forwards)
            hit &= self._reached(rows, z) & self._given(z)
            margin = self._margin(rows, z)
        if margin is not None and again is not None and self.target.gradients.substitute:
            margin = margin.where(claimed, torch.inf)  # it says nothing of the model under test
        self._settle(rows, x, hit, margin)

    def meet(self, rows: Part, z: Tensor) -> Tensor:
        """Whether these answers, counted just before, met the goal."""
        return self.met[rows] if self.counted else self._reached(rows, z) & self._given(z)

    def probes(self, rows: Tensor, count: Tensor, asked: Tensor, x: Tensor, z: Tensor) -> Tensor:
        """Answers z at `count` points of each of these rows (x and z: one after the other); which
        meet the goal.

        All are charged; two a row are noted: the legal one of the lowest margin, and the smallest
        that meets the goal.
        """
        row, given = rows.repeat_interleave(count), self._given(z)
        met = self._reached(row, z) & given
        if not self.counted:
            return met
        margin = self._margin(row, z)
        first = count.cumsum(0) - count
        none = torch.full(asked.shape, torch.inf, dtype=torch.float64, device=x.device)
        size = self.norm.size(x.double() - self.x[row].double())
        legal = given & (size <= self.result.limit[self.rows[row]])
        order = torch.zeros_like(size) if margin is None else margin.double()
        lowest = first + none.masked_scatter(asked, torch.where(legal, order, torch.inf)).argmin(1)
        smallest = first + none.masked_scatter(asked, torch.where(met, size, torch.inf)).argmin(1)
        if not bool(given.all()):
            self._fail(row, ~given)
        hit = met[smallest]
        if self.deeper:
            self._settle(rows, x[lowest], met[lowest], picked(margin, lowest), count)
            self.met[rows] = hit
            return met
        at = smallest[hit]
        self._settle(rows, x[lowest], torch.zeros_like(hit), picked(margin, lowest), count)
        self._settle(rows[hit], x[at], met[at], picked(margin, at), 0)
        return met

    def gradients(self, rows: Part, g: Tensor) -> Tensor:
        """Gradients at these rows. One that is not finite fails its row and becomes zero; those
        that are exactly zero are counted."""
        top = largest(g)  # NaN and inf carry through
        bad = ~top.isfinite()
        if self.counted:
            estimated = self.target.cost.pullback
            backwards = 0 if estimated else self.target.cost.forwards
            at = self.rows[rows]
            self.result.charge(at, queries=estimated, forwards=estimated, backwards=backwards)
            self.result.zero_gradients[at] += top == 0
            if not bool(bad.any()):
                return g
            self._fail(rows, bad)
        return g.masked_fill(wide(bad, g), 0)

    # ------------------------------------------------------------------ for the loop

    def known(self, clean: Tensor) -> None:
        """Settle at size 0 the rows whose clean scores [n, k], asked for elsewhere, meet the goal
        already."""
        clean = self.target.task.against(clean, self.y)
        label = self.target.task.predict(clean)
        met = meets(label, self.y, self.goal) & self._given(clean)
        margin = self.target.task.margin(clean, self.y).double()
        self.result.margin[self.rows] = torch.where(margin.isfinite(), margin, torch.inf)
        at = self.rows[met]
        self.result.record(at, self.x[met], torch.zeros_like(self.result.size[at]))
        self.live &= ~met

    def keep(self, x: Tensor) -> None:
        """Leave points x as what the search came to, where none met the goal."""
        none = self.result.size[self.rows].isinf()
        self.result.best[self.rows[none]] = x[none]

    # ------------------------------------------------------------------ inside

    def _given(self, z: Tensor) -> Tensor:
        """Which answers are finite scores, or a label or refusal: [n] bool."""
        return ~silent(z) if z.ndim == 1 else z.isfinite().all(1)

    def _reached(self, rows: Part, z: Tensor) -> Tensor:
        """Which answers meet the goal; scores, by as much as the target says is no luck."""
        label = z if z.ndim == 1 else self.target.task.predict(z)
        met = meets(label, self.y[rows], picked(self.goal, rows))
        if self.target.gradients.min_lead and z.ndim > 1:
            best = z.topk(2, 1).values
            met &= best[:, 0] - best[:, 1] >= self.target.gradients.min_lead
        return met

    def _margin(self, rows: Part, z: Tensor) -> Tensor | None:
        """The margins of scores; labels have none."""
        return None if z.ndim == 1 else self.target.task.margin(z, self.y[rows])

    def _settle(
        self, rows: Part, x: Tensor, hit: Tensor, margin: Tensor | None, count: int | Tensor = 1
    ) -> None:
        """Charge so many questions, and record points x: those that met the goal, and the legal
        ones of the lowest margin."""
        result, at, start = self.result, self.rows[rows], part_of(self.x, rows)
        result.charge(at, queries=count, forwards=count * self.target.cost.forwards)
        limit, known = result.limit[at], result.size[at]
        self.met[rows] = hit
        size = self.norm.size(x - start).double()
        if margin is not None:
            low = torch.where(margin.isfinite() & (size <= limit), margin.double(), torch.inf)
            lowest = result.margin[at]
            lower = low < lowest
            result.margin[at] = low.minimum(lowest)
            first = (lower & known.isinf()).nonzero()[:, 0]
            result.best[at[first]] = part_of(x, first)
            if self.deeper:
                hit = hit & lower
        if not self.deeper:  # what rounding cannot make smaller than what is known changes nothing
            hit = hit & (size <= known * (1 + SURE))
        new = hit.nonzero()[:, 0]
        if len(new):
            if self.deeper:
                result.size[at[new]] = torch.inf
            found, start = part_of(x, new), part_of(start, new)
            size = self.norm.size(found.double() - start.double())
            result.record(at[new], found, size)
            if self.stop:
                broken = (result.size[at] <= limit) & (limit < UNLIMITED)
                done = self.target.task.settled(broken, result.margin[at])
                self.live[rows] = self.live[rows] & ~done

    def _fail(self, rows: Part, bad: Tensor) -> None:
        """End the search of these rows where `bad` ([m] bool)."""
        failed = places(rows, bad.device)[bad]
        self.live[failed] = False
        self.result.end(self.rows[failed], Outcome.FAILED)
