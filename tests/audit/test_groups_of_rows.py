"""The groups that a planted trigger leaves among the rows of one label."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from holdfast.audit.groups import apart_of, features, spectral, two_groups
from holdfast.audit.labels import MOST_AGREEING, NEIGHBOURS, agreeing, twins
from holdfast.targets import wrap


def labelled(n: int, planted: int, offset: float, seed: int = 0):
    """Rows of one label, of which some are of another kind with a trigger; rows of other labels;
    what a layer makes of the first, which sees the trigger."""
    draw = np.random.default_rng(seed)
    own, other = draw.normal(0, 0.3, (n - planted, 40)), draw.normal(0, 0.3, (planted + 400, 40))
    own[:, :5] += 4
    other[:, 5:10] += 4 * draw.integers(0, 2, (len(other), 1))
    stamped = other[:planted].copy()
    stamped[:, -1] = 9
    x = np.concatenate([own, stamped])
    values = np.concatenate([own, other[:planted]]) @ draw.normal(0, 0.1, (40, 16))
    values[len(own) :, 0] += offset
    return x, other[planted:], values, np.arange(n) >= len(own)


@pytest.mark.parametrize("planted", [40, 200, 260])
@pytest.mark.parametrize("seed", [0, 1])
def test_planted_rows_are_found(planted: int, seed: int) -> None:
    x, others, values, truth = labelled(400, planted, 9.0, seed)
    found = two_groups(values, x, others, seed)
    assert found is not None
    assert found.flagged
    assert (found.planted == truth).mean() > 0.99


@pytest.mark.parametrize("seed", range(5))
def test_rows_of_one_kind_are_not_flagged(seed: int) -> None:
    x, others, values, _ = labelled(400, 0, 0.0, seed)
    found = two_groups(values, x, others, seed)
    assert found is not None
    assert not found.flagged


def test_two_kinds_of_honest_rows_are_not_flagged() -> None:
    """A one with a foot and one without: the model tells them apart, but neither looks like other
    labels."""
    draw = np.random.default_rng(0)
    kinds = np.arange(400) % 2
    x = draw.normal(0, 1, (400, 40))
    x[:, :5] += 6 * kinds[:, None] + 6
    values = draw.normal(0, 1, (400, 8))
    values[:, 0] += 9 * kinds
    found = two_groups(values, x, draw.normal(0, 1, (400, 40)), 0)
    assert found is not None
    assert found.gap > 4
    assert not found.flagged


def test_the_order_of_the_rows_changes_nothing_but_rounding() -> None:
    x, others, values, _ = labelled(400, 100, 9.0)
    order = np.random.default_rng(3).permutation(400)
    one, two = two_groups(values, x, others, 0), two_groups(values[order], x[order], others, 0)
    assert one is not None
    assert two is not None
    assert two.gap == pytest.approx(one.gap)
    assert np.array_equal(two.planted, one.planted[order])
    assert np.allclose(spectral(values)[order], spectral(values[order]))


def test_too_few_rows_have_no_groups() -> None:
    x, others, values, _ = labelled(400, 100, 9.0)
    assert two_groups(values[:30], x[:30], others, 0) is None
    assert two_groups(values, x, others[:5], 0) is None


def test_a_shift_that_all_share_is_not_what_sets_rows_apart() -> None:
    draw = np.random.default_rng(0)
    x, others = draw.normal(0, 1, (200, 10)), draw.normal(0, 1, (200, 10))
    shifted = apart_of(x + 50, others, 0)
    assert shifted == pytest.approx(apart_of(x, others, 0))
    assert apart_of(x * 0.1, others, 0) > 3 * shifted


def test_features_are_what_the_last_layer_takes() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 7), nn.ReLU(), nn.Linear(7, 3)).eval()
    x = torch.rand(5, 1, 4, 4)
    found = features(wrap(net, shape=(1, 4, 4)), x)
    assert torch.allclose(found, net[:3](x).double(), atol=1e-6)


def test_a_wrong_label_has_no_neighbour_of_its_own() -> None:
    draw = np.random.default_rng(0)
    y = np.arange(300) % 3
    values = draw.normal(0, 1, (300, 6)) + 20 * np.eye(6)[y]
    wrong = np.array([5, 70, 200])
    said = y.copy()
    said[wrong] = (y[wrong] + 1) % 3
    found = agreeing(values, said)
    assert set(np.flatnonzero(found <= MOST_AGREEING)) == set(wrong)
    assert (agreeing(values, y) == NEIGHBOURS).all()


def test_rows_that_occur_twice_are_found_and_those_of_two_labels() -> None:
    draw = np.random.default_rng(0)
    x = draw.random((200, 50))
    y = np.arange(200) % 2
    x[10], x[31], x[60] = x[12], x[30], x[90] + 0.009  # 10, 12 and 60, 90 have one label
    found = twins(x, y, 1.0)
    assert set(np.flatnonzero(found.twice)) == {10, 12, 30, 31, 60, 90}
    assert set(np.flatnonzero(found.at_odds)) == {30, 31}
    x[60] = x[90] + 0.011
    assert not twins(x, y, 1.0).twice[60]


def test_rows_that_the_model_sees_as_one_have_no_groups() -> None:
    x = np.random.default_rng(0).random((60, 5))
    assert two_groups(np.ones((60, 4)), x, x, 0) is None
