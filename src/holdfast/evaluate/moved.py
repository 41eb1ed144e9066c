"""Threats that move an image: the model and the data on which they are an Linf threat on the movement's parameters."""

from __future__ import annotations

import math

from holdfast.data import Source
from holdfast.data.extended import Extended
from holdfast.targets.spatial import Moved, Movement, Rotation, middle
from holdfast.targets.target import Target

# Turns and shifts have many local maxima, so a grid finds more than gradients do (arXiv:1712.02779, section 5).
GRID = "sweep(steps=1000, order='grid')"


def moved(target: Target, source: Source, movement: Movement) -> tuple[Moved, Source]:
    """A model and data, with the movement behind each image."""
    around = Moved(target, movement, source.shape)
    return around, Extended(source, math.prod(around.form), middle(target.bounds))


def first(movement: Movement) -> tuple[str, ...]:
    """The attacks that go before a protocol's own."""
    return (GRID,) if isinstance(movement, Rotation) else ()
