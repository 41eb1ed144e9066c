"""Legal successes on the shared cases of tables: PYTHONPATH=src:tests python benchmarks/tables.py

L2 on the min-max-scaled row. A success counts where the case's own `violations` accept it.
"""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import torch
from helpers.tables import Scaled, schema_of, table_case

import holdfast
from holdfast.threats.threat import Threat

RUNS = [
    ("lcld", "nn", 0.2),
    ("lcld", "nn_gradient", 0.2),
    ("lcld", "nn_moeva", 0.2),
    ("url", "", 0.2),
    ("url", "", 0.5),
    ("botnet", "nn", 1.0),
    ("botnet", "nn", 0.5),
    ("botnet", "nn_moeva", 1.0),
    ("botnet", "nn_moeva", 0.5),
]
ATTACKS = ("capgd(steps=50, restarts=4)", "genetic(steps=60)")
ROW = "| {} | {} | {} | {} | {} of {} ({:.2f} %) | {} | {:.0f} | {:.1f} |"


def measure(name: str, net: str, eps: float) -> None:
    case = table_case(name)
    x, y = case.data()
    x, schema = x.astype(np.float32), schema_of(name)
    threshold = 0.25 if name == "lcld" else 0.5
    model = Scaled(case.net(net) if net else case.net(), case, name, threshold).eval()
    target = holdfast.wrap(model, bounds=(float(x.min()) - 1, float(x.max()) + 1))
    legal = (case.violations(x.astype(np.float64)) == 0).all(1)
    rows = np.flatnonzero(legal & (y == 1) & (target.labels(torch.from_numpy(x)).numpy() == 1))
    threat = replace(Threat.l2(eps), schema=schema)
    left, found, passes, start = rows, x.copy(), 0, time.process_time()
    for attack in ATTACKS:
        if len(left):
            result = holdfast.attack(target, x[left], y[left], threat, attack)
            passes += int(result.forwards.sum() + result.backwards.sum())
            found[left[result.success]] = result.x_adv[result.success]
            left = left[~result.success]
        hit = np.setdiff1d(rows, left)
        illegal = int((case.violations(found[hit].astype(np.float64)) != 0).any(1).sum())
        share, spent = 100 * len(hit) / len(rows), time.process_time() - start
        counts = (len(hit), len(rows), share, illegal, passes / len(rows), spent)
        print(ROW.format(name, net, eps, f"`{attack}`", *counts), flush=True)


if __name__ == "__main__":
    print("| case | net | eps | after | legal successes | illegal | passes a row | CPU seconds |")
    print("|---|---|---|---|---|---|---|---|")
    for run in RUNS:
        measure(*run)
