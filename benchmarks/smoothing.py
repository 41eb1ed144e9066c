"""Randomised smoothing on MNIST: a small CNN trained with Gaussian noise, certified by votes.

    python benchmarks/smoothing.py [--samples 500] [--draws 10000] [--epochs 8] [--rows 60000]
        [--sigma 0.25] [--sigma 0.5] [--weights FOLDER] [--device cuda]

Each line is printed when it is known. Weights that the folder holds are not trained again.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch
from common import mnist, mnist_train, options, save, table
from safetensors.torch import load_file, save_file
from torch import nn

import holdfast
from holdfast.data import from_arrays
from holdfast.data.part import divide
from holdfast.hardening import recipes
from holdfast.runs import store
from holdfast.targets import TorchTarget
from holdfast.targets.smoothing_noise import Gaussian
from holdfast.training.loop import Training

SIGMAS = [0.25, 0.5]
RADIUS = 0.25
RADII = [0.25, 0.5, 0.75, 1.0]
RECIPE = 'standard(objective="noise(sigma={sigma})", epochs={epochs}, batch_size=128, rate=0.1)'


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 16, 4, 2, 1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 4, 2, 1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(1568, 100),
        nn.ReLU(),
        nn.Linear(100, 10),
    )


def trained(sigma: float, epochs: int, rows: int, device: str, file: Path) -> nn.Module:
    """The network of a file of weights, which is trained and written where there is none."""
    net = network().to(device)
    if not file.exists():
        x, held = divide(from_arrays(*mnist_train(rows)), 0.1, 1000, 0, "held-out")
        target = holdfast.wrap(net, device=device)
        assert isinstance(target, TorchTarget)
        target.bind((1, 28, 28))
        recipe = recipes.parse(RECIPE.format(sigma=sigma, epochs=epochs))
        threat = holdfast.Threat.parse("l2(0.25)")
        training = Training(
            target, x, held, threat, recipe, *recipes.parts(recipe), on_epoch=_print
        )
        net.load_state_dict(training.fit(net).best_average())
        save_file(net.state_dict(), file)
    net.load_state_dict(load_file(file))
    return net.eval()


def _print(line: object) -> None:
    print(line, flush=True)


def main() -> None:
    also = {
        "--sigma": {"type": float, "action": "append", "help": "repeatable; default 0.25 and 0.5"},
        "--weights": {"type": Path, "default": Path("runs/smoothing")},
        "--device": {"default": "cpu"},
    }
    chosen = options(__doc__, also=also, rows=60_000, epochs=8, samples=500, draws=10_000)
    chosen.weights.mkdir(parents=True, exist_ok=True)
    test, lines = mnist(chosen.samples), []
    for sigma in chosen.sigma or SIGMAS:
        began, file = time.process_time(), chosen.weights / f"sigma-{sigma}.safetensors"
        there = file.exists()
        net = trained(sigma, chosen.epochs, chosen.rows, chosen.device, file)
        taught = "before" if there else f"{time.process_time() - began:.0f}"
        began = time.process_time()
        run = holdfast.certify(
            holdfast.wrap(net, device=chosen.device),
            test,
            f"l2({RADIUS})",
            smooth=Gaussian(sigma, draws=chosen.draws),
        )
        radius = store.read_samples(run.folder).column("certified_radius").to_numpy()
        right = run.clean_accuracy.value
        shares = [np.mean(np.nan_to_num(radius) >= at) for at in RADII]
        found = [f"{share:.1%}" for share in (right, *shares)]
        abstained = run.manifest.metrics.abstentions
        assert abstained is not None
        found += [f"{float(abstained):.1%}"]
        spent = time.process_time() - began
        lines.append([sigma, *found, taught, spent])
        print(*lines[-1], sep=" | ", flush=True)
    head = ["sigma", "clean", *(f"at {at}" for at in RADII), "abstains"]
    said = (
        f"The first {chosen.samples} test images, {chosen.draws:,} draws, alpha 0.001, "
        f"{chosen.rows:,} training rows of which 1,000 choose the weights, {chosen.epochs} epochs. "
        "Shares are of all images: right under the vote, and proved in L2 up to the size; seconds "
        "are CPU seconds of training and of the votes."
    )
    parts = [said, table([*head, "training", "votes"], lines)]
    save(chosen.save, "MNIST, smoothed", parts)


if __name__ == "__main__":
    main()
