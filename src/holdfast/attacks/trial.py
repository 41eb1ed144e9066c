"""A trial: one attack of a list, with the restarts, aims and rows that go with it, and its text."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from holdfast import spec
from holdfast.attacks.attack import Attack, attack_names
from holdfast.errors import SpecError, suggest

# What follows `gradient=`, and what it does.
SOURCES: dict[str, str] = {
    "bpda": "straight-through gradients (BPDA) of rounding, thresholds, signs, detach and "
    "saturated softmax (torch models)",
    "smoothed": "gradients averaged over 10 points of the ball of half eps",
    "estimated": "gradients estimated from 100 scores",
    "surrogate": "gradients of a surrogate distilled from 2048 answers",
}


@dataclass(frozen=True)
class Trial:
    """One attack, with every restart, and aimed at each of the best wrong classes in turn
    (`targets`, 0: at any).

    With `max_margin` below 1 it runs only on rows that earlier trials almost broke: those whose
    lowest margin is at most this share of their clean one. `unless` names an attack: rows that an
    earlier trial of it has searched are left. (Rules on the row alone, so that other rows change
    nothing.) `gradient` names another source of gradients; success is still the model's own.
    """

    attack: Attack
    restarts: int = 1
    targets: int = 0
    max_margin: float = 1.0
    gradient: str = ""
    unless: str = ""

    def __post_init__(self) -> None:
        whole = all(type(value) is int for value in (self.restarts, self.targets))
        if not whole or self.restarts < 1 or self.targets < 0:
            raise SpecError(
                f"{self!r}: restarts is a whole number of at least 1, targets one of at least 0."
            )
        if (
            isinstance(self.max_margin, bool)
            or not isinstance(self.max_margin, (int, float))
            or not 0 < self.max_margin <= 1
        ):
            raise SpecError(
                f"{self!r}: max_margin is a share of the clean margin, above 0 and at most 1."
            )
        if self.gradient not in ("", *SOURCES):
            raise SpecError(
                f"unknown source of gradients {self.gradient!r} in {self!r}; "
                f"{suggest(str(self.gradient), SOURCES)}"
            )
        if self.unless and self.unless not in (names := attack_names()):
            raise SpecError(
                f"unless names an attack, not {self.unless!r}, in {self!r}; "
                f"{suggest(str(self.unless), names)}"
            )
        if self.restarts > 1 and not self.attack.random:
            raise SpecError(
                f"{self!r}: it draws nothing at random, so a restart would only repeat it."
            )

    @property
    def names(self) -> set[str]:
        """What `unless` may call the attack: its name, or that of a variant."""
        kind = type(self.attack)
        return {kind.__name__.lower(), *kind.also}

    def units(self, classes: int) -> Iterator[tuple[int, int]]:
        """(restart, rank) of each run of this trial."""
        ranks = range(1, min(self.targets, classes - 1) + 1) or (0,)
        for restart in range(self.restarts):
            for rank in ranks:
                yield restart, rank

    def write(self, *, whole: bool = False) -> str:
        usual = {"restarts": 1, "targets": 0, "max_margin": 1}
        extra = [
            f"{name}={spec.number(value) if isinstance(value, float) else repr(value)}"
            for name in usual
            if (value := getattr(self, name)) != usual[name]
        ]
        extra += [
            f"{name}={text!r}"
            for name, text in (("gradient", self.gradient), ("unless", self.unless))
            if text
        ]
        name, _, own = spec.write(self.attack, whole=whole)[:-1].partition("(")
        return f"{name}({', '.join([*filter(None, [own]), *extra])})"

    def __repr__(self) -> str:
        return self.write()


def asked_before(
    trials: Sequence[Trial], number: int, asked: Mapping[int, Tensor]
) -> Iterator[Tensor]:
    """Which rows a trial leaves, since the attack that its `unless` names asked about them in an
    earlier one: of each such trial, from what each `asked` about ([n] bool, by number)."""
    for earlier, rows in asked.items():
        if earlier < number and trials[number].unless in trials[earlier].names:
            yield rows


@functools.cache
def trial_maker(maker: Callable[..., Attack]) -> Callable[..., Trial]:
    """What makes a trial of an attack from the attack's own options and the trial's."""

    @functools.wraps(maker, assigned=(), updated=())
    def make(
        *values: object,
        restarts: int = 1,
        targets: int = 0,
        max_margin: float = 1.0,
        gradient: str = "",
        unless: str = "",
        **options: object,
    ) -> Trial:
        return Trial(maker(*values, **options), restarts, targets, max_margin, gradient, unless)

    own = list(inspect.signature(maker).parameters.values())
    sweep = [
        p
        for p in inspect.signature(make, follow_wrapped=False).parameters.values()
        if p.kind is p.KEYWORD_ONLY
    ]
    make.__signature__ = inspect.Signature([*own, *sweep])  # pyright: ignore
    return make
