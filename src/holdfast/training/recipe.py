"""A recipe: all that decides how a network is trained, as texts and numbers.

The texts of its objective and regularisers are `holdfast.hardening`'s to read: the loop is handed
what they spell.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from holdfast import attacks
from holdfast.errors import SpecError, suggest
from holdfast.training import augmentation
from holdfast.training.balance import CLASS_WEIGHTS
from holdfast.training.schedules import SCHEDULES
from holdfast.training.sharpness import MOVES


@dataclass(frozen=True)
class Recipe:
    """All that decides a training beside the network, the data, the threat and the seed."""

    name: str = field(default="own", repr=False)
    version: int = field(default=0, repr=False)
    objective: str = "pgd"  # where it trains and what it pays: list objectives
    epochs: int = 30  # times through the data, at most
    steps: int = 8_000  # of training, at most: where the data are many, fewer epochs do
    batch_size: int = 64  # rows of one step
    optimiser: str = "sgd"  # sgd or adam
    rate: float = 0.1  # the highest learning rate
    schedule: str = "cosine"  # of the rate, after the warm-up: cosine, linear, piecewise or flat
    warmup: float = 0.1  # share of the steps in which the rate rises
    momentum: float = 0.9  # of sgd
    decay: float = 5e-4  # weight decay
    clip: float = 1.0  # the longest gradient, all parameters together; 0: any
    ema: float = 0.995  # share of the past in the moving average of the weights, which is what is kept; 0: none
    swa: float = (
        0.0  # share of the steps, the last ones, whose weights count alike in that average; 0: none
    )
    ramp: float = 0.2  # share of the steps in which eps rises from 0
    awp: float = 0.0  # size of adversarial weight perturbations, relative to the weights; 0: none
    sam: float = 0.0  # instead: their size over all weights, for flat minima; 0: none
    asam: float = 0.0  # instead: the same in units of each weight; 0: none
    regularize: str = ""  # penalties beside the objective: "gradalign(weight=0.2), spectral"
    patience: int = 0  # epochs without better weights after which it ends early; 0: never
    augment: str = (
        ""  # changes of the rows: "flip, crop(padding=4), noise(sigma=0.05)", cutmix, augmix, ...
    )
    class_weights: str = (
        "auto"  # in the loss: balanced (rare classes weigh more), none, or auto: where unequal
    )
    held: float = (
        0.1  # share of the training rows (1,000 at most) that choose the weights, and train nothing
    )
    judge: str = 'apgd(steps=20, loss="mifpe")'  # the attack by which they choose; "": none, by clean accuracy

    @property
    def move(self) -> tuple[str, float]:
        """How weights are perturbed, and by how much."""
        return next(
            ((name, getattr(self, name)) for name in MOVES if getattr(self, name)), ("awp", 0.0)
        )

    def __post_init__(self) -> None:
        for name in (
            "objective",
            "optimiser",
            "schedule",
            "augment",
            "judge",
            "regularize",
            "class_weights",
        ):
            if not isinstance(getattr(self, name), str):
                raise SpecError(f"a recipe has {name}={getattr(self, name)!r}, but it is a text.")
        for name, least in (("epochs", 1), ("steps", 1), ("batch_size", 1), ("patience", 0)):
            if type(getattr(self, name)) is not int or getattr(self, name) < least:
                raise SpecError(
                    f"a recipe has {name}={getattr(self, name)!r}, but it is a whole number from "
                    f"{least}."
                )
        highest = {"warmup": 1, "momentum": 1, "ema": 1, "swa": 1, "ramp": 1, "held": 0.5}
        for name in ("rate", "decay", "clip", *MOVES, *highest):
            value, top = getattr(self, name), highest.get(name, float("inf"))
            if (
                isinstance(value, bool)
                or not isinstance(value, (int, float))
                or not 0 <= value <= top
            ):
                raise SpecError(
                    f"a recipe has {name}={value!r}, but it is a number from 0 to {top:g}."
                )
        if not self.held:
            raise SpecError(
                "a recipe has held=0, but without rows held out nothing can choose the weights."
            )
        if self.optimiser not in ("sgd", "adam"):
            raise SpecError(f"unknown optimiser {self.optimiser!r}; it is sgd or adam.")
        if self.class_weights not in CLASS_WEIGHTS:
            raise SpecError(
                f"unknown class_weights {self.class_weights!r}; "
                f"{suggest(self.class_weights, CLASS_WEIGHTS)}"
            )
        if self.schedule not in SCHEDULES:
            raise SpecError(
                f"unknown schedule {self.schedule!r}; {suggest(self.schedule, SCHEDULES)}"
            )
        if sum(getattr(self, name) > 0 for name in MOVES) > 1:
            raise SpecError(
                "a recipe has more than one of awp, sam and asam, but weights are perturbed one "
                "way."
            )
        augmentation.parse(self.augment)
        if self.judge:
            attacks.parse(self.judge)
