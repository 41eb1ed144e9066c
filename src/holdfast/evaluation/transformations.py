"""Threats that move or cover an image, as evaluations take them: in full, after what suits them."""

from __future__ import annotations

from dataclasses import replace

from holdfast.errors import InputError
from holdfast.evaluation import protocols
from holdfast.evaluation.protocols import Protocol
from holdfast.targets.target import Access, Target
from holdfast.threats.patch import Patch
from holdfast.threats.rotation import Rotation
from holdfast.threats.spatial import Spatial
from holdfast.threats.threat import Threat
from holdfast.threats.transform import Transform

# Turns and shifts have many local maxima, so a grid finds more than gradients do (arXiv:1712.02779,
# section 5).
GRID = "sweep(steps=1000, order='grid')"
# No gradient says where a patch should lie, so its search goes before (arXiv:2006.12834, section
# 4).
SQUARES = "patchrs(steps=1000, schedule=1000)"


def threat_of(transform: Transform, target: Target, shape: tuple[int, ...]) -> Threat:
    """The whole of a transform as a threat to the target's inputs of this shape.

    Raises:
        InputError: they are no images, or each feature has bounds of its own.
    """
    target.bind(shape)
    if target.bounds.each is not None:
        raise InputError(
            "images are moved within one range, but each feature has bounds of its own."
        )
    placed = Spatial(transform, shape, target.inputs.layout, target.bounds.low, target.bounds.high)
    return Threat.linf(placed.reach, spatial=placed)


def suited(protocol: Protocol, transform: Transform | None) -> Protocol:
    """A protocol with what the transform asks for before it."""
    first: list[str] = []
    if isinstance(transform, Rotation):
        first = [GRID]
    # unless the target gives labels alone
    scored = any(trial.attack.needs >= Access.SCORES for trial in protocol.trials)
    if isinstance(transform, Patch) and scored:
        first = [SQUARES]
    return replace(protocol, trials=(*protocols.chosen(first).trials, *protocol.trials))
