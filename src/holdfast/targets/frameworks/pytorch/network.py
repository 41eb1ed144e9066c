"""A target of torch as one module, from raw inputs to scores: what proofs are made of."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from holdfast.errors import InputError
from holdfast.targets.adapter import Adapter
from holdfast.targets.preprocess import applied


class Network(nn.Module):
    """What `scores` computes for inputs of a target's shape, as torch functions that a trace can
    follow."""

    def __init__(self, target: Any) -> None:
        super().__init__()
        model, self.adapted = target.model, isinstance(target.model, Adapter)
        if isinstance(model, Adapter):
            if model.network is None:
                names = ", ".join(model.libraries) or type(model).__name__
                raise InputError(
                    f"not supported yet: proofs of a model of {names}, whose graph is not known in "
                    "torch."
                )
            model = model.network
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
        self.target, self.model = target, model  # shared by what copies both

    def forward(self, x: Tensor) -> Tensor:
        target = self.target
        inner = target._inwards(applied(target.preprocess, target.images(x), target.bounds))
        z = self.model(inner) if self.adapted else target._called(self.model, inner)
        if target.head.single:
            one, _ = target._logits(target._chosen(z))
            return one.reshape(-1, 1) * torch.tensor([[0.0, 1.0]], dtype=one.dtype)
        return target._scored(z, 1)
