"""A small segmenter of scenes of digits, and how it is trained."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from holdfast.testing import scenes_of_digits


def trained(steps: int, n: int) -> tuple[nn.Module, Tensor, Tensor]:
    """A small segmenter of scenes of three digits, trained so long, and scenes that it has not
    seen."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 16, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 5, padding=2), nn.ReLU(),
        nn.Conv2d(32, 32, 5, padding=2), nn.ReLU(), nn.Conv2d(32, 4, 1),
    )  # fmt: skip
    known = scenes_of_digits(min(8 * steps, 256), classes=3, side=32)
    x, y = torch.from_numpy(known.x), torch.from_numpy(known.masks)
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    weight = torch.tensor([0.2, 1, 1, 1])
    for step in range(steps):
        rows = torch.arange(32 * step, 32 * step + 32) % len(x)
        z = nn.functional.interpolate(net(x[rows]), (32, 32), mode="bilinear")
        loss = nn.functional.cross_entropy(z, y[rows], weight)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    fresh = scenes_of_digits(n, seed=1, split="test", classes=3, side=32)
    return net.eval(), torch.from_numpy(fresh.x), torch.from_numpy(fresh.masks)
