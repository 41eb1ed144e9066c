"""Generative defences: a network that brings an input back to what data look like, before the model
sees it.

Such defences are sold on attacks that do not know of them. Here attacks come through: by the
network's own gradient where there is one, through every step of a sampler (computed again on the
way back, so that memory holds one step), along the images that a search can end at, and over many
draws of what is random. The networks are torch modules, or named as a model is: a torch.export
program (`reformer.pt2`) or `path/file.py:factory`.
"""

from __future__ import annotations

import copy
import hashlib
from abc import abstractmethod
from dataclasses import MISSING, dataclass
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from holdfast import spec
from holdfast.errors import InputError, SpecError
from holdfast.spec import option
from holdfast.targets.defences.transforms import DRAWN, OWN, Defence, straight_through
from holdfast.targets.target import drawing_of


@dataclass(frozen=True)
class Purifier(Defence):
    """A defence that is a network.

    Raises:
        InputError: `net` is no module and names none, or what it gives is not of the shape that it
            must be.
        SpecError: a field is out of its range.
    """

    net: str | nn.Module = option(  # noqa: RUF009  # a field, as of all options
        MISSING, "a module, a .pt2 program, or path/file.py:factory"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.net, str):
            from holdfast.targets import loading

            found = loading.load(self.net)
        else:
            found = self.net
        if not isinstance(found, nn.Module):
            raise InputError(
                f"{type(self).__name__.lower()} needs a torch module, but got a "
                f"{type(found).__name__}."
            )
        object.__setattr__(self, "_own", copy.deepcopy(found).eval().requires_grad_(False))
        if not isinstance(self.net, str):  # what a manifest can hold
            object.__setattr__(self, "net", f"{type(found).__name__}:{self.digest().hex()[:12]}")

    def digest(self) -> bytes:
        digest = hashlib.sha256()
        net: nn.Module = self._own  # pyright: ignore[reportAttributeAccessIssue]
        for name, value in sorted(net.state_dict().items()):
            digest.update(
                f"{name}{tuple(value.shape)}".encode() + value.detach().cpu().numpy().tobytes()
            )
        return digest.digest()

    def ask(self, like: Tensor, *inputs: Tensor) -> Tensor:
        """What the network gives, which must have the shape of `like`."""
        net: nn.Module = self._own.to(like.device)  # pyright: ignore[reportAttributeAccessIssue]
        answer = net(*inputs)
        if not isinstance(answer, Tensor) or answer.shape != like.shape:
            given = tuple(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
            raise InputError(
                f"{spec.write(self)} gives {given} for images {tuple(like.shape)}; it must give "
                "the same."
            )
        return answer

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Reform(Purifier):
    """One pass through a network, images to images, in [0, 1].

    The reformer of MagNet, an autoencoder (Meng and Chen 2017, arXiv:1705.09064), or the generator
    of APE-GAN (Shen et al. 2017, arXiv:1707.05474). MagNet's detectors are in
    `holdfast.targets.defences.detectors`.
    """

    gradient_note: ClassVar[str] = OWN

    def __call__(self, x: Tensor) -> Tensor:
        y = self.ask(x, x)
        return straight_through(y, y.clamp(0, 1))


@dataclass(frozen=True)
class DefenseGAN(Purifier):
    """The image of a generator that is nearest to the input (Samangouei et al. 2018,
    arXiv:1805.06605).

    From `restarts` random codes z by `steps` of descent on |G(z) - x|^2; the nearest image is kept.
    The network takes z [n, latent] (and, with `classes` k above 0, classes [n], which the restarts
    go through) and gives images in [-1, 1]. Attacks follow the search to first order at its end: a
    small change of x moves the nearest image by what of it lies along the generator's images. (The
    curvature of G is left out.) They take the mean of many draws of its starts.
    """

    gradient_note: ClassVar[str] = (
        "The gradient was that of its search at the end, along the generator's images." + DRAWN
    )
    latent: int = option(64, "numbers of a code", at_least=1)
    classes: int = option(0, "that the generator is told; 0: it is told none", at_least=0)
    restarts: int = option(10, "of the search; the paper's R", at_least=1)
    steps: int = option(200, "of descent, with momentum 0.7; the paper's L", at_least=1)
    rate: float = option(1.0, "of the descent")

    @property
    def random(self) -> bool:
        return True

    def __call__(self, x: Tensor) -> Tensor:
        u, n, r = 2 * x.detach() - 1, len(x), self.restarts
        start = drawing_of(x).fold("z").normal((r, self.latent), x.dtype)
        aim = u[:, None].expand(n, r, *u.shape[1:]).flatten(0, 1)
        labels: list[Tensor] = []
        if self.classes:
            labels = [(torch.arange(r, device=x.device) % self.classes).repeat(n)]
        with torch.inference_mode(False), torch.enable_grad():
            z, speed = (
                start.flatten(0, 1),
                torch.zeros(n * r, self.latent, dtype=x.dtype, device=x.device),
            )
            for _ in range(self.steps):
                leaf = z.detach().requires_grad_()
                away = (self.ask(aim, leaf, *labels) - aim).square().flatten(1).mean(1)
                speed = 0.7 * speed - self.rate * torch.autograd.grad(away.sum(), leaf)[0]
                z = (leaf + speed).detach()
        with torch.no_grad():
            images = self.ask(aim, z, *labels)
            away = (images - aim).square().flatten(1).mean(1).view(n, r)
            first = torch.arange(n, device=x.device) * r + away.argmin(1)
        seen = ((images[first] + 1) / 2).clamp(0, 1)
        if not (x.requires_grad and torch.is_grad_enabled()):
            return seen
        along = self._tangents(x, z[first], [classes[first] for classes in labels])
        shifted = (x - x.detach()).flatten(1)[:, None]  # nothing, but for its gradient
        return straight_through((shifted @ along @ along.mT).view_as(x), seen)

    def _tangents(self, like: Tensor, z: Tensor, labels: list[Tensor]) -> Tensor:
        """An orthonormal basis of the directions in which images can move at codes z: [n, pixels,
        latent]."""
        leaf, w = z.detach().requires_grad_(), torch.zeros_like(like).requires_grad_()
        # linear in w
        back = torch.autograd.grad(
            (self.ask(like, leaf, *labels) * w).sum(), leaf, create_graph=True
        )[0]
        directions = [
            torch.autograd.grad(back[:, j].sum(), w, retain_graph=True)[0]
            for j in range(self.latent)
        ]
        basis, sizes, _ = torch.linalg.svd(
            torch.stack(directions, -1).flatten(1, -2), full_matrices=False
        )
        return basis * (sizes > 1e-3 * sizes[:, :1])[:, None]


@dataclass(frozen=True)
class DiffPure(Purifier):
    """Noise is added, and a diffusion model takes it away again (Nie et al. 2022,
    arXiv:2205.07460).

    The network takes images in [-1, 1] with Gaussian noise of standard deviation sigma [n], and
    gives them without (EDM's denoiser, arXiv:2206.00364). The way back is by Euler's method.
    Attacks follow the gradient of the whole way, and the mean of many draws of the noise.
    """

    gradient_note: ClassVar[str] = OWN + DRAWN
    sigma: float = option(0.5, "noise added, where images span [-1, 1]", above=0)
    steps: int = option(8, "of the way back", at_least=1)
    least: float = option(0.02, "noise at its last step", above=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.least >= self.sigma:
            raise SpecError(f"{spec.write(self)} needs 0 < least < sigma; least={self.least:g}.")

    @property
    def random(self) -> bool:
        return True

    def sigmas(self) -> list[float]:
        """The noise levels on the way back, the last 0."""
        a, b = self.sigma ** (1 / 7), self.least ** (1 / 7)
        return [(a + i / max(self.steps - 1, 1) * (b - a)) ** 7 for i in range(self.steps)] + [0.0]

    def __call__(self, x: Tensor) -> Tensor:
        u = 2 * x - 1
        u = u + self.sigma * drawing_of(x).fold("noise").normal(tuple(x.shape[1:]), x.dtype)
        for now, then in pairwise(self.sigmas()):
            u = self._back(u, now, then)
        y = (u + 1) / 2
        return straight_through(y, y.clamp(0, 1))

    def _back(self, u: Tensor, now: float, then: float) -> Tensor:
        def step(u: Tensor) -> Tensor:
            clean = self.ask(u, u, u.new_full((len(u),), now))
            return clean + (then / now) * (u - clean)

        if not (u.requires_grad and torch.is_grad_enabled()):
            return step(u)
        made: Any = checkpoint(step, u, use_reentrant=False, preserve_rng_state=False)
        return made


PURIFIERS = {kind.__name__.lower(): kind for kind in (Reform, DefenseGAN, DiffPure)}
