"""No dead option (a peer's two Adam attacks never used Adam), and no attack that chance beats."""

from __future__ import annotations

import itertools

import pytest
import torch
from helpers.catalogue import CLASSES, bounded, brief, each, every, fields_of, short, values
from helpers.models import EPS, bent, rows, run, threat, wrap

from holdfast.attacks import Attack, SearchResult, parse
from holdfast.targets import Access

N = 25


def differ(a: SearchResult, b: SearchResult) -> bool:
    return any(
        not torch.equal(column, b.columns()[name])
        for name, column in a.columns().items()
        if name != "best"
    )


def seen(attack: Attack, norm: str, seed: int, restart: int = 0, wider: int = 1) -> SearchResult:
    target = wrap(bent())
    x, y = rows(target, N)
    return run(
        attack,
        target,
        x,
        y,
        threat(norm, wider * EPS[norm]),
        seed=seed,
        restart=restart,
        stop=False,
    )


@pytest.mark.parametrize(
    ("cls", "field"),
    [(cls, field) for cls in CLASSES for field in fields_of(cls.__name__.lower())],
    ids=lambda v: v if isinstance(v, str) else v.__name__,
)
def test_every_field_changes_the_result(cls: type[Attack], field: str) -> None:
    """Two values give two ledgers; more than new noise (it is keyed by the fields too): noise has
    been taken away."""
    name = cls.__name__.lower()
    tries = values(name, field)
    assert len(tries) > 1, f"no second value is known for {field}"
    # few steps show most
    for steps, norm, wider in itertools.product((2, 6, 48), sorted(cls.norms), (1, 12)):
        # 12: shares of one feature are all alike
        first, *others = (short(name, **({"steps": steps} | {field: v})) for v in tries)
        base = still(first, norm, wider)
        if any(differ(base, still(other, norm, wider)) for other in others):
            return
    pytest.fail(f"{name} gives the same ledger for {field} in {tries}")


def still(attack: Attack, norm: str, wider: int) -> SearchResult:
    """The attack without the noise that its own spec would key: all specs share one draw."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("holdfast.attacks.attack.spec.write", lambda *_, **__: "one name")
        return seen(attack, norm, seed=0, wider=wider)


@each(0)
def test_other_seeds_give_other_noise(name: str, norm: str) -> None:
    attack = short(name, 8)
    if not attack.random or norm == "l0":  # where sizes are counts, other noise may find the same
        return
    restart = 1  # the first run of some starts at x itself
    assert differ(seen(attack, norm, 0, restart), seen(attack, norm, 1, restart))
    assert not differ(seen(attack, norm, 0, restart), seen(attack, norm, 0, restart))


@every(1)
@pytest.mark.parametrize("model_seed", [0, 20])
def test_no_attack_is_beaten_by_chance(name: str, norm: str, model_seed: int) -> None:
    """With as many queries (but too few to try all 32 corners in L1), random points break no more
    of a small net."""
    if norm == "l0":
        pytest.skip("a law of the others: chance soon tries both ends of each of 16 features")
    attack = brief(name, 15)
    target = wrap(bent(seed=model_seed))
    x, y = rows(target, 60)
    ledger = run(attack, target, x, y, threat(norm))
    chance = run(
        parse(f"sweep(steps={min(int(ledger.queries.max()), 32)})"), target, x, y, threat(norm)
    )
    assert int(chance.broken.sum()) < 60
    if attack.needs >= Access.GRADIENTS:
        # so many draws try nearly all 32 corners: more is not to be had
        exhausted = norm == "l1" and not bounded(name)
        assert int(ledger.broken.sum()) >= int(chance.broken.sum()) + (not exhausted)
    else:
        assert int(ledger.broken.sum()) > 0.85 * int(chance.broken.sum())  # itself a matter of luck
