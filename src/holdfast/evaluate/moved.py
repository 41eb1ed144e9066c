"""Threats that move an image: the model and the data on which they are an Linf threat on the movement's parameters."""

from __future__ import annotations

import math
from dataclasses import replace

from holdfast.data import Source
from holdfast.data.extended import Extended
from holdfast.evaluate import protocols
from holdfast.evaluate.protocols import Protocol
from holdfast.targets.spatial import Moved, Movement, Rotation, middle
from holdfast.targets.target import Target

# Turns and shifts have many local maxima, so a grid finds more than gradients do (arXiv:1712.02779, section 5).
GRID = "sweep(steps=1000, order='grid')"


def moved(target: Target, source: Source, movement: Movement) -> tuple[Moved, Source]:
    """A model and data, with the movement behind each image."""
    around = Moved(target, movement, source.shape)
    return around, Extended(source, math.prod(around.form), middle(target.bounds))


def suited(protocol: Protocol, movement: Movement | None) -> Protocol:
    """A protocol with what the movement asks for before it."""
    first = protocols.chosen([GRID]).trials if isinstance(movement, Rotation) else ()
    return replace(protocol, trials=(*first, *protocol.trials))
