"""An attack is a step rule; one loop drives them all."""

from __future__ import annotations

import importlib
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, overload

import torch
from torch import Tensor

from holdfast import spec
from holdfast.attacks.problem import Pool, Problem, legal_size
from holdfast.attacks.result import AttackResult, SearchResult
from holdfast.bounds.tree_models import trees_of
from holdfast.errors import AccessError, SpecError, suggest
from holdfast.losses import EVERY_LOSS, LOSSES, PIXEL_LOSSES
from holdfast.norms import L2, NORMS, Norm, wide
from holdfast.rng import Keys
from holdfast.spec import option
from holdfast.targets.batch import Batch, Rows, part_of, picked, rows_of
from holdfast.targets.target import Access, Target, sealed
from holdfast.targets.truth import WithTruth
from holdfast.tensors import detached
from holdfast.threats.threat import Threat

# what the author of an attack needs, in one import
__all__ = [
    "EVERY_LOSS", "L2", "LOSSES", "NORMS", "Access", "Attack", "Problem", "State",
    "from_first", "option", "perturb", "run", "wide",
]  # fmt: skip

# a tensor whose first axis is the row, or a named tuple of such states whose first holds the point
State = Any


class Craft:
    """What crafts examples when it is called."""

    @overload
    def __call__(
        self, model: Any, x: Any, y: Any, threat: Threat | str, *,
        epsilons: None = None, seed: int = 0, pool: tuple[Any, Any] | None = None,
    ) -> AttackResult: ...  # fmt: skip

    @overload
    def __call__(
        self, model: Any, x: Any, y: Any, threat: Threat | str, *,
        epsilons: Sequence[float], seed: int = 0, pool: tuple[Any, Any] | None = None,
    ) -> list[AttackResult]: ...  # fmt: skip

    def __call__(self, model: Any, x: Any, y: Any, threat: Threat | str, **options: Any) -> Any:
        """Judged examples for inputs x [n, *shape] of classes y [n]: see `holdfast.attack`."""
        # The judge stands above the attacks, which import nothing of it.
        judged = importlib.import_module("holdfast.evaluation.attack").attack
        return judged(model, x, y, threat, self, **options)


@dataclass(frozen=True)
class Attack(Craft, ABC):
    """A step rule. The fields of a subclass are its hyperparameters; they only store.

    A search for the smallest d ends with five more forwards a row, which bisect the ray from x to
    what was found.

    Calling an attack crafts examples, as `holdfast.attack` does.

    Raises:
        AccessError: the target gives less than the attack needs.
        SpecError: the norm of the threat, or a hyperparameter, does not fit the attack.
    """

    needs: ClassVar[Access]
    norms: ClassVar[frozenset[str]] = frozenset(NORMS) - {"l0"}  # which few can search
    groups: ClassVar[bool] = False  # counts in L0 the channels of a pixel as one, where asked to
    bounded: ClassVar[bool] = (
        True  # searches the ball of eps; otherwise the smallest d that meets the goal, at any eps
    )
    mixes: ClassVar[bool] = False  # takes images of other classes from a pool
    of_trees: ClassVar[bool] = False  # reads the leaves of an ensemble of trees
    of_networks: ClassVar[bool] = False  # reads the operators of a network
    random: ClassVar[bool] = True  # draws noise, so that a restart is another try
    also: ClassVar[
        Mapping[str, Mapping[str, Any]]
    ] = {}  # other names by which the field knows it, with their fields
    called = ""  # which of these names it was made by
    # where the paper gives each norm rules or constants of its own: these by the norm's name
    variants: ClassVar[Mapping[str, Any]] = {}

    steps: int

    @property
    def warm(self) -> bool:
        """Whether it goes on from the best point that earlier attacks found."""
        return getattr(self, "start_at", None) == "best"

    @property
    def expected_passes(self) -> float | None:
        """Forwards and backwards of a row that nothing breaks; None where its first steps cost what
        others do."""
        return None

    def start(self, p: Problem) -> State:
        """The state before the first step; x itself, where it is a point."""
        return torch.zeros_like(p.x)

    @abstractmethod
    def step(self, p: Problem, s: State, t: int) -> State:
        """The state after step t, from 0."""

    @classmethod
    def works_in(cls, norm: Norm) -> bool:
        """Whether it can search in this norm."""
        return norm.name in cls.norms and (cls.groups or not norm.group)

    def check_target(self, target: Target, threat: Threat) -> None:
        """Refuse a target, or a threat, for which it does nothing; within a protocol it is run all
        the same.

        Raises:
            SpecError: it is one.
        """

    def variant(self, p: Problem) -> Any:
        """Of its `variants` the one for the norm of this problem."""
        return self.variants[p.norm.name]

    def __init_subclass__(cls) -> None:
        if "variants" in vars(cls):
            cls.norms = frozenset(cls.variants)
        cls.__repr__ = Attack.__repr__  # or dataclass would write its own

    def __post_init__(self) -> None:
        spec.check(self)
        if self.steps < 1:
            raise SpecError(
                f"{spec.write(self)} takes {self.steps} steps, but an attack needs at least 1."
            )
        loss = getattr(self, "loss", "ce")  # also of a class that declares no choices
        if loss not in EVERY_LOSS:
            raise SpecError(
                f"unknown loss {loss!r} in {spec.write(self)}; {suggest(str(loss), EVERY_LOSS)}"
            )

    def __repr__(self) -> str:
        return spec.write(self, name=self.called, usual=self.also.get(self.called))


def run(
    attack: Attack,
    target: Target,
    x: Rows,
    y: Tensor,
    threat: Threat,
    *,
    ids: Tensor | None = None,
    seed: int = 0,
    restart: int | Tensor = 0,
    rank: int | Tensor = 0,
    sets: int = 1,
    clean: Tensor | None = None,
    warm_start: Tensor | None = None,
    budget: int | Tensor | None = None,
    stop: bool = True,
    pool: Pool | None = None,
    widest: float = 0.0,
    on_step: Callable[[int, int], None] | None = None,
) -> SearchResult:
    """Run an attack on rows x [n, *shape] of classes y [n] and return its result.

    Rows are a `Batch` where more than x belongs to them. Where the target's head has a
    `truth_task`, y holds its truths [n, ...], and scores are those of `WithTruth`.

    Args:
        ids: [n] int64, the identity of each row; its noise depends on this alone. Default: 0..n-1.
        restart: gives every row fresh noise; one for all, or one a row ([n]).
        rank: aim at the rank-th best wrong class of the clean scores; 0: at any. As `restart`.
        sets: the rows are so many times the same ones, one set after the other. A row's search
            ends where the same row of an earlier set meets the goal within eps.
        clean: the clean scores [n, k], where known; otherwise they are asked for and charged. Rows
            that meet the goal already are settled at size 0.
        warm_start: inputs [n, *shape] from which an attack that starts at the `best` known point
            goes on.
        budget: the most forwards that a row may cost; one for all, or one a row ([n]).
        stop: settle a row at its first success within eps. (Never where eps is inf: then the
            smallest is sought.)
        pool: an attacker's inputs [m, *shape] and their classes [m], to mix other classes in.
        widest: the largest eps of a curve that this search is for, too.
        on_step: called with the steps done and the rows still live, after every step.
    """
    batch = Batch.of(x)
    target.bind(tuple(batch.x.shape[1:]))
    if target.head.truth_task is not None:
        target = WithTruth(target)
        batch, y = target.with_truths(batch, y), torch.zeros(len(batch), dtype=torch.int64)
    check_fit(attack, target, threat, pool)
    with sealed(seed):
        keys = _keys(attack, target, batch, ids, seed).fold(restart, rank)
        batch, y = target.batcher.place(batch), detached(y.to(target.batcher.device))
        result = SearchResult.open(threat.origin(batch.x), legal_size(threat, target, len(batch)))
        if budget is not None:
            budget = torch.as_tensor(budget, device=y.device).expand(len(y))
        if warm_start is not None:
            warm_start = warm_start.to(batch.x)
        p = Search(
            target, batch, y, threat, keys, restart=restart, warm_start=warm_start,
            result=result, budget=budget, stop=stop, pool=pool, widest=widest,
        )  # fmt: skip
        _search(attack, p, clean, rank, on_step, sets if stop else 1)
    return result


class Search(Problem):
    """A problem as the loop drives it."""

    def ask_clean(self, clean: Tensor | None) -> Tensor | None:
        """The scores at x, or (labels alone) None: as known, or asked for. Rows that meet the goal
        there are settled."""
        if clean is not None:
            clean = clean.to(self.target.batcher.device)
            self._counts.known(clean)
        elif self.target.access >= Access.SCORES:
            clean = self.scores(torch.zeros_like(self.x))
        else:
            self.adversarial(torch.zeros_like(self.x))
        return clean

    @property
    def over(self) -> bool:
        """Whether no row is left that is still asked about."""
        return bool(self._counts.over.all())

    def drop_settled(self, state: State) -> State:
        """Let settled rows go, from the problem and from the attack's memory."""
        if bool(self.live.all()):
            return state
        keep = self.live.nonzero()[:, 0]
        self.take(keep)
        return _rows(state, keep)

    def drop_beaten(self, sets: int) -> None:
        """End the search of rows that have met the goal within eps in an earlier set."""
        broken = self._counts.result.broken.view(sets, -1).long()
        beaten = (broken.cumsum(0) > broken).flatten()
        self._counts.live &= ~beaten[self._counts.rows]

    def take(self, keep: Tensor) -> None:
        """Forget all rows but `keep`."""
        self.eps, self.lo, self.hi = (part_of(c, keep) for c in (self.eps, self.lo, self.hi))
        self.aim, self.warm_start = picked(self.aim, keep), picked(self.warm_start, keep)
        self.restart = self.restart[keep]
        self._images = part_of(self._images, keep)
        self._context = rows_of(self._context, keep)
        self.keys = self.keys.take(keep)
        self._counts.take(keep)
        self._asked = None

    def judge_last(self, d: Tensor) -> None:
        """Judge the final point, unless it was the last one asked about."""
        if d is not self._asked:
            self.adversarial(d)
        if self.target.access < Access.SCORES:
            self._counts.keep(self._point(slice(0, len(d)), self.project(d)))

    def tighten(self) -> None:
        """Pull the smallest point found so far towards x, along its ray, by up to a tenth: five
        forwards a row."""
        d, size = self.best()
        counts = self._counts
        counts.live, counts.over = counts.live & size.isfinite(), torch.zeros_like(counts.over)
        low, high = torch.full_like(size, 0.9), torch.ones_like(size)
        for _ in range(5):
            middle = (low + high) / 2
            met = self.adversarial(d * wide(middle, d))
            low, high = torch.where(met, low, middle), torch.where(met, middle, high)


def _search(
    attack: Attack,
    p: Search,
    clean: Tensor | None,
    rank: int | Tensor,
    on_step: Callable[[int, int], None] | None,
    sets: int,
) -> None:
    """All steps on the rows that are not settled, and the last point."""
    clean = p.ask_clean(clean)
    rank = torch.as_tensor(rank, device=p.y.device).expand(len(p.y))
    if bool(rank.any()) and clean is not None and p.goal is None:
        p.aim = torch.empty_like(p.y)
        for one in rank.unique().tolist():
            at = rank == one
            p.aim[at] = p.target.task.rank(clean[at], p.y[at], one)
    p.drop_settled(p.x)
    state = attack.start(p)
    for t in range(attack.steps):
        state = p.drop_settled(state)
        if p.over:
            break
        p.t = t + 1
        state = attack.step(p, state, t)
        if sets > 1:
            p.drop_beaten(sets)
        if on_step is not None:
            on_step(t + 1, int(p.live.sum()))
    p.judge_last(point(state))
    if not attack.bounded and p.norm.scales:
        p.tighten()


def perturb(
    attack: Attack,
    target: Target,
    x: Rows,
    y: Tensor,
    threat: Threat,
    *,
    ids: Tensor | None = None,
    seed: int = 0,
    pool: Pool | None = None,
) -> Tensor:
    """The same rule without counting, for training: all steps on all rows, and the last point,
    unjudged. Rows of a table are repaired there alone."""
    batch = Batch.of(x)
    target.bind(tuple(batch.x.shape[1:]))
    check_fit(attack, target, threat, pool)
    with sealed(seed):
        keys = _keys(attack, target, batch, ids, seed)
        batch, y = target.batcher.place(batch), detached(y.to(target.batcher.device))
        result = None
        if not attack.bounded:  # a search for the smallest d steers by what it has found
            result = SearchResult.open(
                threat.origin(batch.x), legal_size(threat, target, len(batch))
            )
        p = Problem(
            target, batch, y, threat, keys, result=result, stop=False, pool=pool, drafts=True
        )
        state = attack.start(p)
        for t in range(attack.steps):
            p.t = t + 1
            state = attack.step(p, state, t)
        return threat.apply(batch.x, p.points(p.project(point(state))))


def _keys(attack: Attack, target: Target, batch: Batch, ids: Tensor | None, seed: int) -> Keys:
    """The random keys of these rows in a run of this attack."""
    ids = torch.arange(len(batch)) if ids is None else ids
    return Keys.of(seed, ids.to(target.batcher.device)).fold(_noise_of(attack))


def from_first(t: int, found: Tensor, kept: Tensor) -> Tensor:
    """What the first step found, whose question is about x: later ones keep it."""
    return kept if t else found


def point(state: State) -> Tensor:
    """The perturbation of a state."""
    return state if isinstance(state, Tensor) else point(state[0])


def check_fit(attack: Attack, target: Target, threat: Threat, pool: Pool | None = None) -> None:
    """Refuse an attack that the target or the threat cannot carry, before any pass is spent."""
    if target.access < attack.needs:
        fits = sorted(a.__name__.lower() for a in _kinds() if a.needs <= target.access)
        raise AccessError(
            f"{attack!r} asks for {attack.needs.name}; the target gives {target.access.name}. "
            f"Attacks that need no more: {', '.join(fits)}."
        )
    loss = getattr(attack, "loss", "ce")
    if loss in PIXEL_LOSSES and loss not in target.losses:
        raise SpecError(
            f"{attack!r} ascends {loss}, a loss of the pixels of a segmentation, but the model's "
            f"task is another; losses of any task are {', '.join(LOSSES)}."
        )
    if attack.bounded and not threat.bounded:
        fits = sorted(
            a.__name__.lower()
            for a in _kinds()
            if not a.bounded and a.needs <= target.access and a.works_in(threat.norm)
        )
        raise SpecError(
            f"{attack!r} searches a ball and needs a finite eps, but the threat is {threat}. "
            "Attacks that seek the "
            f"smallest perturbation in {threat.norm}: {', '.join(fits) or 'none'}."
        )
    if attack.mixes and (pool is None or len(pool[1].unique()) < 2):
        held = "no other images" if pool is None else "images of one class alone"
        raise SpecError(
            f"{attack!r} mixes in images of other classes, and there are {held}; in Python give "
            "holdfast.attack(..., pool=(images, classes))."
        )
    if attack.of_trees:
        trees_of(target)
    threat.check_shape(threat.form(target.shape or ()))
    if threat.norm.group and threat.norm.name in attack.norms and not attack.groups:
        fits = sorted(
            a.__name__.lower()
            for a in _kinds()
            if a.needs <= target.access and a.works_in(threat.norm)
        )
        raise SpecError(
            f"{attack!r} counts features, and not {threat.norm.group}s as {threat} does. Attacks "
            f"that can: {', '.join(fits)}."
        )
    if not attack.works_in(threat.norm):
        raise SpecError(
            f"{attack!r} works in {', '.join(sorted(attack.norms))}, not in {threat.norm}."
        )


def _kinds() -> list[type[Attack]]:
    """Every attack that has been imported."""
    kinds = Attack.__subclasses__()
    for kind in kinds:
        kinds += kind.__subclasses__()
    return [kind for kind in kinds if not inspect.isabstract(kind)]


def attack_names() -> list[str]:
    """Of every attack, and of its variants."""
    return sorted(name for kind in _kinds() for name in (kind.__name__.lower(), *kind.also))


def _noise_of(attack: Attack) -> str:
    """What an attack's noise depends on: all of it but the number of steps, so that more steps go
    on from fewer."""
    return spec.write(replace(attack, steps=1), whole=True)


def _rows(state: State, keep: Tensor) -> State:
    if isinstance(state, Tensor):
        return part_of(state, keep)
    return type(state)(*(_rows(part, keep) for part in state))
