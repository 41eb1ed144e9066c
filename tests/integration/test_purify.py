"""Generative defences: known answers for what they make of an input, and gradients that come
through."""

from __future__ import annotations

import math

import pytest
import torch
from helpers.models import draw
from torch import Tensor, nn

import holdfast
from holdfast.data import open_data
from holdfast.errors import InputError, SpecError
from holdfast.targets import wrap
from holdfast.targets.defences.purify import DefenseGAN, DiffPure, Reform
from holdfast.targets.demo import demo_model
from holdfast.targets.preprocess import parse
from holdfast.targets.target import drawing, sealed


class Plane(nn.Module):
    """A generator whose images are a plane: z [n, 3] to 0.1 basis z, [n, 1, 4, 4]."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("basis", torch.linalg.qr(draw(16, 3, seed=5).float() - 0.5).Q)

    def forward(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        shift = 0.0 if y is None else 0.05 * y.view(-1, 1, 1, 1)
        return (0.1 * z @ self.basis.T).view(-1, 1, 4, 4) + shift  # pyright: ignore


class Flat(nn.Module):
    """A model of three classes."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :3]


class Shrink(nn.Module):
    """The ideal denoiser of pixels that are normal with mean 0 and deviation 0.2."""

    def forward(self, u: Tensor, sigma: Tensor) -> Tensor:
        return u * (0.04 / (0.04 + sigma.square())).view(-1, 1, 1, 1)


class Blur(nn.Module):
    """A smoother, beyond the box at its ends."""

    def forward(self, x: Tensor) -> Tensor:
        return 1.4 * nn.functional.avg_pool2d(x, 3, 1, 1) - 0.1


def test_a_search_ends_at_the_nearest_image_and_its_gradient_runs_along_them() -> None:
    net, x = Plane(), 0.4 + 0.2 * draw(5, 1, 4, 4).float()
    defence = DefenseGAN(net, latent=3, restarts=2, steps=400, rate=200.0)
    onto = net.basis @ net.basis.T
    u = (2 * x - 1).flatten(1)
    expected = (((u @ onto) + 1) / 2).view_as(x)
    with sealed(0):
        leaf = x.clone().requires_grad_()
        with torch.enable_grad():
            seen = defence(leaf)
        again = defence(x[1:2])
    assert torch.allclose(seen, expected, atol=1e-4)
    assert torch.allclose(again, seen[1:2], atol=1e-6)
    g = draw(5, 16).float()
    assert torch.allclose(
        torch.autograd.grad(seen, leaf, g.view_as(x))[0].flatten(1), g @ onto, atol=1e-4
    )


def test_a_search_goes_through_the_classes() -> None:
    """An image of class 2 is found by the restart of that class alone, to the last digits."""
    net = Plane()
    x = (net(torch.zeros(1, 3), torch.tensor([2])) + 1) / 2
    far = [
        float(
            (DefenseGAN(net, latent=3, classes=k, restarts=3, steps=300, rate=200.0)(x) - x)
            .abs()
            .max()
        )
        for k in (2, 3)
    ]
    assert far[1] < 1e-4
    assert far[0] > 0.005


def test_diffusion_there_and_back_is_what_normal_data_make_of_it() -> None:
    """The way back of normal data is known: u shrinks by 0.2 / sqrt(0.04 + sigma^2); and so does
    its gradient."""
    x = draw(4, 1, 4, 4).float() * 0.2 + 0.4
    defence = DiffPure(Shrink(), sigma=0.3, steps=400, least=0.001)
    with sealed(1), torch.enable_grad():
        leaf = x.clone().requires_grad_()
        seen = defence(leaf)
        g = torch.autograd.grad(seen.sum(), leaf)[0]
    with sealed(1):
        assert torch.equal(defence(x), seen)
        assert torch.equal(defence(x[2:]), seen[2:])
    with sealed(1), drawing(1):
        assert not torch.allclose(defence(x), seen, atol=1e-3)
    shrink = 0.2 / math.sqrt(0.04 + 0.09)
    assert torch.allclose(g, torch.full_like(g, shrink), rtol=0.02)
    deviation = float(((2 * seen.detach() - 1) - shrink * (2 * x - 1)).std())
    assert deviation == pytest.approx(shrink * 0.3, rel=0.25)


def test_a_network_counts_in_the_fingerprint_and_in_the_manifest() -> None:
    one, other = Plane(), Plane()
    other.basis = -other.basis
    nets = [DefenseGAN(net, latent=3) for net in (one, one, other)]
    prints = [wrap(Flat(), preprocess=net, shape=(1, 4, 4), draws=1).fingerprint() for net in nets]
    assert prints[0] == prints[1] != prints[2]
    assert wrap(Flat(), preprocess=nets[0], shape=(1, 4, 4)).describe()["draws"] == 20


def test_an_attack_that_knows_of_a_reformer_breaks_what_it_mends() -> None:
    """The smoother takes most of what was made against the network alone, and nothing of what was
    made against both."""
    (step,) = parse([f"reform({__file__ + ':Blur'!r})"])
    assert torch.equal(step(x := draw(3, 1, 8, 8).float()), Blur()(x).clamp(0, 1))
    assert float(step(torch.ones(1, 1, 8, 8)).max()) == 1
    data = tuple(open_data("digits").rows(0, 40))
    target = wrap(demo_model(), preprocess=step)
    run = holdfast.evaluate(target, data, "linf(0.1)", attacks=["pgd(steps=10)"])
    images, y = (torch.from_numpy(part) for part in data)
    blind = holdfast.attacks.PGD(steps=10)(
        wrap(demo_model()), images, y, holdfast.Threat.linf(0.1)
    ).x_adv
    right = (target.labels(images) == y) & (target.labels(blind) == y)
    assert float(right.double().mean()) > run.robust_accuracy.value + 0.1
    assert [f.check for f in run.verdict.findings if f.check == "defence"] == ["defence"]


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(SpecError, match="restarts=0"):
        DefenseGAN(Plane(), restarts=0)
    with pytest.raises(SpecError, match="0 < least < sigma"):
        DiffPure(Shrink(), sigma=0.01)
    with pytest.raises(InputError, match="needs a torch module"):
        Reform(3)  # pyright: ignore
    with pytest.raises(InputError, match="must give the same"):
        Reform(nn.Flatten())(draw(2, 1, 4, 4).float())
