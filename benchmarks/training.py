"""Our trainer against ART's: the same network, rows, epochs and inner attack, each in processes of
its own.

ART has Adam at 1e-3, as its examples do, and as many torch threads as ours has processes of one
thread (`--devices`); ours has what the recipe says. Both are timed from the first step to the last,
without imports, and then measured by our judge. With `--device cuda` both train on the one GPU.

    python benchmarks/training.py [--rows 6000] [--epochs 6] [--steps 10] [--samples 300] [--devices
        2] [--repeats 1] [--device cuda] [--data FOLDER]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import torch
from common import CASES, mnist, mnist_train, options, save, table
from safetensors.torch import load_file, save_file
from torch import nn

import holdfast
from holdfast.data import from_arrays
from holdfast.data.part import divide
from holdfast.hardening import recipes
from holdfast.targets import TorchTarget
from holdfast.training import workers
from holdfast.training.loop import Training

EPS = 0.3
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


def by_art(
    net: nn.Module, x: np.ndarray, y: np.ndarray, epochs: int, steps: int, asked: argparse.Namespace
) -> None:
    import art.attacks.evasion
    import art.defences.trainer
    import art.estimators.classification

    torch.set_num_threads(asked.devices)
    model = art.estimators.classification.PyTorchClassifier(
        net,
        loss=nn.CrossEntropyLoss(),
        optimizer=torch.optim.Adam(net.parameters(), 1e-3),
        input_shape=(1, 28, 28),
        nb_classes=10,
        clip_values=(0, 1),
        device_type="gpu" if asked.device == "cuda" else "cpu",
    )
    trainer = art.defences.trainer.AdversarialTrainerMadryPGD(
        model,
        nb_epochs=epochs,
        batch_size=asked.batch,
        eps=EPS,
        eps_step=0.25 * EPS,
        max_iter=steps,
        num_random_init=1,
    )
    trainer.fit(x, np.eye(10, dtype=np.float32)[y])


def by_us(
    net: nn.Module, x: np.ndarray, y: np.ndarray, epochs: int, steps: int, asked: argparse.Namespace
) -> None:
    net.to(asked.device)
    target = holdfast.wrap(net, device=asked.device)
    assert isinstance(target, TorchTarget)
    target.bind((1, 28, 28))
    rows, held = divide(from_arrays(x, y), 0.1, 1000, 0, "held-out")
    recipe = recipes.parse(
        f'standard(epochs={epochs}, batch_size={asked.batch}, objective="pgd(steps={steps})")'
    )
    training = Training(
        target,
        rows,
        held,
        holdfast.Threat.linf(EPS),
        recipe,
        *recipes.parts(recipe),
        devices=asked.devices,
    )
    net.load_state_dict(workers.train(training, net))


MAKERS = {"ART": by_art, "holdfast": by_us}


def alone(name: str, asked: argparse.Namespace) -> None:
    """In a process of its own: train, and leave the weights and the seconds."""
    x, y = mnist_train(asked.rows, asked.data)
    # warm-up
    MAKERS[name](
        network(), x[:256], y[:256], 1, 1, argparse.Namespace(**(vars(asked) | {"devices": 1}))
    )
    net, began = network(), time.perf_counter()
    MAKERS[name](net, x, y, asked.epochs, asked.steps, asked)
    spent = time.perf_counter() - began
    save_file(
        {k: v.cpu().contiguous() for k, v in net.state_dict().items()}
        | {"seconds": torch.tensor(spent)},
        asked.only_into,
    )


def main() -> None:
    also = {
        "--device": {"default": "cpu"},
        "--data": {"type": Path, "default": CASES / "data_mnist"},
        "--only": {"default": "", "help": argparse.SUPPRESS},
        "--only-into": {"type": Path, "help": argparse.SUPPRESS},
    }
    asked = options(
        __doc__,
        repeats=1,
        also=also,
        rows=6000,
        epochs=6,
        steps=10,
        samples=300,
        devices=1,
        batch=64,
    )
    if asked.only:
        return alone(asked.only, asked)
    nets, spent = {name: network() for name in MAKERS}, {name: [] for name in MAKERS}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(asked.repeats):
            for name, net in nets.items():  # A B A B, so that a busy minute falls on both
                into = Path(folder) / f"{name}.safetensors"
                own = [sys.executable, *sys.argv, "--only", name, "--only-into", str(into)]
                subprocess.run(
                    own, check=True, env=os.environ | {"OMP_NUM_THREADS": str(asked.devices)}
                )
                weights = load_file(into)
                spent[name].append(float(weights.pop("seconds")))
                net.load_state_dict(weights)
    lines, test = [], mnist(asked.samples, asked.data)
    for name, net in nets.items():
        hard = holdfast.wrap(net.to(asked.device), device=asked.device)
        run = holdfast.evaluate(hard, test, holdfast.Threat.linf(EPS), protocol="standard")
        clean, robust = run.manifest.metrics.clean_accuracy.value, run.robust_accuracy.value
        each = ", ".join(f"{s:.0f}" for s in spent[name])
        lines.append(
            [
                name,
                f"{clean:.1%}",
                f"{robust:.1%}",
                each,
                median(spent[name]) / median(spent["ART"]),
            ]
        )
    head = ["trainer", "clean", "robust (standard)", "seconds", "of ART's (medians)"]
    said = (
        f"MNIST, {asked.rows} training rows, linf({EPS}), {asked.epochs} epochs of "
        f"PGD-{asked.steps} in steps of "
        f"{asked.batch} rows, one seed, on {asked.device}; {asked.samples} test rows. ART has "
        f"{asked.devices} torch "
        f"threads, ours {asked.devices} processes of one thread; starting them is in the time "
        f"shown, as are the rows that choose the weights: a tenth, on which ours does not train."
    )
    save(asked.save, "Adversarial training against ART's", [said, table(head, lines)], also=ALSO)


if __name__ == "__main__":
    main()
