"""Searches by labels: a flat boundary and a staircase, where the distance is known; and a peer's
bug."""

from __future__ import annotations

import math
from typing import ClassVar

import pytest
import torch
from helpers.exact import distance
from helpers.models import Narrow, bent, close, draw, linear, pick, rows, same, threat, wrap
from torch import Tensor

from holdfast.attacks import CATALOGUE, Outcome, parse, run
from holdfast.attacks.decision.cgba import CGBA
from holdfast.attacks.problem import Problem
from holdfast.attacks.shared.boundary_search import arc, find_start, normal
from holdfast.attacks.shared.sign_blocks import block
from holdfast.norms import L2, wide
from holdfast.rng import Keys
from holdfast.targets import Access, Target
from holdfast.targets.batch import Batch, Batcher, Rows
from holdfast.tasks import Classes
from holdfast.threats.threat import Targeted

N = 12
BOUNDS = {  # size over exact distance, at most
    "hopskipjump(steps=20)": 1.02,
    "rays(steps=100)": 1.002,
    "signopt(steps=20)": 1.05,
    "surfree(steps=100)": 1.05,
    "cgba(steps=20)": 1.02,
    "geoda(steps=10)": 1.3,
    "boundary(steps=600)": 1.1,
}
LABELS = [
    name
    for name in CATALOGUE
    if CATALOGUE[name]().needs == Access.LABELS
    and not CATALOGUE[name]().bounded
    and not CATALOGUE[name]().of_trees
]
each_norm = [(spec, norm) for spec in BOUNDS for norm in sorted(parse(spec).norms)]


def problem(norm: str, n: int = N, **options: object) -> Problem:
    """A search on a bent model in a far box."""
    target = wrap(bent(), bounds=(-20, 20))
    x, y = rows(target, n)
    return Problem(target, x, y, threat(norm, math.inf), Keys.of(0, torch.arange(n)), **options)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(("spec", "norm"), each_norm)
@pytest.mark.parametrize("box", [(0, 1), (-2, 3)], ids=["box active", "box far"])
def test_a_flat_boundary_is_found(spec: str, norm: str, box: tuple[float, float]) -> None:
    model = linear(2)
    target = wrap(model, bounds=box)
    x, y = rows(target, N, edge=True)
    ledger = run(parse(spec), Narrow(target, Access.LABELS), x, y, threat(norm, math.inf))
    w, b = model.w.detach().numpy(), model.b.detach().numpy()
    for row, label, found in zip(
        x.flatten(1).numpy(), y.tolist(), ledger.size.tolist(), strict=True
    ):
        c, gap = w[1 - label] - w[label], (w[label] - w[1 - label]) @ row + b[label] - b[1 - label]
        best = distance(norm, c, gap, box[0] - row, box[1] - row)
        assert best * (1 - 1e-9) <= found <= best * BOUNDS[spec]


class Tree(Target):
    """Two splits on the way to each of four leaves, and no more than a label."""

    access = Access.LABELS
    LEAVES: ClassVar = [  # boxes, and their classes
        ([(0.0, 0.6), (0.0, 1.0), (0.0, 0.7)], 0),
        ([(0.0, 0.6), (0.0, 1.0), (0.7, 1.0)], 2),
        ([(0.6, 1.0), (0.0, 0.3), (0.0, 1.0)], 2),
        ([(0.6, 1.0), (0.3, 1.0), (0.0, 1.0)], 1),
    ]

    def __init__(self) -> None:
        self.task, self.batcher = Classes(3), Batcher(dtype=torch.float64)

    def labels(self, x: Rows) -> Tensor:
        x = Batch.of(x).x
        right = torch.where(x[:, 1] > 0.3, 1, 2)
        return torch.where(x[:, 0] > 0.6, right, torch.where(x[:, 2] > 0.7, 2, 0))

    def scores(self, x: Rows) -> Tensor:
        raise AssertionError("a tree has no scores")

    def fingerprint(self) -> str:
        return "tree"

    def distances(self, norm: str, x: Tensor, y: Tensor) -> Tensor:
        """To the nearest leaf of another class: [n]."""
        order = {"linf": torch.inf, "l2": 2}[norm]
        found = torch.full((len(x),), torch.inf, dtype=x.dtype)
        for box, label in self.LEAVES:
            low, high = torch.tensor(box, dtype=x.dtype).T
            far = torch.linalg.vector_norm(x.clamp(low, high) - x, order, dim=1)
            found = torch.where(y == label, found, found.minimum(far))
        return found


@pytest.mark.parametrize(("spec", "norm"), each_norm)
def test_no_step_of_a_staircase_is_nearer_than_it_is(spec: str, norm: str) -> None:
    target = Tree()
    x = draw(20, 3, seed=3)
    y = target.labels(x)
    assert len(y.unique()) == 3
    best = target.distances(norm, x, y)
    ledger = run(parse(spec), target, x, y, threat(norm, math.inf))
    found = ledger.size.isfinite()
    assert int(found.sum()) > 15
    assert bool((ledger.size >= best * (1 - 1e-9)).all())
    assert float((ledger.size / best)[found].median()) < 1.25


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_bug_4_hopskipjump_finds_the_same_at_any_batch_size(norm: str) -> None:
    """Medians of 0.61, 0.80 and 1.25 at batch 1, 10 and 50: directions were normalised over the
    whole batch."""
    target = wrap(bent())
    x, y = rows(target, 50)
    whole = run(parse("hopskipjump(steps=3, probes=20)"), target, x, y, threat(norm, math.inf))
    for size in (1, 10):
        at = torch.arange(20, 20 + size)
        part = run(
            parse("hopskipjump(steps=3, probes=20)"),
            target,
            x[at],
            y[at],
            threat(norm, math.inf),
            ids=at,
        )
        same(part, pick(whole, at))


@pytest.mark.parametrize("n", [1, 4, 16])
def test_bug_4_every_probe_has_the_asked_radius(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked for 0.1, a peer's probes lie at 0.1, 0.05, 0.025 in batches of 1, 4, 16."""
    p, seen = problem("l2", n), []
    monkeypatch.setattr(
        p, "probes", lambda d: seen.append(d) or torch.ones(d.shape[:2], dtype=torch.bool)
    )
    d, radius = draw(*p.x.shape), 0.1 * (1 + draw(n))
    normal(p, d, radius, 30)
    away = torch.cat(seen, 1) - d[:, None]
    assert away.shape[1] == 30
    close(L2.size(away.flatten(0, 1)).view(n, 30), radius[:, None].expand(n, 30), rtol=1e-6)
    assert len(away.flatten(0, 1).flatten(1).unique(dim=0)) == 30 * n, (
        "each row has probes of its own"
    )


def test_the_normal_of_a_flat_boundary_is_found() -> None:
    model = linear(2)
    target = wrap(model, bounds=(-20, 20))
    x, y = rows(target, N)
    p = Problem(target, x, y, threat("l2", math.inf), Keys.of(0, torch.arange(N)))
    value, g = p.gradient(torch.zeros_like(x), "margin")
    g = L2.steepest(g)
    d = p.norm.reach(p.gradient(torch.zeros_like(x), "margin")[1], -value, p.lo, p.hi)
    found = L2.steepest(normal(p, d, torch.full((N,), 0.1, dtype=x.dtype), 2000))
    assert float((found * g).flatten(1).sum(1).min()) > 0.98


def test_an_arc_is_seen_at_a_right_angle() -> None:
    """Thales: from every point of it x and d lie in perpendicular directions; it begins at d and
    ends at x."""
    p = problem("l2")
    d = draw(*p.x.shape, seed=1)
    v = draw(*p.x.shape, seed=2) - 0.5
    v = L2.steepest(v - wide((v * d).flatten(1).sum(1) / L2.size(d).square(), v) * d)
    angle = draw(N, seed=3) * math.pi / 2
    point = arc(p, d, v, angle)
    close((point * (point - d)).flatten(1).sum(1), torch.zeros(N, dtype=d.dtype), atol=1e-12)
    close((point * d).flatten(1).sum(1), L2.size(point) * L2.size(d) * angle.cos())
    close(arc(p, d, v, 0 * angle), d)


@pytest.mark.parametrize("name", LABELS)
def test_a_row_without_a_start_survives(name: str) -> None:
    """Where no noise meets the goal there is nothing to begin from: a status, not an exception."""
    model = linear(3)
    model.b.data[2] = -100
    target = wrap(model)
    x, y = rows(target, N)
    for norm in parse(name).norms:
        ledger = run(
            parse(f"{name}(steps=5)"), target, x, y, threat(norm, math.inf, goal=Targeted(2))
        )
        assert ledger.outcome.tolist() == [Outcome.SURVIVED] * N
        assert int(ledger.queries.max()) <= 101


def test_a_known_example_is_a_start_where_noise_is_none() -> None:
    p = problem("l2")
    p.warm_start = p.x + 0.25
    p._counts.goal = p.target.labels(p.warm_start)
    d = find_start(p, "best")
    met = p.adversarial(d)
    assert bool(met.all())
    assert bool(((d - 0.25).abs().flatten(1).amax(1) < 1e-12).any())


def test_only_the_rows_asked_about_pay() -> None:
    target = wrap(bent())
    x, y = rows(target, N)
    asked = torch.arange(N) % 3 == 0

    class Probe(CGBA):  # asks about every third row, twice
        def start(self, p: Problem) -> Tensor:
            return p.lo

        def step(self, p: Problem, s: Tensor, t: int) -> Tensor:
            assert not bool(p.adversarial(s, asked)[~asked].any())
            return s

    ledger = run(Probe(steps=2), target, x, y, threat("l2", math.inf))
    ending = 1 + 5 * ledger.size.isfinite()  # the last point, and the ray to the best
    assert torch.equal(ledger.queries, 1 + 2 * asked + ending)


@pytest.mark.parametrize("features", [1, 3, 16, 29])
def test_the_blocks_of_a_level_are_all_the_features(features: int) -> None:
    steps, level = 0, 0
    while 2**level < 2 * features:
        covered: list[int] = []
        while len(covered) < features:
            first, last = block(steps, features, again=False)
            assert last - first <= -(-features // 2**level)
            covered += range(first, last)
            steps += 1
        assert covered == list(range(features))
        level += 1
