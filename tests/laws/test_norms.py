"""Norm laws: projection, steepest step, sizes and samples of every norm."""

from __future__ import annotations

import itertools
import math
import warnings

import numpy as np
import pytest
import torch
from helpers.exact import distance, farthest
from helpers.models import CONVEX, close
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torch import Tensor

from holdfast.norms import L0, L2, NORMS, Norm, Pixels, wide
from holdfast.rng import Keys

PIXELS = Pixels()  # here of two channels
ALL = [*NORMS.values(), PIXELS]
NAMES = {norm: norm.name for norm in NORMS.values()} | {PIXELS: "pixels"}
each_norm = pytest.mark.parametrize("norm", ALL, ids=NAMES.get)
each_convex = pytest.mark.parametrize("norm", [NORMS[name] for name in CONVEX], ids=repr)
coordinate = st.one_of(st.sampled_from([0.0, 1.0, -1.0, 0.5]), st.floats(-10, 10))
pixel = st.one_of(st.sampled_from([0.0, 1.0, 0.5]), st.floats(0, 1))


@st.composite
def problems(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """d, eps, lo, hi in float64, [n, 2, f]; boxes touch 0 where a pixel stands at the edge."""
    n, f = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    d = torch.from_numpy(draw(arrays.arrays(np.float64, (n, 2, f), elements=coordinate)))
    x = torch.from_numpy(draw(arrays.arrays(np.float64, (n, 2, f), elements=pixel)))
    eps = torch.from_numpy(draw(arrays.arrays(np.float64, (n,), elements=st.floats(1e-3, 5))))
    return d, wide(eps, d), -x, 1 - x


@each_norm
@given(problem=problems())
def test_the_least_of_a_linear_function_is_exact(
    norm: Norm, problem: tuple[Tensor, Tensor, Tensor, Tensor]
) -> None:
    g, eps, lo, hi = problem
    g = torch.where(g.abs() < 1e-100, 0, g)  # whose squares the reference cannot follow
    eps = eps.clamp_min(1) if norm.grain else eps
    least = norm.least(g.requires_grad_(), eps, lo, hi)
    (slope,) = torch.autograd.grad(least.sum(), g)
    g, least = g.detach(), least.detach()
    low, high = norm.hull(eps, lo, hi)
    for i in range(len(g)):
        c, box = g[i].flatten().numpy(), [lo[i].flatten().numpy(), hi[i].flatten().numpy()]
        d = farthest(NAMES[norm], -c, float(eps[i]), *box)
        edges = low[i].flatten().numpy(), high[i].flatten().numpy()
        assert np.all((d >= edges[0] - 1e-9) & (d <= edges[1] + 1e-9))
        true = float(c @ d)
        slack = 1e-9 * (1 + np.abs(c).sum())
        assert true - slack <= float(least[i]) <= true + 1e-12 * (1 + np.abs(c).sum())
        assert float((slope[i] * g[i]).sum()) == pytest.approx(
            true, abs=1e-6 * (1 + np.abs(c).sum())
        )


@each_convex
@given(problem=problems())
def test_projection_is_legal_and_nearest(
    norm: Norm, problem: tuple[Tensor, Tensor, Tensor, Tensor]
) -> None:
    d, eps, lo, hi = problem
    q = norm.project(d, eps, lo, hi)
    assert bool((norm.size(q) <= eps.flatten() * (1 + 1e-9) + 1e-12).all())
    assert bool(((q >= lo) & (q <= hi)).all())
    for i in range(len(d)):
        # q is nearest exactly if no legal v lies further along d - q than q itself; the farthest v
        # decides.
        pull = (d - q)[i].flatten().numpy()
        v = farthest(
            NAMES[norm], pull, float(eps[i]), lo[i].flatten().numpy(), hi[i].flatten().numpy()
        )
        gap = float(pull @ (v - q[i].flatten().numpy()))
        assert gap <= 1e-9 * (1 + np.abs(pull).sum()), (
            f"row {i} has a nearer legal point: gap {gap}"
        )


@each_convex
@given(problem=problems())
def test_no_random_legal_point_is_nearer(
    norm: Norm, problem: tuple[Tensor, Tensor, Tensor, Tensor]
) -> None:
    d, eps, lo, hi = problem
    q = norm.project(d, eps, lo, hi)
    keys = Keys.of(0, torch.arange(len(d)))
    for t in range(5):
        # towards 0 in every entry, so still in the ball
        v = (eps * norm.sample(keys.fold(t), d)).clamp(lo, hi)
        assert bool(
            (((d - q) * (v - q)).flatten(1).sum(1) <= 1e-9 * (1 + d.flatten(1).abs().sum(1))).all()
        )


@each_norm
@given(problem=problems())
def test_projection_is_idempotent(
    norm: Norm, problem: tuple[Tensor, Tensor, Tensor, Tensor]
) -> None:
    d, eps, lo, hi = problem
    q = norm.project(d, eps, lo, hi)
    close(norm.project(q, eps, lo, hi), q, rtol=1e-12, atol=1e-12)


@each_norm
@given(problem=problems(), share=st.floats(0, 0.999))
def test_projection_leaves_legal_points_alone(
    norm: Norm, problem: tuple[Tensor, Tensor, Tensor, Tensor], share: float
) -> None:
    d, eps, lo, hi = problem
    legal = share * norm.project(d, eps, lo, hi)
    assert torch.equal(norm.project(legal, eps, lo, hi), legal)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@each_norm
def test_a_rows_projection_does_not_know_its_neighbours(norm: Norm, dtype: torch.dtype) -> None:
    n = 300
    keys = Keys.of(0, torch.arange(n))
    x = (keys.fold("x").uniform((2, 3), dtype) * 1.6 - 0.3).clamp(0, 1)
    lo, hi, eps = -x, 1 - x, torch.full((n, 1, 1), 0.5, dtype=dtype)
    far = keys.fold("d").normal((2, 3), dtype) * 0.5
    q = norm.project(far, eps, lo, hi)
    # At the very border of the ball, and straight out of the box from there, a comparison may go
    # either way.
    border = torch.where(q >= hi, q + 1, torch.where(q <= lo, q - 1, q))
    for d in (far, q, border):
        whole = norm.project(d, eps, lo, hi)
        alone = [
            norm.project(d[i : i + 1], eps[:1], lo[i : i + 1], hi[i : i + 1]) for i in range(n)
        ]
        assert torch.equal(torch.cat(alone), whole)


@each_norm
def test_projection_is_quiet_where_eps_is_broadcast(norm: Norm) -> None:
    d = torch.ones(2, 3)
    torch.set_warn_always(True)  # or torch says it once a process, to whoever comes first
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            norm.project(d, wide(torch.tensor(0.5).expand(2), d), -d, d)
    finally:
        torch.set_warn_always(False)


@each_norm
def test_projection_in_float32_on_many_features(norm: Norm) -> None:
    keys = Keys.of(3, torch.arange(20))
    like = torch.zeros(20, 3, 16, 16)
    x = (keys.fold("x").uniform((3, 16, 16)) * 1.5 - 0.25).clamp(0, 1)
    d = keys.fold("d").normal((3, 16, 16))
    for eps in (0.01, 0.3, 4.0):
        q = norm.project(d, wide(torch.full((20,), eps), like), -x, 1 - x)
        exact = norm.project(
            d.double(),
            wide(torch.full((20,), eps, dtype=torch.float64), like),
            -x.double(),
            (1 - x).double(),
        )
        close(q.double(), exact, rtol=0, atol=3e-5 * eps)


@each_norm
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1.0, 1e-9, 1e9, 1e-40])
@given(seed=st.integers(0, 1000))
def test_steepest_attains_the_dual(norm: Norm, dtype: torch.dtype, scale: float, seed: int) -> None:
    g = (Keys.of(seed, torch.arange(4)).normal((2, 3), torch.float64) * scale).to(dtype)
    step = norm.steepest(g)
    assert step.dtype == g.dtype
    size = norm.size(step.double())
    assert bool((size <= 1 + 1e-5).all())
    assert bool((size >= 1 - 1e-5).all()), f"gradients of scale {scale} give steps of size {size}"
    attained = (g.double() * step.double()).flatten(1).sum(1)
    close(attained, norm.dual(g.double()), rtol=1e-5, atol=0)


@each_convex
def test_dual_is_that_of_the_other_norm(norm: Norm) -> None:
    g = Keys.of(0, torch.arange(5)).normal((7,), torch.float64)
    other = {"linf": 1, "l2": 2, "l1": math.inf}[norm.name]
    own = {"linf": math.inf, "l2": 2, "l1": 1}[norm.name]
    close(norm.dual(g), torch.linalg.vector_norm(g, other, dim=1))
    close(norm.size(g), torch.linalg.vector_norm(g, own, dim=1))


@each_norm
def test_no_gradient_gives_no_step_and_leaves_neighbours_theirs(norm: Norm) -> None:
    g = torch.tensor([[[1.0, -5.0, 2.0]], [[0.0, 0.0, 0.0]], [[0.1, 0.2, -0.3]]])
    step = norm.steepest(g)
    assert bool((step[1] == 0).all())
    for i in range(3):
        assert torch.equal(step[i : i + 1], norm.steepest(g[i : i + 1]))


@each_norm
@pytest.mark.parametrize("draw", ["sample", "sphere", "extreme"])
def test_samples_lie_in_the_ball(norm: Norm, draw: str) -> None:
    like = torch.zeros(2000, 2, 3, dtype=torch.float64)
    size = norm.size(getattr(norm, draw)(Keys.of(1, torch.arange(2000)), like))
    assert bool((size <= 1 + 1e-9).all())
    if draw != "sample":
        close(size, torch.ones_like(size))


@each_convex
def test_samples_are_uniform(norm: Norm) -> None:
    n, f = 4000, 3
    d = norm.sample(Keys.of(2, torch.arange(n)), torch.zeros(n, f, dtype=torch.float64))
    # In a uniform ball the size is the f-th root of a uniform number, whatever the norm, and no
    # sign is favoured.
    assert apart(norm.size(d).numpy() ** f, np.linspace(0, 1, 100001)) < 2
    assert abs(float(d.sign().mean())) < 3.3 / math.sqrt(n * f)
    # Each entry follows the law of a uniform ball; compare with what rejection keeps of a cube.
    cube = np.random.default_rng(0).uniform(-1, 1, (200000, f))
    inside = cube[np.linalg.norm(cube, {"linf": np.inf, "l2": 2, "l1": 1}[norm.name], axis=1) <= 1]
    for column in range(f):
        assert apart(d[:, column].numpy(), inside[:, column]) < 2


def apart(sample: np.ndarray, reference: np.ndarray) -> float:
    """The two-sample statistic of Kolmogorov and Smirnov: above 1.95 by chance once in a
    thousand."""
    at = np.concatenate([sample, reference])
    share = [np.searchsorted(np.sort(s), at, side="right") / len(s) for s in (sample, reference)]
    n, m = len(sample), len(reference)
    return float(np.abs(share[0] - share[1]).max() * math.sqrt(n * m / (n + m)))


@each_norm
@pytest.mark.parametrize("features", [2, 3])
def test_corners_are_all_walked(norm: Norm, features: int) -> None:
    like = torch.zeros(1, features)
    count = 2 * features if norm in (L0, L2, NORMS["l1"]) else 2**features
    corners = {tuple(norm.corner(t, like)[0].tolist()) for t in range(count)}
    assert len(corners) == count
    assert bool((norm.size(torch.tensor(sorted(corners))) == 1).all())


def test_subnormal_gradients_keep_their_direction() -> None:
    g = torch.tensor([[3e-44, -4e-44]])
    for norm in ALL:
        assert float(norm.size(norm.steepest(g))) == pytest.approx(1, abs=1e-6)


@each_norm
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@given(problem=problems(), share=st.floats(-1.2, 1.2))
def test_the_nearest_hyperplane_is_reached_by_the_smallest_move(
    norm: Norm, dtype: torch.dtype, problem: tuple[Tensor, Tensor, Tensor, Tensor], share: float
) -> None:
    """Against bisection over eps; where the box is too small, the farthest corner."""
    g, _, lo, hi = (t.to(dtype) for t in problem)
    # past that, the bisection that it is held against gives up
    g = torch.where(g.abs() > 1e-6, g, 0)
    most = (torch.where(g * share > 0, hi, lo) * g).flatten(1).sum(1).abs()
    gap = share * most
    v = norm.reach(g, gap, lo, hi)
    assert bool(((v >= lo) & (v <= hi)).all())
    tolerance = 1e-9 if dtype == torch.float64 else 1e-4
    for i in range(len(g)):
        c, at = np.sign(share) * g[i].double().flatten().numpy(), v[i].double().flatten().numpy()
        expected = abs(float(gap[i])) if abs(share) <= 1 else float(most[i])
        assert float(c @ at) == pytest.approx(expected, rel=tolerance, abs=tolerance)
        box = lo[i].double().flatten().numpy(), hi[i].double().flatten().numpy()
        least = (
            distance(NAMES[norm], c, expected * (1 - 10 * tolerance) - 10 * tolerance, *box)
            if expected > 1e-3
            else 0
        )
        assert float(norm.size(v[i : i + 1])) >= least - 1e-6
        if abs(share) < 1 and expected > 1e-3:
            most_needed = distance(NAMES[norm], c, expected * (1 - tolerance), *box)
            assert (
                float(norm.size(v[i : i + 1]))
                <= most_needed * (1 + 100 * tolerance) + 100 * tolerance
            )


@each_norm
def test_prox_is_the_minimum(norm: Norm) -> None:
    """No point tried nearby has a lower |v - d|^2 / 2 + weight * size(v); for L0 the size is the
    sum of |v|^(2/3), of pixels that of their lengths."""
    keys = Keys.of(0, torch.arange(50))
    d, weight = keys.normal((2, 3), torch.float64), keys.fold("w").uniform((1, 1), torch.float64)

    def price(v: Tensor) -> Tensor:
        parts = norm.per_unit(v.square()).sqrt()
        size = parts.pow(2 / 3).sum(1) if norm.grain else norm.size(v)
        return (v - d).square().flatten(1).sum(1) / 2 + weight.flatten() * size

    best = norm.prox(d, weight)
    assert float(norm.size(best).sum()) < float(norm.size(d).sum())
    for t in range(30):
        shake = keys.fold(t).normal((2, 3), torch.float64)
        for v in (
            best + 0.05 * shake * (best != 0),
            best + 0.05 * shake,
            best * (1 + 0.1 * shake),
            d,
            0 * d,
        ):
            assert bool((price(v) >= price(best) - 1e-9).all())


@given(problem=problems(), k=st.integers(0, 5))
def test_no_choice_of_k_features_is_nearer(
    problem: tuple[Tensor, Tensor, Tensor, Tensor], k: int
) -> None:
    d, _, lo, hi = problem
    q = NORMS["l0"].project(d, wide(torch.full((len(d),), float(k)), d), lo, hi)
    assert bool((NORMS["l0"].size(q) <= k).all())
    inside = d.clamp(lo, hi).flatten(1)
    far = (d - q).square().flatten(1).sum(1)
    for chosen in itertools.combinations(range(inside.shape[1]), min(k, inside.shape[1])):
        other = torch.zeros_like(inside)
        other[:, list(chosen)] = inside[:, list(chosen)]
        assert bool((far <= (d.flatten(1) - other).square().sum(1) + 1e-12).all())


@given(problem=problems(), k=st.integers(0, 4))
def test_no_choice_of_k_pixels_is_nearer(
    problem: tuple[Tensor, Tensor, Tensor, Tensor], k: int
) -> None:
    d, _, lo, hi = problem
    q = PIXELS.project(d, wide(torch.full((len(d),), float(k)), d), lo, hi)
    assert bool((PIXELS.size(q) <= k).all())
    inside, far = d.clamp(lo, hi), (d - q).square().flatten(1).sum(1)
    for chosen in itertools.combinations(range(d.shape[2]), min(k, d.shape[2])):
        other = torch.zeros_like(inside)
        other[:, :, list(chosen)] = inside[:, :, list(chosen)]
        assert bool((far <= (d - other).square().flatten(1).sum(1) + 1e-12).all())


@each_norm
@given(problem=problems(), share=st.floats(0, 1))
def test_shrinking_leaves_d_by_no_more_than_its_size_asks(
    norm: Norm, problem: tuple[Tensor, Tensor, Tensor, Tensor], share: float
) -> None:
    """From d to 0, ever smaller; each point on the way is as near to d as any of its size."""
    d, _, _, _ = problem
    at = torch.full((len(d),), share, dtype=d.dtype)
    v = norm.shrink(d, at)
    far = torch.full_like(d, torch.inf)
    nearest = norm.project(d, wide(norm.size(v), d), -far, far)
    close(L2.size(d - v), L2.size(d - nearest), rtol=1e-6, atol=1e-9)
    assert bool((norm.size(norm.shrink(d, at / 2)) <= norm.size(v)).all())
    assert torch.equal(norm.shrink(d, torch.ones_like(at)), d)
    assert not bool(norm.shrink(d, torch.zeros_like(at)).any())


def test_samples_of_a_row_are_its_own_to_the_last_bit() -> None:
    """Also where a vectorised function rounds otherwise at the end of a batch."""
    like, ids = torch.zeros(20, 16, dtype=torch.float64), torch.arange(20)
    for norm in ALL:
        for seed in range(10):
            whole = norm.sample(Keys.of(seed, ids), like)
            parts = [norm.sample(Keys.of(seed, part), like[part]) for part in ids.split(3)]
            assert torch.equal(torch.cat(parts), whole)
