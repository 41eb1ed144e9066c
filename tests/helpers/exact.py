"""The farthest legal point in a direction, in closed form, by other means than `holdfast.norms`:
numpy, one row."""

from __future__ import annotations

import math

import numpy as np
from scipy.optimize import brentq


def farthest(norm: str, c: np.ndarray, eps: float, lo: np.ndarray, hi: np.ndarray) -> np.ndarray:
    """The d that maximises <c, d> over {size(d) <= eps} and the box [lo, hi] that holds 0: [f].
    Of `pixels` the entries are two channels, one after the other."""
    room = np.where(c > 0, hi, -lo) * (c != 0)
    if norm == "linf":
        return np.sign(c) * np.minimum(room, eps)
    if norm == "l0":
        chosen = np.argsort(-np.abs(c) * room)[: int(eps)]
        d = np.zeros_like(c)
        d[chosen] = (np.sign(c) * room)[chosen]
        return d
    if norm == "pixels":
        whole = np.argsort(-(np.abs(c) * room).reshape(2, -1).sum(0))[: int(eps)]
        d = np.zeros_like(c).reshape(2, -1)
        d[:, whole] = (np.sign(c) * room).reshape(2, -1)[:, whole]
        return d.flatten()
    if norm == "l1":
        d, left = np.zeros_like(c), eps
        for i in np.argsort(-np.abs(c)):
            d[i] = np.sign(c[i]) * min(room[i], left)
            left -= abs(d[i])
        return d

    def at(scale: float) -> np.ndarray:
        return np.sign(c) * np.minimum(np.abs(c) * scale, room)

    if np.linalg.norm(np.sign(c) * room) <= eps or not c.any():
        return np.sign(c) * room
    high = 1.0
    while np.linalg.norm(at(high)) < eps:
        high *= 2
    return at(
        brentq(
            lambda s: np.linalg.norm(at(s)) - eps, 0, high, xtol=1e-300, rtol=8.9e-16, maxiter=500
        )
    )


def distance(norm: str, c: np.ndarray, gap: float, lo: np.ndarray, hi: np.ndarray) -> float:
    """The least eps at which <c, d> reaches gap > 0 within the box, by bisection; inf where the box
    forbids it."""
    counted = norm in ("l0", "pixels")
    widest = float(len(c) if counted else (hi - lo).sum())

    def short(eps: float) -> bool:
        return float(c @ farthest(norm, c, eps, lo, hi)) < gap

    if short(widest):
        return math.inf
    if counted:
        return float(next(k for k in range(len(c) + 1) if not short(k)))
    nearby, far = 0.0, widest
    for _ in range(60):
        nearby, far = (
            ((nearby + far) / 2, far) if short((nearby + far) / 2) else (nearby, (nearby + far) / 2)
        )
    return far


def best_margin(
    norm: str,
    w: np.ndarray,
    b: np.ndarray,
    x: np.ndarray,
    y: int,
    eps: float,
    low: float = 0,
    high: float = 1,
) -> float:
    """The least margin z_y - max of the others that a linear model w x + b can be driven to around
    x."""
    worst = math.inf
    for j in range(len(w)):
        if j != y:
            c = w[j] - w[y]
            d = farthest(norm, c, eps, low - x, high - x)
            worst = min(worst, float(b[y] - b[j] - c @ (x + d)))
    return worst
