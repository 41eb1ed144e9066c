"""Bounds of the networks and boxes of VNN-COMP (../shared/cases/vnn_*): no counterexample, sample
or descent lies below one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers.cases import case
from helpers.networks import smallest

import holdfast
from holdfast.bounds import Region, Rows, trace
from holdfast.norms import NORMS

pytestmark = [
    pytest.mark.cases,
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # the cases' loaders leave a file open
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
SHAPES = {
    "vnn_eran": (1, 28, 28),
    "vnn_cifar10_resnet": (3, 32, 32),
    "vnn_marabou_cifar10": (3, 32, 32),
    "vnn_oval21": (3, 32, 32),
}
CLASSES = 10


def check_case(cases: Path, name: str, instances: slice, samples: int) -> None:
    module, networks = case(cases, name), {}
    boxes, broken = module.boxes(), module.counterexamples()
    for at, instance in list(enumerate(module.instances()))[instances]:
        if instance["net"] not in networks:
            target = holdfast.load(str(cases / name / instance["net"]))
            target.bind(SHAPES[name])
            networks[instance["net"]] = target.network()
        network = networks[instance["net"]]
        low, high = (torch.tensor(side).double().reshape(1, *SHAPES[name]) for side in boxes[at])
        middle, widest = (low + high) / 2, (high - low).amax().reshape(1, 1, 1, 1)
        around = Region(NORMS["linf"], middle, widest, low - middle, high - middle)
        y = network(middle.float()).argmax(1)
        graph = trace(network, middle[:1].float())
        rows = Rows(graph, around, y)
        lower = torch.maximum(rows.climb("ibp"), rows.climb("crown"))
        others = torch.arange(CLASSES) != y
        proved = bool((lower > 0)[:, others].all())
        found = smallest(graph, around, y, 20, 10, CLASSES)
        if at in broken:
            x = torch.tensor(broken[at]).double().reshape(middle.shape).clamp(low, high)
            scores = network(x.float()).double()
            assert bool((rows.rounded <= scores.gather(1, y[:, None]) - scores)[:, others].all())
            assert instance["truth"] != "sat" or not proved, at
        for seed in range(samples // 500 * proved):
            found = torch.minimum(found, smallest(graph, around, y, 500, 0, CLASSES, seed))
        assert bool((lower <= found + 1e-9 * (1 + found.abs()))[:, others].all()), at


@pytest.mark.slow
@pytest.mark.parametrize("name", SHAPES)
def test_no_proof_is_broken(cases: Path, name: str) -> None:
    check_case(cases, name, slice(None), samples=10_000)


def test_no_proof_of_one_row_is_broken(cases: Path) -> None:
    check_case(cases, "vnn_marabou_cifar10", slice(48, 49), samples=0)
