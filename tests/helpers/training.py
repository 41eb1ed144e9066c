"""Small trainings on the digits, and a network with all that going on could forget."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from holdfast.attacks.attack import run
from holdfast.attacks.gradient.pgd import PGD
from holdfast.data import Source, from_arrays, open_data
from holdfast.hardening import recipes
from holdfast.targets import wrap
from holdfast.targets.demo import demo_model, demo_net
from holdfast.threats.threat import Threat
from holdfast.training.loop import Training

SMALL = (
    "--recipe",
    'fast(epochs=3, judge="pgd(steps=3)")',
    "--protocol",
    "quick",
    "--test-samples",
    40,
)


def digits(start: int, stop: int) -> Source:
    return from_arrays(*open_data("digits", split="train").rows(start, stop), scale=False)


def fresh(make: Callable[[], nn.Module] = demo_net) -> nn.Module:
    torch.manual_seed(0)
    return make()


def training(
    recipe: str,
    *,
    eps: float = 0.15,
    rows: int = 320,
    make: Callable[[], nn.Module] = demo_net,
    **options,
) -> tuple[Training, nn.Module]:
    net = fresh(make)
    target = wrap(net)
    target.bind((1, 8, 8))
    made = recipes.parse(recipe)
    return Training(
        target,
        digits(0, rows),
        digits(1000, 1060),
        Threat.linf(eps),
        made,
        *recipes.parts(made),
        **options,
    ), net  # pyright: ignore[reportArgumentType]


class Normed(nn.Module):
    """With all that resuming could forget: batch norm, dropout, a frozen part."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.2)
        )
        self.head = nn.Linear(144, 10)
        self.head.bias.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


class Killed(BaseException):
    pass


def robust(objective: str, more: str = "", given: bool = False) -> float:
    how = (
        'epochs=10, batch_size=32, optimiser="adam", rate=0.004, ramp=0, ema=0.9, '
        'judge="pgd(steps=2)"' + more
    )
    make = demo_model if given else demo_net
    done, net = training(f"fast({how}, objective='{objective}')", eps=0.1, make=make)
    net.load_state_dict(done.fit(net).best_average())
    x, y = (torch.from_numpy(part) for part in open_data("digits").rows(0, 100))
    return float((~run(PGD(steps=10), wrap(net), x, y, Threat.linf(0.1)).broken).double().mean())
