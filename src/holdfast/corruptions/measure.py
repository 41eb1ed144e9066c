"""What the model says of corrupted inputs: the measurement behind `evaluate(...,
corruptions=True)`."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from holdfast.corruptions.kinds import KINDS, SEVERITIES, corrupt, table_of
from holdfast.decisions import SILENT, UNASKED
from holdfast.errors import InputError, SpecError
from holdfast.runs import store
from holdfast.runs.manifest import CorruptionInfo
from holdfast.targets.target import Access, Target, sealed
from holdfast.threats.images import channels_first, from_channels_first

VERSION = 2  # of what is made of an image; decisions of two versions are not compared
COLUMNS = tuple(f"{kind} {severity}" for kind in KINDS for severity in SEVERITIES)

# AlexNet's errors on ImageNet-C, the mean of the severities, which the paper divides by
# (arXiv:1903.12261, table 1).
ALEXNET = (0.886428, 0.894468, 0.92264, 0.81988, 0.826268, 0.785948, 0.79836, 0.866816)
ALEXNET += (0.826572, 0.819324, 0.564592, 0.853204, 0.646056, 0.71784, 0.6065)


def spoiled(target: Target, x: Tensor, column: str, ids: Tensor, seed: int) -> Tensor:
    """Inputs [n, *shape] of a target, corrupted: in its bounds, its layout and on its device.

    Raises:
        InputError: they are no images.
    """
    kind, severity = column.split()
    low, high = target.bounds.low, target.bounds.high
    image = (channels_first(x, target.inputs.layout).to(target.batcher.device).float() - low) / (
        high - low
    )
    made = corrupt(image, kind, int(severity), ids, seed) * (high - low) + low
    return from_channels_first(made, tuple(x.shape[1:]), target.inputs.layout).to(
        target.batcher.dtype
    )


def info(
    target: Target, shape: tuple[int, ...], baseline: str | Path | None, data: str
) -> CorruptionInfo:
    """What is asked, checked before any pass is spent.

    Raises:
        InputError: the inputs are no images, or the baseline is of other data or has no
            corruptions, or those of another version.
        SpecError: the baseline is AlexNet's and the model has not its 1,000 classes.
    """
    if target.inputs.context:
        raise InputError(
            "corruptions are of still images of one class each; measure other tasks without them."
        )
    spoiled(
        target,
        torch.full((1, *shape), target.bounds.low),
        COLUMNS[0],
        torch.zeros(1, dtype=torch.int64),
        0,
    )
    named, errors = _errors(baseline, target.task.k, data)
    size = tuple(channels_first(torch.zeros(1, *shape), target.inputs.layout).shape[2:])
    return CorruptionInfo(
        version=VERSION, table=table_of(size), baseline=named, baseline_errors=errors
    )


def _errors(
    baseline: str | Path | None, classes: int, data: str
) -> tuple[str | None, dict[str, float] | None]:
    if baseline is None:
        return None, None
    if str(baseline) == "alexnet":
        if classes != 1000:
            raise SpecError(
                f"the baseline alexnet is of ImageNet's 1,000 classes, but the model has {classes}."
            )
        return "alexnet", dict(zip(KINDS, ALEXNET, strict=False))
    other = store.read_manifest(Path(baseline))
    if other.metrics.corruptions is None or other.corruptions is None:
        raise InputError(f"{baseline} was measured without --corruptions, so it is no baseline.")
    if other.data.fingerprint != data:
        raise InputError(
            f"{baseline} is of other data ({other.data.spec}), so it is no baseline for these."
        )
    if (version := other.corruptions.version) != VERSION:
        raise InputError(
            f"{baseline} was measured with version {version} of the corruptions, not {VERSION}; "
            "run it again."
        )
    return str(baseline), {
        kind: float(
            np.mean(
                [
                    1 - (p.accuracy.value or 0)
                    for p in other.metrics.corruptions.points
                    if p.kind == kind
                ]
            )
        )
        for kind in KINDS
    }


def answers(
    target: Target,
    x: Tensor,
    ids: Tensor,
    seed: int,
    *,
    columns: Iterable[str] = COLUMNS,
    deadline: float = np.inf,
) -> dict[str, np.ndarray]:
    """The model's decision on each input under each corruption: [n] int32 a column; -1: none, -2:
    time ran out."""
    found = {}
    for column in columns:
        if time.monotonic() > deadline:
            found[column] = np.full(len(ids), UNASKED, dtype=np.int32)
            continue
        with sealed(seed):
            label = _decide(target, spoiled(target, x, column, ids, seed))
        found[column] = label.cpu().numpy().astype(np.int32)
    return found


def _decide(target: Target, x: Tensor) -> Tensor:
    if target.access < Access.SCORES:
        return target.batcher.in_parts(target.labels, x)
    z = target.batcher.in_parts(target.scores, x)
    return torch.where(z.isfinite().all(1), target.task.predict(z), SILENT)
