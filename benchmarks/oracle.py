"""How many rows of stored networks each method proves, next to what auto_LiRPA 0.7.1 did.

python benchmarks/oracle.py [--keys kw_mnist_0.1 ...] [--methods crown alpha-crown]
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
from common import loader, table

from holdfast.bounds import Bounded, trace
from holdfast.targets.target import Bounds
from holdfast.threats.threat import as_threat

STORED = {"crown": "CROWN", "alpha-crown": "alpha_CROWN"}
GROUP = 16  # rows that the ladder takes at once
# Of alpha-CROWN auto_LiRPA bounded the first rows only; of some keys the table of counts says more.
LEAST_ROWS = {"cnn_a_mnist_0.3": 100, "cnn_a_cifar_2": 200}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    oracle = loader("oracle_auto_lirpa")
    parser.add_argument("--keys", nargs="+", default=list(oracle.KEYS), choices=oracle.KEYS)
    parser.add_argument("--methods", nargs="+", default=list(STORED), choices=STORED)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    found = []
    for key in asked.keys:
        known, (x, y) = oracle.load(key), oracle.rows(key)
        x, y = torch.from_numpy(np.asarray(x)), torch.from_numpy(np.asarray(y))
        threat, graph = as_threat(f"linf({float(known['eps'])!r})"), trace(oracle.net(key), x[:1])
        for method in asked.methods:
            stored = known.get(STORED[method], np.zeros((0, 1)))
            rows = max(len(stored), LEAST_ROWS.get(key, 0) * (method == "alpha-crown"))
            clean = torch.from_numpy(known["clean"][:rows])
            proved = certified = 0
            start = time.process_time()
            for at in clean.nonzero().flatten().split(GROUP):
                bounded = Bounded(graph, x[at], y[at], threat, Bounds())
                bounds = bounded.climb(method)
                proved += int(bounds.proved.sum())
                certified += int(bounds.certified.sum())
            spent = (time.process_time() - start) / max(1, int(clean.sum()))
            count = int(((oracle.least(stored) > 0) & known["clean"][: len(stored)]).sum())
            theirs = f"{count} of {len(stored)}"
            found.append((key, method, rows, theirs, proved, certified, spent))
            print(*found[-1], flush=True)
    head = ("key", "method", "rows", "stored", "proved", "certified", "CPU seconds a row")
    print(table(head, found))


if __name__ == "__main__":
    main()
