"""The trees of a target."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from holdfast.errors import InputError
from holdfast.targets.adapter import Adapter
from holdfast.targets.target import Target
from holdfast.targets.threshold import Threshold
from holdfast.targets.trees import NO_TREES, Trees, samples
from holdfast.targets.wrappers import itself
from holdfast.threats.table.schema import Schema
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


def has_trees(target: Target) -> bool:
    """Whether the target decides as the sum of leaves that can be read."""
    try:
        trees_of(target)
    except InputError:
        return False
    return True


def changes(target: Target, threat: Threat, x: Tensor, slack: float = 0.0) -> dict[str, Any]:
    """How features of rows x [n, f] may change, as `holdfast.bounds.trees.exact` takes it: `box`,
    `scale`, `whole` and `levels`.

    Of a schema that is what each feature may do by itself: all legal rows are within it, and others
    where there are groups or relations.

    Args:
        slack: by what share of itself a side of a schema's box is moved outwards, as a judge lets
            it.
    """
    shape = target.shape or ()
    parts = {"scale": torch.ones(shape), "mask": torch.ones(shape)} | threat.limits
    scale = parts["scale"].double() * parts["mask"]
    if threat.schema is None:
        low, high = target.bounds.sides(torch.zeros(1, dtype=torch.float64))
        return {"box": (np.asarray(low), np.asarray(high)), "scale": scale.numpy()}
    features = threat.schema.features
    low, high = (side.numpy() for side in threat.schema.limits(x.cpu()))
    return {
        "box": (low - slack * abs(low), high + slack * abs(high)),
        "scale": (scale * threat.schema.unit).numpy(),
        "whole": np.array([one.whole for one in features]),
        "levels": {
            j: np.sort(np.array(one.levels, np.float32))
            for j, one in enumerate(features)
            if one.levels
        },
    }


def follows(schema: Schema | None) -> bool:
    """Whether `changes` says all that a schema asks for: no group, relation or derived feature."""
    return schema is None or not (schema.groups or schema.conditions)
