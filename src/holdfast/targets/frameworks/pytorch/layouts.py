"""How images may lie in memory, and how a model may want them."""

from __future__ import annotations

from typing import Any

from torch import nn

from holdfast.targets.adapter import said_by

Reading = tuple[str, str, str]  # layout of the inputs, layout that the model wants, axis


def readings(model: Any, shape: tuple[int, ...], asked: str | None, *, flat: bool) -> list[Reading]:
    """How inputs may lie, and how the model may want them: layout, wants, axis; the likeliest
    first.

    Networks of torch and Keras have a convention, so images that nobody described lie in it. A
    plain function is likeliest given what it takes.
    """
    convention, declared = said_by(model).layout, said_by(model).shape
    if flat:  # the model takes flat rows, whatever lies in them
        return [(asked or convention, convention, "")]
    network = isinstance(model, nn.Module) or getattr(model, "trainable", None) is not None
    if declared is not None:
        convention = layout_of(declared) or convention
    if len(shape) == 2:
        layout = asked or convention
        others = [(layout, wants, "added") for wants in dict.fromkeys((convention, "nchw", "nhwc"))]
        return [(layout, convention, ""), *others]
    if len(shape) != 3:
        return [(asked or convention, convention, "")]
    first = asked or (convention if network else layout_of(shape) or convention)
    other = "nchw" if first == "nhwc" else "nhwc"
    pairs = [(first, first), (first, other), (other, first)]
    if network or declared is not None:
        pairs = [(first, convention), (other, convention)]
    dropped = [
        (layout, convention, "dropped")
        for layout, end in (("nchw", 0), ("nhwc", -1))
        if shape[end] == 1
    ]
    return [(*pair, "") for pair in dict.fromkeys(pairs)] + dropped


def remark(
    model: Any, shape: tuple[int, ...], asked: str | None, taken: Reading, likeliest: Reading
) -> str | None:
    """How the inputs were taken, where that is not what was asked for, or not the likeliest."""
    layout, wants, axis = taken
    declared = said_by(model).shape is not None
    # only one reading fits
    if taken == likeliest or (declared and not axis and not asked):
        return None
    if axis:
        return f"Inputs of shape {shape} had an axis of one channel {axis} for the model."
    if asked and layout != likeliest[0]:
        return (
            f"Inputs of shape {shape} fit the model only as {layout} images, not as "
            f"{likeliest[0]} ones."
        )
    return (
        f"Inputs of shape {shape} were taken as {layout} images, and given to the model as {wants}."
    )


def layout_of(shape: tuple[int, ...]) -> str | None:
    """The layout that a shape of images shows; None where it could be either."""
    if len(shape) != 3 or (shape[0] in (1, 3, 4)) == (shape[-1] in (1, 3, 4)):
        return None
    return "nchw" if shape[0] in (1, 3, 4) else "nhwc"
