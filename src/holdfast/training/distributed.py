"""A group of processes that train one network together, each on its share of every step's rows.

All take the same steps: each has the same weights, order of rows and noise (which hangs on a row's
place in the step), and gradients are averaged over all rows before the step is taken. So what N
processes do is what one does, up to rounding; but a batch norm sees its process's share (the
running statistics are those of the first), and dropout draws anew in each.

It is plain torch.distributed. Lightning Fabric was tried: its DDP wrapper averages only what
`backward` leaves on the parameters, so perturbed weights, which ask for gradients of their own,
went apart; it fails on networks that do not use all of their parameters; its launcher runs the
script again; and its import takes longer than torch's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class ProcessGroup:
    """One process of `size`; alone it asks nobody."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether it is the one that writes files and tells."""
        return self.rank == 0

    def share(self, n: int) -> slice:
        """Which of n rows are this process's; of fewer than two for each, all, so that no batch
        norm sees one row."""
        if n < 2 * self.size:
            return slice(0, n)
        return slice(self.rank * n // self.size, (self.rank + 1) * n // self.size)

    def mean(self, tensors: Sequence[Tensor], n: int) -> None:
        """Replace each of these means over the share of n rows by the mean over all, in place."""
        if self.size == 1:
            return
        mine = self.share(n)
        weight = (mine.stop - mine.start) / n if n >= 2 * self.size else 1 / self.size
        flat = torch.cat([t.detach().flatten() for t in tensors]) * weight
        dist.all_reduce(flat)
        _spread(flat, tensors)

    def follow(self, tensors: Sequence[Tensor]) -> None:
        """Replace these by those of the process that leads, in place."""
        if self.size > 1 and tensors:
            flat = torch.cat([t.detach().flatten() for t in tensors])
            dist.broadcast(flat, 0)
            _spread(flat, tensors)

    def shares(self, columns: Sequence[Tensor]) -> list[float]:
        """The mean of each column over all rows, of columns over this process's share."""
        count = torch.ones_like(columns[0], dtype=torch.float64)
        sums = torch.stack([column.double().sum() for column in (*columns, count)])
        if self.size > 1:
            dist.all_reduce(sums)
        return [float(total / sums[-1]) for total in sums[:-1]]


def _spread(flat: Tensor, tensors: Sequence[Tensor]) -> None:
    with torch.no_grad():
        for t, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
            t.copy_(part.view_as(t))
