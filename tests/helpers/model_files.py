"""Texts of files that hold models, for commands that name one: `models.py:means`."""

from __future__ import annotations

MEANS = '''
import torch
from torch import nn
from holdfast.data import open_data

class Means(nn.Module):
    """The nearest class mean. It multiplies and sums: a row's scores are the same bits whatever
    the batch."""

    def __init__(self, scale=1.0):
        super().__init__()
        x, y = map(torch.from_numpy, open_data("digits", split="train").rows(0, 1437))
        means = torch.stack([x[y == c].double().mean(0).flatten() for c in range(10)])
        self.w, self.b = nn.Parameter(means * scale), nn.Parameter(-(means**2).sum(1) / 2 * scale)

    def forward(self, x):
        return (x.flatten(1)[:, None] * self.w).sum(-1) + self.b

class Spotty(Means):
    """Gives NaN off the grid that the digits lie on."""

    def forward(self, x):
        off = ((x * 16).round() - x * 16).abs().flatten(1).amax(1) > 1e-3
        return torch.where(off[:, None], torch.nan, super().forward(x))

def means(): return Means()
def other(): return Means(2.0)
def spotty(): return Spotty()
'''

LAYERS = """
import torch
from torch import nn

def normed(): return nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, 10))
def none(): return nn.Sequential(nn.Flatten(), nn.AvgPool1d(6, 6))
def two(): return nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
def function(x): return x.flatten(1)[:, :10]
def broken():
    net = normed()
    net[2].weight.data.fill_(float("nan"))
    return net
def explosive():
    net = normed()
    net[2].bias.data[0], net[2].bias.data[1] = 3e38, -3e38
    return net
"""
