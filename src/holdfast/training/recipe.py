"""A recipe: all that decides how a network is trained, as texts and numbers.

The texts of its objective and regularisers are `holdfast.hardening`'s to read: the loop is handed
what they spell.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from holdfast import attacks, spec
from holdfast.errors import SpecError
from holdfast.spec import option
from holdfast.training import augmentation
from holdfast.training.balance import CLASS_WEIGHTS
from holdfast.training.sharpness import MOVES
from holdfast.training.start import STARTS

# of the highest learning rate the share, as a function of the share of the training done
SCHEDULES: dict[str, Callable[[float], float]] = {
    "cosine": lambda s: (1 + math.cos(math.pi * s)) / 2,
    "linear": lambda s: 1 - s,
    "piecewise": lambda s: (1.0, 0.1, 0.01)[(s >= 0.5) + (s >= 0.75)],
    "flat": lambda s: 1.0,
}


@dataclass(frozen=True)
class Recipe:
    """All that decides a training, apart from the network, the data, the threat and the seed."""

    name: str = field(default="own", repr=False)
    version: int = field(default=0, repr=False)
    objective: str = option("pgd", "where it trains and what it pays: list objectives")
    start: str = option(
        "given",
        "the weights that it starts from: those given, or new ones for bounds by intervals (ibp)",
        choices=STARTS,
    )
    epochs: int = option(30, "times through the data, at most", at_least=1)
    steps: int = option(
        8_000, "of training, at most: where the data are many, fewer epochs do", at_least=1
    )
    batch_size: int = option(64, "rows of one step", at_least=1)
    optimiser: str = option("sgd", "of the weights", choices=("sgd", "adam"))
    rate: float = option(0.1, "the highest learning rate", at_least=0)
    schedule: str = option("cosine", "of the rate, after the warm-up", choices=SCHEDULES)
    warmup: float = option(0.1, "share of the steps in which the rate rises", at_least=0, at_most=1)
    momentum: float = option(0.9, "of sgd", at_least=0, at_most=1)
    decay: float = option(5e-4, "weight decay", at_least=0)
    clip: float = option(
        1.0, "the longest gradient, all parameters together; 0: any", at_least=0, finite=False
    )
    ema: float = option(
        0.995,
        "share of the past in the moving average of the weights, which is what is kept; 0: none",
        at_least=0,
        at_most=1,
    )
    swa: float = option(
        0.0,
        "share of the steps, the last ones, whose weights count alike in that average; 0: none",
        at_least=0,
        at_most=1,
    )
    ramp: float = option(0.2, "share of the steps in which eps rises from 0", at_least=0, at_most=1)
    awp: float = option(
        0.0,
        "size of adversarial weight perturbations, relative to the weights; 0: none",
        at_least=0,
    )
    sam: float = option(
        0.0, "instead: their size over all weights, for flat minima; 0: none", at_least=0
    )
    asam: float = option(0.0, "instead: the same in units of each weight; 0: none", at_least=0)
    regularize: str = option(
        "", "penalties added to the objective: 'gradalign(weight=0.2), spectral'"
    )
    patience: int = option(
        0, "epochs without better weights after which it ends early; 0: never", at_least=0
    )
    augment: str = option(
        "", "changes of the rows: 'flip, crop(padding=4), noise(sigma=0.05)', cutmix, augmix, ..."
    )
    class_weights: str = option(
        "auto",
        "in the loss: balanced (rare classes weigh more), none, or auto: where unequal",
        choices=CLASS_WEIGHTS,
    )
    held: float = option(
        0.1,
        "share of the training rows (1,000 at most) that choose the weights, and train nothing",
        above=0,
        at_most=0.5,
    )
    judge: str = option(
        'apgd(steps=20, loss="mifpe")',
        "the attack by which they choose; '': none, by clean accuracy",
    )

    @property
    def move(self) -> tuple[str, float]:
        """How weights are perturbed, and by how much."""
        return next(
            ((name, getattr(self, name)) for name in MOVES if getattr(self, name)), ("awp", 0.0)
        )

    def rate_at(self, done: float) -> float:
        """The learning rate where this share of the training is done: rising from 0 in the first
        `warmup` of it, then as the schedule says."""
        if done < self.warmup:
            return self.rate * (done / self.warmup)
        return self.rate * SCHEDULES[self.schedule]((done - self.warmup) / ((1 - self.warmup) or 1))

    def __post_init__(self) -> None:
        spec.check(self)
        if sum(getattr(self, name) > 0 for name in MOVES) > 1:
            raise SpecError(
                "a recipe has more than one of awp, sam and asam, but takes one of them at a time."
            )
        augmentation.parse(self.augment)
        if self.judge:
            attacks.parse(self.judge)
