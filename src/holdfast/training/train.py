"""Plain training, the undefended baseline: the same loop with no adversary in it."""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from holdfast.arguments import checked
from holdfast.errors import InputError
from holdfast.evaluation.contract import check_data
from holdfast.evaluation.labels import numbered
from holdfast.evaluation.prepare import open_for
from holdfast.targets import TorchTarget, wrap
from holdfast.targets.target import copied
from holdfast.threats.threat import Threat
from holdfast.training.objective import Standard
from holdfast.training.poison import poisoned
from holdfast.training.prepare import at_threshold, network_of, single, training_of
from holdfast.training.recipe import Recipe
from holdfast.training.state import Epoch


@checked
def train(
    model: Any,
    data: Any,
    *,
    epochs: int = 30,
    batch_size: int = 64,
    rate: float = 2e-3,
    seed: int = 0,
    devices: int = 1,
    precision: str = "float32",
    class_weights: str = "auto",
    poison: str | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
) -> Any:
    """A copy of a network, trained by cross-entropy with Adam: a torch module in eval mode, or
    Keras.

    A tenth of the rows (1,000 at most) chooses the epoch whose weights are kept; where classes are
    unequal, by the mean over the classes. The same seed gives the same weights on the same machine.

    Args:
        model: a torch module, a Keras model on any backend, or one of them wrapped with its bounds,
            preprocessing and threshold. It is not changed. At a threshold t, a row of class 1
            counts (1 - t) / t times as much as one of class 0 in a loss that is sharpest at t.
        data: what `holdfast.data.as_source` takes.
        devices: processes that share each step.
        precision: of the passes that train: float32 or bfloat16.
        class_weights: in the loss: `balanced`, `none`, or `auto`, which balances unequal classes.
        poison: an attack on the rows, `badnets(share=0.1, target=0)`, to see what it does; also on
            those that choose the epoch.
        on_epoch: called with each finished epoch.

    Raises:
        InputError: the network cannot be trained, or the data do not fit it; the loss is not
            finite.
    """
    given = copied(wrap(model))
    target = single(given)
    network = network_of(model, target)
    assert isinstance(target, TorchTarget)
    task = target.head.truth_task
    if task is not None or target.inputs.context:
        raise InputError(
            "train takes a classifier of k classes and of one input, but this model has "
            f"{'several inputs' if target.inputs.context else f'the task {task}'}."
        )
    data = open_for(target, data, split="train")
    target.of_table(data.columns or ())
    check_data(data, target.bounds)
    recipe = Recipe(
        name="plain",
        objective="standard",
        epochs=epochs,
        steps=10**9,
        batch_size=batch_size,
        optimiser="adam",
        rate=rate,
        warmup=0.0,
        decay=0.0,
        clip=0.0,
        ema=0.0,
        judge="",
        class_weights=class_weights,
    )
    given.bind(data.shape)
    (data,), _ = numbered(target, data)
    if poison is not None:
        data = poisoned(target, data, poison, seed)
    anything = Threat.linf(target.bounds.high - target.bounds.low)  # no attack asks for it
    training = training_of(
        network,
        at_threshold(target, getattr(given, "odds", 0.0)),
        data,
        anything,
        recipe,
        Standard(),
        seed=seed,
        devices=devices,
        precision=precision,
        every=math.inf,
        on_epoch=on_epoch,
    )
    training.folder, trained = Path(tempfile.mkdtemp(prefix="holdfast-")), None
    try:
        network.train(training)
        trained = network.read(training.folder)
    finally:
        # one that diverged leaves what it reached
        if trained is not None or not (training.folder / network.file).exists():
            shutil.rmtree(training.folder, ignore_errors=True)
    return trained
