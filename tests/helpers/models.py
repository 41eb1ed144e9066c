"""Small models and data on which the laws are tried.

The models multiply and sum instead of calling a matrix product, and know no function but max(0, .),
so each row's scores are the same bits whatever the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from holdfast import attacks
from holdfast.attacks import Attack, SearchResult
from holdfast.targets import Access, Target, TorchTarget
from holdfast.targets.batch import Batcher, Rows
from holdfast.threats.threat import Threat

SHAPE = (1, 4, 4)
CONVEX = ("linf", "l2", "l1")  # the norms whose balls are
# all pixels but the last, which says in which form a model answers
IN_FORMS = torch.arange(16).reshape(SHAPE) < 15
# that pixel's unit: so dark that nothing changes where an attack moves it to another place
FORM = 1e-9
EPS = {"linf": 0.08, "l2": 0.25, "l1": 0.7, "l0": 1}  # each breaks some rows of `bent`, and not all


POOLS = WeakKeyDictionary[Target, tuple[Tensor, Tensor]]()


def held(target: Any) -> tuple[Tensor, Tensor] | None:
    """The images of `pool`, of a target that `wrap` made or of one around such."""
    while target not in POOLS and hasattr(target, "inner"):
        target = target.inner
    return POOLS.get(target)


def run(attack: Attack, target: Target, *rows: Any, **options: Any) -> SearchResult:
    """`holdfast.attacks.run` for an attacker who holds these images."""
    return attacks.run(attack, target, *rows, **{"pool": held(target), **options})


def perturb(attack: Attack, target: Target, *rows: Any) -> Tensor:
    return attacks.perturb(attack, target, *rows, pool=held(target))


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Uniform in [0, 1)."""
    return torch.rand(
        *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    ).to(dtype)


class Linear(nn.Module):
    """Scores w x + b."""

    def __init__(self, w: Tensor, b: Tensor) -> None:
        super().__init__()
        self.w, self.b = nn.Parameter(w), nn.Parameter(b)

    def forward(self, x: Tensor) -> Tensor:
        return (x.flatten(1)[:, None] * self.w).sum(-1) + self.b


class Bent(nn.Module):
    """Two linear layers with a kink between them."""

    def __init__(self, k: int, features: int, hidden: int, seed: int, dtype: torch.dtype) -> None:
        super().__init__()
        w = (draw(hidden, features, seed=seed) * 2 - 1).to(dtype)
        v = (draw(k, hidden, seed=seed + 1) * 2 - 1).to(dtype)
        self.first = Linear(w, -w.sum(1) / 2)
        # no ties where every hidden unit is dead
        self.second = Linear(v, torch.arange(k, dtype=dtype) / 100)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).relu())


class Then(nn.Module):
    """A model whose scores are changed afterwards, by a function of the inputs and the scores."""

    def __init__(self, model: nn.Module, change: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.model, self.change = model, change

    def forward(self, x: Tensor) -> Tensor:
        return self.change(x, self.model(x))


class Forms(nn.Module):
    """A model in several forms at once: the last pixel of a row, which `IN_FORMS` keeps, says in
    which it answers.

    Form 0 is the model itself; form i gives the scores that changes[i - 1] makes of the model's.
    """

    def __init__(self, model: nn.Module, *changes: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.model, self.changes = model, changes

    def forward(self, x: Tensor) -> Tensor:
        form = (x.detach().flatten(1)[:, -1:] / FORM).round()
        ordinary = self.model(x * IN_FORMS)
        z = ordinary
        for i, change in enumerate(self.changes, 1):
            z = torch.where(form == i, change(ordinary), z)
        return z


class Narrow(Target):
    """Another target with less access."""

    def __init__(self, inner: Target, access: Access) -> None:
        self.inner, self.access = inner, access
        self.task, self.shape, self.bounds = inner.task, inner.shape, inner.bounds
        self.batcher = Batcher(dtype=inner.batcher.dtype)

    def scores(self, x: Rows) -> Tensor:
        assert self.access >= Access.SCORES, "scores asked of a target that gives labels only"
        return self.inner.scores(x)

    def labels(self, x: Rows) -> Tensor:
        return self.inner.labels(x)

    def fingerprint(self) -> str:
        return self.inner.fingerprint()


def bent(k: int = 5, *, seed: int = 0, dtype: torch.dtype = torch.float64) -> Bent:
    return Bent(k, 16, 12, seed, dtype)


def linear(
    k: int, *, features: int = 16, seed: int = 0, dtype: torch.dtype = torch.float64
) -> Linear:
    w = (draw(k, features, seed=seed) * 2 - 1).to(dtype)
    return Linear(w, -w.sum(1) / 2)


def wrap(model: nn.Module, shape: tuple[int, ...] = SHAPE, **options: object) -> TorchTarget:
    target = TorchTarget(model, shape=shape, **options)  # pyright: ignore[reportArgumentType]
    POOLS[target] = pool(target)
    return target


def pool(target: Target) -> tuple[Tensor, Tensor]:
    """Images of every class, for attacks that mix them in."""
    assert target.shape is not None
    x = draw(30, *target.shape, seed=9, dtype=target.batcher.dtype)
    return target.bounds.low + x * (target.bounds.high - target.bounds.low), torch.arange(
        30
    ) % target.task.k


def rows(
    target: Target, n: int, *, seed: int = 7, edge: bool = False, wrong: bool = False
) -> tuple[Tensor, Tensor]:
    """Inputs in [0, 1] and the model's own decisions on them.

    `edge`: half of the pixels stand exactly at 0 or 1. `wrong`: every fourth row has another label.
    """
    assert target.shape is not None
    x = draw(n, *target.shape, seed=seed, dtype=target.batcher.dtype)
    if edge:
        x = ((x * 2 - 0.5).clamp(0, 1)).to(target.batcher.dtype)
        assert bool((x == 0).any())
        assert bool((x == 1).any())
    y = target.labels(x)
    if wrong:
        y[::4] = (y[::4] + 1) % target.task.k
    return x, y


def threat(norm: str, eps: float | Tensor | None = None, **options: object) -> Threat:
    return getattr(Threat, norm)(EPS[norm] if eps is None else eps, **options)


def run_forms(
    attack: Attack,
    target: Target,
    x: Tensor,
    y: Tensor | list[Tensor],
    norm: str,
    *,
    count: int,
    **options: Any,
) -> list[SearchResult]:
    """One run on x in each of the forms of a model `Forms`: a ledger for each. `y`: the classes, or
    those in each."""
    classes = y if isinstance(y, list) else [y] * count
    inputs = x.repeat(count, *[1] * (x.ndim - 1))
    inputs.flatten(1)[:, -1] = torch.arange(count).repeat_interleave(len(x)).to(x) * FORM
    limits = {name: options.pop(name) for name in ("eps", "goal") if name in options}
    t = threat(norm, mask=IN_FORMS, **limits)
    return parts(
        run(
            attack,
            target,
            inputs,
            torch.cat(classes),
            t,
            ids=repeated_ids(len(x), count),
            **options,
        ),
        len(x),
    )


def run_sizes(
    attack: Attack,
    target: Target,
    x: Tensor,
    y: Tensor,
    norm: str,
    sizes: Sequence[float],
    **options: Any,
) -> list[SearchResult]:
    """One run on x within each eps of `sizes`: a ledger for each."""
    count = len(sizes)
    t = threat(norm, torch.tensor(sizes, dtype=torch.float64).repeat_interleave(len(x)))
    inputs, classes = x.repeat(count, *[1] * (x.ndim - 1)), y.repeat(count)
    return parts(
        run(attack, target, inputs, classes, t, ids=repeated_ids(len(x), count), **options), len(x)
    )


def repeated_ids(n: int, count: int) -> Tensor:
    """Identities of n rows, the whole set repeated `count` times: a row and its copies share their
    noise."""
    return torch.arange(n).repeat(count)


def parts(ledger: SearchResult, n: int) -> list[SearchResult]:
    """The result of each n rows."""
    return [pick(ledger, at) for at in torch.arange(len(ledger.outcome)).split(n)]


def close(a: Tensor, b: Tensor, *, rtol: float = 1e-7, atol: float = 0.0) -> None:
    """Equal up to a tolerance. (torch.testing.assert_close imports sympy first, which takes
    seconds.)"""
    assert a.dtype == b.dtype, f"{a.dtype} against {b.dtype}"
    np.testing.assert_allclose(a.detach().numpy(), b.detach().numpy(), rtol=rtol, atol=atol)


def same(
    a: SearchResult, b: SearchResult, at: Tensor | slice = slice(None), *, but: tuple[str, ...] = ()
) -> None:
    """All columns of rows `at` of a are those of b's rows `at`, to the bit."""
    for name, column in a.columns().items():
        if name not in but:
            np.testing.assert_array_equal(
                column[at].numpy(), b.columns()[name][at].numpy(), err_msg=name
            )


def pick(ledger: SearchResult, at: Tensor) -> SearchResult:
    """The result of rows `at` alone."""
    return SearchResult(**{name: column[at] for name, column in ledger.columns().items()})
