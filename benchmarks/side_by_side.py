"""Restarts and aims side by side against one after the other: calls of the model, passes of rows,
and CPU seconds of one evaluation.

A card waits for each step of a small network, so that its time follows the calls; `evaluate` runs
side by side there.

    python benchmarks/side_by_side.py [--rows 100] [--repeats 1]
"""

from __future__ import annotations

from dataclasses import replace
from unittest.mock import patch

from common import case, interleaved, mnist, options, save, table
from torch import Tensor, nn

import holdfast
from holdfast.evaluation import evaluate as evaluation

CASES = (
    ("torch_kw_mnist", "linf(0.1)", "standard"),
    ("torch_trades_mnist", "linf(0.3)", "standard"),
    ("torch_trades_mnist", "l2(1.5)", "standard"),
    ("torch_kw_mnist", "linf(0.1)", "autoattack"),
)


class Counted:
    """An evaluation, and what it asked the model."""

    def __init__(
        self, model: nn.Module, rows: tuple[Tensor, Tensor], how: tuple[str, str], packed: bool
    ) -> None:
        self.model, self.rows, self.how, self.packed = model, rows, how, packed
        self.calls, self.robust, self.passes = 0, 0.0, 0

    def __call__(self) -> None:
        self.calls = 0
        usual = evaluation.settings_of

        def settings(*given):
            return replace(usual(*given), packed=self.packed)

        def count(*_: object) -> None:
            self.calls += 1

        hook = self.model.register_forward_pre_hook(count)
        threat, protocol = self.how
        with patch.object(evaluation, "settings_of", settings):
            run = holdfast.evaluate(self.model, self.rows, threat, protocol=protocol)
        hook.remove()
        self.robust = 100 * run.robust_accuracy.value
        self.passes = int(run.samples["forwards"].to_numpy().sum())


def main() -> None:
    asked = options(__doc__, repeats=1, rows=100)
    made = []
    for name, threat, protocol in CASES:
        model, rows = case(name).eval(), mnist(asked.rows)
        both = {
            "one after the other": Counted(model, rows, (threat, protocol), packed=False),
            "side by side": Counted(model, rows, (threat, protocol), packed=True),
        }
        seconds = interleaved(both, asked.repeats)
        for runs, found in both.items():
            counts = (f"{found.calls:,}", f"{found.passes:,}", seconds[runs].cpu)
            made.append([name, threat, protocol, runs, f"{found.robust:.1f} %", *counts])
            print(made[-1], flush=True)
    head = "model threat protocol runs robust calls forwards CPU-seconds".split()
    save(asked.save, "Restarts and aims side by side", [table(head, made)])


if __name__ == "__main__":
    main()
