"""A target of torch as one module, from raw inputs to scores: what proofs are made of."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from holdfast.errors import InputError, first_line
from holdfast.targets.adapter import Adapter
from holdfast.targets.frameworks.pytorch import activation
from holdfast.targets.preprocess import applied

POINTS = 8  # of each kind, at which a network of another framework is held against the model
TOLERANCE = 1e-5  # between their margins, as a share of the largest


class Network(nn.Module):
    """What `scores` computes for inputs of a target's shape, as torch functions that a trace can
    follow."""

    def __init__(self, target: Any) -> None:
        super().__init__()
        if target.inputs.context or target.head.truth_task is not None or target.detectors:
            raise InputError(
                "not supported: proofs of a model with several inputs, with outputs that are no "
                "scores of classes, or with a detector before it."
            )
        if target.half is not None:
            raise InputError(
                f"not supported: proofs of a model that computes in {target.half}, whose rounding "
                "is not bounded here; convert it with model.float()."
            )
        self.target = copy.copy(target)
        self.target.model = self.target.twin = self.model = _without_ending(target)
        if target.head.reads or target.head.probabilities:  # and the model gives logits
            self.target.head = replace(target.head, ending=None, probabilities=False)
        if isinstance(target.model, Adapter):
            self.target.output = None  # it is chosen already
        like = {"dtype": target.batcher.dtype, "device": target.batcher.device}
        self.register_buffer("second", torch.tensor([[0.0, 1.0]], **like))

    def forward(self, x: Tensor) -> Tensor:
        target = self.target
        inner = target._inwards(applied(target.preprocess, target.images(x), target.bounds))
        z = target._called(self.model, inner)
        if target.head.single:
            return target._chosen(z, len(z)).reshape(-1, 1) * self.second
        return target._scored(z, 1)


def check_answers(network: Network, target: Any) -> None:
    """Hold a network against the model of another framework that it was read from, at random points
    and corners of the box: margins have to be the same to 1e-5 of the largest.

    Raises:
        InputError: they are not; a proof would be one of another model.
    """
    draws = torch.Generator().manual_seed(0)
    u = torch.rand(2 * POINTS, *target.shape, generator=draws).to(target.batcher.dtype)
    u[POINTS:] = u[POINTS:].round()
    low, high = target.bounds.sides(u)
    x = target.bounds.clamp(low + u * (high - low))
    with torch.no_grad():
        own = target.scores(x)
        found = torch.cat([network(row[None]) for row in x])
    own, found = (z.double() - z.double().amax(1, keepdim=True) for z in (own, found))
    gap, most = float((own - found).abs().max()), float(own.abs().max())
    if not gap <= TOLERANCE * most:
        raise InputError(
            "not supported: proofs of this model, for its graph in torch answers otherwise than "
            f"the model does: margins differ by up to {gap:.2g}, of {most:.2g} at most."
        )


def _without_ending(target: Any) -> Any:
    """The model of a target, without the activation that its scores are read before.

    Raises:
        InputError: its graph is not known in torch, or the activation cannot be taken off.
    """
    model, reads = target.model, target.head.reads
    if isinstance(model, Adapter):
        bare = reads == (model.ending is not None) and (reads or not target.head.probabilities)
        bare |= model.gives_logits
        try:
            model = model.network(target._before(target._probe())[:1])
        except InputError:
            raise
        except Exception as error:  # whatever a graph of a user's leads to
            raise InputError(
                f"not supported: proofs of this model, whose graph torch cannot follow: "
                f"{first_line(error)}."
            ) from error
    elif reads:
        model = activation.traced(model, target.head.ending)
        bare = model is not None
    else:
        bare = not target.head.probabilities
    if not bare:
        raise InputError(
            "not supported: proofs of a model that gives probabilities, where the activation at "
            "its end cannot be taken off; give a model that ends in its logits."
        )
    return model
