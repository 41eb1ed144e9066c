"""What counting costs: Holdfast's PGD step against the same step in a bare loop on the same model.

Four ways to take the same PGD steps, on one frozen model:

- gradient: `autograd.grad` of the cross-entropy, and nothing else;
- bare loop: gradient, steepest step and projection, as one writes them by hand;
- not counted: `perturb`, Holdfast's own rule without counts and last check, as training uses it;
- Holdfast: `run(..., stop=False)`, every point judged and counted.

Each is timed with 2 and with more steps; their difference leaves out the start and the end, so it
is the cost of a step. What Holdfast adds to a step depends on the batch and the shape, not on the
model, so it is measured where it can be seen, on models with cheap passes, and then held against a
gradient step of a ResNet-18 at the same 32x32. (Its difference on the ResNet itself is far below
the noise of a ResNet step.) The goal: less than 5 %.

    python benchmarks/counting.py [--steps 40] [--batch 64] [--repeats 7] [--threads 1]
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from common import interleaved, options, resnet18, save, table
from torch import Tensor, nn

from holdfast import Threat
from holdfast.attacks.attack import perturb, run
from holdfast.attacks.gradient.pgd import PGD
from holdfast.targets import TorchTarget

EPS = {"linf": 8 / 255, "l2": 0.5}
FRACTION = 0.1


def bare(
    target: TorchTarget, x: Tensor, y: Tensor, threat: Threat, steps: int, *, move: bool = True
) -> Tensor:
    """PGD from zero as one writes it by hand; without `move`, only the gradients."""
    eps, d = float(threat.eps), torch.zeros_like(x)
    for _ in range(steps):
        leaf = (x + d).clamp(0, 1).requires_grad_()
        z = target.model(
            leaf.contiguous(memory_format=torch.channels_last) if target.channels_last else leaf
        )
        g = torch.autograd.grad(F.cross_entropy(z, y, reduction="sum"), leaf)[0]
        if not move:
            continue
        if threat.norm.name == "linf":
            d = (d + FRACTION * eps * g.sign()).clamp(-eps, eps)
        else:
            d = (
                d
                + FRACTION
                * eps
                * g
                / g.flatten(1).norm(dim=1).clamp_min(1e-12)[:, None, None, None]
            )
            d = (
                d
                * (eps / d.flatten(1).norm(dim=1).clamp_min(1e-12)).clamp_max(1)[
                    :, None, None, None
                ]
            )
        d = (x + d).clamp(0, 1) - x
    return d


def attack(steps: int) -> PGD:
    return PGD(steps=steps, step_size=FRACTION, loss="ce", start_at="zero")


def small() -> nn.Module:
    """A CNN of 32x32 with cheap passes, where counting weighs most."""
    conv = [nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU()]
    return nn.Sequential(
        *conv, nn.Flatten(), nn.Linear(2048, 100), nn.ReLU(), nn.Linear(100, 10)
    ).eval()


def linear() -> nn.Module:
    """As good as no model at all."""
    return nn.Sequential(nn.Flatten(), nn.Linear(3072, 10)).eval()


def main() -> None:
    chosen = options(__doc__, repeats=7, steps=40, batch=64)
    x = torch.rand(chosen.batch, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    y = torch.arange(chosen.batch) % 10
    big = TorchTarget(resnet18(), shape=(3, 32, 32))
    threat = Threat.parse("linf(8/255)")
    timed = interleaved(
        {"one": lambda: bare(big, x, y, threat, 1, move=False)}, 1 + chosen.repeats // 2
    )
    gradient = timed["one"].cpu
    few, many = 2, 2 + chosen.steps
    rows: list[list[object]] = []
    for name, model in (("linear", linear()), ("small CNN", small())):
        target = TorchTarget(model, shape=(3, 32, 32), batch_size=chosen.batch)
        for norm, eps in EPS.items():
            threat = Threat.parse(f"{norm}({eps})")
            sources = {
                "gradient": lambda n, g=target, t=threat: bare(g, x, y, t, n, move=False),
                "bare loop": lambda n, g=target, t=threat: bare(g, x, y, t, n),
                "not counted": lambda n, g=target, t=threat: perturb(attack(n), g, x, y, t),
                "Holdfast": lambda n, g=target, t=threat: run(attack(n), g, x, y, t, stop=False),
            }
            tasks = {
                f"{source} {n}": partial(call, n)
                for source, call in sources.items()
                for n in (few, many)
            }
            interleaved(tasks, 1)  # warm-up
            seconds = interleaved(tasks, chosen.repeats)
            step = {
                source: (seconds[f"{source} {many}"].cpu - seconds[f"{source} {few}"].cpu)
                / chosen.steps
                for source in sources
            }
            for source, spent in step.items():
                over = spent - step["bare loop"]
                share = f"{100 * over / gradient:+.2f}"
                rows.append([name, norm, source, f"{1e3 * spent:.2f}", f"{1e3 * over:+.2f}", share])
    head = [
        "model",
        "norm",
        "source",
        "CPU ms a step",
        "over the bare loop, ms",
        "% of a ResNet-18 gradient",
    ]
    first = (
        f"PGD steps on a batch of {chosen.batch}, medians of {chosen.repeats} interleaved rounds. "
        f"A gradient step of the ResNet-18 on this batch takes {1e3 * gradient:.0f} ms of CPU time."
    )
    save(chosen.save, "What counting costs", [first, table(head, rows)])


if __name__ == "__main__":
    main()
