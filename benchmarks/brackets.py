"""Between what the robust accuracy of shared networks lies: proved, and not broken by `quick`.

python benchmarks/brackets.py [--rows 100] [--seconds-per-row 1]
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch
from common import case, mnist

import holdfast
from holdfast.certification import Ladder
from holdfast.reporting.words import percent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100)
    parser.add_argument("--seconds-per-row", type=float, default=Ladder.seconds_per_row)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    models: dict[str, tuple[Any, str]] = {
        "torch_kw_mnist": (case("torch_kw_mnist"), "linf(0.1)"),
    }
    for name, (model, threat) in models.items():
        begun = time.monotonic()
        run = holdfast.evaluate(
            model,
            mnist(asked.rows),
            threat,
            protocol="quick",
            certifier=Ladder(asked.seconds_per_row),
        )
        proved, attacked = run.certified_accuracy, run.robust_accuracy
        assert proved is not None
        by = ", ".join(f"{n} by {method}" for method, n in run.metrics.certified_by.items())
        print(
            f"{name} {threat}, {asked.rows} rows: proved {percent(proved.value)} ({by}), not "
            f"broken {percent(attacked.value)}, {time.monotonic() - begun:.0f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
