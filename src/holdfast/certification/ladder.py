"""The ladder: what is cheap to prove first, and dearer methods for the rows that are left.

A row is certified where a method gives a lower bound of its smallest margin, over all that the
threat allows and a judge would count, that is finite and above what the model's own rounding may
take away. Whatever fails on the way proves nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from math import prod
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from holdfast.attacks.problem import meets_goal
from holdfast.bounds import METHODS, Bounded, Graph, trace
from holdfast.bounds.graph import unsupported
from holdfast.bounds.margins import AT_ONCE, check_no_schema, check_threat
from holdfast.bounds.tree_models import changes, trees_of
from holdfast.bounds.trees import exact as trees_exact
from holdfast.bounds.trees import lower as trees_lower
from holdfast.bounds.trees import proved as trees_proved
from holdfast.certification.alone import alike, answers_alone
from holdfast.certification.smoothing import Votes
from holdfast.errors import InputError, SpecError, first_line
from holdfast.evaluation import judge
from holdfast.evaluation.certificates import OnStep, Proofs, Prover
from holdfast.norms import wide
from holdfast.runs.manifest import CertificationInfo
from holdfast.targets.smoothed import Smoothed
from holdfast.targets.target import Target
from holdfast.targets.trees import NO_TREES, Trees
from holdfast.targets.wrappers import itself
from holdfast.threats.table.schema import ROUNDING
from holdfast.threats.threat import Threat

VERSION = 1  # of what counts as proved
GROUP = 16  # rows that a method takes at once; time is asked for between groups
KEPT = 1 << 26  # numbers of the bounds that are kept for dearer methods
MERGED = 64  # leaves of one tree, to which trees are merged
TRIES = 10  # sizes that are tried in the search for the largest


class Group(Protocol):
    """Some rows under a threat, and what methods have found of them so far.

    wrong: a legal input that is wrong, by the place of its row, of rows where a method met one.
    """

    @property
    def wrong(self) -> Mapping[int, Tensor]: ...

    def climb(self, method: str) -> Tensor:
        """Which of them [n] a method proves; what it builds on runs first, unless it has."""
        ...

    def at(self, rows: Tensor) -> Group:
        """These rows alone."""
        ...


@dataclass(frozen=True)
class Methods:
    """What there is to prove rows of one model with."""

    names: tuple[str, ...]  # the cheapest first
    # of inputs x [n, *shape] and classes y [n], under a threat whose eps is one a row
    begin: Callable[[Tensor, Tensor, Threat], Group]
    group: int = GROUP  # rows that are taken at once
    window: int = 1 << 20  # rows of which something is kept


@dataclass(frozen=True)
class Ladder:
    """IBP, CROWN, alpha-CROWN and beta-CROWN, each on the rows that are left; of trees the leaves
    that are reached, and then what is exact.

    Args:
        seconds_per_row: of all methods, on average over the rows of a chunk. What row is proved
            depends on the time, and so on the machine; no proof does.
        radius: also seek the largest size that can be proved, of each row.
    """

    seconds_per_row: float = 1.0
    radius: bool = False

    def __post_init__(self) -> None:
        if not self.seconds_per_row > 0:
            raise SpecError(f"seconds_per_row is {self.seconds_per_row}; expected a time above 0.")

    def __call__(self, target: Target, threat: Threat) -> Prover:
        """The ladder for a model that has seen inputs; of a smoothed one its votes.

        Raises:
            InputError: there is no proof of such a model, or under such a threat.
        """
        check_threat(threat)
        if isinstance(smoothed := itself(target), Smoothed):
            return Votes.of(smoothed, threat)
        return Climb(self, target, methods_of(target, threat, self.seconds_per_row))


def methods_of(target: Target, threat: Threat, seconds: float) -> Methods:
    """The methods for a model, of which the last one takes up to so many seconds a row.

    Raises:
        InputError: it is none that they can follow.
    """
    target = itself(target)
    try:
        network = target.network()
    except InputError as error:
        return _methods_of_trees(_trees(target, error), target, threat, seconds)
    check_no_schema(threat)
    return _methods_of_network(network, target, seconds)


def _trees(target: Target, otherwise: InputError) -> Trees:
    """Raises InputError: `otherwise`, or what is wrong with its trees where it has some."""
    try:
        return trees_of(target)
    except InputError as error:
        if str(error) == NO_TREES:
            raise otherwise from None
        raise InputError(f"not supported: proofs of this model, for {error}") from None


@dataclass(frozen=True)
class _TreeRows:
    """A `Group` of which nothing is kept between methods."""

    methods: Mapping[str, Callable[[Tensor, Tensor, Threat], Tensor]]
    x: Tensor
    y: Tensor
    threat: Threat
    wrong: Mapping[int, Tensor] = field(default_factory=dict)  # of none

    def climb(self, method: str) -> Tensor:
        return self.methods[method](self.x, self.y, self.threat)

    def at(self, rows: Tensor) -> _TreeRows:
        return _TreeRows(self.methods, self.x[rows], self.y[rows], self.threat.of_rows(rows))


def _methods_of_trees(trees: Trees, target: Target, threat: Threat, seconds: float) -> Methods:
    """What they prove is that a row stays right, whatever the goal of the threat."""
    if not threat.norm.boxed:
        raise unsupported(f"proofs of trees under {threat}; expected linf")
    shape, box = target.shape or (), target.bounds

    def labels(x: np.ndarray, _: np.ndarray) -> np.ndarray:
        return target.labels(torch.from_numpy(x)).cpu().numpy()

    def leaves(x: Tensor, y: Tensor, threat: Threat, merged: int = 0) -> Tensor:
        how = changes(target, threat, x, slack=2 * ROUNDING)
        reach = threat.legal_eps(shape, box.ulp).numpy()[:, None] * how.pop("scale")
        found = trees_lower(trees, x.float().numpy(), y.numpy(), reach, merged=merged, **how)
        return torch.from_numpy(trees_proved(trees, found, y.numpy()))

    def exact(x: Tensor, y: Tensor, threat: Threat) -> Tensor:
        limits = threat.legal_eps(shape, box.ulp).numpy()
        how = changes(target, threat, x, slack=2 * ROUNDING) | {"eps": limits, "seconds": seconds}
        found = trees_exact(trees, x.float().numpy(), y.numpy(), labels, **how)
        return torch.tensor([one.safe for one in found]) > torch.from_numpy(limits)

    methods = {"leaves": leaves, "merged-leaves": partial(leaves, merged=MERGED), "exact": exact}
    return Methods(tuple(methods), partial(_TreeRows, methods))


class _NetworkRows:
    """A `Group` whose bounds only get tighter; nothing is computed before the first method."""

    def __init__(
        self, graph: Graph, target: Target, seconds: float, x: Tensor, y: Tensor, threat: Threat
    ) -> None:
        self.graph, self.target, self.seconds = graph, target, seconds
        self.rows = x, y, threat
        self.wrong: dict[int, Tensor] = {}

    @cached_property
    def bounded(self) -> Bounded:
        (x, y, threat), batcher = self.rows, self.target.batcher
        x, y = x.to(batcher.device, batcher.dtype), y.to(batcher.device)
        return Bounded(self.graph, x, y, threat, self.target.bounds)

    def climb(self, method: str) -> Tensor:
        return self.bounded.climb(method, self.seconds, self._judge).certified.cpu()

    def _judge(self, row: int, x: Tensor) -> bool:
        """Keep the first of inputs that is legal and wrong; whether there is one."""
        given, y, threat = self.rows
        at, bounds = torch.full((len(x),), row), self.target.bounds
        clean, threat = given[at].to(self.target.batcher.dtype), threat.of_rows(at)
        origin = clean.double()
        within = wide(threat.eps / threat.legal_eps(clean.shape[1:], bounds.ulp), origin)
        x = bounds.clamp((origin + within * (x.cpu() - origin)).to(clean.dtype))
        ruling = judge.rule(self.target, x)
        found = judge.within(self.target, threat, clean, x)[0] & ruling.stable.cpu()
        found &= meets_goal(threat, ruling.label.cpu(), y[at])
        if bool(found.any()):
            self.wrong[row] = x[found][0]
        return bool(found.any())

    def at(self, rows: Tensor) -> _NetworkRows:
        x, y, threat = self.rows
        given = x[rows], y[rows], threat.of_rows(rows)
        part = _NetworkRows(self.graph, self.target, self.seconds, *given)
        if "bounded" in vars(self):
            part.bounded = self.bounded.at(rows)
        return part


def _methods_of_network(network: nn.Module, target: Target, seconds: float) -> Methods:
    device, dtype = target.batcher.device, target.batcher.dtype
    if device.type != "cpu" and _coarse():
        raise InputError(
            "torch may round to 10 bits on this device (TF32), which these proofs do not bound: "
            "give --device cpu (in Python: wrap(..., device='cpu')), or set "
            "torch.backends.cudnn.allow_tf32 and torch.backends.cuda.matmul.allow_tf32 to False."
        )
    example = torch.zeros((1, *(target.shape or ())), dtype=dtype, device=device)
    graph = trace(network, example)
    _check_graph(target, graph)
    kept = 2 * sum(prod(node.shape) for node in graph.nodes)  # numbers of a row
    group = max(1, min(GROUP, AT_ONCE // graph.largest))
    return Methods(
        METHODS,
        partial(_NetworkRows, graph, target, seconds),
        group,
        max(group, KEPT // kept),
    )


def _check_graph(target: Target, graph: Graph) -> None:
    """Raises InputError: what the model answers to an input depends on the others of its batch, or
    is not what its graph answers, such as where it asks whether it is being traced."""
    x, alone = answers_alone(target)
    read = torch.cat([graph(row) for row in x.split(1)]).to(alone)
    if not alike(*(z - z.amax(1, keepdim=True) for z in (read, alone))):
        raise unsupported(
            "proofs of a model whose graph, as torch.export writes it down, answers otherwise than "
            "the model does; expected one that computes the same whether or not it is traced"
        )


def _coarse() -> bool:
    return bool(torch.backends.cudnn.allow_tf32 or torch.backends.cuda.matmul.allow_tf32)


@dataclass(frozen=True)
class Climb:
    """The ladder of one model; a `holdfast.evaluation.certificates.Prover`."""

    ladder: Ladder
    target: Target
    methods: Methods

    @property
    def info(self) -> CertificationInfo:
        return CertificationInfo(
            version=VERSION,
            methods=list(self.methods.names),
            seconds_per_row=self.ladder.seconds_per_row,
            radius=self.ladder.radius,
        )

    def climb(self, x: Tensor, y: Tensor, threat: Threat, end: float, on_step: OnStep) -> Proofs:
        """See `Prover.climb`."""
        n, begun, methods = len(x), time.monotonic(), self.methods
        wrong: dict[int, Tensor] = {}
        by, reason, done = [""] * n, [""] * n, 0
        for rows in torch.arange(n).split(methods.window):
            limit = begun + (end - begun) * (int(rows[-1]) + 1) / n
            groups = [
                (at, methods.begin(x[at], y[at], threat.of_rows(at)))
                for at in rows.split(methods.group)
            ]
            for method in methods.names:
                last, left = method == methods.names[-1], list[tuple[Tensor, Group]]()
                on_step(method, done)
                for at, group, held, why in self._tries(method, groups, limit):
                    for i, one in zip(at.tolist(), held.tolist(), strict=True):
                        by[i], reason[i] = (method, "") if one else ("", why)
                    if group is not None:
                        wrong |= {int(at[place]): x for place, x in group.wrong.items()}
                    done += len(at) if last or group is None else int(held.sum())
                    if group is not None and not held.all():
                        left.append((at[~held], group.at(~held)))
                    on_step(method, done)
                groups = left
        return Proofs(by, reason, wrong)

    def _tries(
        self, method: str, groups: list[tuple[Tensor, Group]], limit: float
    ) -> Iterator[tuple[Tensor, Group | None, Tensor, str]]:
        """What a method finds of groups of rows: the rows, the group (None: time ran out), which
        are proved, and why the others are not.

        It takes as many rows at once as the time pays for, at the seconds of a row of those before;
        a dear one begins with a single row.
        """
        most, waiting = self.methods.group, groups[::-1]
        fit, each = most if method == self.methods.names[0] else 1, 0.0
        while waiting:
            at, group = waiting.pop()
            now = time.monotonic()
            if each > 0:
                fit = int(min((limit - now) / each, most))
            if now >= limit or fit < 1:
                yield at, None, torch.zeros(len(at)).bool(), f"time ran out before {method}"
                continue
            if fit < len(at):
                waiting.append((at[fit:], group.at(torch.arange(fit, len(at)))))
                at, group = at[:fit], group.at(torch.arange(fit))
            held, why = _tried(group, method, len(at))
            each = (time.monotonic() - now) / len(at)
            yield at, group, held, why

    def widest(
        self,
        x: Tensor,
        y: Tensor,
        threat: Threat,
        low: Tensor,
        high: Tensor,
        end: float,
        on_step: OnStep,
    ) -> Tensor:
        """See `Prover.widest`."""
        box, eps = self.target.bounds, torch.as_tensor(threat.eps, dtype=torch.float64)
        reach = torch.full((1, *x.shape[1:]), box.high - box.low, dtype=torch.float64)
        high = high.clamp_max(float(threat.norm.size(reach)))
        for tried in range(TRIES):
            begun = time.monotonic()
            if begun >= end:
                break
            middle = torch.minimum((low + high) / 2, 2 * low.clamp_min(eps / 4))
            limit = begun + (end - begun) / (TRIES - tried)
            found = self.climb(x, y, replace(threat, eps=middle), limit, on_step)
            held = torch.tensor([bool(by) for by in found.by])
            low, high = torch.where(held, middle, low), torch.where(held, high, middle)
        return low

    def proves(self, x: Tensor, y: Tensor, threat: Threat, method: str) -> Tensor:
        """See `Prover.proves`."""
        held = list[Tensor]()
        for at in torch.arange(len(x)).split(self.methods.group):
            group = self.methods.begin(x[at], y[at], threat.of_rows(at))
            held.append(_tried(group, method, len(at))[0])
        return torch.cat(held)


def _tried(group: Group, method: str, n: int) -> tuple[Tensor, str]:
    """Which rows of a group a method proves, and why it does not prove the others."""
    try:
        return group.climb(method), f"{method} does not prove it"
    except Exception as error:  # noqa: BLE001  # whatever it is, nothing is proved
        return torch.zeros(n, dtype=torch.bool), first_line(error)
