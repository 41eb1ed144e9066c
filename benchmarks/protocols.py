"""Our protocols on the shared models, trial by trial: what each breaks, for how many passes.

    python benchmarks/protocols.py [--images 200] [--threads 1]

The figures in docs/protocols.md were chosen by such runs.
"""

from __future__ import annotations

import gc
import time

import numpy as np
from common import case, cifar10, mnist, options, save, table

import holdfast

MODELS = {
    "trades": ("torch_trades_mnist",),
    "adv": ("torch_advertorch_lenet5", "adv"),
    "kw": ("torch_kw_mnist",),
    "cnn_a_mnist": ("torch_cnn_a_mnist",),
    "cnn_a_cifar": ("torch_cnn_a_cifar",),
    "marabou_small": ("torch_marabou_cifar", "small"),
    "marabou_medium": ("torch_marabou_cifar", "medium"),
    "sigmoid_cifar": ("torch_sigmoid_cifar",),
}
THREATS = {
    "kw": ("linf(0.1)", "l2(1.0)"),
    "mnist": ("linf(0.3)", "l2(1.5)"),
    "cifar": ("linf(2/255)", "l2(0.25)"),
}
PROTOCOLS = ("quick", "standard")


def main() -> None:
    chosen = options(__doc__, repeats=1, images=200)
    rows: list[list[object]] = []
    for name, place in MODELS.items():
        kind = "cifar" if "cifar" in place[0] else "mnist"
        x, y = (cifar10 if kind == "cifar" else mnist)(chosen.images)
        for threat in THREATS.get(name, THREATS[kind]):
            for protocol in PROTOCOLS:
                target = holdfast.wrap(case(*place))
                spent = time.process_time()
                run = holdfast.evaluate(target, (x.numpy(), y.numpy()), threat, protocol=protocol)
                spent = time.process_time() - spent
                right = max(
                    int(
                        np.sum(
                            run.samples.column("status").to_numpy(zero_copy_only=False) != "wrong"
                        )
                    ),
                    1,
                )
                cost = run.manifest.costs
                trials = ", ".join(str(trial.broken) for trial in run.manifest.trials)
                robust = 100 * run.robust_accuracy.value
                passes = (cost.forwards + cost.backwards) / right
                rows.append(
                    [
                        name,
                        threat,
                        protocol,
                        f"{robust:.1f}",
                        trials,
                        f"{passes:.0f}",
                        f"{spent:.1f}",
                    ]
                )
                print(*rows[-1], sep="  ", flush=True)
                gc.collect()
    head = "model, threat, protocol, robust %, broken by each trial, passes, CPU s".split(", ")
    first = (
        f"First {chosen.images} test images. Passes: forwards and backwards of an image that was "
        "right at first."
    )
    save(chosen.save, "The protocols, trial by trial", [first, table(head, rows)])


if __name__ == "__main__":
    main()
