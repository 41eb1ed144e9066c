"""The trees of a target."""

from __future__ import annotations

import numpy as np
import torch

from holdfast.errors import InputError
from holdfast.targets.adapter import Adapter
from holdfast.targets.target import Target
from holdfast.targets.threshold import Threshold
from holdfast.targets.trees import NO_TREES, Trees, samples
from holdfast.targets.wrappers import itself
from holdfast.threats.threat import Threat


def trees_of(target: Target) -> Trees:
    """The trees behind a target, which decide as it does.

    Raises:
        InputError: it is no ensemble of trees of numbers, or something stands before or behind it.
    """
    target = itself(target)
    if isinstance(target, Threshold):
        return target.of_trees(trees_of(target.inner))
    inner = getattr(target, "model", None)
    if not isinstance(inner, Adapter):
        raise InputError(NO_TREES)
    if (
        getattr(target, "preprocess", ())
        or target.inputs.context
        or target.head.truth_task is not None
    ):
        raise InputError(
            "trees are read as they are: without preprocess, of one table of numbers, and of a "
            "classifier."
        )
    trees = inner.trees()
    if target.shape is None:
        target.bind(inner.shape or (trees.features,))
    assert target.shape is not None
    if len(target.shape) != 1:
        raise InputError(f"trees are read of rows of numbers, but an input is {target.shape}.")
    x = torch.from_numpy(samples(trees, target.shape[0]))
    z = torch.from_numpy(trees.scores(x.numpy()))
    top = z.topk(2, 1).values
    clear = top[:, 0] - top[:, 1] > trees.rounding
    if z.shape[1] != target.task.k or not bool((target.labels(x) == z.argmax(1))[clear].all()):
        raise InputError("the model does not decide as the leaves of its trees add up.")
    return trees


def ball(target: Target, threat: Threat) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """What a feature's change is measured in, [f] (0: it may not change), and the sides of the
    box."""
    shape = target.shape or ()
    parts = {"scale": torch.ones(shape), "mask": torch.ones(shape)} | threat.limits
    low, high = target.bounds.sides(torch.zeros(1, dtype=torch.float64))
    return (parts["scale"].double() * parts["mask"]).numpy(), (np.asarray(low), np.asarray(high))
