"""A target of torch as one module, from raw inputs to scores: what proofs are made of."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from holdfast.errors import InputError
from holdfast.targets.adapter import Adapter
from holdfast.targets.frameworks.pytorch import activation
from holdfast.targets.preprocess import applied


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
        if target.head.reads:
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
            return target._chosen(z).reshape(-1, 1) * self.second
        return target._scored(z, 1)


def _without_ending(target: Any) -> Any:
    """The model of a target, without the activation that its scores are read before.

    Raises:
        InputError: its graph is not known in torch, or the activation cannot be taken off.
    """
    model, reads = target.model, target.head.reads
    if isinstance(model, Adapter):
        if model.network is None:
            names = ", ".join(model.libraries) or type(model).__name__
            raise InputError(
                f"not supported yet: proofs of a model of {names}, whose graph is not known in "
                "torch."
            )
        known = reads == (model.ending is not None) and (reads or not target.head.probabilities)
        ends_bare, model = known, model.network
    elif reads:
        model = activation.traced(model, target.head.ending)
        ends_bare = model is not None
    else:
        ends_bare = not target.head.probabilities
    if not ends_bare:
        raise InputError(
            "not supported: proofs of a model that gives probabilities, where the activation at "
            "its end cannot be taken off; give a model that ends in its logits."
        )
    return model
