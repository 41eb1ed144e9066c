"""What outputs of a model can be taken for, and what is said of those that cannot."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from holdfast.errors import InputError, first_line, listed
from holdfast.targets.adapter import named, of_dicts


def are_shares(z: Tensor) -> bool:
    """Whether one row of outputs [1, k] could be probabilities of k classes."""
    return z.numel() > 1 and bool((z >= 0).all()) and abs(float(z.double().sum()) - 1) < 1e-3


MOST = 300  # boxes of one image that are kept of a list of dicts, the best first


def is_one(z: Any) -> bool:
    """Whether a model's output is one tensor."""
    return isinstance(z, Tensor)


def parts_of(output: Any, n: int) -> dict[str, Tensor]:
    """A model's several outputs for n rows, by name or place: [n, ...] each. Lists of dicts, one a
    row, of tensors [d, ...] are filled up with zeros to `MOST` places.

    Raises:
        InputError: a part has no row for each input.
    """
    if of_dicts(output) and len(output) == n:
        return {str(name): torch.stack([filled(row[name]) for row in output]) for name in output[0]}
    found = {name: z for name, z in flat_parts(named(output)) if isinstance(z, Tensor)}
    losses = [name for name, z in found.items() if not z.ndim and "loss" in name.lower()]
    if losses and len(losses) == len(found):
        raise InputError(
            f"the model gives losses ({listed(losses, 5)}), as a detector in train mode does: give "
            "the module itself, which is then put into eval mode, or call eval() on it first."
        )
    for name, z in found.items():
        if z.shape[:1] != (n,):
            raise InputError(
                f"the model gives {list(z.shape)} as {name} for {n} inputs; what comes first is "
                "their number."
            )
    return found


def flat_parts(found: dict[str, Any]) -> list[tuple[str, Any]]:
    """Parts by name, and those of lists within them."""
    flat: list[tuple[str, Any]] = []
    for name, part in found.items():
        if isinstance(part, (list, tuple)):
            flat += [(f"{name}.{i}", one) for i, one in enumerate(part)]
        else:
            flat.append((name, part))
    return flat


def filled(values: Tensor) -> Tensor:
    """The values [d, ...] of one row's boxes, cut or filled up with zeros: [MOST, ...]."""
    kept = values[:MOST]
    return torch.cat([kept, kept.new_zeros(MOST - len(kept), *kept.shape[1:])])


def no_scores(shape: tuple[int, ...], n: int) -> str:
    """What an output of this shape for n inputs may be, where scores [n, classes] are expected."""
    said = (
        f"the model gives {list(shape)} for {n} inputs, but a classifier gives scores [n, classes]."
    )
    if shape[:1] != (n,):
        return (
            f"{said} Keep the rows apart to the end of the model: what comes first is their number."
        )
    if len(shape) == 4:
        return (
            f"{said} It looks like a map of scores for each pixel: say --task segmentation, with a "
            "mask of classes for each image; of a detector, --task detection, with its boxes."
        )
    each = " x ".join(map(str, shape[1:]))
    return (
        f"{said} If these are {each} numbers or labels of one input, say --task "
        '"regression(tolerance=0.1)" or --task multilabel, with a truth for each; if one part of '
        "it is the scores, wrap the model in a module that returns that part, such as "
        "output[:, -1]."
    )


def unfit(error: Exception, shape: tuple[int, ...]) -> InputError:
    """A model's own error on its first input, as one sentence with the likely cause."""
    if isinstance(error, InputError):
        return error
    first = first_line(error)
    if "scalar types: Long, Int" in first or "embedding" in first.lower():
        return InputError(
            "the model looks its inputs up as whole numbers, as models of text do with tokens; "
            "only inputs that can "
            "change by a little are supported, such as images and tables of numbers."
        )
    cause = "Check the architecture, the preprocessing and the shape of the data."
    return InputError(f"the model fails on inputs of shape {shape}: {first}. {cause}")
