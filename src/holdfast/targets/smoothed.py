"""Randomised smoothing: a model whose answer is the class that it gives most often under noise.

Labels are enough, so any model can be smoothed, an endpoint too. What is proved of a smoothed model
is in `holdfast.certification.smoothing`.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property

import torch
from torch import Tensor

from holdfast import spec
from holdfast.data.columns import Column
from holdfast.decisions import REFUSED, SILENT
from holdfast.errors import AccessError, InputError
from holdfast.rng import Keys, content
from holdfast.targets.batch import Batch, Rows
from holdfast.targets.exact_noise import Table
from holdfast.targets.smoothing_noise import Lattice, Smoothing
from holdfast.targets.target import Access, Cost, Target, sealed
from holdfast.targets.wrappers import Around


class Smoothed(Around):
    """A model that answers with the class that another one, its `inner`, gives most often under
    noise; it refuses where the votes show no majority.

    Inputs go to the nearest point of a lattice, the noise is drawn exactly and added as a whole
    number of its steps, and nothing is clipped. A draw is a function of the seed, what the input
    holds and the number of the draw. An answer that is no class (NaN, or none at all) counts
    against every class.

    Args:
        inner: the model whose answers are counted; its labels are enough.
        smoothing: the noise and the votes.
        seed: of the noise.

    Raises:
        InputError: it is no model of k classes, or sigma is far from the range of its inputs.
    """

    access = Access.LABELS

    def __init__(self, inner: Target, smoothing: Smoothing, seed: int = 0) -> None:
        self.smoothing, self.seed = smoothing, seed
        self.lattice = Lattice(inner.bounds, smoothing.sigma)
        self.known: dict[
            bytes, tuple[int, int]
        ] = {}  # by the hash of an input: its class, and votes
        super().__init__(inner)

    def _check(self) -> None:
        if (task := self.inner.head.truth_task) is not None:
            raise InputError(f"smoothing counts votes for classes, and this is a model of {task}.")
        if self.inner.inputs.context:
            raise InputError("smoothing adds noise to one input, and this model takes several.")
        if self.inner.shape is not None and self.inner.task.refuses:
            raise InputError(
                "smoothing is of the bare model, and this one has a detector before it."
            )

    def of_table(self, columns: Sequence[Column]) -> Target:
        if odd := [column.name for column in columns if column.values]:
            raise InputError(
                f"column {odd[0]} holds texts, to which no noise can be added: smoothing takes "
                "tables of numbers."
            )
        return super().of_table(columns)

    @property
    def cost(self) -> Cost:
        one = self.inner.cost
        return replace(one, forwards=self.smoothing.asked * one.forwards)

    @cached_property
    def table(self) -> Table:
        return self.smoothing.table(self.lattice.step)

    def scores(self, x: Rows) -> Tensor:
        raise AccessError("a smoothed model gives labels alone: the classes that are voted.")

    def labels(self, x: Rows) -> Tensor:
        voted, votes = self.votes(x)
        label = torch.where(self.radii(votes) > 0, voted, REFUSED)
        return torch.where(voted < 0, SILENT, label).to(Batch.of(x).x.device)

    def radii(self, votes: Tensor) -> Tensor:
        """Within what distance of its point of the lattice a class that got so many of the draws is
        the only answer: [n] float64; 0: it is not even there."""
        apart = math.prod(self.shape or ()) * self.table.apart
        lower = [self.smoothing.lower(k) for k in votes.tolist()]
        found = [max(self.smoothing.radius(chance, apart), 0.0) for chance in lower]
        return torch.tensor(found, dtype=torch.float64)

    def votes(self, x: Rows) -> tuple[Tensor, Tensor]:
        """The class that the first votes choose (negative: none got any), and how many of the draws
        it gets: [n], [n] int64."""
        batch = self._asked(x)
        found = list[tuple[int, int]]()
        for i, name in enumerate(self._names(batch.x)):
            if name not in self.known:
                self.known[name] = self._counted(batch[i : i + 1])
            found.append(self.known[name])
        voted, votes = torch.tensor(found, dtype=torch.int64).reshape(-1, 2).unbind(1)
        return voted, votes

    def remember(self, x: Tensor, voted: Tensor, votes: Tensor) -> None:
        """What was counted for inputs before, so that it is not counted again."""
        pairs = zip(voted.tolist(), votes.tolist(), strict=True)
        self.known |= dict(zip(self._names(self._asked(x).x), pairs, strict=True))

    def chosen(self, x: Rows) -> Tensor:
        """The class that the first votes choose, asked for now: [n] int64."""
        batch = self._asked(x)
        return torch.tensor([self._first(batch[i : i + 1]) for i in range(len(batch))])

    def _asked(self, x: Rows) -> Batch:
        """Rows as a judge has them: in the numbers that the model takes."""
        batch = Batch.of(x)
        return batch.to(batch.x.device, self.inner.batcher.dtype)

    def _names(self, x: Tensor) -> list[bytes]:
        """A hash of the point of the lattice of each input."""
        places = self.lattice.places(x.cpu()).flatten(1).contiguous()
        return [hashlib.sha256(row.numpy().tobytes()).digest() for row in places]

    def _counted(self, row: Batch) -> tuple[int, int]:
        voted = self._first(row)
        if voted < 0:
            return voted, 0
        return voted, int(self._tally(row, "count", self.smoothing.draws)[voted])

    def _first(self, row: Batch) -> int:
        tally = self._tally(row, "choose", self.smoothing.first)
        return int(tally.argmax()) if tally.any() else SILENT

    def _tally(self, row: Batch, what: str, n: int) -> Tensor:
        """How many of n answers under noise each class gets: [k]."""
        batcher, shape = self.inner.batcher, tuple(row.x.shape[1:])
        row = row.to(batcher.device, row.x.dtype)
        places = self.lattice.places(row.x)
        own = Keys(content(self.lattice.at(places))).fold(self.seed, "votes", what)

        def ask(part: slice) -> Tensor:
            numbers = torch.arange(part.start, part.stop, device=row.x.device)
            noise = self.table.draw(own.draws(numbers), shape)
            x = self.lattice.at(places + noise).to(batcher.dtype)
            return self.inner.labels(row[torch.zeros_like(numbers)].with_x(x))

        with sealed(self.seed):
            given = torch.cat([labels.cpu() for labels in batcher.parts(ask, n)])
        k = self.task.k
        return torch.bincount(given[(given >= 0) & (given < k)], minlength=k)

    def describe(self) -> dict[str, object]:
        said = {"smoothing": spec.write(self.smoothing, whole=True)}
        return super().describe() | {"access": self.access.name.lower()} | said
