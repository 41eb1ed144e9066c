"""Models without tricks, of several kinds."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn

from holdfast.data import open_data
from holdfast.data.part import divide
from holdfast.hardening import recipes
from holdfast.targets import TorchTarget
from holdfast.targets.demo import demo_net
from holdfast.threats.threat import Threat
from holdfast.training.loop import Training
from holdfast.training.train import train


class Residual(nn.Module):
    """What a block adds to its input."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


class Attention(nn.Module):
    """The sixteen 2x2 patches of an image, each looking at all."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, 2, stride=2)
        self.place = nn.Parameter(0.02 * torch.randn(16, width))
        self.block = nn.TransformerEncoderLayer(width, 4, 64, dropout=0.0, batch_first=True)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.place
        return self.head(self.block(tokens).mean(1))


def mlp(activation: type[nn.Module] = nn.ReLU, width: int = 64, depth: int = 2) -> nn.Module:
    layers: list[nn.Module] = [nn.Flatten(), nn.Linear(64, width), activation()]
    for _ in range(depth - 1):
        layers += [nn.Linear(width, width), activation()]
    return nn.Sequential(*layers, nn.Linear(width, 10))


def residual_net(width: int = 16) -> nn.Module:
    def block() -> nn.Module:
        conv = [nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        return Residual(nn.Sequential(*conv, nn.Conv2d(width, width, 3, padding=1)))

    stem = [nn.Conv2d(1, width, 3, padding=1), nn.ReLU(), block(), nn.ReLU(), nn.AvgPool2d(2)]
    return nn.Sequential(
        *stem, block(), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(4 * width, 10)
    )


def seeded(make: Callable[[], nn.Module], seed: int) -> nn.Module:
    """A network whose first weights depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def own(make: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """The same, made once for the same arguments, and a copy for each who asks."""
    once = functools.cache(make)
    return functools.wraps(make)(lambda *args, **options: copy.deepcopy(once(*args, **options)))


@own
def trained(make: Callable[[], nn.Module], seed: int = 0, epochs: int = 12) -> nn.Module:
    """A network trained on clean digits."""
    target = TorchTarget(seeded(make, seed), shape=(1, 8, 8))
    return train(target, open_data("digits", split="train"), epochs=epochs, seed=seed)


@own
def hardened(
    make: Callable[[], nn.Module], seed: int = 0, threat: str = "linf(0.15)", epochs: int = 6
) -> nn.Module:
    """A network trained against an adversary."""
    recipe = recipes.parse(f'fast(epochs={epochs}, ema=0.98, judge="apgd(steps=5)")')
    rows, held = divide(open_data("digits", split="train"), 0.05, 50, seed, "held-out")
    net = seeded(make, seed)
    target = TorchTarget(net, shape=(1, 8, 8))
    against, parts = Threat.parse(threat), recipes.parts(recipe)
    training = Training(target, rows, held, against, recipe, *parts, seed=seed)
    net.load_state_dict(training.fit(net).best_average())
    return net.eval()


def linear() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


NETS: dict[str, Callable[[], nn.Module]] = {
    "linear": linear,
    "mlp": mlp,
    "deep": functools.partial(mlp, width=48, depth=4),
    "tanh": functools.partial(mlp, nn.Tanh),
    "gelu": functools.partial(mlp, nn.GELU),
    "cnn": demo_net,
    "resnet": residual_net,
    "attention": Attention,
}
SOUND: dict[str, Callable[..., nn.Module]] = {
    **{name: functools.partial(trained, net) for name, net in NETS.items()},
    "hardened-mlp": functools.partial(hardened, mlp),
    "hardened-cnn": functools.partial(hardened, demo_net),
    "hardened-l2": functools.partial(hardened, demo_net, threat="l2(0.6)"),
}
