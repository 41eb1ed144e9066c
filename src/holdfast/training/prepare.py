"""Before a training: the network of a model, and what is refused before the first step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from holdfast.data import Source
from holdfast.data.part import divide
from holdfast.errors import InputError, SpecError
from holdfast.evaluation.contract import check_data, check_model
from holdfast.evaluation.truths import since, with_truths
from holdfast.targets import Target, TorchTarget
from holdfast.targets.adapter import Adapter
from holdfast.targets.frameworks.arrays import ArrayModel
from holdfast.targets.target import copied, sealed
from holdfast.targets.threshold import Threshold
from holdfast.targets.truth import WithTruth
from holdfast.targets.wrappers import ExpectationOverTransformation
from holdfast.threats.threat import Threat
from holdfast.training import augmentation, workers
from holdfast.training.balance import balance_of, divide_fairly
from holdfast.training.loop import Training
from holdfast.training.network import Network, TorchNetwork
from holdfast.training.objective import PGD, Objective, Regularizer, Standard
from holdfast.training.recipe import Recipe
from holdfast.training.truths import AtLoss, OfTruths, Own, loss_of


def network_of(given: Any, target: Target) -> Network:
    """The network of a target, to be trained.

    Args:
        given: what the target was made of, or the target itself.

    Raises:
        InputError: it is neither a torch module nor a Keras model.
    """
    model = getattr(target, "model", target)
    if isinstance(target, TorchTarget) and isinstance(model, nn.Module):
        return TorchNetwork(given, target)
    own = model.trainable if isinstance(model, Adapter) else None
    if own is None or isinstance(model, ArrayModel):
        raise InputError(
            "training takes a torch module or a Keras model, and hardening also an estimator with "
            "settings of its own (XGBClassifier, and not its Booster), but the model is a "
            f"{getattr(target, 'name', type(model).__name__)}."
        )
    from holdfast.training.keras import KerasNetwork

    return KerasNetwork(own)


def single(given: Target) -> Target:
    """The target that is trained: of a randomised one, one draw; of one with a threshold, that
    without."""
    whole = given.inner if isinstance(given, Threshold) else given
    return whole.inner if isinstance(whole, ExpectationOverTransformation) else whole


def at_threshold(target: TorchTarget, odds: float) -> TorchTarget:
    """A copy whose scores are shifted so that class 1 wins from these log odds on."""
    own = copied(target)
    own.head = replace(own.head, odds=odds)
    return own


def training_of(
    network: Network,
    target: TorchTarget,
    source: Source,
    threat: Threat,
    recipe: Recipe,
    objective: Objective,
    penalties: Sequence[Regularizer] = (),
    *,
    seed: int,
    devices: int,
    precision: str,
    **options: Any,
) -> Training:
    """The training of a network on these rows, of which some are held out to choose the weights.

    Args:
        options: further fields of the training.

    Raises:
        InputError: it cannot be trained on them, or not by so many processes.
        SpecError: no such precision.
    """
    _check(network, target, source, threat, recipe, objective)
    workers.check(devices, target, objective, pickled=network.pickled)
    _check_precision(precision)
    rows, held = divide_fairly(source, recipe.held, 1000, seed, "held-out")
    return Training(
        target,
        rows,
        held,
        threat,
        _fitted(recipe, len(rows)),
        objective,
        penalties,
        seed=seed,
        balance=balance_of(rows, target.task.k, recipe.class_weights, target.head.odds),
        devices=devices,
        precision=precision,
        **options,
    )


def training_of_truths(
    network: Network,
    target: TorchTarget,
    source: Source,
    threat: Threat,
    recipe: Recipe,
    objective: Objective,
    own: Own | None,
    *,
    devices: int,
    precision: str,
    seed: int,
    **options: Any,
) -> Training:
    """The same of a detector or a segmenter: see `truths`.

    Args:
        own: the loss, where the user gives one.

    Raises:
        InputError: it cannot be trained on these rows, or not by several processes; there is no
            loss, or it fails.
        SpecError: no such precision, or the recipe asks for what is of classes alone.
    """
    if devices != 1:
        raise InputError("a detector or a segmenter is trained by one process; leave devices out.")
    held_to, rows = with_truths(target, source, threat)
    assert isinstance(held_to, WithTruth)
    check_data(rows, target.bounds)
    check_model(held_to, rows)
    since(held_to, rows)  # which notices truths of another convention
    _check_network(network, recipe)
    _check_precision(precision)
    if not isinstance(objective, (PGD, Standard)) or recipe.augment or recipe.regularize:
        what = recipe.augment or recipe.regularize or objective
        raise SpecError(
            f"{what!r} is of classes; a detector or a segmenter is trained by objective pgd or "
            "standard, without augment and regularize."
        )
    loss = loss_of(held_to.rule, own)
    rows, held = divide(source, recipe.held, 1000, seed, "held-out")
    training = OfTruths(
        target,
        rows,
        held,
        threat,
        _fitted(recipe, len(rows)),
        AtLoss(loss, steps=objective.steps, step_size=getattr(objective, "step_size", 0.0)),
        seed=seed,
        precision=precision,
        **options,
    )
    training.check(*source.rows(0, 2))
    return training


def _check_precision(precision: str) -> None:
    if precision not in ("float32", "bfloat16"):
        raise SpecError(f"precision is {precision!r}; it is float32 or bfloat16.")


def _fitted(recipe: Recipe, n: int) -> Recipe:
    """The recipe on n rows: no batch larger than they are, and only so many epochs as its steps
    fill."""
    size = min(recipe.batch_size, n)
    epochs = min(recipe.epochs, math.ceil(recipe.steps * size / n))
    return replace(recipe, batch_size=size, epochs=epochs)


def _check(
    network: Network,
    target: TorchTarget,
    source: Source,
    threat: Threat,
    recipe: Recipe,
    objective: Objective,
) -> None:
    """Refuse a network that cannot be trained on these rows, or has nothing to train."""
    check_model(target, source)
    if target.task.refuses:
        raise InputError(
            "the model has a detector, which training does not take into account; leave it out."
        )
    x, y = source.rows(0, 256)
    rows = target.batcher.place(torch.from_numpy(x))
    if not bool(target.scores(rows).isfinite().all()):
        raise InputError(
            f"the {network.kind} gives scores that are not finite on the first rows of "
            f"{source.name}, so its loss is not either; repair its weights or its preprocessing."
        )
    _check_network(network, recipe)
    # what does not suit the rows shall not come to light after the first measurement
    labels = torch.from_numpy(np.asarray(y[:2], np.int64))
    augmentation.augmented(augmentation.parse(recipe.augment), rows[:2], labels, target, 0)
    with sealed(0):
        objective.attack_network(target)
    objective.program(target, threat)


def _check_network(network: Network, recipe: Recipe) -> None:
    """Refuse a network that has nothing to train, or not by batches of one row."""
    if not network.trains:
        raise InputError(f"the {network.kind} has no parameters to train.")
    if recipe.batch_size == 1 and network.normed:
        raise InputError(
            "the network has batch norm, which a batch of one row cannot train; give a larger "
            "batch_size."
        )
