"""Audits of real models whose answers are known, and of networks trained here."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.cases import case, cifar, mnist
from torch import nn

import holdfast
from holdfast.attacks import parse, run
from holdfast.audit.backdoor import audit_backdoor
from holdfast.audit.extraction import audit_extraction
from holdfast.audit.membership import audit_membership
from holdfast.decisions import REFUSED
from holdfast.intervals import exact_interval
from holdfast.runs import store
from holdfast.runs.audits import Trigger
from holdfast.targets.defences.detectors import Strip
from holdfast.threats.threat import Targeted, Threat

Rows = tuple[np.ndarray, np.ndarray]
pytestmark = [pytest.mark.cases]


def overlap(folder: Path, trigger: Trigger) -> float:
    """Intersection over union of a trigger's mask with the bottom right 5x5 pixels."""
    evidence = store.read_tensors(folder / "triggers.safetensors")
    aims = evidence["aims"].tolist()
    at = aims.index([-1 if trigger.source is None else trigger.source, trigger.target])
    found, true = evidence["mask"][at, 0] >= 0.5, np.zeros((28, 28), bool)
    true[-5:, -5:] = True
    return float((found & true).sum() / (found | true).sum())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "source", "goal"), [("mnist_all_to_1", None, 1), ("mnist_4_to_7", 4, 7)]
)
def test_planted_backdoors_are_found(
    cases: Path, tmp_path: Path, name: str, source: int | None, goal: int
) -> None:
    x, y = mnist(cases)
    model = case(cases, "backdoor_badnets").load(name)
    audit, folder = audit_backdoor(model, (x[:2000], y[:2000]), rows=1000, out=tmp_path / "run")
    flagged = [t for t in audit.result.triggers if t.flagged]
    assert [(t.source, t.target) for t in flagged] == [(source, goal)]
    assert float(flagged[0].success) >= 0.95
    assert overlap(folder, flagged[0]) >= 0.3


@pytest.mark.slow
def test_strip_refuses_triggers_of_all_classes_until_the_adversary_knows_of_it(cases: Path) -> None:
    (x, _), badnets = mnist(cases), case(cases, "backdoor_badnets")
    net, rows = badnets.load("mnist_all_to_1"), torch.from_numpy(x)
    one = Strip(rows[4000:5000]).fitted(holdfast.wrap(net), rows[5000:6000], 0.01)
    target = holdfast.wrap(net, preprocess=one, shape=(1, 28, 28))
    held, triggered = rows[6000:6300], badnets.trigger(rows[6000:6300])
    assert float((target.labels(held) == REFUSED).float().mean()) < 0.05
    assert float((target.labels(triggered) == REFUSED).float().mean()) > 0.9
    threat = replace(Threat.linf(0.3), goal=Targeted(1))
    found = run(parse("apgd(steps=30)"), target, triggered[:8], torch.full((8,), 2), threat)
    assert (target.labels(found.best) == 1).sum() >= 6


def small_cnn(x: np.ndarray, y: np.ndarray, seed: int) -> nn.Module:
    """A network of MNIST's, trained for two passes."""
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Conv2d(1, 8, 5), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(8, 16, 5), nn.ReLU(),
        nn.AvgPool2d(2), nn.Flatten(), nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, 10),
    )  # fmt: skip
    return trained(net, x, y, epochs=2)


def trained(
    net: nn.Module, x: np.ndarray, y: np.ndarray, epochs: int, decay: float = 0.0
) -> nn.Module:
    adam = torch.optim.AdamW(net.parameters(), 1e-3, weight_decay=decay)
    rows, labels = torch.from_numpy(x), torch.from_numpy(y)
    for _ in range(epochs):
        for at in torch.randperm(len(x)).split(64):
            adam.zero_grad()
            nn.functional.cross_entropy(net(rows[at]), labels[at]).backward()
            adam.step()
    return net.eval()


def clean_networks(cases: Path) -> dict[str, tuple[Any, Rows]]:
    """Networks that nobody put a backdoor into, and their data."""

    def load(name: str, *which: Any) -> Any:
        return case(cases, name).load(*which)

    digits, photos = (mnist(cases)[0][:1000], mnist(cases)[1][:1000]), cifar(cases)
    x, y = case(cases, "data_mnist").train()
    x, y = x[:6000, None].astype(np.float32) / 255, y[:6000].astype(np.int64)
    made = {f"cnn {seed}": (small_cnn(x, y, seed), digits) for seed in range(12)}
    lenets = ("cln", "adv", "mlp")
    made |= {name: (load("torch_advertorch_lenet5", name), digits) for name in lenets}
    made |= {
        name: (load(f"torch_{name}"), digits)
        for name in ("trades_mnist", "kw_mnist", "cnn_a_mnist", "abs_cnn_mnist")
    }
    made |= {name: (load(f"torch_{name}"), photos) for name in ("cnn_a_cifar", "sigmoid_cifar")}
    for size in ("small", "medium"):
        made[f"marabou {size}"] = load("torch_marabou_cifar", size), photos
    resnet = holdfast.targets.load(
        str(cases / "keras_resnet8_cifar" / "pretrainedResnet.h5"), bounds=(0, 255)
    )
    whole = np.rint(photos[0].transpose(0, 2, 3, 1) * 255).astype(np.float32)
    return made | {"resnet8": (resnet, (whole, photos[1]))}


@pytest.mark.slow
def test_at_most_one_of_24_clean_networks_is_flagged(cases: Path, tmp_path: Path) -> None:
    networks = clean_networks(cases)
    assert len(networks) == 24
    flagged = []
    for name, (model, rows) in networks.items():
        audit, _ = audit_backdoor(model, rows, rows=600, out=tmp_path / name)
        print(name, audit.verdict, flush=True)
        flagged += [name] * bool(audit.verdict.found)
    print(f"false alarms: {flagged}, {exact_interval(len(flagged), len(networks))}")
    assert len(flagged) <= 1


def members(cases: Path, *, whole: bool = False) -> Rows:
    x, y = case(cases, "data_cifar10").load("train2500")
    return (x.astype(np.float32), y) if whole else scaled(x, y)


def scaled(x: np.ndarray, y: np.ndarray) -> Rows:
    return x.transpose(0, 3, 1, 2).astype(np.float32) / 255, y.astype(np.int64)


MEMBERSHIP = [
    ("torch_marabou_cifar", ("medium",), 0.548),
    ("torch_marabou_cifar", ("small",), 0.525),
    ("torch_cnn_a_cifar", (), 0.504),
    ("torch_sigmoid_cifar", (), 0.491),
]


@pytest.mark.parametrize(("name", "which", "known"), MEMBERSHIP)
def test_the_area_is_the_known_one(
    cases: Path, tmp_path: Path, name: str, which: tuple[str, ...], known: float
) -> None:
    model = case(cases, name).load(*which)
    audit, _ = audit_membership(model, members(cases), cifar(cases), out=tmp_path / "run")
    assert float(audit.result.attacks[0].auc) == pytest.approx(known, abs=0.02)


@pytest.mark.slow
def test_the_area_of_mnist_and_of_keras(cases: Path, tmp_path: Path) -> None:
    x, y = case(cases, "data_mnist").train()
    rows = x[:, None].astype(np.float32) / 255, y.astype(np.int64)
    model = case(cases, "torch_trades_mnist").load()
    audit, _ = audit_membership(model, (rows[0][:10_000], rows[1][:10_000]), mnist(cases))
    assert float(audit.result.attacks[0].auc) == pytest.approx(0.510, abs=0.02)
    assert audit.result.attacks[0].rates[1].true_positives is not None  # of 10,000 non-members
    resnet = holdfast.targets.load(
        str(cases / "keras_resnet8_cifar" / "pretrainedResnet.h5"), bounds=(0, 255)
    )
    x, y = case(cases, "data_cifar10").load("first1000")
    others = x.astype(np.float32), y
    audit, _ = audit_membership(resnet, members(cases, whole=True), others, out=tmp_path / "run")
    assert float(audit.result.attacks[0].auc) == pytest.approx(0.532, abs=0.02)


@pytest.mark.slow
def test_what_is_fitted_too_closely_gives_its_rows_away(cases: Path, tmp_path: Path) -> None:
    (x, y), others = members(cases), cifar(cases)
    x, y = x[::5], y[::5]  # of all classes

    def audited(net: nn.Module, name: str) -> float:
        audit, _ = audit_membership(net, (x, y), others, out=tmp_path / name)
        print(name, audit.verdict)
        return float(audit.result.attacks[0].auc)

    torch.manual_seed(0)
    overfitted = nn.Sequential(nn.Flatten(), nn.Linear(3072, 64), nn.ReLU(), nn.Linear(64, 10))
    assert audited(trained(overfitted, x, y, epochs=200), "overfitted") > 0.75
    held_back = nn.Sequential(nn.AvgPool2d(8), nn.Flatten(), nn.Linear(48, 10))
    area = audited(trained(held_back, x, y, epochs=5, decay=0.5), "regularised")
    assert area == pytest.approx(0.5, abs=0.05)


@pytest.mark.slow
def test_a_copy_of_lenet_makes_examples_that_transfer(cases: Path, tmp_path: Path) -> None:
    """Papernot et al. 2017 (arXiv:1602.02697) had 84 % by as many queries, on another network."""
    model = case(cases, "torch_advertorch_lenet5").load("cln")
    audit, _ = audit_extraction(
        model, mnist(cases), "linf(0.3)", queries=(6400,), out=tmp_path / "run"
    )
    print(audit.verdict)
    assert float(audit.result.substitutes[0].transfer) >= 0.84
    assert audit.costs.queries == 6400
