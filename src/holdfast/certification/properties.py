"""Properties of VNN-LIB, decided: a proof that no input of a box has an unsafe output, or one that
has.

Inputs and outputs are those of the model itself, in its own order of axes, with no preprocessing
and no activation taken off. An input is of float32; where a side of the box is no such number, the
nearest one counts as within, too.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isqrt
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from holdfast.attacks.attack import Attack
from holdfast.bounds import METHODS, Graph, Region, Rows, branch, nearest, trace
from holdfast.bounds.graph import unsupported
from holdfast.certification.vnnlib import Part, Property, load
from holdfast.errors import InputError, first_line
from holdfast.evaluation.attack import craft
from holdfast.norms import Linf
from holdfast.targets import loading, wrap
from holdfast.targets.adapter import Adapter
from holdfast.targets.frameworks.pytorch.module import frozen
from holdfast.targets.registry import adapted
from holdfast.targets.target import FLOAT32, Access, asking
from holdfast.threats.threat import Threat

UNSAT, SAT, UNKNOWN = "unsat", "sat", "unknown"
SECONDS = 60.0  # after which nothing new is begun
ATTACKS = "quick", "standard"  # before the proofs, and after them
FEW = 16  # inputs that vary, up to which the box is split
AT_ONCE = 256  # boxes that are bounded together
TRIED = 4  # random inputs at which the model is held against its graph


@dataclass(frozen=True, eq=False)
class Decision:
    """What was found of a property.

    answer: "unsat", no input has an unsafe output; "sat", this one has; or "unknown".
    method: what showed it, or all that was tried.
    x, y: of "sat" the input [*shape] in float32 and the model's output [k].
    """

    answer: str
    method: str
    seconds: float
    x: np.ndarray | None = None
    y: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class Model:
    """A model with its own inputs and outputs.

    run: outputs [n, k] of inputs [n, *shape], by the runtime of its framework.
    """

    run: Callable[[Tensor], Tensor]
    given: Any
    shape: tuple[int, ...]

    def network(self) -> Callable[[Tensor], Any]:
        """The same as torch functions of one row, for proofs.

        Raises:
            InputError: it is not known as such.
        """
        if isinstance(self.given, Adapter):
            return self.given.network(torch.zeros(1, *self.shape))
        return self.given


def decide(
    model: Any,
    file: Path | str | Property,
    *,
    seconds: float = SECONDS,
    prove: bool = True,
    attack: str | Attack | None = None,
    seed: int = 0,
) -> Decision:
    """Whether an input of a property's boxes has an output that is unsafe there.

    Args:
        model: what `holdfast.wrap` takes, not wrapped: a file, a module of torch, a model of ONNX.
        file: a file of VNN-LIB 1.0, or what `vnnlib.parse` gives.
        seconds: after which nothing new is begun.
        prove: whether proofs are asked for; else the model may be one that has none.
        attack: what seeks a counterexample, as `holdfast.attack` takes it; None: quick, then
            standard, and between them branch and bound, whether proofs are asked for or not.
        seed: of the attacks.

    Raises:
        InputError: the file says no property that can be decided, it is not one of this model, or
            proofs are asked for and there are none of such a model.
    """
    begun = time.monotonic()
    asked = file if isinstance(file, Property) else load(file)
    search = _Search(_opened(model, asked), asked, begun + seconds, seed)
    attacks = ATTACKS if attack is None else (attack,)
    graphs = search.graphs(prove) if prove or attack is None else []
    answer, method, x = search.decide(attacks, graphs)
    y = None if x is None else search.model.run(x[None])[0].numpy()
    found = None if x is None else x.numpy()
    return Decision(answer, method, time.monotonic() - begun, found, y)


def _opened(model: Any, asked: Property) -> Model:
    """The model, seen to take and give as many numbers as a property speaks of."""
    if isinstance(model, (str, os.PathLike)):
        model = loading.load(os.fspath(model))
    if isinstance(model, nn.Module):
        model = frozen(model, "cpu")
        if any(w.is_floating_point() and w.dtype != torch.float32 for w in model.parameters()):
            raise unsupported("a property of a model whose weights are not of float32")
    model = adapted(model)
    if getattr(model, "ending", None) is not None:
        raise unsupported(
            f"a property of the outputs of a model that ends in a {model.ending}; give one that "
            "ends in its logits"
        )
    if getattr(model, "access", Access.GRADIENTS) < Access.GRADIENTS:
        raise unsupported("a property of a model whose graph is not known in torch")
    shape = getattr(model, "shape", None)
    if shape is not None and np.prod(shape) != asked.inputs:
        raise InputError(
            f"the property has {asked.inputs} inputs, but the model takes {tuple(shape)}; is it "
            "one of another model?"
        )

    def run(x: Tensor) -> Tensor:
        with asking("the model"):
            y = model(x)
        if not isinstance(y, Tensor):
            raise unsupported(f"a property of a model that gives a {type(y).__name__}")
        return y.float().flatten(1)

    failed = ""
    for one in [shape] if shape is not None else _shapes(asked.inputs):
        try:
            with torch.no_grad():
                k = run(torch.zeros(1, *one)).shape[1]
        except InputError as error:
            failed = failed or str(error)
            continue
        if k != asked.outputs:
            raise InputError(
                f"the property has {asked.outputs} outputs, but the model gives {k}; is it one of "
                "another model?"
            )
        return Model(run, model, tuple(one))
    raise InputError(f"the model takes no input of {asked.inputs} numbers: {failed}")


def _shapes(n: int) -> list[tuple[int, ...]]:
    """Shapes of so many numbers: a row, and square images."""
    sides = [(c, isqrt(n // c)) for c in (1, 3)]
    return [(n,), *((c, side, side) for c, side in sides if c * side * side == n)]


class _Safe(nn.Module):
    """How far outputs y are from each row of a @ y <= b, as scores: 0 of class 0, and b - a @ y of
    the others, so that class 0 leads by a @ y - b."""

    def __init__(self, network: Any, a: Tensor, b: Tensor) -> None:
        super().__init__()
        self.network = network
        self.weight = nn.Parameter(torch.cat([torch.zeros_like(a[:1]), -a]), requires_grad=False)
        self.bias = nn.Parameter(torch.cat([torch.zeros_like(b[:1]), b]), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.network(x).flatten(1).double()
        return nn.functional.linear(y, self.weight, self.bias)


class _Box:
    """One part of a property, and what is known of it.

    lo, hi: the box, [*shape] each in float64; low, high: the same in float32.
    of: the set of outputs that each row of `a`, `b` belongs to.
    """

    def __init__(self, part: Part, shape: tuple[int, ...]) -> None:
        self.part = part
        if max(np.abs(part.lo).max(), np.abs(part.hi).max()) > FLOAT32:
            raise InputError(
                "the property leaves an input to a number beyond those of float32, in which the "
                f"model computes; expected bounds within {FLOAT32:.3g}."
            )
        self.low, self.high = (
            torch.from_numpy(side.astype(np.float32)).view(shape) for side in (part.lo, part.hi)
        )
        lo, hi = (torch.from_numpy(side).view(shape) for side in (part.lo, part.hi))
        self.lo, self.hi = torch.minimum(lo, self.low.double()), torch.maximum(hi, self.high)
        self.a = torch.from_numpy(np.concatenate([one.a for one in part.unsafe]))
        self.b = torch.from_numpy(np.concatenate([one.b for one in part.unsafe]))
        self.of = [len(one.b) for one in part.unsafe]

    @property
    def middle(self) -> Tensor:
        return ((self.lo + self.hi) / 2).float().clamp(self.low, self.high)

    def scores(self, y: Tensor) -> Tensor:
        """0, and for each unsafe set how far within it outputs y [n, k] are, at its worst row."""
        inside = (self.b - y.double() @ self.a.T).split(self.of, 1)
        worst = torch.stack([rows.amin(1) for rows in inside], 1)
        return torch.cat([torch.zeros_like(worst[:, :1]), worst], 1)

    def safe(self, proved: Tensor) -> Tensor:
        """Whether, with these rows [n, r] proved to be above 0, no output is unsafe: [n]."""
        return torch.stack([rows.any(1) for rows in proved.split(self.of, 1)], 1).all(1)


class _Search:
    """One property of one model, on its way to an answer."""

    def __init__(self, model: Model, asked: Property, end: float, seed: int) -> None:
        self.model, self.end, self.seed = model, end, seed
        self.boxes = [_Box(part, model.shape) for part in asked.parts]
        self.tried: list[str] = []

    @property
    def late(self) -> bool:
        return time.monotonic() >= self.end

    def graphs(self, asked: bool) -> list[Graph]:
        """What the bounds of each box are made of; none where that is unknown.

        Raises:
            InputError: it is, and was asked for.
        """
        try:
            return [self._graph(box) for box in self.boxes]
        except InputError:
            if asked:
                raise
            return []

    def decide(
        self, attacks: Sequence[str | Attack], graphs: Sequence[Graph]
    ) -> tuple[str, str, Tensor | None]:
        """The answer, what gave it, and the counterexample; without graphs attacks seek it
        alone."""
        left, by = self.boxes, list[str]()
        first, *later = attacks
        if (found := self._attacked(left, first)) is not None:
            return SAT, *found
        if graphs:
            left = list[_Box]()
            for box, graph in zip(self.boxes, graphs, strict=True):
                method, x = self._proved(box, graph)
                if x is not None:
                    return SAT, method, x
                by.append(method)
                left += [] if method else [box]
            if not left:
                return UNSAT, ", ".join(dict.fromkeys(by)), None
        for attack in later:
            if (found := self._attacked(left, attack)) is not None:
                return SAT, *found
        return UNKNOWN, ", ".join(dict.fromkeys(self.tried)), None

    def _judged(self, box: _Box, x: Tensor) -> Tensor | None:
        """The first of inputs [n, *shape] that the model itself, asked about it alone, shows to be
        a counterexample."""
        x = x.clamp(box.low, box.high)
        with torch.no_grad():
            for row in x[(box.scores(self.model.run(x))[:, 1:] >= 0).any(1)]:
                y = self.model.run(row[None])[0].double().numpy()
                if any(outputs.hold(y) for outputs in box.part.unsafe):
                    return row
        return None

    def _attacked(self, boxes: Sequence[_Box], attack: str | Attack) -> tuple[str, Tensor] | None:
        """What found a counterexample, and it, where an attack or the middle of a box is one."""
        for box in boxes:
            if (x := self._judged(box, box.middle[None])) is not None:
                return "the middle of the box", x
            if self.late or not bool((box.high > box.low).any()):
                continue
            self.tried.append(str(attack))

            def scores(x: Tensor, box: _Box = box) -> Tensor:
                y = self.model.run(x.view(-1, *self.model.shape))
                return box.scores(y).float()

            low, high, x = (side.flatten() for side in (box.low, box.high, box.middle))
            target = wrap(scores, bounds=(low, high), shape=x.shape, probabilities=False)
            threat = Threat.linf(float((high.double() - low).max()))
            made = craft(
                target, (x[None].numpy(), np.zeros(1, int)), threat, attack, seed=self.seed
            )
            found = torch.from_numpy(made.x_adv).view(-1, *self.model.shape)
            if (x := self._judged(box, found)) is not None:
                return str(attack), x
        return None

    def _graph(self, box: _Box) -> Graph:
        """What the bounds of a box are made of.

        Raises:
            InputError: it is not known, or does not answer as the model does.
        """
        network = self.model.network()
        graph = trace(_Safe(network, box.a, box.b), torch.zeros(1, *self.model.shape))
        u = torch.rand(TRIED, *self.model.shape, generator=torch.Generator().manual_seed(0))
        x = (box.low + (box.high - box.low) * u).clamp(box.low, box.high)
        with torch.no_grad():
            y = self.model.run(x).double()
        exact = box.b - y @ box.a.T
        if not torch.allclose(graph(x)[:, 1:], exact, rtol=1e-3, atol=1e-3 * float(y.abs().max())):
            raise unsupported("proofs of a model whose graph answers otherwise than the model does")
        return graph

    def _proved(self, box: _Box, graph: Graph) -> tuple[str, Tensor | None]:
        """The method that proves a box, empty for none, or the counterexample that it met."""
        try:
            rows = _rows(graph, box.lo[None], box.hi[None])
            few = int((box.hi > box.lo).sum()) <= FEW
            for method in METHODS:
                if self.late:
                    return "", None
                if few and method == METHODS[-1]:
                    return self._split(box, graph)
                self.tried.append(method)
                if method == METHODS[-1]:
                    # the other half of the time is for the attack that follows
                    share = (self.end - time.monotonic()) / (2 * len(self.boxes))
                    return self._branched(box, rows, method, time.monotonic() + share)
                rows.climb(method)
                if bool(box.safe(rows.rounded[:, 1:] > 0)):
                    return method, None
        except Exception as error:  # noqa: BLE001  # whatever it is, nothing is proved
            self.tried.append(f"bounds, which failed ({first_line(error)})")
        return "", None

    def _branched(
        self, box: _Box, rows: Rows, method: str, end: float
    ) -> tuple[str, Tensor | None]:
        """As `_proved`, by branch and bound until a time `end`, which shows inputs to the judge.

        Of each unsafe set one row is to be proved: the one of the highest bound is tried first, for
        its share of the time. The set that an input is nearest to goes before others.
        """
        met = list[Tensor]()

        def judge(x: Tensor) -> bool:
            found = self._judged(box, x.float())
            met.extend([] if found is None else [found])
            return found is not None

        order, bounds = nearest(rows, end, judge), rows.rounded[0]
        sets = torch.arange(1, len(bounds)).split(box.of)
        while not met and len(order):
            (at,) = (one for one in sets if order[0] in one)
            proved, left = bool((bounds[at] > 0).any()), at[bounds[at].argsort()].tolist()
            while left and not (proved or met):
                now = time.monotonic()
                limit = now + (end - now) / len(left)
                proved = branch(rows, torch.tensor(left.pop()), limit, judge)
            if not proved:
                break
            order = order[~torch.isin(order, at)]
        if met:
            return method, met[0]
        return "" if len(order) else method, None

    def _split(self, box: _Box, graph: Graph) -> tuple[str, Tensor | None]:
        """As `_proved`, by splitting the box in halves along its longest side, again and again."""
        method = "crown on halves of the box"
        self.tried.append(method)
        width = (box.hi - box.lo).clamp_min(torch.finfo(torch.float64).tiny)
        left = [(box.lo[None], box.hi[None])]
        while left:
            if self.late:
                return "", None
            lo, hi = left.pop()
            rows = _rows(graph, lo, hi)
            rows.climb("crown")
            open_ = ~box.safe(rows.rounded[:, 1:] > 0)
            lo, hi = lo[open_], hi[open_]
            if not len(lo):
                continue
            if (x := self._judged(box, ((lo + hi) / 2).float())) is not None:
                return method, x
            at = ((hi - lo) / width).flatten(1).argmax(1, keepdim=True)
            flat_lo, flat_hi = lo.flatten(1), hi.flatten(1)
            middle = (flat_lo.gather(1, at) + flat_hi.gather(1, at)) / 2
            lows = torch.cat([flat_lo, flat_lo.scatter(1, at, middle)]).view(-1, *lo.shape[1:])
            highs = torch.cat([flat_hi.scatter(1, at, middle), flat_hi]).view(-1, *lo.shape[1:])
            left += zip(lows.split(AT_ONCE), highs.split(AT_ONCE), strict=True)
        return method, None


def _rows(graph: Graph, lo: Tensor, hi: Tensor) -> Rows:
    """Boxes [n, *shape], for bounds of the scores of `_Safe`."""
    middle = (lo + hi) / 2
    widest = (hi - lo).flatten(1).amax(1).view(-1, *[1] * (lo.ndim - 1))
    region = Region(Linf(), middle, widest, lo - middle, hi - middle)
    unit = torch.finfo(torch.float32).eps / 2
    return Rows(graph, region, torch.zeros(len(lo), dtype=torch.long), unit)
