"""Bounds next to those that auto_LiRPA 0.7.1 gives of networks that others trained
(../shared/cases/oracle_auto_lirpa)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.cases import case

from holdfast.bounds import margins

pytestmark = pytest.mark.cases
SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("key", "method", "stored", "rows", "proved", "looser"),
    [
        ("kw_mnist_0.1", "crown", "CROWN", 10, 9, 1e-3),
        pytest.param("kw_mnist_0.1", "crown", "CROWN", 200, 193, 1e-3, marks=SLOW),
        pytest.param("cnn_a_cifar_2", "crown", "CROWN", 200, 71, 1e-3, marks=SLOW),
        pytest.param("cnn_a_mnist_0.1", "crown", "CROWN", 100, 93, 1e-3, marks=SLOW),
        # tighter by 0.54 on average, yet not everywhere: narrower intervals pick other lines
        pytest.param("cnn_a_mnist_0.3", "crown", "CROWN", 100, 1, 3e-3, marks=SLOW),
        pytest.param("marabou_small_1", "crown", "CROWN", 100, 15, 1e-3, marks=SLOW),
        # tangents of a sigmoid differ between tools, so that only counts are held to
        pytest.param("sigmoid_cifar_1", "crown", "CROWN", 100, 56, np.inf, marks=SLOW),
        pytest.param("kw_mnist_0.1", "alpha-crown", "alpha_CROWN", 50, 48, np.inf, marks=SLOW),
        pytest.param("cnn_a_mnist_0.1", "alpha-crown", "alpha_CROWN", 60, 57, np.inf, marks=SLOW),
        pytest.param("cnn_a_mnist_0.3", "alpha-crown", "alpha_CROWN", 100, 15, np.inf, marks=SLOW),
        pytest.param("marabou_small_1", "alpha-crown", "alpha_CROWN", 40, 6, np.inf, marks=SLOW),
    ],
)
def test_bounds_are_as_tight_as_those_stored(
    cases: Path, key: str, method: str, stored: str, rows: int, proved: int, looser: float
) -> None:
    oracle = case(cases, "oracle_auto_lirpa")
    known = oracle.load(key)
    x, y = (torch.from_numpy(np.asarray(part))[:rows] for part in oracle.rows(key))
    threat = f"linf({float(known['eps'])!r})"
    network, clean = oracle.net(key), known["clean"][:rows]
    found = margins(network, x, y, threat, method=method)
    assert int((found.proved.numpy() & clean).sum()) >= proved
    if method == "crown":  # what float32 rounds costs no row
        assert int((found.certified.numpy() & clean).sum()) >= proved
    if np.isfinite(looser):  # as stored: without what float32 rounds
        found = margins(network.double(), x.double(), y, threat, method=method)
    lower = found.lower.numpy()
    least = oracle.least(known["pgd"][:rows])
    assert bool((lower.min(1) <= least + 1e-4).all())  # no bound lies above what an attack found
    if known[stored].ndim == 2:
        others = np.arange(lower.shape[1]) != y.numpy()[:, None]
        lower = lower[others].reshape(rows, -1)
    else:
        lower = lower.min(1)
    widest = known[stored].max() - known[stored].min()
    assert float((known[stored][:rows] - lower).max()) <= looser * widest
