"""What each method proves of stored instances and rows, one by one, in CPU seconds of one core.

python benchmarks/proofs.py NAME OUT.jsonl [--seconds 60] [--rows 0 3 7] [--last crown]

NAME: vnn_eran, vnn_oval21, vnn_cifar10_resnet (instances known to be unsat, in their own boxes),
cifar, mnist (the 200 stored rows of each CNN-A), colt (its first 100 rows) or hard (the images of
the CNN-A of MNIST that are known to have a counterexample). Each row is one line of OUT; rows that
are in it are left out, but for open ones that now have more time or a further method.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import CASES, case, loader, mnist, need
from torch import Tensor

import holdfast
from holdfast.bounds import METHODS, Rows, climb, nearest, region, trace
from holdfast.certification import properties
from holdfast.certification.vnnlib import Outputs, Part, Property
from holdfast.targets.target import Bounds
from holdfast.threats.threat import as_threat

# The number of a row, what is known of it, and a judge of inputs [p, *shape].
Row = tuple[int, Rows, Callable[[Tensor], bool]]


def instances(name: str) -> Iterator[Row]:
    """The stored instances of a competition that are known to be unsat."""
    module, models = loader(name), dict[str, properties.Model]()
    for at, instance in enumerate(module.instances()):
        if instance["truth"] != "unsat":
            continue
        lo, hi = (np.asarray(side, float).ravel() for side in module.boxes()[at])
        asked = Property(len(lo), 10, (Part(lo, hi, tuple(_unsafe(instance))),))
        net = instance["net"]
        if net not in models:
            models[net] = properties._opened(str(CASES / name / net), asked)
        search = properties._Search(models[net], asked, float("inf"), 0)
        (box,) = search.boxes
        assert set(box.of) == {1}  # each margin is to be proved
        rows = properties._rows(search._graph(box), box.lo[None], box.hi[None])
        yield at, rows, lambda _: False


def _unsafe(instance: dict[str, Any]) -> Iterator[Outputs]:
    every = np.eye(10)
    for label in instance["targets"] or ():
        yield Outputs((every[instance["label"]] - every[label])[None], np.zeros(1))
    for unsafe in instance["unsafe_any_of"] or ():
        a = [sum(c * every[int(y[2:])] for y, c in row.items()) for row, _ in unsafe]
        yield Outputs(np.stack(a), np.array([-b for _, b in unsafe]))


def images(name: str) -> Iterator[Row]:
    """Rows that a network is right on, under the threat of its case."""
    net, eps = case("torch_cnn_a_cifar" if name == "cifar" else "torch_cnn_a_mnist"), 0.3
    folder = need(CASES / "torch_cnn_a_mnist")
    if name == "colt":
        file = str(need(CASES / "onnx_colt_mnist") / "mnist_0.1.onnx")
        target = holdfast.load(file, preprocess=holdfast.Normalize(0.1307, 0.3081))
        target.bind((1, 28, 28))
        net, eps, (x, y) = target.network(), 0.1, mnist(100)
    elif name == "cifar":
        eps = 2 / 255
        with np.load(CASES / "torch_cnn_a_cifar" / "sdp_cifar200.npz") as stored:
            x, y = (torch.tensor(stored[key]) for key in ("x", "y"))
        x = x.permute(0, 3, 1, 2).float() / 255
    elif name == "mnist":
        x, y = (torch.tensor(np.load(folder / f"sdp_mnist_{key}.npy")) for key in ("X", "y"))
        x = x.reshape(-1, 1, 28, 28).float()
    else:
        at = [int(text) for text in (folder / "mip_unsafe_idx.txt").read_text().split()]
        x, y = (part[at] for part in mnist(max(at) + 1))
    graph, threat = trace(net, x[:1]), as_threat(f"linf({eps})")
    with torch.no_grad():
        scores = torch.cat([net(row) for row in x.split(1)])
    right = (scores.argmax(1) == y).nonzero()[:, 0].tolist()
    for at in right:
        one, label = x[at : at + 1], y[at : at + 1].long()
        low, high = (one - eps).clamp_min(0), (one + eps).clamp_max(1)

        def judge(
            found: Tensor, low: Tensor = low, high: Tensor = high, label: Tensor = label
        ) -> bool:
            with torch.no_grad():
                scores = net(torch.minimum(torch.maximum(found.float(), low), high))
            return bool((scores.argmax(1) != label).any())

        unit = torch.finfo(torch.float32).eps / 2
        yield at, Rows(graph, region(one, threat, Bounds.of((0.0, 1.0))), label, unit), judge


def decided(
    rows: Rows, judge: Callable[[Tensor], bool], seconds: float, last: str
) -> dict[str, Any]:
    """What decides a single row, up to a last method, and the CPU seconds until after each."""
    begun, spent, wrong = time.process_time(), dict[str, float](), list[bool]()

    def asked(_: int, x: Tensor) -> bool:
        wrong.append(judge(x))
        return wrong[-1]

    nearest(rows, float("inf"), partial(asked, 0))
    if any(wrong):
        return {"by": "wrong", "seconds": spent}
    for method in METHODS[: METHODS.index(last) + 1]:
        climb(rows, method, seconds - (time.process_time() - begun), asked)
        spent[method] = round(time.process_time() - begun, 1)
        if any(wrong):
            return {"by": "wrong", "seconds": spent}
        if not bool(rows.left.any()):
            return {"by": method, "seconds": spent}
    return {"by": "", "seconds": spent}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    parser.add_argument("out", type=Path)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--rows", type=int, nargs="*")
    parser.add_argument("--last", choices=METHODS, default=METHODS[-1])
    asked = parser.parse_args()
    torch.set_num_threads(1)
    time.monotonic = time.process_time  # the limits of a search are CPU seconds, too
    lines = asked.out.read_text().splitlines() if asked.out.exists() else []
    known = {one["row"]: one for one in map(json.loads, lines)}
    source = instances if asked.name.startswith("vnn_") else images
    for at, rows, judge in source(asked.name):
        old = known.get(at)
        done = old is not None and (
            old["by"] or (old["limit"] >= asked.seconds and asked.last in old["seconds"])
        )
        if done or (asked.rows and at not in asked.rows):
            continue
        found = decided(rows, judge, asked.seconds, asked.last)
        known[at] = {"row": at, "limit": asked.seconds, **found}
        with asked.out.open("a") as file:
            print(json.dumps(known[at]), file=file)
        print(at, known[at]["by"] or "open", known[at]["seconds"], flush=True)
    print(dict(Counter(one["by"] or "open" for one in known.values())))


if __name__ == "__main__":
    main()
