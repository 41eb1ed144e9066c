"""A linear model of two features and three classes, on which an objective is derived by hand."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from holdfast.targets import TorchTarget, wrap
from holdfast.threats.threat import Threat
from holdfast.training.inner_attack import InnerAttack

F64 = torch.float64
W = torch.tensor([[1.0, -2.0], [0.5, 0.25], [-1.5, 1.0]], dtype=F64)  # [k, features]
# of the network as it was before
GIVEN = torch.tensor([[0.1, 0.2], [2.0, 0.3], [-1.0, 4.0]], dtype=F64)
X = torch.tensor([[0.2, 0.4], [0.9, 0.1]], dtype=F64)
NEARBY = torch.tensor([[0.3, 0.3], [0.8, 0.2]], dtype=F64)
Y = torch.tensor([0, 2])
ONE = torch.eye(3, dtype=F64)[Y]


def softmax(z: Tensor) -> Tensor:
    e = (z - z.amax(1, keepdim=True)).exp()
    return e / e.sum(1, keepdim=True)


def linear(weight: Tensor) -> TorchTarget:
    net = nn.Linear(2, 3, bias=False).double()
    net.weight.data = weight.clone()
    target = wrap(net)
    target.bind((2,))
    assert isinstance(target, TorchTarget)
    return target


def crafting(threat: Threat | None = None, share: float = 1.0) -> InnerAttack:
    target = linear(W)
    return InnerAttack(
        target.live(target.model), linear(GIVEN), threat or Threat.linf(0.05), seed=1, share=share
    )  # pyright: ignore[reportArgumentType]
