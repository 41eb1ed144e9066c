"""Square against a plain rewrite, the numbers of its paper, and inputs that are no square
images."""

from __future__ import annotations

import math

import pytest
import torch
from helpers.models import Bent, Narrow, close, rows, same, threat, wrap
from torch import Tensor

from holdfast.attacks import run
from holdfast.attacks.problem import Problem
from holdfast.attacks.score.square import Square
from holdfast.attacks.shared.image_shape import ImageShape
from holdfast.attacks.shared.square_proposals import VARIANTS, Bumps
from holdfast.errors import SpecError
from holdfast.rng import Keys
from holdfast.targets import Access

SHAPE = (2, 5, 6)
EPS = {"linf": 0.03, "l2": 0.4, "l1": 2.0}


def problem(
    shape: tuple[int, ...] = SHAPE, norm: str = "linf", n: int = 6, ids: Tensor | None = None
) -> Problem:
    target = wrap(Bent(4, math.prod(shape), 12, 0, torch.float64), shape)
    x, y = rows(target, n, edge=math.prod(shape) > 1)
    if ids is not None:
        x, y = x[ids], y[ids]
    return Problem(
        target,
        x,
        y,
        threat(norm, EPS[norm]),
        Keys.of(3, torch.arange(len(x)) if ids is None else ids),
    )


def test_the_share_is_the_papers() -> None:
    shares = [
        Square().share(t) * 784
        for t in (0, 10, 11, 50, 51, 201, 501, 1001, 2001, 4001, 6001, 8001, 9999)
    ]
    assert [round(math.sqrt(s)) for s in shares] == [25, 25, 18, 18, 13, 9, 6, 4, 3, 2, 2, 1, 1]
    assert Square(schedule=100).share(3) == 0.8 / 2**3  # as after 300 of 10,000


@pytest.mark.parametrize(
    ("side", "share", "linf", "l2"), [(28, 0.8, 25, 25), (28, 0.4, 18, 19), (28, 1e-4, 1, 3)]
)
def test_windows_are_the_papers(side: int, share: float, linf: int, l2: int) -> None:
    shape = ImageShape(1, side, side, (side * side, side, 1))
    assert shape.window(share, 1, False) == (linf, linf)
    assert shape.window(share, 3, True) == (l2, l2)
    assert ImageShape(1, 4, 4, (16, 4, 1)).window(0.8, 3, True) == (4, 4)


@pytest.mark.parametrize(("h", "w"), [(1, 100), (100, 1), (10, 40), (40, 10), (3, 3)])
def test_autoattack_95_a_window_keeps_its_area_where_it_is_no_square(h: int, w: int) -> None:
    for share in (0.8, 0.2, 0.05):
        a, b = ImageShape(1, h, w, (h * w, w, 1)).window(share, 1, False)
        assert 1 <= a <= h
        assert 1 <= b <= w
        assert a == b or a * b == pytest.approx(share * h * w, rel=0.1)


@pytest.mark.parametrize("shape", [(7,), (5, 4)])
def test_channels_last_says_nothing_of_inputs_without_channels(shape: tuple[int, ...]) -> None:
    p = problem(shape, "linf")
    first = ImageShape.of(p)
    p.layout = "nhwc"
    assert ImageShape.of(p) == first


@pytest.mark.parametrize("shape", [(7,), (5, 4), (3, 4, 5), (2, 3, 4, 5), (1, 1, 1)])
@pytest.mark.parametrize("norm", EPS)
def test_inputs_need_not_be_images(shape: tuple[int, ...], norm: str) -> None:
    p = problem(shape, norm)
    ledger = run(Square(steps=40), p.target, p.x, p.y, threat(norm, EPS[norm]))
    clean = p.target.task.margin(p.target.scores(p.x), p.y)
    assert int((ledger.margin < clean).sum()) > 0


def test_channels_may_stand_last() -> None:
    first = Bent(4, 60, 12, 0, torch.float64)
    ordinary, last = wrap(first, SHAPE), wrap(first, (5, 6, 2), layout="nhwc")
    x, y = rows(ordinary, 8)
    for norm, eps in EPS.items():
        a = run(Square(steps=20), ordinary, x, y, threat(norm, eps))
        b = run(Square(steps=20), last, x.movedim(1, -1), y, threat(norm, eps))
        close(b.best.movedim(-1, 1), a.best, rtol=0, atol=1e-12)
        assert torch.equal(a.forwards, b.forwards)


def test_autoattack_one_square_for_the_whole_batch_is_not_ours() -> None:
    """Rows change in different places, and in the same as when alone."""
    p, alone = problem(), problem(ids=torch.tensor([4]))
    shape, rule = ImageShape.of(p), VARIANTS["linf"]
    d = torch.zeros_like(p.x)
    shifted = rule.paint(p, shape, d, 2, 2)
    assert len((shifted != 0).flatten(1).unique(dim=0)) > 1
    assert torch.equal(rule.paint(alone, shape, d[:1], 2, 2)[0], shifted[4])


@pytest.mark.parametrize("norm", EPS)
def test_windows_reach_every_pixel(norm: str) -> None:
    """The last row and column too."""
    p = problem(norm=norm, n=40)
    shape, seen = ImageShape.of(p), torch.zeros(SHAPE, dtype=torch.bool)
    start = VARIANTS[norm].start(p)
    for p.t in range(40):
        seen |= (VARIANTS[norm].paint(p, shape, start, 3, 3) != start).any(0)
    assert bool(seen.all())


def test_no_query_is_spent_on_the_point_that_is_known() -> None:
    """One plane, one pixel: half of all signs stand there already, and are flipped."""
    target = wrap(Bent(4, 25, 12, 0, torch.float64), (1, 5, 5), bounds=(-9, 10))
    x, y = rows(target, 20)
    p = Problem(target, x, y, threat("linf"), Keys.of(0, torch.arange(20)))
    rule, shape = VARIANTS["linf"], ImageShape.of(p)
    d = rule.start(p)
    for p.t in range(20):
        new = rule.paint(p, shape, d, 1, 1)
        assert bool(((new != d).flatten(1).sum(1) == 1).all())
        d = new


def test_stripes_are_vertical_and_of_full_size() -> None:
    p = problem((3, 5, 6))
    p.lo, p.hi = torch.full_like(p.lo, -9), torch.full_like(p.hi, 9)
    d = VARIANTS["linf"].start(p)
    assert torch.equal(d, d[:, :, :1].expand_as(d))
    close(d.abs(), torch.full_like(d, EPS["linf"]))
    assert len(d[:, :, 0].unique(dim=0)) > 1


def ring_sum(rows: int, columns: int, fade: int) -> Tensor:
    """The paper's sum over nested rectangles, drawn one on the other."""
    image = torch.zeros(rows, columns, dtype=torch.float64)
    for k in range(max(rows, columns) // 2 + 1):
        top, left = rows // 2 - k, columns // 2 - k
        image[max(top, 0) : top + 2 * k + 1, max(left, 0) : left + 2 * k + 1] += 1 / (k + 1) ** fade
    return image


@pytest.mark.parametrize(("power", "fade"), [(2, 2), (1, 4)])
@pytest.mark.parametrize(("a", "b"), [(5, 5), (3, 3), (4, 4), (1, 1), (1, 6), (3, 7)])
def test_bumps_are_two_piles_of_rectangles(a: int, b: int, power: int, fade: int) -> None:
    upright, lying = (
        Bumps(power, fade).shapes(a, b, torch.zeros(1, dtype=torch.float64)).view(2, a, b)
    )

    def pile(h: int, w: int) -> Tensor:
        halves = [ring_sum(k, w, fade) for k in (h // 2, h - h // 2)]
        halves = [
            m / torch.linalg.vector_norm(m.flatten(), power) if m.numel() else m for m in halves
        ]
        both = torch.cat([halves[0], -halves[1]])
        return both / torch.linalg.vector_norm(both.flatten(), power)

    close(upright, pile(a, b), rtol=1e-12, atol=1e-15)
    close(lying, pile(b, a).T, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("norm", EPS)
def test_the_path_is_that_of_a_plain_rewrite(norm: str) -> None:
    attack = Square(steps=25, schedule=40)
    for i in range(2):
        p = problem(norm=norm, ids=torch.tensor([i]))
        state = attack.start(p)
        d, value = state.d.clone(), float(state.value)
        for t in range(attack.steps):
            p.t = t + 1
            state = attack.step(p, state, t)
            new = ordinary(p, d, norm, attack.share(t))
            found = float(p.value(new, "margin"))
            if found > value:
                d, value = new, found
            close(state.d, d, rtol=0, atol=1e-9)


def ordinary(p: Problem, d: Tensor, norm: str, share: float) -> Tensor:
    """A proposal for one image, pixel by pixel (algorithms 2 and 3)."""
    c, h, w = SHAPE
    eps, new = float(p.eps), d.clone()
    if norm == "linf":
        a = b = max(round(math.sqrt(share * h * w)), 1)
        u = p.noise("square").uniform((2 + c,))[0].tolist()
        top, left = int(u[0] * (h - a + 1)), int(u[1] * (w - b + 1))
        for turn in (1, -1):
            for j in range(c):
                sign = -turn if u[2 + j] < 0.5 else turn
                for r in range(top, top + a):
                    for s in range(left, left + b):
                        low, high = float(p.lo[0, j, r, s]), float(p.hi[0, j, r, s])
                        new[0, j, r, s] = min(max(sign * eps, low), high)
            if not torch.equal(new, d):
                break
        return new
    power, over, rule = (2, 1.0, VARIANTS["l2"]) if norm == "l2" else (1, 3.0, VARIANTS["l1"])
    a = max(round(math.sqrt(share * h * w)), 3)
    a = b = min(a + 1 - a % 2, h)
    u = p.noise("square").uniform((5 + c,))[0].tolist()
    boxes = [(int(u[k] * (h - a + 1)), int(u[k + 1] * (w - b + 1))) for k in (0, 2)]
    first, second = ([(r, s) for r in range(y, y + a) for s in range(x, x + b)] for y, x in boxes)
    bump = rule.shapes(a, b, d)[int(u[4] * 2)].tolist()
    free = max(eps**power - float(d.abs().pow(power).sum()), 0) / c
    for j in range(c):
        paid = sum(abs(float(d[0, j, r, s])) ** power for r, s in {*first, *second})
        length = sum(abs(float(d[0, j, r, s])) ** power for r, s in first) ** (1 / power)
        mixed = [float(d[0, j, r, s]) / (length or 1) for r, s in first]
        mixed = [m + (-v if u[5 + j] < 0.5 else v) for m, v in zip(mixed, bump, strict=True)]
        size = sum(abs(m) ** power for m in mixed) ** (1 / power)
        for r, s in second:
            new[0, j, r, s] = 0
        for (r, s), m in zip(first, mixed, strict=True):
            new[0, j, r, s] = over * m / size * (free + paid) ** (1 / power)
    return p.project(new)


def test_the_best_known_point_is_where_it_goes_on() -> None:
    p = problem(n=12)
    x, y = p.x, p.y
    first = run(Square(steps=60), p.target, x, y, threat("linf", EPS["linf"]))
    left = ~first.broken
    x, y, best = x[left], y[left], first.best[left]
    again = run(
        Square(steps=1, start_at="best"),
        p.target,
        x,
        y,
        threat("linf", EPS["linf"]),
        warm_start=best,
    )
    assert 0 < int(left.sum()) < 12
    assert bool((again.margin <= first.margin[left] + 1e-12).all())
    fresh = run(Square(steps=1), p.target, x, y, threat("linf", EPS["linf"]))
    assert float(fresh.margin.sum()) > float(again.margin.sum())


def test_scores_are_enough_and_one_is_asked_a_step() -> None:
    p = problem(n=10)
    few = Narrow(p.target, Access.SCORES)
    a = run(Square(steps=20), few, p.x, p.y, threat("linf", 1e-3), stop=False)
    same(a, run(Square(steps=20), p.target, p.x, p.y, threat("linf", 1e-3), stop=False))
    assert bool((a.backwards == 0).all())
    # clean, start, steps; the last point again where it was not the last asked
    assert bool((a.forwards <= 23).all())


@pytest.mark.parametrize("spec", [{"p": 0.0}, {"p": 1.5}, {"schedule": 0}, {"start_at": "ball"}])
def test_values_that_mean_nothing_are_refused(spec: dict[str, float]) -> None:
    with pytest.raises(SpecError, match="square"):
        Square(**spec)  # pyright: ignore[reportArgumentType]


def test_a_margin_that_does_not_fall_changes_nothing() -> None:
    """The kept point's loss never falls from step to step."""
    p = problem(n=10)
    attack = Square(steps=50)
    state = attack.start(p)
    for t in range(50):
        p.t = t + 1
        after = attack.step(p, state, t)
        assert bool((after.value >= state.value).all())
        stays = after.value == state.value
        assert torch.equal(after.d[stays], state.d[stays])
        state = after
