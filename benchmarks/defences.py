"""What defences before a model are worth: to an attack that does not know of them, and to one that
does.

The demo network on digits. Plain: examples crafted against the network alone, then shown to the
defended one. As it is: the attack on the defended model by automatic differentiation alone, where
that gives nothing. Adaptive: the same through the defence, as the judge sees to it. The generative
ones are trained here on the training rows, small and short: it is the columns' difference that
speaks, not the best of any.

    python benchmarks/defences.py [--rows 60] [--steps 30] [--draws 5]
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from itertools import pairwise

import torch
from common import options, save, table
from torch import Tensor, nn
from torch.nn import functional as F

import holdfast
from holdfast.attacks import parse
from holdfast.attacks.attack import perturb
from holdfast.data import open_data
from holdfast.decisions import REFUSED
from holdfast.evaluation import judge
from holdfast.spec import write
from holdfast.targets.defences.detectors import Divergence, Reconstruction
from holdfast.targets.defences.purify import DefenseGAN, DiffPure, Reform
from holdfast.targets.defences.transforms import (
    JPEG,
    BitDepth,
    Defence,
    Median,
    RandomResizePad,
    TotalVariation,
)
from holdfast.targets.demo import demo_model
from holdfast.targets.target import Target
from holdfast.threats.threat import Threat

LATENT, DATA = 16, 0.5
MODELS = ("plain", "as it is", "adaptive")


class Images(nn.Module):
    """A dense network to images of 8x8, in [0, 1] or, `signed`, in [-1, 1]."""

    def __init__(self, inputs: int, *widths: int, signed: bool = False) -> None:
        super().__init__()
        sizes = [inputs, *widths, 64]
        layers = [part for a, b in pairwise(sizes) for part in (nn.Linear(a, b), nn.SiLU())]
        self.net, self.signed = nn.Sequential(*layers[:-1]), signed

    def forward(self, x: Tensor) -> Tensor:
        z = self.net(x.flatten(1)).view(-1, 1, 8, 8)
        return z.tanh() if self.signed else z.sigmoid()


class Denoiser(nn.Module):
    """EDM's parametrisation around a dense network."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(65, 256), nn.SiLU(), nn.Linear(256, 256), nn.SiLU(), nn.Linear(256, 64)
        )

    def forward(self, u: Tensor, sigma: Tensor) -> Tensor:
        s = sigma[:, None]
        whole = (s**2 + DATA**2).sqrt()
        inner = self.net(torch.cat([u.flatten(1) / whole, s.log() / 4], 1))
        return (DATA**2 / whole**2 * u.flatten(1) + s * DATA / whole * inner).view_as(u)


def steps(x: Tensor, modules: list[nn.Module], count: int, rate: float = 2e-3):
    """(batch, update) pairs: `update(loss)` takes a step of Adam."""
    adam = torch.optim.Adam([w for module in modules for w in module.parameters()], rate)
    fall = torch.optim.lr_scheduler.CosineAnnealingLR(adam, count)

    def update(loss: Tensor) -> None:
        adam.zero_grad()
        loss.backward()
        adam.step()
        fall.step()

    for _ in range(count):
        yield torch.randint(len(x), (64,)), update


def magnet(x: Tensor) -> nn.Module:
    """A denoising autoencoder."""
    net = Images(64, 128, 48, 128)
    for rows, update in steps(x, [net], 3000):
        clean = x[rows]
        update(F.mse_loss(net((clean + 0.1 * torch.randn_like(clean)).clamp(0, 1)), clean))
    return net


def detectors(x: Tensor) -> list[Defence]:
    """MagNet whole: its autoencoder never sees the last 200 rows, of which each detector refuses at
    most 2 %."""
    torch.manual_seed(0)
    net, alone, held = magnet(x[:-200]), holdfast.wrap(demo_model()), x[-200:]
    fitted = [one.fitted(alone, held, 0.02) for one in (Reconstruction(net), Divergence(net))]
    return [*fitted, Reform(net)]


def apegan(x: Tensor, bad: Tensor) -> nn.Module:
    """From adversarial examples to their originals, by distance and by a critic."""
    net, critic = (
        Images(64, 128, 128),
        nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 1)),
    )
    adam = torch.optim.Adam(critic.parameters(), 2e-3)
    for rows, update in steps(x, [net], 2000):
        real, fake = critic(x[rows]), critic(net(bad[rows]).detach())
        adam.zero_grad()
        (F.softplus(-real) + F.softplus(fake)).mean().backward()
        adam.step()
        made = net(bad[rows])
        update(0.7 * F.mse_loss(made, x[rows]) + 0.3e-2 * F.softplus(-critic(made)).mean())
    return net


def generator(x: Tensor) -> nn.Module:
    """The decoder of a variational autoencoder."""
    encoder, net = (
        nn.Sequential(nn.Linear(64, 128), nn.SiLU(), nn.Linear(128, 2 * LATENT)),
        Images(LATENT, 128, 128, signed=True),
    )
    u = 2 * x - 1
    for rows, update in steps(x, [encoder, net], 3000):
        mean, log = encoder(u[rows].flatten(1)).chunk(2, 1)
        z = mean + torch.randn_like(mean) * (log / 2).exp()
        far = ((mean.square() + log.exp() - 1 - log) / 2).sum(1).mean()
        update((net(z) - u[rows]).square().flatten(1).sum(1).mean() + 0.1 * far)
    return net


def denoiser(x: Tensor) -> nn.Module:
    net, u = Denoiser(), 2 * x - 1
    for rows, update in steps(x, [net], 3000):
        sigma = (1.2 * torch.randn(64) - 1.0).exp()
        s = sigma.view(-1, 1, 1, 1)
        weight = (s**2 + DATA**2) / (s * DATA) ** 2
        update(
            (
                weight * (net(u[rows] + s * torch.randn_like(u[rows]), sigma) - u[rows]).square()
            ).mean()
        )
    return net


class Inside(nn.Module):
    """The demo network behind a defence as its makers would put it: no gradient comes through."""

    def __init__(self, defence: Defence) -> None:
        super().__init__()
        self.net, self.defence = demo_model(), defence

    def forward(self, x: Tensor) -> Tensor:
        return self.net(self.defence(x).detach())


def figures(
    before: Sequence[Defence], x: Tensor, y: Tensor, eps: float, attack: str, draws: int
) -> list[float]:
    """Clean accuracy, and robust accuracy under the plain attack, the one without a gradient, and
    the adaptive one.

    What is refused is not right on clean inputs, and stands under attack.
    """
    threat, alone = Threat.linf(eps), holdfast.wrap(demo_model())
    random = any(step.random for step in before)
    target: Target = holdfast.wrap(demo_model(), preprocess=before, draws=draws if random else 1)
    target.bind((1, 8, 8))
    blind = perturb(parse(attack), alone, x, y, threat)
    known = holdfast.evaluate(target, (x.numpy(), y.numpy()), threat, attacks=[attack])
    clean, shown = (judge.rule(target, rows).label for rows in (x, blind))
    as_is = math.nan
    if before and isinstance(before[0], (JPEG, BitDepth)):
        hidden = holdfast.wrap(Inside(before[0]))
        as_is = holdfast.evaluate(
            hidden, (x.numpy(), y.numpy()), threat, attacks=[attack]
        ).robust_accuracy.value
    print(
        "refused, clean and plain:",
        *(int((label == REFUSED).sum()) for label in (clean, shown)),
        flush=True,
    )
    robust = (clean == y) & ((shown == y) | (shown == REFUSED))
    return [
        float((clean == y).double().mean()),
        float(robust.double().mean()),
        as_is,
        known.robust_accuracy.value,
    ]


def main() -> None:
    asked = options(__doc__, rows=60, steps=30, draws=5)
    torch.manual_seed(0)
    x, _ = (torch.from_numpy(part) for part in open_data("digits", split="train").rows(0, 1437))
    y = torch.from_numpy(open_data("digits", split="train").rows(0, 1437)[1])
    bad = torch.cat(
        [
            parse("pgd(steps=5)")(holdfast.wrap(demo_model()), x, y, Threat.linf(e))
            for e in (0.1, 0.2)
        ]
    )
    defences: dict[str, list[Defence]] = {
        "none": [],
        "JPEG": [JPEG(75)],
        "bit depth": [BitDepth(4)],
        "median": [Median(3)],
        "resize and pad": [RandomResizePad(7, 8)],
        "total variation": [TotalVariation(steps=15)],
        "MagNet's reformer": [Reform(magnet(x))],
        "APE-GAN": [Reform(apegan(torch.cat([x, x]), bad))],
        "Defense-GAN": [DefenseGAN(generator(x), latent=LATENT, restarts=4, steps=60, rate=10.0)],
        "diffusion": [DiffPure(denoiser(x), sigma=0.5, steps=6)],
        "MagNet, detectors and reformer": detectors(x),
    }
    tx, ty = (torch.from_numpy(part) for part in open_data("digits").rows(0, asked.rows))
    rows = []
    for name, before in defences.items():
        line = [name, ", ".join(f"`{write(step)}`" for step in before) or "-"]
        for eps in (0.1, 0.2):
            began = time.process_time()
            clean, *robust = figures(
                before, tx, ty.long(), eps, f"apgd(steps={asked.steps})", asked.draws
            )
            line += ["-" if math.isnan(share) else f"{100 * share:.0f}" for share in robust]
            print(name, eps, clean, *robust, f"{time.process_time() - began:.1f} s", flush=True)
        rows.append([*line[:2], f"{100 * clean:.0f}", *line[2:]])
    head = [
        "defence",
        "spec",
        "clean",
        *(f"{how}, {eps}" for eps in (0.1, 0.2) for how in MODELS),
    ]
    how = (
        f"{asked.rows} test rows, linf, apgd(steps={asked.steps}), means of {asked.draws} draws. "
        "Per cent."
    )
    save(asked.save, "Defences before a model", [how, table(head, rows)])


if __name__ == "__main__":
    main()
