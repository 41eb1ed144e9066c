"""Loss laws: values and directions against formulas written independently."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from helpers.models import close
from torch import Tensor

from holdfast.losses import LOSSES, ce, dlr, margin, mifpe, without
from holdfast.rng import Keys
from holdfast.tasks import Classes

N = 200


def scores(
    k: int, scale: float = 3.0, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor]:
    """z, y and an aim t != y."""
    keys = Keys.of(k, torch.arange(N))
    y = keys.fold("y").integers(k)
    return keys.normal((k,), dtype) * scale, y, (y + 1 + keys.fold("t").integers(k - 1)) % k


def value_and_gradient(
    loss: str, z: Tensor, y: Tensor, t: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    leaf = z.clone().requires_grad_()
    value = LOSSES[loss](leaf, y, t)
    return value.detach(), torch.autograd.grad(value.sum(), leaf)[0]


def parallel(a: Tensor, b: Tensor) -> bool:
    """Whether the rows point the same way."""
    return bool((F.cosine_similarity(a, b, dim=1) > 1 - 1e-9).all())


@pytest.mark.parametrize("aimed", [False, True])
@pytest.mark.parametrize("k", [2, 3, 4, 10])
def test_ce_orders_and_points_as_cross_entropy(k: int, aimed: bool) -> None:
    z, y, t = scores(k)
    value, g = value_and_gradient("ce", z, y, t if aimed else None)
    leaf = z.clone().requires_grad_()
    usual = (
        -F.cross_entropy(leaf, t, reduction="none")
        if aimed
        else F.cross_entropy(leaf, y, reduction="none")
    )
    assert parallel(g, torch.autograd.grad(usual.sum(), leaf)[0])
    order = usual.detach().argsort()
    assert bool((value[order].diff() >= 0).all())


def test_ce_does_not_vanish_where_the_softmax_saturates() -> None:
    z = torch.tensor([[300.0, 0.0, -5.0]])
    value, g = value_and_gradient("ce", z, torch.tensor([0]))
    assert float(value) == pytest.approx(-300, abs=0.01)
    close(g, torch.tensor([[-1.0, 0.9933, 0.0067]]), atol=1e-4, rtol=0)


@pytest.mark.parametrize("k", [2, 3, 4, 10])
def test_margin_is_best_wrong_less_truth(k: int) -> None:
    z, y, t = scores(k)
    rows = torch.arange(N)
    best = torch.stack([max((z[i, j] for j in range(k) if j != y[i]), key=float) for i in rows])
    close(margin(z, y), best - z[rows, y])
    close(margin(z, y, t), z[rows, t] - z[rows, y])
    close(Classes(k).margin(z, y), -margin(z, y))


@pytest.mark.parametrize("loss", LOSSES)
def test_negative_scores_change_nothing(loss: str) -> None:
    # A wrong class found by a product with a 0/1 mask would be the true class's own 0 here.
    z, y, t = scores(5)
    for aim in (None, t):
        value, g = value_and_gradient(loss, z, y, aim)
        low, low_g = value_and_gradient(loss, z - 100, y, aim)
        close(low, value, rtol=0, atol=1e-11)
        close(low_g, g, rtol=1e-9, atol=1e-11)


def test_without_never_lets_the_class_win() -> None:
    z = torch.tensor([[-3.0, -2.0, -7.0], [-3.0, -2.0, -7.0]])
    c = torch.tensor([1, 0])
    assert without(z, c).argmax(1).tolist() == [0, 1]
    assert without(z, c).amax(1).tolist() == [-3, -2]
    assert torch.equal(z, torch.tensor([[-3.0, -2.0, -7.0], [-3.0, -2.0, -7.0]]))


@pytest.mark.parametrize("k", [3, 5, 10])
def test_dlr_is_the_formula(k: int) -> None:
    z, y, _ = scores(k)
    expected = []
    for row, label in zip(z.tolist(), y.tolist(), strict=True):
        top = sorted(row, reverse=True)
        other = max(v for j, v in enumerate(row) if j != label)
        expected.append(-(row[label] - other) / (top[0] - top[2]))
    close(dlr(z, y), torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("k", [4, 5, 10])
def test_targeted_dlr_is_the_formula(k: int) -> None:
    z, y, t = scores(k)
    expected = []
    for row, label, aim in zip(z.tolist(), y.tolist(), t.tolist(), strict=True):
        top = sorted(row, reverse=True)
        expected.append(-(row[label] - row[aim]) / (top[0] - (top[2] + top[3]) / 2))
    close(dlr(z, y, t), torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("k", "aimed"), [(2, False), (2, True), (3, True)])
def test_dlr_falls_back_to_the_margin_with_few_classes(k: int, aimed: bool) -> None:
    z, y, t = scores(k)
    aim = t if aimed else None
    assert torch.equal(dlr(z, y, aim), margin(z, y, aim))


def test_mifpe_points_as_cross_entropy_of_the_scaled_scores() -> None:
    z, y, t = scores(6)
    top = z.sort(1, descending=True).values
    gap = top[:, :1] - top[:, 1:2]
    for aim in (None, t):
        value, g = value_and_gradient("mifpe", z, y, aim)
        leaf = (z / gap).requires_grad_()
        usual = (
            F.cross_entropy(leaf, y, reduction="sum")
            if aim is None
            else -F.cross_entropy(leaf, t, reduction="sum")
        )
        expected = torch.autograd.grad(usual, leaf)[0]
        # Where one class has all the mass up to rounding, cross-entropy itself knows no direction.
        known = expected.abs().amax(1) > 1e-12
        assert int(known.sum()) > N / 3
        cosine = F.cosine_similarity(g, expected, dim=1)[known]
        assert bool((cosine > 1 - 1e-4).all())
        close(value, margin(z, y, aim))


@pytest.mark.parametrize(
    ("loss", "scale"),
    # Not dlr at 1e-30: the floor of its denominator, 1e-12 in the paper, swallows the value there.
    [
        (loss, s)
        for loss in LOSSES
        for s in (1e-30, 1e-3, 1.0, 1e3, 1e30)
        if (loss, s) != ("dlr", 1e-30)
    ],
)
@pytest.mark.parametrize("k", [2, 3, 4, 9])
def test_every_loss_is_finite_and_leads_upwards(loss: str, scale: float, k: int) -> None:
    for dtype in (torch.float32, torch.float64):
        z, y, t = scores(k, scale, dtype)
        # the model is right, as on every attacked row
        y, t = z.argmax(1), (z.argmax(1) + 1 + (t - y - 1) % k) % k
        for aim in (None, t):
            value, g = value_and_gradient(loss, z, y, aim)
            assert bool(value.isfinite().all())
            assert bool(g.isfinite().all())
            assert bool((g.abs().amax(1) > 0).all())
            c, sign = (y, -1) if aim is None else (aim, 1)
            if loss != "dlr":  # its denominator moves too
                assert bool((sign * g.gather(1, c[:, None])[:, 0] >= 0).all()), (
                    "true class up, or aim down"
                )


def test_ties_give_finite_directions() -> None:
    z, y = torch.zeros(1, 5), torch.tensor([2])
    for loss in LOSSES:
        value, g = value_and_gradient(loss, z, y)
        assert bool(value.isfinite().all()), loss
        assert bool(g.isfinite().all()), loss


def test_rank_orders_the_wrong_classes() -> None:
    z = torch.tensor([[5.0, 1.0, 4.0, 3.0], [0.0, -1.0, -3.0, -2.0]])
    y = torch.tensor([2, 1])
    ranks = torch.stack([Classes(4).rank(z, y, r) for r in (1, 2, 3)], 1)
    assert ranks.tolist() == [[0, 3, 1], [0, 3, 2]]


def test_losses_do_not_mix_rows() -> None:
    z, y, t = scores(5)
    for loss in LOSSES:
        for aim in (None, t):
            whole, g = value_and_gradient(loss, z, y, aim)
            part, part_g = value_and_gradient(
                loss, z[3:4], y[3:4], None if aim is None else aim[3:4]
            )
            close(part, whole[3:4], rtol=1e-15, atol=1e-15)
            close(part_g, g[3:4], rtol=1e-14, atol=1e-15)


def test_ce_and_mifpe_know_their_aim() -> None:
    z, y = torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([0])
    for loss in (ce, mifpe):
        leaf = z.clone().requires_grad_()
        g = torch.autograd.grad(loss(leaf, y, torch.tensor([2])).sum(), leaf)[0][0]
        assert float(g[2]) > 0
