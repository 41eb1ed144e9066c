"""What models return: outputs of Hugging Face's kind are taken, detectors and models of text
refused in a sentence."""

from __future__ import annotations

import re
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from helpers.models import bent, close, draw
from torch import Tensor, nn

import holdfast
from holdfast.errors import InputError


class ModelOutput(OrderedDict):
    """As transformers has it: a dict that is a dataclass too, without the fields that are None."""

    def __getattr__(self, name: str) -> Any:
        return self[name]


@dataclass
class Ordinary:
    hidden: Tensor
    head: Tensor
    loss: Tensor | None = None


class Returns(nn.Module):
    def __init__(self, make: Any) -> None:
        super().__init__()
        self.inner, self.make = bent(), make

    def forward(self, pixel_values: Tensor) -> Any:
        return self.make(self.inner(pixel_values), pixel_values)


@pytest.mark.parametrize(
    ("make", "output"),
    [
        (lambda z, x: ModelOutput(logits=z), None),
        (lambda z, x: ModelOutput(logits=z, hidden_states=(x, x)), None),
        (lambda z, x: Ordinary(x, z), "head"),
    ],
)
def test_outputs_by_name(make: Any, output: str | None) -> None:
    target = holdfast.wrap(Returns(make), output=output, shape=(1, 4, 4))
    x = draw(6, 1, 4, 4)
    close(target.scores(x), bent()(x))
    z, pull = target.linearize(x)
    assert bool(pull(torch.ones_like(z) * torch.arange(5)).abs().flatten(1).amax(1).all())


def test_an_output_that_is_not_there_names_those_that_are() -> None:
    with pytest.raises(InputError, match="with hidden, head, and none was chosen"):
        holdfast.wrap(Returns(lambda z, x: Ordinary(x, z)), shape=(1, 4, 4))


def boxes(z: Tensor, x: Tensor) -> list[dict[str, Tensor]]:
    return [{"boxes": x.flatten(1)[i : i + 1, :4], "scores": z[i]} for i in range(len(x))]


class Text(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.last = nn.Embedding(1000, 4), nn.Linear(4, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.last(self.table(tokens).mean(1))


def refused(model: Any, x: np.ndarray, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        holdfast.evaluate(
            holdfast.wrap(model, **options),
            (x, np.zeros(len(x), int)),
            "linf(0.1)",
            attacks=["fgsm"],
        )
    said = str(caught.value)
    assert "\n" not in said
    assert re.search(r"not supported|only inputs that can change|--task \"detection", said)
    return said


def test_detectors_and_models_of_text_are_refused() -> None:
    x = draw(4, 1, 4, 4).float().numpy()
    assert "boxes, scores" in refused(Returns(boxes), x)
    tokens = np.arange(40).reshape(4, 10) * 20
    assert "tokens" in refused(Text(), tokens)
    assert "tokens" in refused(Text(), tokens, bounds=(0, 999))
    keras = pytest.importorskip("keras")
    entry = keras.Input((10,), dtype="int32")
    model = keras.Model(
        entry, keras.layers.Dense(2)(keras.layers.Flatten()(keras.layers.Embedding(1000, 4)(entry)))
    )
    assert "int32" in refused(model, tokens, bounds=(0, 999))
