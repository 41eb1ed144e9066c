"""An attacker that learns: a network that makes the points to train at, one step of it for one of
the network's."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from holdfast.attacks.universal.advgan import changed, perturber, priced
from holdfast.spec import option
from holdfast.targets import TorchTarget
from holdfast.training.inner_attack import InnerAttack, Rival, evaluating
from holdfast.training.objective import Net, Objective, crossed


@dataclass(frozen=True)
class AdvGAN(Objective):
    """CE(f(x), y) and CE(f(x'), y), half each, x' made by a network that learns beside (AdvGAN:
    arXiv:1801.02610).

    Trained in turns, as the generative adversarial trainer is (Lee et al. 2017, arXiv:1705.03387):
    one step of Adam towards a larger margin of the wrong classes, then one of the network. Differs
    from AdvGAN: no second network asks for realism. It costs what one step of ascent does, and what
    it makes is one point a row, which other attacks pass.
    """

    asks = 2
    width: int = option(16, "channels of the perturbing network's first layer", at_least=1)
    rate: float = option(1e-3, "of its Adam", at_least=0)
    smoothing: float = option(0.0, "share of a label spread over all classes", at_least=0)

    def rival(self, target: TorchTarget) -> Rival:
        assert target.shape is not None
        net = perturber(
            target,
            torch.zeros(1, *target.shape, device=target.batcher.device, dtype=target.batcher.dtype),
            self.width,
        )
        return Rival(net, torch.optim.Adam(net.parameters(), self.rate))

    def teach(self, inner: InnerAttack, x: Tensor, y: Tensor) -> None:
        assert inner.rival is not None
        inner.rival.optimiser.zero_grad()
        with evaluating(inner.live.model):
            priced(inner.rival.net, inner.problem(x, y), inner.threat)[1].backward()
        inner.rival.optimiser.step()

    def points(self, inner: InnerAttack, x: Tensor, y: Tensor) -> Tensor:
        assert inner.rival is not None
        with torch.no_grad():
            return changed(inner.rival.net, inner.live, inner.threat, x)

    def loss(self, net: Net, x: Tensor, x_adv: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        (clean, _), (crafted, there) = (crossed(net, at, y, self.smoothing) for at in (x, x_adv))
        return (clean + crafted) / 2, there
