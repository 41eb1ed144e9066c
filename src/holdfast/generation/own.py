"""A GAN of the user's own two networks, of Keras or torch.

Binary cross-entropy in its non-saturating form (Goodfellow et al. 2014, arXiv:1406.2661), Adam with
the settings of DCGAN (Radford et al. 2016, arXiv:1511.06434). Keras networks are trained on Keras's
torch backend.
"""

from __future__ import annotations

import inspect
import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from holdfast import usercode
from holdfast.errors import InputError, SpecError
from holdfast.generation.model import Model, descend
from holdfast.rng import Keys
from holdfast.spec import option


@dataclass(frozen=True)
class Own(Model, rate=2e-4, ema=0.99, rounds=10, glance=500):
    """A GAN of the user's own networks.

    The generator takes noise [n, latent], or noise and the class; the discriminator takes what the
    generator gives, or that and the class, and gives one number a row: a logit, or a probability.
    """

    latent: int = option(
        100,
        "random numbers that a sample is made from, where the generator's first layer does not say",
        at_least=1,
    )
    generator: str = option(
        "",
        "path/file.py:name or package.module:name of a function without arguments that builds it",
    )
    discriminator: str = option("", "the same")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.generator and self.discriminator):
            raise SpecError(
                "a GAN of your own needs both networks: "
                "--generator path/file.py:build_generator --discriminator "
                "path/file.py:build_discriminator."
            )

    def nets(self, shape: tuple[int, ...], k: int) -> nn.ModuleDict:
        generator = OwnGenerator(self.generator, shape, k, self.latent)
        return nn.ModuleDict(
            {
                "generator": generator,
                "discriminator": OwnDiscriminator(self.discriminator, generator, k),
            }
        )

    def optimiser(self, nets: nn.ModuleDict) -> torch.optim.Optimizer:
        return torch.optim.Adam(nets.parameters(), self.rate, betas=(0.5, 0.999))

    def learn(
        self,
        nets: nn.ModuleDict,
        optimiser: torch.optim.Optimizer,
        u: Tensor,
        y: Tensor,
        keys: Keys,
        t: int,
    ) -> tuple[Tensor | None, Tensor]:
        generator: Any = nets["generator"]
        discriminator: Any = nets["discriminator"]
        # what Dropout draws from
        torch.default_generator.manual_seed(int(keys.fold("layers").uniform(())[0] * 2**31))
        fake = generator(keys.fold("z").normal(generator.noise), y)
        loss = discriminator.loss(u, y, real=True) + discriminator.loss(
            fake.detach(), y, real=False
        )
        descend(optimiser, loss)  # Adam leaves alone what has no gradient: here the generator
        discriminator.requires_grad_(False)
        paid = discriminator.loss(fake, y, real=True)
        descend(optimiser, paid)
        discriminator.requires_grad_(True)
        return paid.detach(), loss.detach()

    def draw(self, net: nn.Module, shape: tuple[int, ...], y: Tensor, keys: Keys) -> Tensor:
        noise: Any = net.noise
        return net(keys.fold("z").normal(noise), y)


class Network(nn.Module):
    """A network of the user's as a torch module of one input, or of an input and the class.

    Args:
        spec: the function that builds it.
        what: its part in messages.
        shape: of its input, where it does not say.
    """

    def __init__(self, spec: str, what: str, k: int, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.what, self.k = what, k
        net = _built(spec, what)
        self.of_keras = _is_keras(net)
        if not self.of_keras:
            self.net = net
            self.shape, self.conditional = _noise_of(net, shape), _takes(net) > 1
            return
        from holdfast.training.keras import Rebuilt

        if not net.built:
            net.build((None, *shape))
        shapes = [tuple(i.shape)[1:] for i in net.inputs]
        self.net, self.shape, self.conditional = (
            Rebuilt(net, flat=False),
            shapes[0],
            len(shapes) > 1,
        )
        # the class as a unit vector; otherwise as a number
        self.hot = self.conditional and shapes[1] == (k,)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        if not self.conditional:
            return self.net(x)
        if not self.of_keras:
            return self.net(x, y)
        return self.net([x, F.one_hot(y, self.k).to(x) if self.hot else y[:, None]])


class OwnGenerator(nn.Module):
    """Noise [n, *noise], y [n] to u [n, *shape] within [-1, 1], by the user's generator."""

    def __init__(self, spec: str, shape: tuple[int, ...], k: int, latent: int) -> None:
        super().__init__()
        self.net = Network(spec, "generator", k, (latent,))
        self.noise, self.conditional, self.shape = self.net.shape, self.net.conditional, shape
        with torch.no_grad():
            z = torch.randn(16, *self.noise) * torch.tensor([1.0, 100.0]).repeat(8).view(
                -1, *[1] * len(self.noise)
            )
            v = usercode.call("the generator", self.net.eval(), z, torch.arange(16) % k)
        self.own = tuple(v.shape[1:])
        if not (
            _same(self.own, shape) or self.own in (shape, (*shape[1:], shape[0])[: len(shape)])
        ):
            raise InputError(
                f"the generator gives rows of shape {self.own}, but the data's are {_spelt(shape)}."
            )
        low, high = float(v.min()), float(v.max())
        if not (low >= -1 and high <= 1):
            raise InputError(
                f"the generator gives values from {low:.3g} to {high:.3g}; they are mapped to the "
                "bounds of the data "
                "from the range of its last activation, so end it in tanh ([-1, 1]) or sigmoid "
                "([0, 1])."
            )
        self.from_zero = low >= 0  # a sigmoid

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        v = self.net(z, y)
        if self.from_zero:
            v = 2 * v - 1
        if len(self.own) == 3 and self.own != self.shape:
            v = v.movedim(-1, 1)
        return v.reshape(-1, *self.shape)

    def outward(self, u: Tensor) -> Tensor:
        """Rows u [n, *shape] as this generator gives them."""
        if self.from_zero:
            u = (u + 1) / 2
        if len(self.own) == 3 and self.own != self.shape:
            return u.movedim(1, -1)
        return u.reshape(-1, *self.own)


class OwnDiscriminator(nn.Module):
    """u [n, *shape], y [n] to a logit or probability that a row is real, by the user's
    discriminator."""

    def __init__(self, spec: str, generator: OwnGenerator, k: int) -> None:
        super().__init__()
        self.net = Network(spec, "discriminator", k, generator.own)
        self.outward = generator.outward
        if self.net.of_keras and self.net.shape != generator.own:
            raise InputError(
                f"the discriminator takes rows of shape {self.net.shape}, but the generator gives "
                f"{generator.own}."
            )
        if self.net.conditional != generator.conditional:
            names = ("generator", "discriminator")
            raise InputError(
                f"the {names[self.net.conditional]} takes the class as a second input, and the "
                f"{names[generator.conditional]} does not; give both or none."
            )
        with torch.no_grad():
            rows = 100 * torch.randn(16, *generator.own)
            what = (
                "the discriminator, asked about what the generator gives, rows of shape "
                f"{generator.own},"
            )
            z = usercode.call(what, self.net.eval(), rows, torch.arange(16) % k)
        if z.numel() != 16:
            raise InputError(
                f"the discriminator gives {tuple(z.shape[1:])} for a row; expected one number."
            )
        self.sigmoid = bool(((z >= 0) & (z <= 1)).all())

    def loss(self, u: Tensor, y: Tensor, *, real: bool) -> Tensor:
        """The mean cross-entropy of its answers, if these rows were real or made."""
        z = self.net(self.outward(u), y).reshape(-1)
        entropy = F.binary_cross_entropy if self.sigmoid else F.binary_cross_entropy_with_logits
        return entropy(z, torch.full_like(z, float(real)))


def absolute(spec: str) -> str:
    """The spec, found from any folder."""
    where, _, name = spec.rpartition(":")
    return f"{Path(where).expanduser().absolute()}:{name}" if where.endswith(".py") else spec


def _built(spec: str, what: str) -> Any:
    with _keras_on_torch():
        make = usercode.find(spec)
        if isinstance(make, nn.Module):
            raise InputError(
                f"{spec} is a network, and not a function that builds one; a run needs it with "
                "fresh weights."
            )
        net = usercode.call(spec, make)
    if _is_keras(net):
        if (backend := sys.modules["keras"].config.backend()) != "torch":
            raise InputError(
                f"{spec} builds a model of Keras on {backend}; a GAN is trained on Keras's torch "
                "backend: set KERAS_BACKEND=torch before Keras is imported."
            )
    elif not isinstance(net, nn.Module):
        kind = type(net).__name__
        raise InputError(
            f"{spec} gives a {kind} as {what}; expected a Keras model or a torch module."
        )
    return net


@contextmanager
def _keras_on_torch() -> Iterator[None]:
    """Keras, where it is first imported within, runs on torch."""
    before = os.environ.get("KERAS_BACKEND")
    os.environ["KERAS_BACKEND"] = "torch"
    try:
        yield
    finally:
        if before is None:
            del os.environ["KERAS_BACKEND"]
        else:
            os.environ["KERAS_BACKEND"] = before


def _is_keras(net: Any) -> bool:
    return any(cls.__module__.partition(".")[0] == "keras" for cls in type(net).__mro__)


def _takes(net: nn.Module) -> int:
    """How many inputs a torch module has to be given."""
    needed = inspect.signature(net.forward).parameters.values()
    return sum(p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD for p in needed)


def _noise_of(net: nn.Module, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a torch module's input by its first layer with weights; `shape` where that does
    not say."""
    for layer in net.modules():
        if isinstance(layer, nn.Linear):
            return (layer.in_features,) if len(shape) == 1 else shape
        if isinstance(layer, nn.ConvTranspose2d):
            return (layer.in_channels, 1, 1)
        if next(layer.parameters(recurse=False), None) is not None:
            break
    return shape


def _same(own: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    """Whether rows of shape `own` are those of `shape` in the same order: flat, or without the axis
    of one channel."""
    return own == (math.prod(shape),) or (shape[0] == 1 and own == shape[1:])


def _spelt(shape: tuple[int, ...]) -> str:
    return f"{shape} or {(*shape[1:], shape[0])}" if len(shape) == 3 else str(shape)
