"""What other libraries found with the same attacks on a tiny network (`references`, written once by
benchmarks/references.py): the same where the algorithm is, and nowhere worse than what is said."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from helpers.models import close
from helpers.ordinary import path
from torch import Tensor, nn

from holdfast import wrap
from holdfast.attacks import SearchResult, parse, run
from holdfast.attacks.problem import Problem
from holdfast.rng import Keys
from holdfast.targets import TorchTarget
from holdfast.threats.threat import Threat

PLACE = Path(__file__).parent / "references"
DRAWN = json.loads((PLACE / "network.json").read_text())
X, Y = torch.tensor(DRAWN["x"]).view(-1, 1, 4, 4), torch.tensor(DRAWN["y"])
PGD = "pgd(steps=10, step_size=0.25, start_at='zero', loss='ce')"
# Signs and steps alike: the last iterate is the peer's.
SAME = {"fgsm_linf": ("fgsm", 0.05), "pgd_linf": (PGD, 0.05), "pgd_l2": (PGD, 0.2)}
# The attack, eps, and by how much of the mean clean margin ours may stay above the peer's.
BOUNDED = {
    "apgd_linf": ("apgd(steps=100, loss='ce')", 0.05, 0.0),
    "apgd_l2": ("apgd(steps=100, loss='ce')", 0.2, 0.0),
    "apgd_l1": ("apgd(steps=100, loss='ce')", 0.6, 0.1),  # from another start
    "square_linf": ("square(steps=500)", 0.05, 0.0),
}
# The attack, and the least and the largest ratio of our sizes to the peer's, row by row. Ours end
# on the boundary; FAB and DeepFool of the peers end beyond it, by 1 % and by 2 %.
SIZES = {
    "fab_linf": ("fab(steps=50)", 0.99, 1.001),
    "fab_l2": ("fab(steps=50)", 0.99, 1.001),
    "fab_l1": ("fab(steps=50)", 0.99, 1.001),
    "deepfool_l2": ("deepfool", 0.97, 1.001),
    "deepfool_linf": ("deepfool", 0.97, 1.001),
    "superdeepfool_l2": ("superdeepfool", 0.97, 1.001),
    "cw_l2": ("cw(steps=1800)", 0.99, 1.005),
    "ddn_l2": ("ddn(steps=100)", 0.99, 1.001),
    "fmn_linf": ("fmn(steps=100)", 0.998, 1.001),
    "fmn_l2": ("fmn(steps=100)", 0.998, 1.001),
    "fmn_l1": ("fmn(steps=100)", 0.998, 1.001),
    "fmn_l0": ("fmn(steps=100)", 0, 1.001),
    "sigmazero_l0": ("sigmazero(steps=200)", 0, 1.001),
    "ead_l1": ("ead(steps=1800)", 0, 1.001),
}
# The attack, and how much larger ours may be than the peer's in the geometric mean over the rows:
# the starts or the noise are others.
MEANS = {
    "alma_l2": ("alma(steps=200)", 0.1),
    "pdpgd_l1": ("pdpgd(steps=200)", 0.05),
    "boundary_l2": ("boundary(steps=2000)", 0.05),
    "hopskipjump_l2": ("hopskipjump(steps=20)", 0.05),
}


def target() -> TorchTarget:
    net = nn.Sequential(nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 3))
    net.load_state_dict({name: torch.tensor(part) for name, part in DRAWN["parts"].items()})
    made = wrap(nn.Sequential(nn.Flatten(), net).eval(), shape=(1, 4, 4))
    assert isinstance(made, TorchTarget)
    return made


def threat(name: str, eps: float = math.inf) -> Threat:
    return Threat.parse(f"{name.rpartition('_')[2]}({eps})")


def theirs(name: str) -> Tensor:
    return torch.tensor(json.loads((PLACE / f"{name}.json").read_text())["examples"]).view_as(X)


def ratios(name: str, attack: str) -> Tensor:
    """Our sizes by the peer's, a row."""
    t = threat(name)
    found = run(parse(attack), target(), X, Y, t)
    return found.size / t.norm.size((theirs(name) - X).double())


def margins(x: Tensor) -> Tensor:
    z = target().scores(x)
    return z.gather(1, Y[:, None])[:, 0] - z.scatter(1, Y[:, None], -math.inf).amax(1)


def test_every_file_is_compared_and_says_where_it_is_from() -> None:
    files = {file.stem: file for file in PLACE.glob("*.json") if file.stem != "network"}
    assert files.keys() == {*SAME, *BOUNDED, *SIZES, *MEANS}
    for file in files.values():
        origin = json.loads(file.read_text())["origin"]
        assert origin["call"].endswith(")")
        assert len(origin["versions"]) == 2
        assert all(origin["versions"].values())


@pytest.mark.parametrize("name", SAME)
def test_the_last_iterate_is_the_same(name: str) -> None:
    attack, eps = SAME[name]
    ledger = SearchResult.open(X, torch.full((len(X),), math.inf, dtype=torch.float64))
    keys = Keys.of(0, torch.arange(len(X)))
    p = Problem(target(), X, Y, threat(name, eps), keys, result=ledger)
    *_, last = path(parse(attack), p)
    close(X + last.d, theirs(name), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", BOUNDED)
def test_the_margin_falls_as_far(name: str) -> None:
    attack, eps, share = BOUNDED[name]
    found = run(parse(attack), target(), X, Y, threat(name, eps))
    broken_rows = margins(theirs(name)) < 0
    assert bool(found.broken[broken_rows].all())
    left = found.margin[~broken_rows] - margins(theirs(name))[~broken_rows]
    assert float(left.max()) <= share * float(margins(X).mean()) + 1e-3


@pytest.mark.parametrize("name", SIZES)
def test_the_sizes_are_the_same_or_smaller(name: str) -> None:
    attack, least, largest = SIZES[name]
    found = ratios(name, attack)
    assert bool((found >= least).all())
    assert bool((found <= largest).all())


@pytest.mark.parametrize("name", MEANS)
def test_the_mean_size_is_hardly_larger(name: str) -> None:
    attack, share = MEANS[name]
    assert float(ratios(name, attack).log().mean().exp()) <= 1 + share
