"""Legal successes on the shared cases of tables, or hardening on one half of the loans, measured on
the other, or hardening of trees: PYTHONPATH=src:tests python benchmarks/tables.py [harden | trees]

L2 on the min-max-scaled row. A success counts where the case's own `violations` accept it.
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace

import numpy as np
import torch
from helpers.tables import Scaled, halves_of_loans, schema_of, table_case
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.ensemble import RandomForestClassifier
from xgboost import XGBClassifier

import holdfast
from holdfast.hardening.harden import Hardened
from holdfast.threats.table.features import Feature
from holdfast.threats.table.schema import Schema
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


def harden(recipe: str = "standard(epochs=20)", seed: str = "0") -> None:
    """Before and after, on the half that did not train, under protocol standard."""
    case, schema = table_case("lcld"), schema_of("lcld")
    train, test = halves_of_loans()
    target = holdfast.wrap(Scaled(case.net("nn"), case, "lcld"), threshold=0.25)
    threat, start = replace(Threat.l2(0.2), schema=schema), time.process_time()
    made = holdfast.harden(target, train, threat, recipe=recipe, test=test, seed=int(seed))
    show(made, time.process_time() - start, recipe, seed)


def show(made: Hardened, spent: float, *what: str) -> None:
    """Two lines of a hardening, before and after."""
    for name, run in (("before", made.before), ("after", made.after)):
        m, binary = run.metrics, run.metrics.binary
        recall = next(c for c in m.per_class if c.name == "1").recall
        shown = [getattr(binary, of) for of in ("auroc", "precision", "f1")]
        pairs = [f"{pair.clean:.3f}, {pair.attacked:.3f}" for pair in (*shown, recall)]
        cells = (*what, name, m.clean_accuracy, m.robust_accuracy, *pairs, f"{spent:.0f}")
        print("|", " | ".join(map(str, cells)), "|", flush=True)


def trees(name: str, kind: str, eps: str, seed: str = "0") -> None:
    """Before and after, on 120 rows that did not train, under protocol standard in linf."""
    bunch = load_breast_cancer() if name == "cancer" else load_digits()
    y = bunch.target if name == "cancer" else (bunch.target >= 5).astype(int)
    order = np.random.default_rng(0).permutation(len(y))
    x, y = bunch.data[order].astype(np.float32), y[order]
    cut = int(0.6 * len(y))
    limits = zip(x.min(0), np.maximum(x.max(0), x.min(0) + 1), strict=True)
    features = [Feature(f"c{i}", bounds=(float(a), float(b))) for i, (a, b) in enumerate(limits)]
    model = {
        "forest": RandomForestClassifier(50, max_depth=6, random_state=0),
        "xgboost": XGBClassifier(n_estimators=50, max_depth=4, random_state=0, n_jobs=1),
    }[kind].fit(x[:cut], y[:cut])
    threat, start = replace(Threat.linf(float(eps)), schema=Schema(features)), time.process_time()
    rows, test = (x[:cut], y[:cut]), (x[cut : cut + 120], y[cut : cut + 120])
    made = holdfast.harden(model, rows, threat, test=test, seed=int(seed))
    show(made, time.process_time() - start, f"{name}, {kind}, linf({eps})", seed)


if __name__ == "__main__" and sys.argv[1:2] == ["harden"]:
    of = ("AUROC", "precision", "F1", "recall")
    titles = ("recipe", "seed", "net", "accuracy", "robust", *of, "CPU seconds")
    print("|", " | ".join(titles), "|")
    print("|---" * len(titles) + "|")
    harden(*sys.argv[2:4])
elif __name__ == "__main__" and sys.argv[1:2] == ["trees"]:
    trees(*sys.argv[2:])
elif __name__ == "__main__":
    print("| case | net | eps | after | legal successes | illegal | passes a row | CPU seconds |")
    print("|---|---|---|---|---|---|---|---|")
    for run in RUNS:
        measure(*run)
