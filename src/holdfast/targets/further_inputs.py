"""Models of several inputs, one of which is attacked: the others come in the context of a batch,
and all of them cross into the model's framework as one flat row."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from typing import Any

from torch import Tensor, nn

from holdfast.errors import InputError
from holdfast.targets.registry import of_model


def further(inputs: Sequence[tuple[int, ...]], attacked: int) -> dict[str, tuple[int, ...]]:
    """The shapes of a model's other inputs by the names that data give them: x2, x3, ..., in the
    order in which the model takes them."""
    others = [shape for i, shape in enumerate(inputs) if i != attacked]
    return {f"x{i}": shape for i, shape in enumerate(others, 2)}


Split = Callable[[Any, Callable[[Any, tuple[int, ...]], Any]], list[Any]]


def joined(model: Any, inputs: Sequence[tuple[int, ...]], attacked: int) -> Any:
    """A model of `inputs` as one of rows: the others flat, in their order, and last the attacked
    one.

    Args:
        model: a torch module, a Keras model, or a function of torch, JAX or numpy arrays.
        inputs: shapes of its inputs, in the order in which it takes them.
        attacked: the place of the one that may change.

    Raises:
        InputError: there is no such place.
    """
    if not 0 <= attacked < len(inputs):
        raise InputError(
            f"attacked is {attacked}, but the model takes {len(inputs)} inputs, numbered from 0."
        )
    order = [*(i for i in range(len(inputs)) if i != attacked), attacked]
    cuts = list(pairwise(accumulate((math.prod(inputs[i]) for i in order), initial=0)))
    spans = [cuts[order.index(i)] for i in range(len(inputs))]

    def split(rows: Any, reshape: Callable[[Any, tuple[int, ...]], Any]) -> list[Any]:
        return [
            reshape(rows[:, a:b], (-1, *shape)) for (a, b), shape in zip(spans, inputs, strict=True)
        ]

    framework = of_model(model)
    if framework is not None and framework.of_rows is not None:
        return framework.of_rows(model, split, cuts[-1][1])
    if isinstance(model, nn.Module):
        return OfRows(model, split)
    return lambda rows: model(*split(rows, lambda part, shape: part.reshape(shape)))


class OfRows(nn.Module):
    """A torch module of several inputs, given flat rows."""

    def __init__(self, model: nn.Module, split: Split) -> None:
        super().__init__()
        self.model, self.split = model, split
        self.train(model.training)

    def forward(self, rows: Tensor) -> Any:
        return self.model(*self.split(rows, Tensor.reshape))
