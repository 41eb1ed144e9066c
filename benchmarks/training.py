"""Our trainer against ART's: the same network, rows, epochs and inner attack, one after the other in one run.

ART has Adam at 1e-3, as its examples do; ours has what the recipe says. Both are then measured by our judge.

    python benchmarks/training.py [--rows 6000] [--epochs 6] [--steps 10] [--samples 300] [--threads 1]
"""

from __future__ import annotations

from typing import Any

import art.attacks.evasion
import art.defences.trainer
import art.estimators.classification
import numpy as np
import torch
from common import interleaved, mnist, mnist_rows, options, save, table
from torch import nn

import holdfast
from holdfast.data import from_arrays
from holdfast.data.part import divide
from holdfast.harden import recipes
from holdfast.harden.trainer import Training

EPS, BATCH = 0.3, 64
ALSO = ["adversarial-robustness-toolbox"]


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 32, 4, 2, 1),
        nn.ReLU(),
        nn.Conv2d(32, 64, 4, 2, 1),
        nn.ReLU(),
        nn.Conv2d(64, 64, 3, 2, 1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(1024, 200),
        nn.ReLU(),
        nn.Linear(200, 10),
    )


def by_art(net: nn.Module, x: np.ndarray, y: np.ndarray, epochs: int, steps: int) -> None:
    model = art.estimators.classification.PyTorchClassifier(
        net,
        loss=nn.CrossEntropyLoss(),
        optimizer=torch.optim.Adam(net.parameters(), 1e-3),
        input_shape=(1, 28, 28),
        nb_classes=10,
        clip_values=(0, 1),
        device_type="cpu",
    )
    trainer = art.defences.trainer.AdversarialTrainerMadryPGD(
        model, nb_epochs=epochs, batch_size=BATCH, eps=EPS, eps_step=0.25 * EPS, max_iter=steps, num_random_init=1
    )
    trainer.fit(x, np.eye(10, dtype=np.float32)[y])


def by_us(net: nn.Module, x: np.ndarray, y: np.ndarray, epochs: int, steps: int) -> None:
    target: Any = holdfast.wrap(net)
    target.bind((1, 28, 28))
    rows, held = divide(from_arrays(x, y), 0.1, 1000, 0, "held-out")
    recipe = recipes.parse(f'standard(epochs={epochs}, batch_size={BATCH}, objective="pgd(steps={steps})")')
    best = Training(target, rows, held, holdfast.Threat.linf(EPS), recipe).fit(net).best_average()
    net.load_state_dict(best)


def main() -> None:
    chosen = options(__doc__, rows=6000, epochs=6, steps=10, samples=300)
    x, y = mnist_rows(chosen.rows)
    nets = {"ART": network(), "holdfast": network()}
    makers = {"ART": by_art, "holdfast": by_us}
    for make in makers.values():  # warm-up: imports
        make(network(), x[:256], y[:256], 1, 1)
    spent = interleaved(
        {name: lambda name=name: makers[name](nets[name], x, y, chosen.epochs, chosen.steps) for name in nets}, 1
    )
    test = mnist(chosen.samples)
    lines = []
    for name, net in nets.items():
        run = holdfast.evaluate(net, test, holdfast.Threat.linf(EPS), protocol="standard")
        clean, robust = run.manifest.metrics.clean_accuracy.value, run.robust_accuracy.value
        ratio = spent[name].cpu / spent["ART"].cpu
        lines.append([name, f"{clean:.1%}", f"{robust:.1%}", f"{spent[name].cpu:.0f}", f"{ratio:.2f}"])
    head = ["trainer", "clean", "robust (standard)", "CPU seconds", "of ART's"]
    said = (
        f"MNIST, {chosen.rows} training rows, linf({EPS}), {chosen.epochs} epochs of PGD-{chosen.steps} in steps of "
        f"{BATCH} rows, one seed; {chosen.samples} test rows. Ours trains on nine tenths of the rows: the rest "
        f"choose the weights, in the time shown."
    )
    save(chosen.save, "Adversarial training against ART's", [said, table(head, lines)], also=ALSO)


if __name__ == "__main__":
    main()
