"""The ladder: what is cheap to prove first, and dearer methods for the rows that are left.

A row is certified where a method gives a lower bound of its smallest margin, over all that the
threat allows and a judge would count, that is finite and above what the model's own rounding may
take away. Whatever fails on the way proves nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from holdfast.bounds import METHODS, margins, trace
from holdfast.bounds.graph import unsupported
from holdfast.bounds.margins import check_threat
from holdfast.bounds.tree_models import ball, trees_of
from holdfast.bounds.trees import exact as trees_exact
from holdfast.bounds.trees import lower as trees_lower
from holdfast.bounds.trees import proved as trees_proved
from holdfast.errors import InputError, SpecError
from holdfast.evaluation.certificates import OnStep, Proofs
from holdfast.runs.manifest import CertificationInfo
from holdfast.targets.target import Target
from holdfast.targets.trees import NO_TREES, Trees
from holdfast.targets.wrappers import itself
from holdfast.threats.threat import Targeted, Threat

VERSION = 1  # of what counts as proved
GROUP = 16  # rows that a method takes at once; time is asked for between groups
MERGED = 64  # leaves of one tree, to which trees are merged
TRIES = 10  # sizes that are tried in the search for the largest

# The rows of inputs x [n, *shape] and classes y [n] that a method proves, under a threat whose eps
# may be one a row, and why it proves none where it says so.
Method = Callable[[Tensor, Tensor, Threat], tuple[Tensor, str]]


@dataclass(frozen=True)
class Ladder:
    """IBP, then CROWN, then alpha-CROWN, each on the rows that are left; of trees the leaves that
    are reached, and then what is exact.

    Args:
        seconds_per_row: of all methods, on average over the rows of a chunk.
        radius: also seek the largest size that can be proved, of each row.
    """

    seconds_per_row: float = 10.0
    radius: bool = False

    def __post_init__(self) -> None:
        if not self.seconds_per_row > 0:
            raise SpecError(f"seconds_per_row is {self.seconds_per_row}; expected a time above 0.")

    def __call__(self, target: Target, threat: Threat) -> Climb:
        """The ladder for a model that has seen inputs.

        Raises:
            InputError: there is no proof of such a model, or under such a threat.
        """
        _check(threat)
        return Climb(self, target, threat, methods_of(target, threat, self.seconds_per_row))


def _check(threat: Threat) -> None:
    """Raises InputError: no method proves anything under this threat."""
    check_threat(threat)
    if isinstance(threat.goal, Targeted):
        raise unsupported(
            f"proofs under {threat}, which has a goal; leave out the target, for what is proved "
            "against every wrong class holds for each"
        )


def methods_of(target: Target, threat: Threat, seconds: float) -> dict[str, Method]:
    """The methods for a model, the cheapest first; of trees the last one takes up to so many
    seconds a row.

    Raises:
        InputError: it is none that they can follow.
    """
    target = itself(target)
    try:
        network = target.network()
    except InputError as error:
        return _methods_of_trees(_trees(target, error), target, threat, seconds)
    return _methods_of_network(network, target)


def _trees(target: Target, otherwise: InputError) -> Trees:
    """Raises InputError: `otherwise`, or what is wrong with its trees where it has some."""
    try:
        return trees_of(target)
    except InputError as error:
        if str(error) == NO_TREES:
            raise otherwise from None
        raise InputError(f"not supported: proofs of this model, for {error}") from None


def _methods_of_trees(
    trees: Trees, target: Target, threat: Threat, seconds: float
) -> dict[str, Method]:
    if not threat.norm.boxed:
        raise unsupported(f"proofs of trees under {threat}; expected linf")
    shape, box = target.shape or (), target.bounds
    scale, sides = ball(target, threat)

    def labels(x: np.ndarray) -> np.ndarray:
        return target.labels(torch.from_numpy(x)).cpu().numpy()

    def leaves(x: Tensor, y: Tensor, threat: Threat, merged: int = 0) -> tuple[Tensor, str]:
        reach = threat.legal_eps(shape, box.ulp).numpy()[:, None] * scale
        found = trees_lower(trees, x.float().numpy(), y.numpy(), reach, sides, merged=merged)
        return torch.from_numpy(trees_proved(trees, found, y.numpy())), ""

    def exact(x: Tensor, y: Tensor, threat: Threat) -> tuple[Tensor, str]:
        limits = threat.legal_eps(shape, box.ulp).tolist()
        how = {"scale": scale, "seconds": seconds}
        rows = x.float().numpy(), y.numpy()
        safe = [
            trees_exact(trees, rows[0][i : i + 1], rows[1][i : i + 1], labels, sides, eps=e, **how)
            for i, e in enumerate(limits)
        ]
        return torch.tensor([one[0].safe > e for one, e in zip(safe, limits, strict=True)]), ""

    return {"leaves": leaves, "merged-leaves": partial(leaves, merged=MERGED), "exact": exact}


def _methods_of_network(network: nn.Module, target: Target) -> dict[str, Method]:
    device, dtype = target.batcher.device, target.batcher.dtype
    if device.type != "cpu" and _coarse():
        raise InputError(
            "torch may round to 10 bits on this device (TF32), which these proofs do not bound: "
            "give --device cpu (in Python: wrap(..., device='cpu')), or set "
            "torch.backends.cudnn.allow_tf32 and torch.backends.cuda.matmul.allow_tf32 to False."
        )
    example = torch.zeros((1, *(target.shape or ())), dtype=dtype, device=device)
    graph = trace(network, example)

    def method(name: str) -> Method:
        def prove(x: Tensor, y: Tensor, threat: Threat) -> tuple[Tensor, str]:
            x, y = x.to(device, dtype), y.to(device)
            found = margins(graph, x, y, threat, target.bounds, name)
            return found.certified.cpu(), found.reason

        return prove

    return {name: method(name) for name in METHODS}


def _coarse() -> bool:
    return bool(torch.backends.cudnn.allow_tf32 or torch.backends.cuda.matmul.allow_tf32)


@dataclass(frozen=True)
class Climb:
    """The ladder of one model under one threat; a `holdfast.evaluation.certificates.Prover`."""

    ladder: Ladder
    target: Target
    threat: Threat
    methods: Mapping[str, Method]

    @property
    def info(self) -> CertificationInfo:
        return CertificationInfo(
            version=VERSION,
            methods=list(self.methods),
            seconds_per_row=self.ladder.seconds_per_row,
            radius=self.ladder.radius,
        )

    def climb(self, x: Tensor, y: Tensor, deadline: float, on_step: OnStep) -> Proofs:
        """See `Prover.climb`."""
        n, share = len(x), time.monotonic() + self.ladder.seconds_per_row * len(x)
        end = min(share, deadline)
        by, reason = [""] * n, [""] * n
        sizes = torch.full((n,), float(self.threat.eps), dtype=torch.float64)
        for place, method in enumerate(self.methods):
            left = torch.tensor([i for i in range(n) if not by[i]], dtype=torch.int64)
            for part in left.split(GROUP):
                on_step(place / len(self.methods), method, by.count(""))
                late = time.monotonic() > end
                held, why = torch.zeros(len(part)), f"time ran out before {method}"
                if not late:
                    held, why = self._ask(method, x[part], y[part], sizes[part])
                for i, one in zip(part.tolist(), held.tolist(), strict=True):
                    by[i] = method if one else ""
                    if not late or not reason[i].startswith("time"):
                        reason[i] = "" if one else why
        proved = torch.tensor([bool(one) for one in by])
        if self.ladder.radius:
            radius = self._widest(x, y, proved, end)
        else:
            radius = torch.where(proved, sizes, torch.nan)
        finished = end == share or time.monotonic() <= end
        return Proofs(by, radius.numpy(), reason, finished)

    def proves(self, x: Tensor, y: Tensor, radius: Tensor, method: str) -> np.ndarray:
        """See `Prover.proves`."""
        parts = torch.arange(len(x)).split(GROUP)
        held = [self._ask(method, x[at], y[at], radius[at])[0] for at in parts]
        return torch.cat(held).numpy()

    def _ask(self, method: str, x: Tensor, y: Tensor, sizes: Tensor) -> tuple[Tensor, str]:
        held, why = self.methods[method](x, y, replace(self.threat, eps=sizes))
        return held, why or f"{method} does not prove it"

    def _widest(self, x: Tensor, y: Tensor, proved: Tensor, end: float) -> Tensor:
        """The largest sizes [n] that the last method proves, sought until a time; NaN: none."""
        method, eps = list(self.methods)[-1], float(self.threat.eps)
        box = self.target.bounds
        reach = torch.full((1, *x.shape[1:]), box.high - box.low, dtype=torch.float64)
        most = float(self.threat.norm.size(reach))
        low = torch.where(proved, eps, 0.0).double()
        high = torch.where(proved, most, eps).double()
        for part in torch.arange(len(x)).split(GROUP):
            for _ in range(TRIES):
                if time.monotonic() > end:
                    break
                most_tried = 2 * low[part].clamp_min(eps / 4)
                middle = torch.minimum((low[part] + high[part]) / 2, most_tried)
                held, _ = self._ask(method, x[part], y[part], middle)
                low[part] = torch.where(held, middle, low[part])
                high[part] = torch.where(held, high[part], middle)
        return torch.where(low > 0, low, torch.nan)
