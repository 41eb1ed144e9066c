"""Schedules: a share of the highest learning rate, as a function of the share of the training
done."""

from __future__ import annotations

import math
from collections.abc import Callable

SCHEDULES: dict[str, Callable[[float], float]] = {
    "cosine": lambda s: (1 + math.cos(math.pi * s)) / 2,
    "linear": lambda s: 1 - s,
    "piecewise": lambda s: (1.0, 0.1, 0.01)[(s >= 0.5) + (s >= 0.75)],
    "flat": lambda s: 1.0,
}


def share_of_rate(schedule: str, warmup: float, done: float) -> float:
    """Rising from 0 in the first `warmup` of the training, then as the schedule says."""
    if done < warmup:
        return done / warmup
    return SCHEDULES[schedule]((done - warmup) / ((1 - warmup) or 1))
