"""The baseline trainer on what a plain loop would trip over."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from holdfast.data import from_arrays
from holdfast.targets import TorchTarget, wrap
from holdfast.training.train import train


def test_a_last_batch_of_one_row_does_not_stop_batch_norm() -> None:
    x = np.random.default_rng(0).random((17, 4), dtype=np.float32)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    before = net[0].weight.detach().clone()
    target = wrap(net)
    assert isinstance(target, TorchTarget)
    # of 15 rows: two are held out
    trained = train(target, from_arrays(x, np.arange(17) % 2), epochs=2, batch_size=7)
    assert isinstance(trained, nn.Sequential)
    assert not trained.training
    assert not torch.equal(trained[0].weight, before)
