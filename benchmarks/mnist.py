"""How robust a small CNN becomes on MNIST: all training rows, some recipes, measured by our judge
on test rows.

    python benchmarks/mnist.py --device cuda --recipe "standard(epochs=30, batch_size=256)"
        [--recipe ...] [--width 32] [--rows 60000] [--samples 1000] [--protocol standard]
        [--protocol autoattack] [--data FOLDER]

Each line is printed when it is known. The folder holds mnist_train_png.npz and the test set as idx
files.
"""

from __future__ import annotations

import time
from pathlib import Path

import torch
from common import CASES, mnist, mnist_train, options, save, table
from torch import nn

import holdfast
from holdfast.data import from_arrays
from holdfast.data.part import divide
from holdfast.hardening import recipes
from holdfast.targets import TorchTarget
from holdfast.training.loop import Training

EPS = 0.3
RECIPES = ["standard(epochs=30, batch_size=256)"]


def network(width: int, seed: int) -> nn.Module:
    """Four convolutions and two dense layers, of the form that TRADES (arXiv:1901.08573) has for
    MNIST."""
    torch.manual_seed(seed)
    return nn.Sequential(
        *(
            nn.Conv2d(1, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
        ),
        nn.MaxPool2d(2),
        *(
            nn.Conv2d(width, 2 * width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(2 * width, 2 * width, 3, padding=1),
        ),
        *(nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
        *(nn.Linear(98 * width, 200), nn.ReLU(), nn.Linear(200, 10)),
    )


def main() -> None:
    also = {
        "--recipe": {"action": "append", "help": f"repeatable; default {RECIPES[0]}"},
        "--protocol": {
            "action": "append",
            "help": "of the judge, repeatable; default standard and autoattack",
        },
        "--device": {"default": "cpu"},
        "--data": {"type": Path, "default": CASES / "data_mnist"},
    }
    chosen = options(__doc__, also=also, rows=60_000, samples=1000, width=32, seed=0)
    threat, lines = holdfast.Threat.linf(EPS), []
    rows, held = divide(
        from_arrays(*mnist_train(chosen.rows, chosen.data)), 0.1, 1000, chosen.seed, "held-out"
    )
    test = mnist(chosen.samples, chosen.data)
    for text in chosen.recipe or RECIPES:
        began = time.perf_counter()
        net = network(chosen.width, chosen.seed).to(chosen.device)
        target = holdfast.wrap(net, device=chosen.device, batch_size=1024)
        assert isinstance(target, TorchTarget)
        target.bind((1, 28, 28))
        recipe = recipes.parse(text)
        training = Training(
            target, rows, held, threat, recipe, *recipes.parts(recipe), chosen.seed, on_epoch=_print
        )
        net.load_state_dict(training.fit(net).best_average())
        trained = time.perf_counter() - began
        hard = holdfast.wrap(net.eval(), device=chosen.device, batch_size=1024)
        for protocol in chosen.protocol or ["standard", "autoattack"]:
            began = time.perf_counter()
            run = holdfast.evaluate(hard, test, threat, protocol=protocol)
            judged, found = time.perf_counter() - began, run.robust_accuracy
            clean, said = (
                run.manifest.metrics.clean_accuracy.value,
                f"{found.low:.1%} to {found.high:.1%}",
            )
            lines.append(
                [text, protocol, f"{clean:.1%}", f"{found.value:.1%}", said, trained, judged]
            )
            print(*lines[-1], sep=" | ", flush=True)
    head = [
        "recipe",
        "protocol",
        "clean",
        "robust",
        "interval",
        "seconds of training",
        "of the judge",
    ]
    said = (
        f"linf({EPS}), {len(rows)} training rows and {len(held)} that choose the weights, width "
        f"{chosen.width}, seed {chosen.seed}, the first {chosen.samples} test rows."
    )
    save(chosen.save, "MNIST, hardened", [said, table(head, lines)])


def _print(line: object) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    main()
