"""Threats that move or cover an image: model and data on which they are an Linf threat on the
movement's parameters."""

from __future__ import annotations

from dataclasses import replace

from holdfast.data import Source
from holdfast.data.extended import Extended
from holdfast.evaluation import protocols
from holdfast.evaluation.protocols import Protocol
from holdfast.targets.spatial import IMAGE, Moved, Movement, Patch, Rotation, middle
from holdfast.targets.target import Access, Target

# Turns and shifts have many local maxima, so a grid finds more than gradients do (arXiv:1712.02779,
# section 5).
GRID = "sweep(steps=1000, order='grid')"
# No gradient says where a patch should lie, so its search goes before (arXiv:2006.12834, section
# 4).
SQUARES = "patchrs(steps=1000, schedule=1000)"


def moved(target: Target, source: Source, movement: Movement) -> tuple[Moved, Source]:
    """A model and data, with the movement behind each image."""
    around = Moved(target, movement, source.shape)
    return around, Extended(source, around.form, middle(target.bounds), IMAGE)


def suited(protocol: Protocol, movement: Movement | None) -> Protocol:
    """A protocol with what the movement asks for before it."""
    # or the target gives labels alone
    graded = any(trial.attack.needs >= Access.SCORES for trial in protocol.trials)
    first = (
        [GRID]
        if isinstance(movement, Rotation)
        else [SQUARES]
        if isinstance(movement, Patch) and graded
        else []
    )
    return replace(protocol, trials=(*protocols.chosen(first).trials, *protocol.trials))
