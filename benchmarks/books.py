"""What the books cost: Holdfast's PGD step against the same step in a bare loop on the same model.

Four ways to take the same PGD steps, on a ResNet-18 at 32x32 and on a small CNN, with one frozen channels-last model:

- gradient: `autograd.grad` of the cross-entropy, and nothing else: the unit of the table;
- bare loop: gradient, steepest step and projection, as one writes them by hand;
- no books: `perturb`, Holdfast's own rule without ledger and last check, as training uses it;
- Holdfast: `run(..., stop=False)`, every point judged and booked.

Each is timed with 2 and with more steps; their difference leaves out the start and the end, so it is the cost of a
step. The goal: Holdfast takes less than 5 % more than the bare loop on the ResNet-18. On a model of well under a
millisecond an image the books weigh more, and the table says how much.

    python benchmarks/books.py [--steps 8] [--batch 64] [--repeats 5] [--threads 1]
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from common import interleaved, options, resnet18, save, table
from torch import Tensor, nn

from holdfast import Threat
from holdfast.attacks.attack import perturb, run
from holdfast.attacks.pgd import PGD
from holdfast.targets import TorchTarget

EPS = {"linf": 8 / 255, "l2": 0.5}
FRACTION = 0.1


def bare(target: TorchTarget, x: Tensor, y: Tensor, threat: Threat, steps: int, *, move: bool = True) -> Tensor:
    """PGD from zero as one writes it by hand; without `move`, only the gradients."""
    eps, d = float(threat.eps), torch.zeros_like(x)
    for _ in range(steps):
        leaf = (x + d).clamp(0, 1).requires_grad_()
        z = target.model(leaf.contiguous(memory_format=torch.channels_last) if target.channels_last else leaf)
        g = torch.autograd.grad(F.cross_entropy(z, y, reduction="sum"), leaf)[0]
        if not move:
            continue
        if threat.norm.name == "linf":
            d = (d + FRACTION * eps * g.sign()).clamp(-eps, eps)
        else:
            d = d + FRACTION * eps * g / g.flatten(1).norm(dim=1).clamp_min(1e-12)[:, None, None, None]
            d = d * (eps / d.flatten(1).norm(dim=1).clamp_min(1e-12)).clamp_max(1)[:, None, None, None]
        d = (x + d).clamp(0, 1) - x
    return d


def attack(steps: int) -> PGD:
    return PGD(steps=steps, step_size=FRACTION, loss="ce", start_at="zero")


def small() -> nn.Module:
    """A CNN of 32x32 with cheap passes, where the books weigh most."""
    conv = [nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU()]
    return nn.Sequential(*conv, nn.Flatten(), nn.Linear(2048, 100), nn.ReLU(), nn.Linear(100, 10)).eval()


def main() -> None:
    chosen = options(__doc__, steps=8, batch=64)
    x = torch.rand(chosen.batch, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    y = torch.arange(chosen.batch) % 10
    rows: list[list[object]] = []
    for name, model, factor in (("ResNet-18", resnet18(), 1), ("small CNN", small(), 20)):
        target = TorchTarget(model, shape=(3, 32, 32), batch_size=chosen.batch)
        for norm, eps in EPS.items():
            threat = Threat.parse(f"{norm}({eps})")
            ways = {
                "gradient": lambda n, t=threat: bare(target, x, y, t, n, move=False),
                "bare loop": lambda n, t=threat: bare(target, x, y, t, n),
                "no books": lambda n, t=threat: perturb(attack(n), target, x, y, t),
                "Holdfast": lambda n, t=threat: run(attack(n), target, x, y, t, stop=False),
            }
            few, many = 2, 2 + factor * chosen.steps
            tasks = {f"{way} {n}": partial(call, n) for way, call in ways.items() for n in (few, many)}
            interleaved(tasks, 1)  # warm-up
            seconds = interleaved(tasks, chosen.repeats)
            step = {way: (seconds[f"{way} {many}"].cpu - seconds[f"{way} {few}"].cpu) / (many - few) for way in ways}
            for way, spent in step.items():
                over = 100 * (spent - step["bare loop"]) / step["gradient"]
                rows.append([name, norm, way, f"{1e3 * spent:.2f}", f"{spent / step['gradient']:.3f}", f"{over:+.1f}"])
    head = ["model", "norm", "way", "CPU ms a step", "of a gradient", "% of a gradient over the bare loop"]
    first = f"PGD steps on a batch of {chosen.batch}, medians of {chosen.repeats} interleaved rounds."
    save(chosen.save, "What the books cost", [first, table(head, rows)])


if __name__ == "__main__":
    main()
