"""Lower bounds of margins that a network is trained by: in its own dtype, with gradients to its
weights, and without what rounding takes. They prove nothing.

IBP: Gowal et al. 2018, arXiv:1810.12715. CROWN-IBP: Zhang et al. 2020, arXiv:1906.06316.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from holdfast.bounds.graph import Program
from holdfast.bounds.propagate import Rows
from holdfast.bounds.regions import Region


@contextmanager
def statistics(net: nn.Module) -> Iterator[dict[str, Tensor]]:
    """By the names of their buffers, the means and variances by which batch norms in training mode
    normalise what `net` is asked within; gradients flow through them."""
    found: dict[str, Tensor] = {}

    def keep(name: str, _: nn.Module, args: tuple[Tensor, ...]) -> None:
        x = args[0]
        axes = [axis for axis in range(x.ndim) if axis != 1]
        mean = x.mean(axes, keepdim=True)
        found[f"{name}.running_mean"] = mean.flatten()
        found[f"{name}.running_var"] = (x - mean).square().mean(axes)  # faster than torch's var

    hooks = [
        part.register_forward_pre_hook(partial(keep, name))
        for name, part in net.named_modules()
        if isinstance(part, nn.modules.batchnorm._BatchNorm) and part.training
    ]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def rows_of(
    program: Program, net: nn.Module, region: Region, y: Tensor, others: Mapping[str, Tensor]
) -> Rows:
    """The intervals of rows of classes y [n] over a region, in a network as it is now.

    Args:
        program: of a module whose `model` is a network such as `net`.
        others: constants in place of the network's own, by name.
    """
    own = {**dict(net.named_parameters(remove_duplicate=False)), **dict(net.named_buffers())}
    named = {f"model.{name}": value for name, value in (own | dict(others)).items()}
    dtype, needed = program.example.dtype, set(program.names.values())
    graph = program.graph({name: named[name] for name in named.keys() & needed}, dtype)
    return Rows(graph, region.each(lambda part: part.to(dtype)), y, unit=None)


def margins_by(rows: Rows, *, lines: bool) -> Tensor:
    """Below score of the true class less score of class j: [n, k], 0 for the true class.

    By the intervals of the last activation, or by lines in all intervals.
    """
    n, k = rows.lower.shape
    one = torch.eye(k, dtype=rows.intervals[-1][0].dtype, device=rows.y.device)
    pairs = (one[:, None] - one).flatten(0, 1)[:, None]  # of every class over every other
    every = torch.arange(k, device=rows.y.device)
    share = (rows.y[:, None] * k + every).flatten()
    at = torch.arange(n, device=rows.y.device).repeat_interleave(k)
    if lines:
        rows.draw_lines()
    return rows.backward(rows.last, at, pairs, share, through=lines)[0].view(n, k)
