"""Data and model brought together: what the caller gave as data, read as the model needs it."""

from __future__ import annotations

from typing import Any

from torch import nn

from holdfast.data import Source, as_source
from holdfast.data.laid import laid_as
from holdfast.errors import InputError
from holdfast.targets.adapter import Adapter
from holdfast.targets.defences.transforms import Defence
from holdfast.targets.preprocess import Normalize, Resize
from holdfast.targets.target import Target


def open_for(target: Target, data: Any, *, split: str = "test") -> Source:
    """Data in any form that `as_source` takes, as a source that fits the model.

    Bytes become [0, 1] unless the model's bounds are wider. Pictures become grey or RGB as the
    model takes them, and, where they differ in size and the model's preprocessing begins with a
    resize, are resized while loading. Where the shape of inputs is fixed already, the axes of other
    data are put in its order.

    Raises:
        InputError: as `as_source`; or inputs of another shape than the model takes.
    """
    source = as_source(data, split=split, scale=target.bounds.high <= 1)
    steps = getattr(_innermost(target), "preprocess", ())
    first = steps[0] if steps else None
    size = (first.height, first.width) if isinstance(first, Resize) else None
    source = source.fitted(channels=channels_of(target), size=size)
    if target.shape is None:
        return source
    return laid_as(source, target.shape)


def channels_of(target: Target) -> int | None:
    """How many channels the model's images have, 1 or 3; None where nothing says it."""
    inner: Any = _innermost(target)
    shape, model = target.shape, getattr(inner, "model", None)
    if any(
        not isinstance(step, (Normalize, Resize, Defence))
        for step in getattr(inner, "preprocess", ())
    ):
        return None
    if shape is None and isinstance(model, Adapter):
        shape = model.shape
    if shape is not None:
        if len(shape) == 2:
            return 1
        ends = {shape[0], shape[-1]} if len(shape) == 3 else set()
        return next((channels for channels in (1, 3) if channels in ends), None)
    layers = model.modules() if isinstance(model, nn.Module) else ()
    first = next((layer for layer in layers if isinstance(layer, nn.Conv2d)), None)
    return first.in_channels if first is not None and first.in_channels in (1, 3) else None


def _innermost(target: Target) -> Target:
    while (inner := getattr(target, "inner", None)) is not None:
        target = inner
    return target


def rows_asked(
    samples: int | tuple[int, int] | None, total: int, name: str, what: str = "samples"
) -> tuple[int, int]:
    """The rows [start, stop) of a source of `total`; `what` is the option that says them."""
    asked = total if samples is None else samples
    start, stop = (0, asked) if isinstance(asked, int) else asked
    if not 0 <= start < stop:
        raise InputError(
            f"{what} {start}:{stop} is no range of rows; give a count of at least 1, or start:stop."
        )
    if stop > total:
        raise InputError(f"{what} up to row {stop} were asked for, but {name} has {total} rows.")
    return start, stop
