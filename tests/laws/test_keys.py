"""Keys laws: a draw is a function of (seed, id, path, element), and its columns are what their
names say."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from holdfast.rng import Keys

DRAWS = ["uniform", "normal", "signs"]


def draws(
    keys: Keys, kind: str, shape: tuple[int, ...] = (3, 5), dtype: torch.dtype = torch.float64
) -> Tensor:
    return getattr(keys, kind)(shape, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", DRAWS)
@given(
    ids=st.lists(st.integers(-(2**62), 2**62), min_size=1, max_size=9, unique=True),
    seed=st.integers(0, 2**40),
)
def test_a_row_draws_the_same_alone_permuted_and_split(
    kind: str, dtype: torch.dtype, ids: list[int], seed: int
) -> None:
    def of(some: list[int]) -> Tensor:
        return draws(
            Keys.of(seed, torch.tensor(some)).fold("attack", 1, "place"), kind, dtype=dtype
        )

    whole = of(ids)
    assert torch.equal(of(ids[::-1]).flip(0), whole)
    assert torch.equal(torch.cat([of([i]) for i in ids]), whole)
    assert torch.equal(torch.cat([of(ids[:2]), of(ids[2:])]) if ids[2:] else of(ids), whole)
    keep = torch.arange(0, len(ids), 2)
    kept = Keys.of(seed, torch.tensor(ids)).take(keep).fold("attack", 1, "place")
    assert torch.equal(draws(kept, kind, dtype=dtype), whole[keep])


@pytest.mark.parametrize("kind", DRAWS)
def test_every_part_of_the_path_counts(kind: str) -> None:
    ids = torch.arange(4)
    paths = [
        ("pgd", 0, 0),
        ("apgd", 0, 0),
        ("pgd", 1, 0),
        ("pgd", 0, 1),
        ("pgd", "0", 0),
        ("pgd", 0),
        (0, "pgd", 0),
    ]
    seen = [
        draws(Keys.of(seed, ids).fold(*path), kind) for seed in (0, 1, -1, 2**32) for path in paths
    ]
    rows = torch.cat(seen).flatten(1)
    assert len(rows.unique(dim=0)) == len(rows)


def test_no_two_rows_are_equal() -> None:
    # Neighbouring, far and negative ids, and multiples of the generator's own increment.
    ids = torch.cat([torch.arange(-2000, 2000), torch.arange(1, 2000) * -0x61C8864680B583EB])
    rows = Keys.of(0, ids).uniform((2,), torch.float64)
    assert len(rows.unique(dim=0)) == len(ids)


def test_elements_of_a_row_differ() -> None:
    row = Keys.of(0, torch.tensor([5])).uniform((10000,), torch.float64)
    assert len(row.unique()) == 10000


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_uniform_and_normal_have_their_moments(dtype: torch.dtype) -> None:
    keys = Keys.of(3, torch.arange(400))
    u, z = draws(keys, "uniform", (500,), dtype), draws(keys, "normal", (500,), dtype)
    assert u.dtype == z.dtype == dtype
    assert bool(((u >= 0) & (u < 1)).all())
    assert float(u.mean()) == pytest.approx(0.5, abs=0.003)
    assert float(u.var()) == pytest.approx(1 / 12, abs=0.001)
    assert bool(z.isfinite().all())
    assert float(z.mean()) == pytest.approx(0, abs=0.01)
    assert float(z.var()) == pytest.approx(1, abs=0.015)
    assert float((z**4).mean()) == pytest.approx(3, abs=0.15)
    # Neither along a row, nor along the ids, is anything correlated.
    for a, b in ((z[:, 1:], z[:, :-1]), (z[1:], z[:-1])):
        assert abs(float((a * b).mean())) < 0.01


def test_words_and_grain_have_their_laws_and_are_the_rows_own() -> None:
    ids = torch.arange(400)
    keys = Keys.of(3, ids)
    words, z = keys.words((501,)), keys.grain((501,))
    assert torch.equal(
        torch.cat([Keys.of(3, ids[i : i + 1]).grain((501,)) for i in range(9)]), z[:9]
    )
    share = torch.stack([(words >> bit & 1).double().mean() for bit in range(32)])
    assert float((share - 0.5).abs().max()) < 0.006
    assert float(z.mean()) == pytest.approx(0, abs=0.01)
    assert float(z.var()) == pytest.approx(1, abs=0.015)
    assert float((z**4).mean()) == pytest.approx(3, abs=0.15)
    assert float(z.abs().max()) < 5.95
    for a, b in ((z[:, 1:], z[:, :-1]), (z[1:], z[:-1]), (z[:, 251:], z[:, :250])):
        assert abs(float((a * b).mean())) < 0.01


def test_the_least_word_gives_the_farthest_grain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        Keys, "words", lambda _, shape: torch.full((1, *shape), -(2**31), dtype=torch.int32)
    )
    z = Keys.of(0, torch.arange(1)).grain((2,))
    assert float(z.norm()) == pytest.approx((52 * math.log(2)) ** 0.5)


def test_signs_are_balanced() -> None:
    s = Keys.of(4, torch.arange(300)).signs((300,))
    assert set(s.unique().tolist()) == {-1, 1}
    assert abs(float(s.mean())) < 0.015
    assert abs(float(s.mean(0).abs().max())) < 0.3  # no element is stuck


def test_integers_cover_their_range() -> None:
    seen = Keys.of(5, torch.arange(7000)).integers(7)
    counts = seen.bincount()
    assert len(counts) == 7
    assert bool(((counts - 1000).abs() < 150).all())


def test_a_known_value() -> None:
    # SplitMix64's published first outputs for state 1234567 (Vigna, splitmix64.c), here as one
    # row's raw stream.
    bits = Keys(torch.tensor([1234567])).bits((2,))
    assert [int(b) % 2**64 for b in bits[0]] == [6457827717110365317, 3203168211198807973]
