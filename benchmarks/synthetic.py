"""What generated rows add to robust accuracy where real ones are scarce, at the same compute.

A generator is trained on the first rows of MNIST's training set and on nothing else; its samples
are those that its own folder's classifier, of the same rows, is sure of. A small network is then
trained by the `standard` recipe on these rows, once alone and once with seven of ten rows of each
step generated: as many steps of as many rows, with the same seed. Both are measured under
`standard`, and compared row by row. Each seed has its own weights, order and samples.

    python benchmarks/synthetic.py [--rows 2000] [--steps 3000] [--samples 1000] [--seeds 3]
        [--workers 3] [--model gan] [--device cuda] [--data DIR] [--folder runs/synthetic]
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import CASES, mnist, mnist_train, options, save, table
from torch import nn

import holdfast
from holdfast.data import from_arrays, open_data
from holdfast.data.part import divide
from holdfast.generation import generate
from holdfast.generation.sample import own_classifier, sample
from holdfast.hardening import recipes
from holdfast.runs.compare import compare
from holdfast.training.batches import GeneratedRows
from holdfast.training.loop import Training

EPS = (0.3, 0.2)  # the first is trained against
SHARE, BATCH = 0.7, 128
DIFFUSION = "diffusion(steps=4000, batch_size=128, rounds=4)"


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    layers: list[nn.Module] = [
        nn.Conv2d(1, 32, 4, 2, 1),
        nn.ReLU(),
        nn.Conv2d(32, 64, 4, 2, 1),
        nn.ReLU(),
    ]
    return nn.Sequential(
        *layers, nn.Flatten(), nn.Linear(64 * 49, 200), nn.ReLU(), nn.Linear(200, 10)
    )


@dataclass(frozen=True)
class Arm:
    """One training with its measurements, in a process of its own."""

    seed: int
    made: str  # the file of generated rows; "": none
    rows: int
    steps: int
    samples: int
    threads: int
    device: str
    data: Path
    folder: Path

    def run(self) -> None:
        torch.set_num_threads(self.threads)
        net = network(self.seed)
        target: Any = holdfast.wrap(net.to(self.device))
        target.bind((1, 28, 28))
        train, held = divide(
            from_arrays(*mnist_train(self.rows, self.data)), 0.1, 1000, 0, "held-out"
        )
        epochs = math.ceil(self.steps / math.ceil(len(train) / BATCH))
        recipe = recipes.parse(f"standard(epochs={epochs}, batch_size={BATCH})")
        generated = GeneratedRows(open_data(self.made), SHARE) if self.made else None
        threat = holdfast.Threat.linf(EPS[0])
        best = (
            Training(
                target,
                train,
                held,
                threat,
                recipe,
                *recipes.parts(recipe),
                self.seed,
                generated=generated,
            )
            .fit(net)
            .best_average()
        )
        net.load_state_dict(best)
        test = mnist(self.samples, self.data)
        for eps in EPS:
            holdfast.evaluate(
                net.eval(),
                test,
                holdfast.Threat.linf(eps),
                protocol="standard",
                out=self.place(eps),
            )

    def place(self, eps: float) -> Path:
        return self.folder / f"{'with' if self.made else 'without'}-{self.seed}-{eps:g}"


def samples(chosen: Any) -> tuple[list[str], str]:
    """A file of generated rows for each seed, and the generator in words."""
    real = from_arrays(*mnist_train(chosen.rows, chosen.data))
    test = from_arrays(*mnist(10_000, chosen.data))
    made = generate(
        real, chosen.model, out=chosen.folder / "generator", test=test, device=chosen.device
    )
    sure, files = own_classifier(made.folder, made.generator) if chosen.sure else None, []
    for seed in range(chosen.seeds):
        x, y, _ = sample(
            made.generator, chosen.per_class, target=sure, confidence=chosen.sure / 100, seed=seed
        )
        files.append(str(chosen.folder / f"made-{seed}.npz"))
        np.savez(files[-1], x=x, y=y)
    q = made.quality
    return files, (
        f"The generator: `{chosen.model}`; FID {q.fid:.2f} (real rows {q.fid_real:.2f}), a "
        "classifier trained on "
        f"samples alone {q.trained:.1%} right (on real rows {q.trained_real:.1%}), copies "
        f"{q.copies:.1%}."
    )


def main() -> None:
    also: Mapping[str, Mapping[str, Any]] = {
        "--device": {"default": "cpu"},
        "--model": {"default": DIFFUSION, "help": "the generator"},
        "--data": {
            "type": Path,
            "default": CASES / "data_mnist",
            "help": "MNIST, as the shared case holds it",
        },
        "--folder": {
            "type": Path,
            "default": Path("runs/synthetic"),
            "help": "where runs go; must not exist",
        },
        "--per-class": {
            "type": int,
            "default": 2000,
            "help": "generated rows a class and seed (default 2000)",
        },
        "--sure": {
            "type": int,
            "default": 50,
            "help": "per cent that the classifier must give the class (default 50)",
        },
    }
    chosen = options(__doc__, also=also, rows=2000, steps=3000, samples=1000, seeds=3, workers=1)
    chosen.folder.mkdir(parents=True)
    common = (
        chosen.rows,
        chosen.steps,
        chosen.samples,
        chosen.threads,
        chosen.device,
        chosen.data,
        chosen.folder,
    )
    with ProcessPoolExecutor(chosen.workers, get_context("spawn")) as pool:
        alone = [Arm(seed, "", *common) for seed in range(chosen.seeds)]
        work = [pool.submit(arm.run) for arm in alone]
        files, said = samples(chosen)
        mixed = [Arm(seed, file, *common) for seed, file in enumerate(files)]
        for done in [*work, *(pool.submit(arm.run) for arm in mixed)]:
            done.result()
    lines, gains = [], {}
    for eps in EPS:
        for one, other in zip(alone, mixed, strict=True):
            clean, robust = compare(one.place(eps), other.place(eps)).figures
            gains.setdefault(eps, []).append(robust.change)
            change = f"{robust.change:+.1%} ({robust.low:+.1%} to {robust.high:+.1%})"
            shares = [f"{v.value:.1%}" for v in (clean.first, clean.second)]
            shares += [
                f"{v.value:.1%} ({v.low:.1%} to {v.high:.1%})"
                for v in (robust.first, robust.second)
            ]
            lines.append([f"linf({eps:g})", one.seed, *shares, change, f"{robust.p:.2g}"])
    head = [
        "threat",
        "seed",
        "clean",
        "clean, with generated",
        "robust",
        "robust, with generated",
        "change",
        "p",
    ]
    means = ", ".join(f"{np.mean(v):+.1%} at linf({eps:g})" for eps, v in gains.items())
    first = (
        f"MNIST, {chosen.rows:,} real rows, {chosen.steps:,} steps of {BATCH} rows against "
        f"linf({EPS[0]:g}), "
        f"{SHARE:.0%} of them generated or none; {chosen.samples:,} test rows under `standard`, 95 "
        f"% intervals, McNemar's p; trained on {chosen.device}. Mean change: {means}."
    )
    save(chosen.save, "The gain from generated rows", [first, said, table(head, lines)])


if __name__ == "__main__":
    main()
