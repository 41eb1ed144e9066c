"""Class-conditional GANs: a generator and a critic, trained against each other.

Hinge loss and spectral norm (Miyato et al. 2018, arXiv:1802.05957), a projection critic
(arXiv:1802.05637), R1 (Mescheder et al. 2018, arXiv:1801.04406), differentiable augmentation (Zhao
et al. 2020, arXiv:2006.10738); or WGAN-GP (Gulrajani et al. 2017, arXiv:1704.00028).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from holdfast.generation.model import Model, descend
from holdfast.generation.nets import Critic, Decoder
from holdfast.rng import Keys
from holdfast.spec import option


@dataclass(frozen=True)
class GAN(Model, judged=10_000):
    """A class-conditional GAN; the critic sees rows and fakes through the same random changes.

    Its steps are the critic's; the rate falls to a tenth, linearly.

    Differs from the papers: R1 is taken at rows without these changes.
    """

    also: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "wgangp": {
            "loss": "wasserstein",
            "critics": 5,
            "penalty": 10.0,
            "lazy": 1,
            "augment": 0.0,
            "steps": 10_000,
        }
    }

    width: int = option(32, "channels of the first halved layer; it grows with depth", at_least=1)
    latent: int = option(64, "random numbers that a sample is made from", at_least=1)
    loss: str = option(
        "hinge",
        "hinge has spectral norm and R1, wasserstein a gradient penalty",
        choices=("hinge", "wasserstein"),
    )
    critics: int = option(1, "steps of the critic to one of the generator", at_least=1)
    penalty: float = option(1.0, "weight of R1 (gamma), or of the gradient penalty", at_least=0)
    lazy: int = option(
        8, "the penalty comes once in so many steps, and as many times heavier", at_least=1
    )
    augment: float = option(
        0.06,
        "largest shift of an image, and half the side of the square cut out; of a row: what is cut",
        at_least=0,
    )

    def nets(self, shape: tuple[int, ...], k: int) -> nn.ModuleDict:
        wrap = spectral_norm if self.loss == "hinge" else nn.Sequential
        return nn.ModuleDict(
            {
                "generator": Decoder(shape, k, self.width, self.latent),
                "critic": Critic(shape, k, self.width, wrap),
            }
        )

    def optimiser(self, nets: nn.ModuleDict) -> torch.optim.Optimizer:
        return torch.optim.Adam(nets.parameters(), self.rate, betas=(0.5, 0.99))

    def learn(
        self,
        nets: nn.ModuleDict,
        optimiser: torch.optim.Optimizer,
        u: Tensor,
        y: Tensor,
        keys: Keys,
        t: int,
    ) -> tuple[Tensor | None, Tensor]:
        generator, critic = nets["generator"], nets["critic"]
        for group in optimiser.param_groups:
            group["lr"] = self.rate * (1 - 0.9 * t / self.steps)
        fake = generator(keys.fold("z").normal((self.latent,)), y)
        judged = critic(
            torch.cat([self._changed(u, keys), self._changed(fake.detach(), keys)]),
            torch.cat([y, y]),
        )
        real, made = judged.chunk(2)
        hinge = self.loss == "hinge"
        worth = (F.relu(1 - real) + F.relu(1 + made) if hinge else made - real).mean()
        loss = worth
        if self.penalty and t % self.lazy == 0:
            loss = loss + self.lazy * self._penalty(critic, u, fake.detach(), y, keys)
        descend(optimiser, loss)  # Adam leaves alone what has no gradient: here the generator
        if (t + 1) % self.critics:
            return None, worth.detach()
        critic.requires_grad_(False)
        paid = -critic(self._changed(fake, keys.fold("again")), y).mean()
        descend(optimiser, paid)
        critic.requires_grad_(True)
        return paid.detach(), worth.detach()

    def draw(self, net: nn.Module, shape: tuple[int, ...], y: Tensor, keys: Keys) -> Tensor:
        return net(keys.fold("z").normal((self.latent,)), y)

    def _penalty(self, critic: nn.Module, u: Tensor, fake: Tensor, y: Tensor, keys: Keys) -> Tensor:
        if self.loss == "hinge":
            return self.penalty / 2 * _slope(critic, u, y).square().mean()
        share = keys.fold("between").uniform((1,) * (u.ndim - 1))
        return self.penalty * (_slope(critic, u + share * (fake - u), y) - 1).square().mean()

    def _changed(self, u: Tensor, keys: Keys) -> Tensor:
        """Rows, each changed at random; gradients flow through."""
        if not self.augment:
            return u
        if u.ndim == 2:
            return u * (keys.fold("cut").uniform(u.shape[1:]) >= self.augment)
        for axis in (2, 3):
            side = u.shape[axis]
            draws = keys.fold("move", axis).uniform((2,))
            place = torch.arange(side, device=u.device)
            reach = round(self.augment * side)
            shift = (draws[:, :1] * (2 * reach + 1)).long() - reach
            at = (place - shift).clamp(0, side - 1)  # [n, side]
            u = u.gather(axis, at[:, None].unsqueeze(5 - axis).expand_as(u))
        height, width = (
            (
                torch.arange(side, device=u.device) - side * keys.fold("cut", axis).uniform((1,))
            ).abs()
            < self.augment * side
            for axis, side in ((2, u.shape[2]), (3, u.shape[3]))
        )
        return u * ~(height[:, None, :, None] & width[:, None, None, :])


def _slope(critic: nn.Module, u: Tensor, y: Tensor) -> Tensor:
    """The length of the critic's gradient at each row: [n]."""
    u = u.detach().requires_grad_()
    return torch.autograd.grad(critic(u, y).sum(), u, create_graph=True)[0].flatten(1).norm(dim=1)
