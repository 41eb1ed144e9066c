"""What goes over the wire: inputs as the body of a request, the body of an answer as numbers a
row."""

from __future__ import annotations

import base64
import io
import json
from typing import Any

import numpy as np

from holdfast.targets.http.endpoint import ALL, EACH, ONE, Endpoint
from holdfast.threats.images import channel_axis


class BadAnswer(Exception):
    """An answer that cannot be read; its text repeats nothing of the answer, which may echo a
    secret."""


def encode(e: Endpoint, x: np.ndarray) -> bytes:
    """The body of a request for inputs x [n, *shape]."""
    if e.request.body:
        return _file(e, x if e.request.body == "npy" else x[0], e.request.body)
    kind = e.request.inputs
    rows = (
        x.tolist()
        if kind == "lists"
        else [base64.b64encode(_file(e, row, kind)).decode() for row in x]
    )
    return json.dumps(_fill(e.request.template, rows)).encode()


def decode(e: Endpoint, content: bytes, n: int) -> np.ndarray:
    """The answer for n inputs: [n, width] float32; NaN in a row that cannot be read.

    Raises:
        BadAnswer: there are not n rows in it.
    """
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        raise BadAnswer("it is not JSON") from None
    try:
        found = _at_path(found, e.response.split(".") if e.response else [])
    except (KeyError, IndexError, TypeError, ValueError):
        raise BadAnswer(f"there is nothing at {e.response!r}") from None
    if n == 1 and not (isinstance(found, list) and len(found) == 1):
        found = [found]
    if not isinstance(found, list) or len(found) != n:
        held = f"there are {len(found)} rows" if isinstance(found, list) else "there is no list"
        raise BadAnswer(f"{held} at {e.response!r} for {n} inputs")
    with np.errstate(over="ignore"):
        return np.array([_row(e, value) for value in found]).astype(np.float32)


def _row(e: Endpoint, value: Any) -> np.ndarray:
    unread = np.full(e.width, np.nan)
    try:
        if e.gives == "labels":
            if isinstance(value, list):
                (value,) = value
            # a class by its name, or by its number
            return np.array([[*e.names, *range(e.k)].index(value) % e.k], float)
        if isinstance(value, dict) and len(value) == e.k:
            value = [value[name] for name in e.names]
        row = np.asarray(value, dtype=np.float64)
    except (ValueError, TypeError, KeyError, OverflowError):
        return unread
    if row.size == 1 and row.ndim < 2 and e.k == 2:  # a single output, served as two classes
        row = np.array([0, row.item()])
    if row.shape != (e.k,) or not np.isfinite(row.astype(np.float32)).all():
        return unread
    if e.gives == "probabilities" and (row.min() < -1e-3 or row.max() > 1 + 1e-3):
        return unread
    return row


def _file(e: Endpoint, x: np.ndarray, kind: str) -> bytes:
    """An array as the bytes of a file; a picture has 256 levels from the lower bound to the
    upper."""
    file = io.BytesIO()
    if kind == "npy":
        np.save(file, x, allow_pickle=False)
        return file.getvalue()
    from PIL import Image

    low, high = e.bounds
    levels = np.rint((x - low) / (high - low) * 255).clip(0, 255).astype(np.uint8)
    if levels.ndim == 3:
        levels = np.moveaxis(levels, channel_axis(e.layout), -1)
    if levels.shape[2:] == (1,):
        levels = levels[..., 0]
    Image.fromarray(levels).save(file, kind.upper())
    return file.getvalue()


def _fill(template: Any, rows: list[Any]) -> Any:
    if template == ALL:
        return rows
    if template == ONE:
        return rows[0]
    if isinstance(template, list):
        return [_fill(item, rows) for item in template]
    if isinstance(template, dict):
        if set(template) == {EACH}:
            return [_fill(template[EACH], [row]) for row in rows]
        return {name: _fill(item, rows) for name, item in template.items()}
    return template


def _at_path(value: Any, steps: list[str]) -> Any:
    """What is at a path: names, numbers of a list's entries, and * for each of them."""
    for i, step in enumerate(steps):
        if step == "*":
            if not isinstance(value, list):
                raise TypeError
            return [_at_path(item, steps[i + 1 :]) for item in value]
        value = value[int(step)] if isinstance(value, list) else value[step]
    return value
