"""A share of samples with its interval, which behaves as a number."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, model_validator


def finite(value: float | None):  # the schema takes the type of the field
    """JSON has no NaN and no infinity: what is undefined is null."""
    if value is not None and math.isfinite(value):
        return value
    return None


Real = Annotated[float | None, PlainSerializer(finite)]
Share = Annotated[Real, Field(ge=0, le=1)]

Answer = TypeVar("Answer")
Z = 1.959964  # of a 95 % interval
# c of `anytime_interval`: after 100 to 10,000 samples intervals are close to the narrowest
PRIOR = 50.0


def _by_value(operation: Callable[[float, float], Answer]) -> Callable[[Any, Any], Answer]:
    """A binary operator of two intervals, or of one and a number, by their values."""

    def method(self: Interval, other: Any) -> Answer:
        if not isinstance(other, (numbers.Real, Interval)):
            return NotImplemented
        return operation(float(self), float(other))

    return method


class Interval(BaseModel):
    """A share with its 95 % interval, over n samples: Wilson's, unless its maker says another.

    It compares and computes as its value does: `run.robust_accuracy >= 0.6`, `f"{share:.3f}"`. One
    of no samples has no value, and is NaN.
    """

    model_config = ConfigDict(extra="forbid")

    value: Share
    low: Share
    high: Share
    n: Annotated[int, Field(ge=0)]

    @model_validator(mode="after")
    def _whole(self) -> Interval:
        if len({side is None for side in (self.value, self.low, self.high)}) > 1:
            raise ValueError("value, low and high are three numbers, or none where n is 0")
        return self

    def __float__(self) -> float:
        return math.nan if self.value is None else self.value

    def __str__(self) -> str:
        if self.value is None:
            return "undefined"
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"

    def __format__(self, form: str) -> str:
        return format(float(self), form) if form else str(self)

    def __eq__(self, other: object) -> bool:
        return float(self) == other if isinstance(other, numbers.Real) else super().__eq__(other)

    def __hash__(self) -> int:
        return hash(float(self))

    def __round__(self, digits: int | None = None) -> float:
        return round(float(self), digits)

    def __neg__(self) -> float:
        return -float(self)

    def __abs__(self) -> float:
        return abs(float(self))

    __lt__, __le__ = _by_value(float.__lt__), _by_value(float.__le__)
    __gt__, __ge__ = _by_value(float.__gt__), _by_value(float.__ge__)
    __add__ = __radd__ = _by_value(float.__add__)
    __mul__ = __rmul__ = _by_value(float.__mul__)
    __sub__, __rsub__ = _by_value(float.__sub__), _by_value(float.__rsub__)
    __pow__, __rpow__ = _by_value(float.__pow__), _by_value(float.__rpow__)
    __truediv__, __rtruediv__ = _by_value(float.__truediv__), _by_value(float.__rtruediv__)


def interval(successes: int, n: int) -> Interval:
    """The share successes / n with its 95 % Wilson interval (Wilson 1927)."""
    if n == 0:
        return Interval(value=None, low=None, high=None, n=0)
    p, z = successes / n, 1.959963984540054  # by hand: scipy.stats takes a second to be imported
    whole = 2 * (n + z**2)
    centre, half = (2 * n * p + z**2) / whole, z / whole * math.sqrt(4 * n * p * (1 - p) + z**2)
    low = centre - half if successes else 0.0
    return Interval(value=p, low=low, high=centre + half if successes < n else 1.0, n=n)


def exact_interval(successes: int, n: int) -> Interval:
    """The share successes / n with its exact 95 % interval (Clopper and Pearson 1934), which covers
    at least that often, however few the samples are."""
    if n == 0:
        return interval(0, 0)
    from scipy.special import betaincinv

    low = float(betaincinv(successes, n - successes + 1, 0.025)) if successes else 0.0
    return Interval(value=successes / n, low=low, high=at_most(successes, n, 0.975), n=n)


def at_most(successes: int, n: int, level: float) -> float:
    """The exact upper limit at a one-sided level of the share successes / n (Clopper and Pearson
    1934)."""
    if successes == n:
        return 1.0
    if not successes:  # by hand: scipy takes a third of a second to be imported
        return -math.expm1(math.log1p(-level) / n)
    from scipy.special import betaincinv

    return float(betaincinv(successes + 1, n - successes, level))


def anytime_interval(successes: int, n: int) -> Interval:
    """The share successes / n with its 95 % interval of a confidence sequence: with a probability
    of 95 % the intervals after 1, 2, 3, ... samples all cover the true share, so that one may look
    after any number of them and stop.

    A share p is left out where the beta-binomial mixture martingale (Robbins 1970) of the prior
    Beta(c p, c (1 - p)) has reached 20. For samples of a population this needs no such prior; with
    it, it holds for the rows of finite data in random order as well: where those seen have a share
    above p, those left have one below it, and the martingale can but fall.
    """
    if n == 0:
        return interval(0, 0)
    value = successes / n
    low = _end(successes, n, value, 0.0) if successes else 0.0
    high = _end(successes, n, value, 1.0) if successes < n else 1.0
    return Interval(value=value, low=low, high=high, n=n)


def _end(successes: int, n: int, inside: float, outside: float) -> float:
    """Between a share that is covered and one that is not, the last one that is: the logarithm of
    the martingale is convex in the share."""
    for _ in range(45):
        middle = (inside + outside) / 2
        if _log_martingale(successes, n, middle) < math.log(20):
            inside = middle
        else:
            outside = middle
    return outside


def _log_martingale(successes: int, n: int, p: float) -> float:
    def risen(prior: float, count: int) -> float:  # of a Beta's parameter, by the counts seen
        return math.lgamma(prior + count) - math.lgamma(prior)

    failures = n - successes
    mixture = risen(PRIOR * p, successes) + risen(PRIOR * (1 - p), failures) - risen(PRIOR, n)
    return mixture - successes * math.log(p) - failures * math.log1p(-p)


def mean_interval(values: np.ndarray) -> Interval:
    """The mean of values in [0, 1], one a row [n], with its 95 % interval by the central limit
    theorem."""
    n = len(values)
    if not n:
        return interval(0, 0)
    mean, wide = float(values.mean()), Z * float(values.std(ddof=1) / np.sqrt(n)) if n > 1 else 1.0
    return Interval(value=mean, low=max(0.0, mean - wide), high=min(1.0, mean + wide), n=n)
