"""What protocols find where the truth is known: proved instances, exact solvers, exact distances.

    python benchmarks/truth.py [--only NAME ...] [--protocols quick standard] [--rows 100] [--docs]

The cases:

- marabou: 51 instances of three CIFAR-10 networks, for each of which an example of one class is
  stored; small, medium and large.
- hard: 20 images of the CNN-A of MNIST, for each of which an exact solver has an example where 54
  runs of PGD-100 found none.
- rsl18a: a network of one hidden layer whose error under attack lies between 14.36 and 30.81 % of
  all 10,000 rows, by integer programs; the first --rows are measured.
- binary: the CNN of MNIST that sees pixels as 0 or 1; an attack that knows that leaves 50.6 % of
  500 rows. The first --rows are measured.
- colt: the first 100 images of a network that is proved on them: what breaks here is a fault.
- tiny: 40 digits and a network of 16 hidden units, whose smallest changes in Linf integer programs
  (scipy's HiGHS) give.

Seconds are those of the CPU. --docs renews the table of docs/protocols.md.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from common import CASES, ROOT, case, loader, mnist, need, options, save, table
from scipy.optimize import Bounds as Box
from scipy.optimize import LinearConstraint, milp
from sklearn.datasets import load_digits
from torch import Tensor, nn

import holdfast
from holdfast.threats.threat import Targeted, as_threat


@dataclass(frozen=True)
class Known:
    """Rows of a model under a threat, and how many of them are known to break."""

    model: Any
    x: Tensor
    y: Tensor
    threat: Any
    breaks: int | None  # None: not known
    sizes: np.ndarray | None = None  # the smallest changes


def marabou(_: int) -> Iterator[Known]:
    """The instances with a stored example, by network and eps."""
    module, groups = loader("vnn_marabou_cifar10"), dict[tuple[str, float], list[Any]]()
    boxes = module.boxes()
    for instance in module.instances():
        if instance["truth"] == "sat":
            groups.setdefault((instance["net"], instance["eps"]), []).append(instance)
    for (net, eps), instances in groups.items():
        (lo, hi) = (
            np.stack([boxes[instance["i"]][side] for instance in instances]) for side in (0, 1)
        )
        x = np.where(lo > 0, lo + eps, hi - eps).reshape(-1, 32, 32, 3).clip(0, 1)
        aims = [_aim(instance["unsafe_any_of"]) for instance in instances]
        y = torch.tensor([instance["centre_pred"] for instance in instances])
        threat = holdfast.Threat.linf(eps, goal=Targeted(torch.tensor(aims)))
        model = str(CASES / "vnn_marabou_cifar10" / net)
        yield Known(model, torch.tensor(x).float(), y, threat, len(instances))


def _aim(unsafe: list[Any]) -> int:
    """The class that an instance asks to have the highest score."""
    (aim,) = {int(y[2:]) for row, _ in unsafe[0] for y, c in row.items() if c < 0}
    return aim


def hard(_: int) -> Iterator[Known]:
    at = np.loadtxt(need(CASES / "torch_cnn_a_mnist") / "mip_unsafe_idx.txt", dtype=int)
    x, y = mnist(10_000)
    yield Known(case("torch_cnn_a_mnist"), x[at], y[at], as_threat("linf(0.3)"), len(at))


def rsl18a(rows: int) -> Iterator[Known]:
    w1, b1, w2, b2 = (torch.tensor(part).float() for part in loader("npz_rsl18a_mnist").params())
    net = nn.Sequential(nn.Flatten(), nn.Linear(784, 500), nn.ReLU(), nn.Linear(500, 10))
    given = {"1.weight": w1.T, "1.bias": b1.ravel(), "3.weight": w2.T, "3.bias": b2.ravel()}
    net.load_state_dict(given)
    yield Known(net.eval(), *mnist(rows), as_threat("linf(0.1)"), None)


def binary(rows: int) -> Iterator[Known]:
    net = loader("torch_abs_cnn_mnist").load(binarize=True)
    yield Known(net, *mnist(min(rows, 500)), as_threat("linf(0.3)"), None)


def colt(_: int) -> Iterator[Known]:
    file = str(need(CASES / "onnx_colt_mnist") / "mnist_0.1.onnx")
    net = holdfast.load(file, preprocess=holdfast.Normalize(0.1307, 0.3081))
    yield Known(net, *mnist(100), as_threat("linf(0.1)"), 0)


def tiny(_: int) -> Iterator[Known]:
    images, classes = load_digits(return_X_y=True)
    x, y = torch.tensor(images / 16).float().view(-1, 1, 8, 8), torch.tensor(classes)
    net = _trained(x, y)
    with torch.no_grad():
        right = (net(x).argmax(1) == y).nonzero()[:40, 0]
    x, y = x[right], y[right]
    sizes = np.array([_smallest(net, row, int(of)) for row, of in zip(x, y, strict=True)])
    yield Known(net, x, y, as_threat("linf(inf)"), len(x), sizes)


def _trained(x: Tensor, y: Tensor) -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
    steps = torch.optim.Adam(net.parameters(), 0.01)
    for _ in range(200):
        steps.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        steps.step()
    return net.eval()


def _smallest(net: nn.Module, x: Tensor, y: int) -> float:
    """The smallest change of a row in Linf, within [0, 1], after which another class wins or ties:
    looked for in a ball that grows until there is one."""
    (w1, b1, w2, b2) = (part.detach().double().numpy() for part in net.parameters())
    given, radius = x.double().numpy().ravel(), 0.02
    while True:
        found = [
            _within(given, radius, w1, b1, w2[other] - w2[y], b2[y] - b2[other])
            for other in set(range(len(w2))) - {y}
        ]
        if min(found) < np.inf:
            return min(found)
        radius *= 1.5


def _within(
    x: np.ndarray, radius: float, w: np.ndarray, b: np.ndarray, gain: np.ndarray, need: float
) -> float:
    """The smallest change of x, at most so far, for which <gain, relu(w input + b)> >= need; inf
    for none. Variables: the input, what the hidden units give, whether each is on, the size."""
    units, inputs = w.shape
    least, most = (x - radius).clip(0, 1), (x + radius).clip(0, 1)
    low = b + np.maximum(w, 0) @ least + np.minimum(w, 0) @ most
    high = b + np.maximum(w, 0) @ most + np.minimum(w, 0) @ least
    one, none, own = np.eye(inputs), np.zeros, np.eye(units)
    size, still = np.ones((inputs, 1)), none((units, 1))
    low, high = np.minimum(low, 0), np.maximum(high, 0)
    rules = [
        (np.hstack([one, none((inputs, 2 * units)), -size]), -np.inf, x),
        (np.hstack([one, none((inputs, 2 * units)), size]), x, np.inf),
        (np.hstack([-w, own, none((units, units)), still]), b, np.inf),
        (np.hstack([-w, own, np.diag(-low), still]), -np.inf, b - low),
        (np.hstack([none((units, inputs)), own, np.diag(-high), still]), -np.inf, 0),
        (np.concatenate([none(inputs), gain, none(units + 1)]), need, np.inf),
    ]
    solved = milp(
        np.eye(inputs + 2 * units + 1)[-1],
        integrality=np.repeat([0, 0, 1, 0], [inputs, units, units, 1]),
        bounds=Box(
            np.concatenate([least, none(2 * units + 1)]),
            np.concatenate([most, high, np.ones(units), [radius]]),
        ),
        constraints=[LinearConstraint(*rule) for rule in rules],
    )
    return np.inf if solved.x is None else float(solved.fun)


CASES_OF: dict[str, Callable[[int], Iterator[Known]]] = {
    case.__name__: case for case in (marabou, hard, rsl18a, binary, colt, tiny)
}


def measured(name: str, protocol: str, rows: int) -> dict[str, Any]:
    """What a protocol finds of a case."""
    total: dict[str, Any] = dict.fromkeys(("rows", "wrong", "broken", "passes", "seconds"), 0)
    ratios, breaks = list[float](), 0
    for known in CASES_OF[name](rows):
        began = time.process_time()
        run = holdfast.evaluate(
            known.model, (known.x, known.y.numpy()), known.threat, protocol=protocol
        )
        total["seconds"] += time.process_time() - began
        status = run.samples.column("status").to_pylist()
        total["rows"] += len(status)
        total["broken"] += status.count("broken")
        total["wrong"] += len(status) - status.count("broken") - status.count("robust")
        costs = run.manifest.costs
        total["passes"] += costs.forwards + costs.backwards
        breaks += known.breaks or 0
        total["known"] = "" if known.breaks is None else breaks
        if known.sizes is not None:
            ratios += (run.samples.column("size").to_numpy() / known.sizes).tolist()
    if ratios:
        total["sizes"] = f"{np.median(ratios):.4f} median, {np.max(ratios):.3f} at most"
    return {"case": name, "protocol": protocol, **total}


def line(found: dict[str, Any]) -> list[Any]:
    rows = found["rows"]
    return [
        *(found["case"], found["protocol"], rows, found["known"], found["broken"]),
        f"{100 * (found['broken'] + found['wrong']) / rows:.2f} %",
        *(found.get("sizes", ""), f"{found['passes'] / rows:.0f}", f"{found['seconds']:.0f}"),
    ]


HEAD = ["case", "protocol", "rows", "known to break", "broken", "error", "size over the exact one"]
HEAD += ["passes a row", "CPU s"]


def into_docs(text: str) -> None:
    path = ROOT / "docs" / "protocols.md"
    new, times = re.subn(
        r"(<!-- truth -->\n).*?(<!-- /truth -->)",
        lambda m: f"{m[1]}\n{text}\n\n{m[2]}",
        path.read_text(encoding="utf-8"),
        flags=re.DOTALL,
    )
    assert times == 1, f"{path} has no place for the table: <!-- truth --> ... <!-- /truth -->"
    path.write_text(new, encoding="utf-8")


def main() -> None:
    also: dict[str, dict[str, Any]] = {
        "--only": {"nargs": "+", "default": list(CASES_OF), "choices": list(CASES_OF)},
        "--protocols": {"nargs": "+", "default": ["quick", "standard", "thorough"]},
        "--docs": {"action": "store_true", "help": "renew the table of docs/protocols.md"},
    }
    chosen = options(__doc__, also=also, rows=500)
    lines = []
    for name in chosen.only:
        for protocol in chosen.protocols:
            found = measured(name, protocol, chosen.rows)
            print(json.dumps(found), flush=True)
            lines.append(line(found))
    text = table(HEAD, lines)
    save(chosen.save, "Where the truth is known", [text])
    if chosen.docs:
        into_docs(text)


if __name__ == "__main__":
    main()
