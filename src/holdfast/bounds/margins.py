"""Lower bounds of the margins of a network's rows under a threat, and what they prove."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from holdfast.bounds.branching import METHODS, Judge, climb, nobody
from holdfast.bounds.graph import Graph, trace, unsupported
from holdfast.bounds.propagate import Rows
from holdfast.bounds.regions import Region
from holdfast.errors import HoldfastError, InputError, SpecError, first_line, suggest
from holdfast.norms import Linf, wide
from holdfast.targets.target import Bounds, Target
from holdfast.threats.threat import Targeted, Threat, as_threat

AT_ONCE = 1 << 25  # numbers in the largest interval of the rows that are bounded at once


@dataclass(frozen=True)
class Margins:
    """What a method found of n rows.

    lower: below score of the true class less score of class j, over all that the threat allows, in
        real arithmetic: [n, k] in float64. inf where nothing needs to be shown: for the true class,
        and for all but the target's where the threat has one. nan where nothing is known.
    rounding: the most by which the network, as its own dtype rounds, may fall short of it: [n, k].
    method: the tightest method that ran.
    reason: why nothing is known of any row; else empty.
    """

    lower: Tensor
    rounding: Tensor
    method: str
    reason: str = ""

    @property
    def proved(self) -> Tensor:
        """Rows whose every margin is above 0 in real arithmetic: bool [n]."""
        return _above(self.lower, torch.zeros_like(self.rounding))

    @property
    def certified(self) -> Tensor:
        """Rows whose every margin is above 0 for the network as it rounds, too: bool [n]."""
        return _above(self.lower, self.rounding)


def _above(lower: Tensor, least: Tensor) -> Tensor:
    # said so that nan is never above: a comparison with nan is false
    shown = (lower == torch.inf) | (lower.isfinite() & least.isfinite() & (lower > least))
    return shown.all(1) & lower.isfinite().any(1)


def margins(
    network: nn.Module | Graph,
    x: Tensor,
    y: Tensor,
    threat: Threat | str,
    bounds: Bounds | tuple[Any, Any] = (0.0, 1.0),
    method: str = "crown",
    seconds: float = 1.0,
) -> Margins:
    """Bound the margins of rows under all that a threat allows.

    Args:
        network: a module of torch that answers rows with scores [n, k], preprocessing inside; or
            its graph, of `trace`.
        x: inputs [n, *shape], of the dtype that the network takes, on its device.
        y: true classes [n].
        threat: a ball around each row, such as "linf(8/255)".
        bounds: the box of legal inputs.
        method: "ibp", "crown", "alpha-crown" or "beta-crown"; those before it run, too.
        seconds: what "beta-crown" may take for each row.

    Whatever goes wrong on the way proves nothing, and stands in `reason`.

    Raises:
        SpecError: no such method, or no such threat.
        InputError: x and y are not of one length, or y is no class.
    """
    threat, bounds = as_threat(threat), Bounds.of(bounds)
    if method not in METHODS:
        raise SpecError(f"no method is called {method!r}; {suggest(method, METHODS)}")
    if len(x) != len(y) or y.is_floating_point() or y.ndim != 1:
        raise InputError(
            f"x has {len(x)} rows and y is {tuple(y.shape)} of {y.dtype}; expected a class a row."
        )
    try:
        check_threat(threat)
        check_no_schema(threat)
        graph = network if isinstance(network, Graph) else trace(network, x[:1])
    except Exception as error:  # noqa: BLE001  # of a threat, or of a network
        return _nothing(len(x), method, error)
    classes = graph.nodes[-1].shape[1]
    wrong = y[(y < 0) | (y >= classes)]
    if len(wrong):
        raise InputError(
            f"y has the class {int(wrong[0])}, but the network has {classes} scores; expected 0 to "
            f"{classes - 1}."
        )
    try:
        size = max(1, AT_ONCE // graph.largest)
        found = [
            Bounded(graph, x[at], y[at].to(x.device), threat.of_rows(at), bounds).climb(
                method, seconds
            )
            for at in torch.arange(len(x)).split(size)
        ]
    except Exception as error:  # noqa: BLE001  # whatever it is, nothing is proved
        return _nothing(len(x), method, error)
    lower, rounding = ([getattr(one, name) for one in found] for name in ("lower", "rounding"))
    return Margins(torch.cat(lower), torch.cat(rounding), method)


def _nothing(n: int, method: str, error: Exception) -> Margins:
    nothing = torch.full((n, 1), torch.nan, dtype=torch.float64)
    return Margins(nothing, nothing, method, first_line(error))


def check_threat(threat: Threat) -> None:
    """Raises InputError: nothing is proved under this threat."""
    if threat.spatial is not None:
        raise unsupported("proofs under a movement of images; expected a norm, such as linf(2/255)")
    if not threat.bounded:
        raise unsupported(f"proofs under {threat}, whose eps is not finite")


def check_no_schema(threat: Threat) -> None:
    """Raises InputError: nothing is proved of a network under this threat."""
    if threat.schema is not None:
        raise unsupported("proofs of a network under the schema of a table; expected a norm alone")


class Bounded:
    """Rows of a network under a threat, whose margins each method bounds more tightly.

    Args: as `margins`, of a graph.
    """

    def __init__(self, graph: Graph, x: Tensor, y: Tensor, threat: Threat, bounds: Bounds) -> None:
        aims = None
        if isinstance(threat.goal, Targeted):
            aims = torch.as_tensor(threat.goal.t, device=x.device).expand(len(x))
        unit = torch.finfo(x.dtype).eps / 2
        self.rows = Rows(graph, region(x, threat, bounds), y, unit, aims)
        self.inside = bounds.inside(x)
        self.ran = 0

    def at(self, rows: Tensor) -> Bounded:
        """These rows alone, with what is known of them."""
        part = copy(self)
        part.rows, part.inside = self.rows.at(rows), self.inside[rows]
        return part

    def climb(self, method: str, seconds: float = 1.0, judge: Judge = nobody) -> Margins:
        """Bound by a method, after those before it that have not run; see `branching.climb`."""
        for name in METHODS[self.ran : METHODS.index(method) + 1]:
            climb(self.rows, name, seconds, judge)
            self.ran += 1
        lower = self.rows.lower
        rounding = torch.where(lower == torch.inf, 0, lower - self.rows.rounded)
        lower = torch.where(self.inside[:, None], lower, torch.nan)
        return Margins(lower, rounding, method)


def graph_of(target: Target, threat: Threat) -> Graph:
    """The graph of a target's network, from raw inputs to scores.

    Raises:
        InputError: it is none, or not one that bounds can follow; or the threat does not only add
            to its inputs.
    """
    if not threat.additive or threat.schema is not None:
        raise InputError(
            "the threat does not only add to the inputs (it moves them, or repairs them by a "
            "schema), and bounds follow nothing else; choose another attack."
        )
    batcher = target.batcher
    example = torch.zeros((1, *(target.shape or ())), dtype=batcher.dtype, device=batcher.device)
    try:
        with torch.no_grad():
            return trace(target.network(), example)
    except HoldfastError:
        raise
    except Exception as error:
        raise unsupported(f"bounds of this network: {first_line(error)}") from error


def region(x: Tensor, threat: Threat, bounds: Bounds) -> Region:
    """What a threat allows around rows x [n, *shape] within the box, what a judge counts as within
    eps included."""
    eps = threat.legal_eps(tuple(x.shape[1:]), bounds.ulp).to(x.device)
    x = x.double()
    low, high = (torch.as_tensor(side).to(x) for side in bounds.sides(x))
    lo, hi = low - x, high - x
    if threat.mask is not None:
        lo, hi = (torch.where(threat.mask.to(x.device), side, 0) for side in (lo, hi))
    eps, norm = wide(eps.expand(len(x)), x), threat.norm
    if norm.boxed:  # an eps a feature, too, makes a box
        lo, hi = norm.hull(eps, lo, hi)
        norm, eps = Linf(), wide(torch.maximum(-lo, hi).flatten(1).amax(1), x)
    return Region(norm, x, eps, lo, hi)
