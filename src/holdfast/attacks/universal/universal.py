"""One perturbation for all inputs (Moosavi-Dezfooli et al. 2017, arXiv:1610.08401).

No `Attack`: its rows share one answer, so they cannot be independent, and a run folder does not
hold it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from holdfast.attacks.shared.common_perturbation import Fooled, InputSet, check, slope
from holdfast.errors import SpecError
from holdfast.norms import wide
from holdfast.targets.target import Target, sealed
from holdfast.threats.threat import Threat


@dataclass(frozen=True)
class Universal(Fooled):
    """One perturbation, and which inputs it fools."""

    d: Tensor  # [*shape]


def universal(
    target: Target,
    x: Tensor,
    held_out: Tensor,
    threat: Threat,
    *,
    steps: int = 200,
    rows: int = 64,
    step_size: float = 0.1,
    seed: int = 0,
) -> Universal:
    """Search one d of the threat's ball that fools the model on as many inputs as it can.

    An input is fooled when its decision changes, or with a goal, when it becomes that class (inputs
    of that class are left out). Inputs plus d are cut to the box.

    Differs from the paper: projected ascent of the margin, summed over random inputs, where the
    paper adds up DeepFool's steps.

    ```python
    made = universal(holdfast.wrap(model), x[:500], x[500:], Threat.linf(0.1))
    made.rate  # of x[500:]
    ```

    Args:
        x: inputs [n, *shape] to make it for.
        held_out: inputs [m, *shape] to judge it on.
        threat: norm, one finite eps, and the goal.
        steps: gradient steps: one forward and one backward on each of `rows` inputs.
        rows: inputs of a step, drawn anew each time.
        step_size: of the first step, as a fraction of eps; it falls to 0.
        seed: of the draws.

    Raises:
        AccessError: the target gives no gradients.
        SpecError: eps is not one finite number, or steps or rows are less than 1.
    """
    check(steps=steps, rows=rows)
    if isinstance(threat.eps, Tensor) or not math.isfinite(threat.eps) or threat.mask is not None:
        raise SpecError(
            "a universal perturbation needs one finite eps and no mask, but the threat is "
            f"{threat}."
        )
    with sealed(seed):
        inputs, others = InputSet(target, x, threat), InputSet(target, held_out, threat)
        d = torch.zeros_like(inputs.x[:1])
        hi = torch.full_like(d, target.bounds.high - target.bounds.low)
        eps = wide(d.new_tensor([threat.eps]), d)
        for t in range(steps):
            at = inputs.drawn(rows, seed, "universal", t)
            g = slope(inputs.problem(at), target.bounds.clamp(inputs.x[at] + d)).sum(
                0, keepdim=True
            )
            step = threat.norm.stride(g, step_size * (1 - t / steps), eps, -hi, hi)
            d = threat.norm.project(d + step, eps, -hi, hi)
        return Universal(
            *(c.fooled(target.bounds.clamp(c.x + d)) for c in (inputs, others)), d=d[0]
        )
