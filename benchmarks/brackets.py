"""Between what the robust accuracy of shared networks lies: proved, and not broken by a protocol.

python benchmarks/brackets.py [kw] [cnn_a] [rsl18a] [colt] [eran] [--rows 200] [--threads 1]

All 10,000 rows of `kw` in 15 minutes of two cores: `kw --rows 10000 --threads 2`.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from common import CASES, case, loader, mnist, need
from torch import Tensor, nn

import holdfast
from holdfast.bounds import METHODS, margins
from holdfast.certification import Ladder
from holdfast.reporting.words import percent

# A model, inputs and classes of as many rows, a threat, a protocol.
Case = tuple[Any, tuple[Tensor, Tensor], str, str]


def kw(rows: int) -> Case:
    return case("torch_kw_mnist"), mnist(rows), "linf(0.1)", "quick"


def cnn_a(rows: int) -> Case:
    with np.load(need(CASES / "torch_cnn_a_cifar") / "sdp_cifar200.npz") as stored:
        x = torch.tensor(stored["x"][:rows]).permute(0, 3, 1, 2).float() / 255
        y = torch.tensor(stored["y"][:rows]).long()
    return case("torch_cnn_a_cifar"), (x, y), "linf(2/255)", "standard"


def rsl18a(rows: int) -> Case:
    folder = need(CASES / "npz_rsl18a_mnist")
    parts = [torch.tensor(np.load(folder / f"{name}.npy")) for name in ("W1", "B1", "W2", "B2")]
    net = nn.Sequential(nn.Flatten(), nn.Linear(784, 500), nn.ReLU(), nn.Linear(500, 10))
    names = ("1.weight", "1.bias", "3.weight", "3.bias")
    given = [part.T if part.ndim == 2 else part.flatten() for part in parts]
    net.load_state_dict(dict(zip(names, given, strict=True)))
    return net.eval(), mnist(rows), "linf(0.1)", "quick"


def colt(rows: int) -> Case:
    file = need(CASES / "onnx_colt_mnist") / "mnist_0.1.onnx"
    model = holdfast.load(str(file), preprocess=holdfast.Normalize(0.1307, 0.3081))
    return model, mnist(min(rows, 100)), "linf(0.1)", "quick"


def bracket(make: Callable[[int], Case], rows: int, seconds: float) -> str:
    model, (x, y), threat, protocol = make(rows)
    run = holdfast.evaluate(model, (x, y), threat, protocol=protocol, certifier=Ladder(seconds))
    proved = run.certified_accuracy
    assert proved is not None
    by = ", ".join(f"{n} by {method}" for method, n in run.metrics.certified_by.items())
    return (
        f"{threat}, {len(x)} rows: clean {percent(run.clean_accuracy.value)}, proved "
        f"{percent(proved.value)} ({by}), not broken by {protocol} "
        f"{percent(run.robust_accuracy.value)}"
    )


class Spanned(nn.Module):
    """A network on u in [0, 1] that spans a box of its own inputs."""

    def __init__(self, network: nn.Module, low: Tensor, high: Tensor) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("low", low)
        self.register_buffer("width", high - low)

    def forward(self, u: Tensor) -> Tensor:
        return self.network(self.low + u * self.width)


def eran(rows: int, _: float) -> str:
    """How many of the stored instances each method proves, by what is known of them."""
    module, networks, counts = loader("vnn_eran"), {}, Counter[tuple[str, str]]()
    for at, instance in list(enumerate(module.instances()))[:rows]:
        name = instance["net"]
        if name not in networks:
            target = holdfast.load(str(CASES / "vnn_eran" / name))
            target.bind((1, 28, 28))
            networks[name] = target.network()
        low, high = (torch.tensor(side).reshape(1, 1, 28, 28) for side in module.boxes()[at])
        network, y = Spanned(networks[name], low, high), torch.tensor([instance["label"]])
        middle, truth = torch.full_like(low, 0.5), instance["truth"]
        counts[truth, "instances"] += 1
        for method in METHODS:
            found = margins(network, middle, y, "linf(0.5)", method=method)
            if found.certified.all():
                counts[truth, method] += 1
                break
    return "; ".join(f"{truth} {what}: {n}" for (truth, what), n in sorted(counts.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    made: dict[str, Callable[[int, float], str]] = {
        make.__name__: partial(bracket, make) for make in (kw, cnn_a, rsl18a, colt)
    }
    made["eran"] = eran
    parser.add_argument("names", nargs="*", choices=[[], *made])
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--seconds-per-row", type=float, default=Ladder.seconds_per_row)
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    for name in asked.names or made:
        begun, spent = time.monotonic(), time.process_time()
        said = made[name](asked.rows, asked.seconds_per_row)
        wall, cpu = time.monotonic() - begun, time.process_time() - spent
        print(f"{name} {said}; {cpu:.0f} CPU seconds, {wall:.0f} s", flush=True)


if __name__ == "__main__":
    main()
