"""What outputs of a model can be taken for, and what is said of those that cannot."""

from __future__ import annotations

from torch import Tensor

from holdfast.errors import InputError, first_line


def are_shares(z: Tensor) -> bool:
    """Whether one row of outputs [1, k] could be probabilities of k classes."""
    return z.numel() > 1 and bool((z >= 0).all()) and abs(float(z.double().sum()) - 1) < 1e-3


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
            f"{said} It looks like a map of scores for each pixel; segmentation is not supported."
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
