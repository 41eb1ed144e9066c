"""A small detector of digits below 3 in scenes of digits, and how it is trained."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from holdfast.testing import scenes_of_digits

SIDE, CELL, C = 64, 8, 3


class Grid(nn.Module):
    """Objectness, center, size and classes of each cell of 8 x 8 pixels: [n, 5 + c, 8, 8]."""

    def __init__(self) -> None:
        super().__init__()

        def block(a: int, b: int, stride: int) -> list[nn.Module]:
            return [nn.Conv2d(a, b, 3, stride, 1), nn.BatchNorm2d(b), nn.ReLU()]

        self.net = nn.Sequential(
            *block(1, 16, 2), *block(16, 32, 2), *block(32, 64, 2), *block(64, 64, 1),
            *block(64, 64, 1), nn.Conv2d(64, 5 + C, 1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def read(z: Tensor) -> tuple[Tensor, Tensor]:
    """Boxes in pixels and scores of the cells."""
    n = SIDE // CELL
    at = torch.stack(torch.meshgrid(torch.arange(n), torch.arange(n), indexing="xy"), 0).to(z)
    center = (at + 0.5 + z[:, 1:3].tanh()) * CELL
    size = 24 * z[:, 3:5].sigmoid()
    place = torch.cat([center - size / 2, center + size / 2], 1)
    scores = z[:, :1].sigmoid() * z[:, 5:].softmax(1)
    return place.flatten(2).movedim(1, 2), scores.flatten(2).movedim(1, 2)


def trained(steps: int = 500) -> Grid:
    """A detector of digits below 3."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Grid()
        data = scenes_of_digits(2000, classes=C, side=SIDE)
        x, y = torch.from_numpy(data.x), torch.from_numpy(data.boxes)
        optimizer = torch.optim.Adam(net.parameters(), 3e-3)
        for _ in range(steps):
            rows = torch.randint(len(x), (32,))
            optimizer.zero_grad()
            loss_of(net(x[rows]), y[rows]).backward()
            optimizer.step()
    return net.eval()


def loss_of(z: Tensor, y: Tensor) -> Tensor:
    """The cell at the center of each object is to find it, and no other one."""
    place, _ = read(z)
    there = y[..., 0] >= 0
    center = (y[..., 1:3] + y[..., 3:5]) / 2
    cell = (center // CELL).long().clamp(0, SIDE // CELL - 1)
    at = (cell[..., 1] * (SIDE // CELL) + cell[..., 0]) * there
    expected = torch.zeros(len(z), (SIDE // CELL) ** 2)
    expected.scatter_add_(1, at, there.float()).clamp_(0, 1)
    object_ = nn.functional.binary_cross_entropy_with_logits(z[:, 0].flatten(1), expected)
    mine = place.gather(1, at[..., None].expand(-1, -1, 4))
    box = ((mine - y[..., 1:]).abs().mean(2) * there).sum() / there.sum()
    kind = z[:, 5:].flatten(2).gather(2, at[:, None].expand(-1, C, -1))
    called = nn.functional.cross_entropy(kind, y[..., 0].long().clamp_min(0), reduction="none")
    return 10 * object_ + 0.3 * box + (called * there).sum() / there.sum()
