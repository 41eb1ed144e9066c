"""The form of a model's outputs: several tensors of any shape, which attacks see as one row of
numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Form:
    """What a model gives for one row: its tensors, flat and side by side; and of images the height
    and width, as they come in and as the model sees them after its preprocessing."""

    parts: tuple[tuple[str, tuple[int, ...]], ...] = ()  # name and shape of each, without the rows
    image: tuple[int, int] | None = None
    seen: tuple[int, int] | None = None

    @property
    def one(self) -> tuple[int, ...]:
        """The shape of the outputs where they are one tensor, else that of the whole row."""
        if len(self.parts) == 1:
            return self.parts[0][1] or (1,)
        return (sum(self.sizes),)

    @property
    def sizes(self) -> list[int]:
        """How many numbers each part is."""
        return [math.prod(shape) for _, shape in self.parts]

    def split(self, z: Tensor) -> dict[str, Tensor]:
        """Outputs z [n, k] as the tensors that the model gave, by their names: [n, *shape] each."""
        found = zip(self.parts, z.split(self.sizes, 1), strict=True)
        return {name: flat.unflatten(1, shape or (1,)) for (name, shape), flat in found}

    def __str__(self) -> str:
        return ", ".join(
            f"{name} {['n', *shape]}".replace("'", "").strip() for name, shape in self.parts
        )


def side_by_side(outputs: Mapping[str, Tensor]) -> tuple[Tensor, Form]:
    """Tensors [n, ...] as one of [n, k], and the form that takes them apart again."""
    parts = tuple((name, tuple(z.shape[1:])) for name, z in outputs.items())
    kind = torch.float64 if torch.float64 in {z.dtype for z in outputs.values()} else torch.float32
    return torch.cat([z.reshape(len(z), -1).to(kind) for z in outputs.values()], 1), Form(parts)
