"""Search for triggers: a small mask and what it shows, which turn rows to one class.

After Neural Cleanse (Wang et al. 2019, "Neural Cleanse: Identifying and Mitigating Backdoor Attacks
in Neural Networks"). All aims are searched in the same passes, each with noise of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from holdfast.rng import Keys
from holdfast.targets.target import Target

RATE, MOMENTS = 0.1, (0.5, 0.9)  # of Adam, on the parameters of mask and pattern
FIRST = 2.0  # of the penalty: the loss that a mask of every feature costs
EVERY = 5  # steps, after which the penalty follows the success
UP, DOWN = 1.5, 1.5**1.5  # its factors, as in the paper
SUCCESS = 0.99  # of the last steps, that the penalty keeps
AT_ONCE = 1 << 24  # values of the rows that one step holds


@dataclass(frozen=True)
class Aim:
    """To turn rows of the class `source`, or of all classes but `target`, to the class `target`."""

    source: int | None
    target: int

    @property
    def number(self) -> int:
        """Its own among all aims, from which its noise follows."""
        return (self.target << 24) + (0 if self.source is None else self.source + 1)

    def rows(self, label: Tensor) -> Tensor:
        """The places of the rows to turn among those of these decisions [n]: [m] int64."""
        chosen = label != self.target if self.source is None else label == self.source
        return (chosen & (label >= 0)).nonzero()[:, 0]


@dataclass(frozen=True)
class Triggers:
    """One trigger for each aim: where it covers the input, and what it shows there."""

    mask: Tensor  # [m, *mask] in [0, 1]; of images without channels, [m, 1, h, w] or [m, h, w, 1]
    pattern: Tensor  # [m, *shape] in raw units
    size: Tensor  # [m]: the sum of the mask; inf where none was found

    def smaller(self, other: Triggers) -> Triggers:
        """Of each aim the smaller one of two."""
        better = other.size < self.size
        pick = [better.view(-1, *[1] * (part.ndim - 1)) for part in (self.mask, self.pattern)]
        return Triggers(
            torch.where(pick[0], other.mask, self.mask),
            torch.where(pick[1], other.pattern, self.pattern),
            torch.where(better, other.size, self.size),
        )

    def on(self, x: Tensor, which: int) -> Tensor:
        """Rows x [n, *shape] with one of the triggers."""
        mask, pattern = self.mask[which].to(x), self.pattern[which].to(x)
        return x + mask * (pattern - x)


def mask_shape(target: Target) -> tuple[int, ...]:
    """Of images a mask is the same in all channels; of other inputs it has a value a feature."""
    shape = tuple(target.shape or ())
    if len(shape) != 3:
        return shape
    return (*shape[:2], 1) if target.inputs.layout == "nhwc" else (1, *shape[1:])


def search(
    target: Target,
    x: Tensor,
    label: Tensor,
    aims: Sequence[Aim],
    *,
    rows: int,
    steps: int,
    restart: int = 0,
    seed: int = 0,
) -> Triggers:
    """The smallest trigger found for each aim.

    Adam descends the cross-entropy of the aimed class plus a penalty times the mask's sum. The
    penalty grows while at least 99 % of the rows of the last steps become that class, and shrinks
    otherwise; the smallest mask of those that do so is kept.

    Args:
        x: rows [n, *shape].
        label: the model's decisions on them [n].
        aims: each needs a row to turn.
        rows: of a step, drawn anew each time for each aim.
        steps: each costs a forward and a backward on `rows` rows for each aim.
        restart: other noise.
    """
    parts = [aims[i : i + _together(x, rows)] for i in range(0, len(aims), _together(x, rows))]
    found = [_search(target, x, label, part, rows, steps, restart, seed) for part in parts]
    return Triggers(
        *(torch.cat([getattr(f, n) for f in found]) for n in ("mask", "pattern", "size"))
    )


def _together(x: Tensor, rows: int) -> int:
    return max(1, AT_ONCE // (rows * x[0].numel()))


def _search(
    target: Target,
    x: Tensor,
    label: Tensor,
    aims: Sequence[Aim],
    rows: int,
    steps: int,
    restart: int,
    seed: int,
) -> Triggers:
    pools = [aim.rows(label) for aim in aims]
    goal = torch.tensor([aim.target for aim in aims], device=x.device)
    keys = Keys.of(seed, torch.tensor([aim.number for aim in aims], device=x.device))
    keys = keys.fold("trigger", restart)
    low, high = target.bounds.sides(x[:1].float())
    form = mask_shape(target)
    a = (0.1 * keys.fold("mask").normal(form)).requires_grad_()
    b = (0.5 * keys.fold("pattern").normal(tuple(x.shape[1:]))).requires_grad_()
    adam = torch.optim.Adam([a, b], RATE, betas=MOMENTS)
    penalty = torch.full((len(aims),), FIRST / a[0].numel(), device=x.device)
    size = torch.full_like(penalty, torch.inf)
    best = Triggers(torch.zeros_like(a), torch.zeros_like(b), size)
    hits: list[Tensor] = []
    for t in range(steps):
        draws = keys.fold("rows", t).uniform((rows,), torch.float64)
        at = torch.stack([p[(u * len(p)).long()] for p, u in zip(pools, draws, strict=True)])
        with torch.enable_grad():
            mask, shown = (a.tanh() + 1) / 2, (b.tanh() + 1) / 2 * (high - low) + low
            own = x[at].float()
            z = own + mask[:, None] * (shown[:, None] - own)
            size = mask.flatten(1).sum(1)
        hit, slope = _asked(target, z.detach().flatten(0, 1), goal.repeat_interleave(rows))
        hits.append(hit.view(len(aims), rows).float().mean(1))
        with torch.enable_grad():
            adam.zero_grad()
            loss = (z.flatten(0, 1) * slope).sum() / rows + (penalty * size).sum()
            loss.backward()
        adam.step()
        if len(hits) == EVERY:
            held = torch.stack(hits).mean(0) >= SUCCESS
            better = held & (size.detach() < best.size)
            for kept, now in zip(
                (best.mask, best.pattern, best.size), (mask, shown, size), strict=True
            ):
                kept[better] = now.detach()[better]
            penalty = torch.where(held, penalty * UP, penalty / DOWN)
            hits = []
    return Triggers(best.mask.detach(), best.pattern.detach(), best.size)


def _asked(target: Target, x: Tensor, goal: Tensor) -> tuple[Tensor, Tensor]:
    """Which rows become their class, [n] bool; the gradient of its cross-entropy [n, *shape]."""

    def ask(part: slice) -> tuple[Tensor, Tensor]:
        def cotangent(z: Tensor) -> Tensor:
            return z.softmax(1) - F.one_hot(goal[part], z.shape[1]).to(z)

        z, slope = target.pull(target.batcher.place(x[part]), cotangent)
        return target.task.predict(z) == goal[part], slope.to(x.dtype)

    hit, slope = zip(*target.batcher.parts(ask, len(x)), strict=True)
    return torch.cat(hit), torch.cat(slope)


def success(target: Target, triggers: Triggers, which: int, x: Tensor, goal: int) -> Tensor:
    """Which rows x [n, *shape] one of the triggers turns to the class `goal`: [n] bool."""
    if not len(x):
        return torch.zeros(0, dtype=torch.bool)
    rows = target.batcher.place(triggers.on(x, which))
    return target.batcher.in_parts(target.labels, rows) == goal


def hardened(triggers: Triggers, which: int, turned: Callable[[Triggers], Tensor]) -> Triggers:
    """One of the triggers with a mask of 0 and 1 alone, as a sticker has it: the fewest of its
    features, those of the largest mask first, that still turn 99 % of the rows; as it is where that
    takes more than twice its size.

    Args:
        turned: which rows it turns: [n] bool.
    """
    if not triggers.size[which].isfinite():
        return triggers
    mask = triggers.mask[which]
    order = mask.flatten().argsort(descending=True)
    low, high = 0, min(int(2 * float(triggers.size[which])) + 1, len(order))
    made = triggers

    def of(count: int) -> Triggers:
        flat = torch.zeros_like(mask).flatten()
        flat[order[:count]] = 1.0
        whole = triggers.mask.clone()
        whole[which] = flat.view_as(mask)
        size = triggers.size.clone()
        size[which] = count
        return Triggers(whole, triggers.pattern, size)

    while high - low > 1:  # the success is taken to grow with the mask
        middle = (low + high) // 2
        trial = of(middle)
        if float(turned(trial).float().mean()) >= SUCCESS:
            high, made = middle, trial
        else:
            low = middle
    return made
