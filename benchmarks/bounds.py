"""CPU seconds of bounds for the first rows of the shared MNIST network, next to those of forward
passes of the same rows.

auto_LiRPA 0.7.1 took 0.71 CPU seconds for CROWN of 25 rows on one idle thread; on another machine,
or a busy one, only the share of a forward pass compares.

    python benchmarks/bounds.py [--rows 25] [--repeats 3]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial

import torch
from common import case, mnist

from holdfast.bounds import METHODS, margins, trace


def cpu(work: Callable[[], object], repeats: int) -> float:
    """The least CPU seconds of some runs."""
    spent = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        spent.append(time.process_time() - start)
    return min(spent)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=25)
    parser.add_argument("--repeats", type=int, default=3)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    network = case("torch_kw_mnist")
    x, y = mnist(asked.rows)
    forward = cpu(lambda: [network(x) for _ in range(100)], asked.repeats) / 100
    print(f"forward      {forward:8.4f} s")
    graph = trace(network, x[:1])
    for method in METHODS:
        spent = cpu(partial(margins, graph, x, y, "linf(0.1)", (0, 1), method), asked.repeats)
        print(f"{method:11}  {spent:8.4f} s   {spent / forward:8.0f} forward passes")


if __name__ == "__main__":
    main()
