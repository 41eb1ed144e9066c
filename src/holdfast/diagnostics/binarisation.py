"""The binarisation test: can the attack find what is surely there? (Zimmermann et al. 2022,
arXiv:2206.13991)

The head of a network is exchanged for one that tells a single point, eps away from x, from all that
lies a little nearer: an adversarial example planted by us. What defends stays as it is, so an
attack that misses it is misled.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from holdfast.attacks.attack import run
from holdfast.attacks.problem import Pool, Problem
from holdfast.attacks.trial import Trial
from holdfast.memory import rows_at_once
from holdfast.rng import Keys
from holdfast.targets.adapter import Adapter
from holdfast.targets.frameworks.pytorch.bpda import Straightened
from holdfast.targets.frameworks.pytorch.target import TorchTarget
from holdfast.targets.target import Target, sealed
from holdfast.threats.threat import Threat, Untargeted

# points that the new head calls inner, as far as memory holds them, within this share of eps
INNER, SHARE = 64, 0.95
CHANCE = 32  # random points of which none may be a solution


class Planted:
    """A torch target whose last layer is ours to set, and the lead of its best score there at x [m,
    *shape].

    Raises:
        LookupError: the target is no torch module, or its last layer is not linear.
    """

    def __init__(self, target: Target, x: Tensor) -> None:
        if (
            not isinstance(target, TorchTarget)
            or not isinstance(target.model, nn.Module)
            or isinstance(target.model, Adapter)
            or target.head.truth_task is not None
        ):
            raise LookupError("not a torch module that tells classes.")
        module = copy.deepcopy(target.model)
        self.target, self.seen = target.live(module), list[tuple[Tensor, Tensor]]()
        self.head = self._last(module, x[:1])
        _, out = self._features(x)
        self.lead = (
            out.abs()[:, 0] if out.shape[1] == 1 else out.topk(2, 1).values.diff(dim=1).abs()[:, 0]
        )
        self.head.bias = nn.Parameter(self.head.weight.new_zeros(out.shape[1]), requires_grad=False)

    def attacked(self, gradient: str) -> Target:
        """The target, with gradients straight through its steps where they are from `bpda`."""
        return Straightened(self.target) if gradient == "bpda" else self.target

    def _note(self, _: nn.Module, given: tuple[Tensor], out: Tensor) -> None:
        self.seen.append((given[0].detach().flatten(1).double(), out.detach().flatten(1)))

    def _features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What goes into the head, and what comes out."""
        self.seen.clear()
        with self.head.register_forward_hook(self._note):  # an attack goes through the head too
            self.target.batcher.in_parts(self.target.scores, x)
        into, out = (torch.cat(part) for part in zip(*self.seen, strict=True))
        self.seen.clear()
        if len(out) != len(x):
            raise LookupError("the last layer is called more than once.")
        return into, out

    def _last(self, module: nn.Module, x: Tensor) -> Any:
        """The layer called last, if it takes all of its input at once and gives as many numbers as
        there are scores."""
        called: list[nn.Module] = []

        def note(layer: Any, given: tuple[Tensor], _: Tensor) -> None:
            # of convolutions those as wide as their input
            if layer.weight[0].numel() == given[0][0].numel():
                called.append(layer)

        layers = [m for m in module.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
        hooks = [layer.register_forward_hook(note) for layer in layers]
        k = self.target.scores(x).shape[1]
        for hook in hooks:
            hook.remove()
        last: Any = next(reversed(called), None)
        # one output serves two classes
        if last is None or (k, len(last.weight)) not in ((k, k), (2, 1)):
            raise LookupError("the last layer is not linear.")
        return last

    def plant(self, inner: Tensor, edge: Tensor, lead: float) -> bool:
        """Call the points `inner` class 0, the first by this lead, and the point `edge` [1, *shape]
        class 1.

        Whether the features allow it. Midway between the edge and the nearest inner point both
        classes are even.
        """
        f, _ = self._features(torch.cat([inner, edge]))
        middle = f[:-1].mean(0)
        close, far = f[:-1] - middle, f[-1] - middle
        gram = close @ close.T
        ridge = 1e-2 * gram.diagonal().mean().clamp_min(1e-12)
        w = far - close.T @ torch.linalg.solve(
            gram + ridge * torch.eye(len(gram)).to(gram), close @ far
        )
        s = (f - middle) @ w
        even = (s[:-1].max() + s[-1]) / 2
        if not bool(s[-1] > s[:-1].max()):
            return False
        scale = lead / (even - s[0])
        weight, bias = (
            torch.zeros_like(self.head.weight),
            torch.full_like(self.head.bias, -10 * lead),
        )
        bias[0], one = 0.0, min(1, len(bias) - 1)
        weight[one] = (scale * w).view_as(weight[0])
        bias[one] = -scale * (w @ middle + even)
        self.head.weight.copy_(weight)
        self.head.bias.copy_(bias)
        return True


def missed(
    target: Target,
    x: Tensor,
    threat: Threat,
    trial: Trial,
    ids: Tensor,
    seed: int,
    pool: Pool | None = None,
) -> tuple[Tensor, Tensor, int, int] | None:
    """The test on rows x [m, *shape] with identities `ids` [m].

    Returns which rows got a solution and in which of these the attack missed it ([m] bool each),
    the forwards and the backwards; None where the test cannot be made: the model is no torch module
    that ends in a linear layer, it answers at random, or the norm is neither Linf nor L2, those of
    the paper. A row gets no solution where the features do not set the point apart, where the model
    does not answer as the new head says, or where chance finds it too.
    """
    if not threat.norm.dense or target.cost.draws > 1:
        return None
    threat = replace(threat, goal=Untargeted())
    solvable, lost = torch.zeros(2, len(x), dtype=torch.bool, device=x.device)
    points = rows_at_once(x.shape[1:], INNER)
    with sealed(seed):
        try:
            planted = Planted(target, x)
        except LookupError:
            return None
        forwards, backwards = len(x) + 1, 0
        for i, lead in enumerate(planted.lead.tolist()):
            row, keys = (
                x[i : i + 1],
                Keys.of(seed, torch.arange(points, device=x.device)).fold("planted", int(ids[i])),
            )
            inner = _around(
                target,
                row,
                threat,
                SHARE * threat.norm.sample(keys, row.expand(points, *row.shape[1:])),
            )
            edge = _around(target, row, threat, threat.norm.extreme(keys.fold("edge"), inner)[:1])
            chance = _around(
                target, row, threat, threat.norm.sample(keys.fold("chance"), inner)[:CHANCE]
            )
            forwards += points + 1
            if not planted.plant(torch.cat([row, inner[1:]]), edge, lead):
                continue
            label = planted.target.task.predict(
                planted.target.batcher.in_parts(
                    planted.target.scores, torch.cat([row, chance, edge])
                )
            )
            forwards += len(label)
            solvable[i] = bool((label[:-1] == 0).all() and label[-1] == 1)
            if solvable[i]:
                zero = torch.zeros(1, dtype=torch.int64)
                result = run(
                    trial.attack,
                    planted.attacked(trial.gradient),
                    row,
                    zero,
                    threat,
                    ids=ids[i : i + 1].cpu(),
                    seed=seed,
                    pool=pool,
                )
                lost[i] = not bool(result.broken)
                forwards, backwards = (
                    forwards + int(result.forwards),
                    backwards + int(result.backwards),
                )
    return solvable, lost, forwards, backwards


def _around(target: Target, x: Tensor, threat: Threat, d: Tensor) -> Tensor:
    """The legal inputs that lie d, in units of eps, from x [1, *shape]."""
    nobody = torch.zeros(len(d), dtype=torch.int64, device=x.device)
    p = Problem(target, x.expand_as(d), nobody, threat, Keys(nobody))
    return target.bounds.clamp(x + p.project(p.eps * d))
