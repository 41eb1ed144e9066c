"""Plain training, the undefended baseline: the same loop with no adversary in it."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from holdfast.data import Source
from holdfast.data.part import divide
from holdfast.harden.harden import check_network
from holdfast.harden.network import TorchNetwork
from holdfast.harden.recipes import Recipe
from holdfast.harden.state import Epoch
from holdfast.harden.trainer import Training
from holdfast.targets import TorchTarget
from holdfast.threat import Threat


def train(
    target: TorchTarget,
    data: Source,
    *,
    epochs: int = 30,
    batch_size: int = 64,
    rate: float = 2e-3,
    seed: int = 0,
    watch: Callable[[Epoch], None] = lambda _: None,
) -> nn.Module:
    """A copy of the network behind `target`, trained by cross-entropy with Adam, in eval mode.

    A tenth of the rows (1,000 at most) chooses the epoch whose weights are kept. The same seed gives the same weights
    on the same machine.

    Args:
        watch: told of each finished epoch.

    Raises:
        InputError: the network cannot be trained, or the data do not fit it; the loss is not finite.
    """
    recipe = Recipe(
        name="plain",
        objective="standard",
        epochs=epochs,
        batch_size=min(batch_size, len(data)),
        optimiser="adam",
        rate=rate,
        warmup=0.0,
        decay=0.0,
        clip=0.0,
        ema=0.0,
        judge="",
    )
    network = TorchNetwork(None, target)
    check_network(network, target, data, recipe)
    anything = Threat.linf(target.bounds.high - target.bounds.low)  # no attack asks for it
    training = Training(target, *divide(data, recipe.held, 1000, seed, "held-out"), anything, recipe, seed, watch=watch)
    network.net.load_state_dict(training.fit(network.net).best_average())
    return network.net.eval()
