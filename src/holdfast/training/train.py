"""Plain training, the undefended baseline: the same loop with no adversary in it."""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from holdfast.evaluation.labels import numbered
from holdfast.evaluation.prepare import open_for
from holdfast.targets import TorchTarget
from holdfast.targets.frameworks.pytorch.module import put_tensors
from holdfast.threats.threat import Threat
from holdfast.training import workers
from holdfast.training.balance import balance_of, divide_fairly
from holdfast.training.loop import Training
from holdfast.training.network import TorchNetwork
from holdfast.training.objective import Standard
from holdfast.training.prepare import check_network, check_precision, network_of
from holdfast.training.recipe import Recipe
from holdfast.training.state import Epoch


def train(
    target: TorchTarget,
    data: Any,
    *,
    epochs: int = 30,
    batch_size: int = 64,
    rate: float = 2e-3,
    seed: int = 0,
    devices: int = 1,
    precision: str = "float32",
    class_weights: str = "auto",
    watch: Callable[[Epoch], None] = lambda _: None,
) -> Any:
    """A copy of the network behind `target`, trained by cross-entropy with Adam: a torch module in
    eval mode, or Keras.

    A tenth of the rows (1,000 at most) chooses the epoch whose weights are kept; where classes are
    unequal, by the mean over the classes. The same seed gives the same weights on the same machine.

    Args:
        data: what `holdfast.data.as_source` takes.
        devices: processes that share each step.
        precision: of the passes that train: float32 or bfloat16.
        class_weights: in the loss: `balanced`, `none`, or `auto`, which balances unequal classes.
        watch: told of each finished epoch.

    Raises:
        InputError: the network cannot be trained, or the data do not fit it; the loss is not
            finite.
    """
    data = open_for(target, data)
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
        class_weights=class_weights,
    )
    objective = Standard()
    network = network_of(None, target)
    target.bind(data.shape)
    (data,), _ = numbered(target, data)
    check_network(network, target, data, recipe, objective)
    workers.check(devices, target, objective, pickled=network.pickled)
    check_precision(precision)
    anything = Threat.linf(target.bounds.high - target.bounds.low)  # no attack asks for it
    rows, held = divide_fairly(data, recipe.held, 1000, seed, "held-out")
    training = Training(
        target,
        rows,
        held,
        anything,
        recipe,
        objective,
        seed=seed,
        balance=balance_of(rows, target.task.k, recipe.class_weights),
        every=math.inf,
        watch=watch,
        precision=precision,
        devices=devices,
    )
    if isinstance(network, TorchNetwork):
        put_tensors(network.net, workers.train(training, network.net))
        return network.net.eval()
    folder, trained = Path(tempfile.mkdtemp(prefix="holdfast-")), None
    try:
        network.train(replace(training, folder=folder))
        trained = network.read(folder)
    finally:
        # one that diverged leaves what it reached
        if trained is not None or not (folder / network.file).exists():
            shutil.rmtree(folder, ignore_errors=True)
    return trained
