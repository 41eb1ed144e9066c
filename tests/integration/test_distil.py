"""Surrogates from answers alone: the budget, what they learn, and what transfers from them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import models
from torch import Tensor, nn

import holdfast
from holdfast.attacks import parse, run
from holdfast.data import open_data
from holdfast.errors import InputError
from holdfast.evaluation.verify import verify
from holdfast.targets import Access, Target, load
from holdfast.targets.batch import Batch, Rows
from holdfast.targets.surrogate import Averaged, distil, shallow_nets
from holdfast.targets.wrappers import Surrogate
from holdfast.threats.threat import Threat


class Counting(models.Narrow):
    """Keeps what it is asked, and refuses what `refuses` says."""

    def __init__(self, inner: Target, access: Access) -> None:
        super().__init__(inner, access)
        self.asked: list[Tensor] = []

    def scores(self, x: Rows) -> Tensor:
        self.asked.append(Batch.of(x).x.clone())
        return super().scores(x)

    def labels(self, x: Rows) -> Tensor:
        self.asked.append(Batch.of(x).x.clone())
        return super().labels(x)


def digits(split: str, n: int) -> tuple[Tensor, Tensor]:
    x, y = open_data("digits", split=split).rows(0, n)
    return torch.from_numpy(np.asarray(x)), torch.from_numpy(np.asarray(y))


@pytest.fixture(scope="module")
def victim() -> Target:
    target = load("demo")
    target.bind((1, 8, 8))
    return target


@pytest.mark.parametrize(("access", "queries"), [(Access.SCORES, 2000), (Access.LABELS, 800)])
def test_a_surrogate_agrees_and_its_attacks_transfer(
    victim: Target, access: Access, queries: int
) -> None:
    counting = Counting(victim, access)
    twin = distil(counting, digits("train", 200)[0], queries=queries, epochs=5)
    assert sum(len(x) for x in counting.asked) == queries
    x, y = digits("test", 200)
    agree = float((twin.labels(x) == victim.labels(x)).double().mean())
    assert agree > 0.8
    threat = Threat.linf(0.15)
    substitute = run(parse("mifgsm"), Surrogate(counting, twin), x, y, threat)
    noise = run(parse("sweep(steps=10)"), victim, x, y, threat)
    white = run(parse("mifgsm"), victim, x, y, threat)
    assert int(white.broken.sum()) >= int(substitute.broken.sum()) > 2 * int(noise.broken.sum())


@pytest.mark.parametrize(("rows", "queries"), [(30, 7), (30, 30), (30, 31), (7, 100), (1, 5)])
def test_the_budget_is_spent_to_the_last_query_and_kept(rows: int, queries: int) -> None:
    counting = Counting(models.wrap(models.bent(dtype=torch.float32), batch_size=8), Access.LABELS)
    x = models.draw(rows, *models.SHAPE, dtype=torch.float32)
    before, kept = torch.get_rng_state(), x.clone()
    distil(counting, x, queries=queries, epochs=1)
    asked = torch.cat(counting.asked)
    assert len(asked) == queries
    assert float(asked.min()) >= 0
    assert float(asked.max()) <= 1
    assert len(asked.flatten(1).unique(dim=0)) == queries
    shifted = (asked[:, None] - x[None]).flatten(2).abs().amax(2).amin(1)
    assert int((shifted == 0).sum()) == min(rows, queries)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(x, kept)


def test_one_seed_gives_one_surrogate_and_a_given_module_is_left_alone() -> None:
    target = models.wrap(models.bent(dtype=torch.float32), (16,))
    x = models.draw(60, 16, dtype=torch.float32)
    first, again, other = (distil(target, x, queries=200, epochs=3, seed=s) for s in (1, 1, 2))
    assert first.fingerprint() == again.fingerprint() != other.fingerprint()
    module = nn.Sequential(nn.Linear(16, 9), nn.BatchNorm1d(9), nn.Tanh(), nn.Linear(9, 5))
    weights = [value.clone() for value in module.state_dict().values()]
    own = distil(target, x, queries=65, module=module, epochs=40, batch_size=16, rate=0.01)
    assert all(
        torch.equal(a, b) for a, b in zip(weights, module.state_dict().values(), strict=True)
    )
    assert float((own.labels(x) == target.labels(x)).double().mean()) > 0.8


def test_members_of_a_mean_learn_each_for_itself(victim: Target) -> None:
    x, _ = digits("train", 60)
    both = shallow_nets(victim, 2, seed=0)
    assert isinstance(both, Averaged)
    alone = Averaged([both.members[1]])
    nets = [distil(victim, x, queries=60, module=net, epochs=2).model for net in (both, alone)]  # pyright: ignore
    for name, weight in nets[1].members[0].named_parameters():
        assert torch.allclose(weight, nets[0].members[1].get_parameter(name), atol=1e-6), name
    members = torch.stack([member(x) for member in nets[0].members])
    assert torch.allclose(nets[0](x), members.mean(0))
    assert (members[0] - members[1]).abs().max() > 0.1
    assert shallow_nets(models.wrap(models.bent(), (16,)), 2, seed=0) is None


def test_images_with_channels_last_and_refusals_are_learnt_from() -> None:
    class Refusing(models.Narrow):
        layout = "nhwc"
        shape: tuple[int, ...] | None

        def labels(self, x: Rows) -> Tensor:
            x = Batch.of(x).x
            return torch.where(
                x[:, 0, 0, 0] > 0.5, -1, (x[..., 1].mean((1, 2)) > x[..., 0].mean((1, 2))).long()
            )

    x = models.draw(200, 4, 10, 2, dtype=torch.float32)
    target = Refusing(models.wrap(models.bent(2, dtype=torch.float32)), Access.LABELS)
    target.shape = None
    twin = distil(target, x, queries=300, epochs=10)
    messages = target.labels(x) >= 0
    assert float((twin.labels(x) == target.labels(x))[messages].double().mean()) > 0.8
    assert twin.linearize(x)[1](torch.ones(200, 2)).shape == x.shape
    for few, queries in ((x, 0), (x[:0], 5)):
        with pytest.raises(InputError, match="at least 1"):
            distil(target, few, queries=queries)
    x[:, 0, 0, 0] = 1
    with pytest.raises(InputError, match="refuses"):
        distil(target, x, queries=20)


def test_a_run_through_a_surrogate_holds_for_the_plain_victim(
    victim: Target, tmp_path: Path
) -> None:
    """The gradients were another model's; the evidence is the victim's own."""
    twin = distil(victim, digits("train", 300)[0], queries=300, epochs=5)
    substitute = Surrogate(models.Narrow(victim, Access.LABELS), twin)
    data = open_data("digits")
    for name, target in (("scores", Surrogate(victim, twin)), ("labels", substitute)):
        folder = tmp_path / name
        made = holdfast.evaluate(
            target,
            data,
            "linf(0.15)",
            attacks=["mifgsm", "difgsm(steps=4)"],
            samples=60,
            out=folder,
        )
        counts = made.manifest.metrics.counts
        assert counts["broken"] > 10
        assert counts["robust"] > 5
        assert made.manifest.model.surrogate == twin.fingerprint()
        assert verify(folder, load("demo"), data) == []
        assert verify(folder, twin, data)
