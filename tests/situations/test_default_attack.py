"""`attack` without a name of an attack runs one that the threat and the model allow."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import holdfast
from holdfast.errors import SpecError

WEIGHTS = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
X = torch.tensor([[0.7, 0.2], [0.3, 0.9]])
Y = torch.tensor([0, 1])


def linear() -> torch.nn.Module:
    net = torch.nn.Linear(2, 2, bias=False)
    net.weight.data = WEIGHTS
    return net


@pytest.mark.parametrize("norm", ["linf", "l2", "l1", "l0"])
def test_an_eps_of_inf_gets_a_search_for_the_smallest_change(norm: str) -> None:
    result = holdfast.attack(linear(), X, Y, f"{norm}(inf)")
    assert result.success.all()
    if norm == "linf":  # half of the distance between the features
        np.testing.assert_allclose(result.size, [0.25, 0.3], rtol=0.05)


def test_scores_and_labels_alone_get_an_attack_that_needs_no_more() -> None:
    def scores(x: np.ndarray) -> np.ndarray:
        return x @ WEIGHTS.numpy().T

    def labels(x: np.ndarray) -> np.ndarray:
        return scores(x).argmax(1)

    blind = holdfast.wrap(scores)
    blinder = holdfast.wrap(labels, gives="labels", classes=2)
    for target in (blind, blinder):
        assert holdfast.attack(target, X.numpy(), Y.numpy(), "linf(0.4)").success.all()


def test_a_search_in_a_ball_names_those_that_seek_the_smallest_in_this_norm() -> None:
    with pytest.raises(SpecError, match=r"in l0: .*sigmazero") as caught:
        holdfast.attack(linear(), X, Y, "l0(inf)", "pgd")
    assert "ddn" not in str(caught.value)
