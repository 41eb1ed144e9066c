"""PGD-40 of Holdfast against the same PGD-40 of Foolbox, torchattacks and CleverHans.

Equal for all: the shared MNIST models, the first test images, batches of 256, cross-entropy, 40 steps of eps / 30
(0.01 at Linf 0.3, 0.067 at L2 2.0), no random start, torch threads. Each tool is used as its documentation says, on
the model as it was loaded, and is timed from images to a robust accuracy: a tool that returns only images has one
more forward to pay. `--frozen 1` spares the peers the parameter gradients, as Holdfast always does.

`claimed` is the tool's own word (for one that returns only images, the model's on them); `judged` is that of
holdfast.evaluate.judge on the images that it returned. Rows that the model gets wrong count as broken.

    python benchmarks/pgd.py [--images 512] [--repeats 3] [--threads 1] [--frozen 0]
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import cleverhans.torch.attacks.projected_gradient_descent as cleverhans
import foolbox
import numpy as np
import torch
import torchattacks
from common import case, interleaved, mnist, options, save, table
from torch import Tensor, nn

from holdfast import Threat, wrap
from holdfast.attacks.attack import run
from holdfast.attacks.pgd import PGD
from holdfast.evaluate import judge
from holdfast.targets import Target

BATCH, STEPS, FRACTION = 256, 40, 1 / 30
MODELS = {
    "advertorch adv": ("torch_advertorch_lenet5", "adv"),
    "advertorch cln": ("torch_advertorch_lenet5", "cln"),
    "trades": ("torch_trades_mnist",),
}
THREATS = {"linf(0.3)": Threat.linf(0.3), "l2(2.0)": Threat.l2(2.0)}


@dataclass
class Counts:
    """Rows that went through a model, either way."""

    forwards: int = 0
    backwards: int = 0


COUNTS = Counts()  # of the module, not of the model: Holdfast copies the model


class Counted(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        z = self.model(x)
        COUNTS.forwards += len(x)
        if z.requires_grad and x.requires_grad:
            z.register_hook(_count_backward)
        return z


def _count_backward(cotangent: Tensor) -> None:
    COUNTS.backwards += len(cotangent)


Tool = Callable[[nn.Module, Tensor, Tensor, Threat], tuple[Tensor, Tensor]]  # images, and which of them survived


def by_foolbox(model: nn.Module, x: Tensor, y: Tensor, threat: Threat) -> tuple[Tensor, Tensor]:
    kind = foolbox.attacks.LinfPGD if threat.norm.name == "linf" else foolbox.attacks.L2PGD
    attack = kind(abs_stepsize=threat.eps * FRACTION, steps=STEPS, random_start=False)
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1))
    parts = [attack(wrapped, a, b, epsilons=threat.eps) for a, b in zip(x.split(BATCH), y.split(BATCH), strict=True)]
    return torch.cat([found for _, found, _ in parts]), ~torch.cat([hit for _, _, hit in parts])


def by_torchattacks(model: nn.Module, x: Tensor, y: Tensor, threat: Threat) -> tuple[Tensor, Tensor]:
    kind = torchattacks.PGD if threat.norm.name == "linf" else torchattacks.PGDL2
    attack = kind(model, eps=threat.eps, alpha=threat.eps * FRACTION, steps=STEPS, random_start=False)
    return _ask(model, y, [attack(a, b) for a, b in zip(x.split(BATCH), y.split(BATCH), strict=True)])


def by_cleverhans(model: nn.Module, x: Tensor, y: Tensor, threat: Threat) -> tuple[Tensor, Tensor]:
    norm = np.inf if threat.norm.name == "linf" else 2
    attack = partial(
        cleverhans.projected_gradient_descent,
        model,
        eps=threat.eps,
        eps_iter=threat.eps * FRACTION,
        nb_iter=STEPS,
        norm=norm,
        clip_min=0.0,
        clip_max=1.0,
        rand_init=False,
        sanity_checks=False,
    )
    return _ask(model, y, [attack(a, y=b).detach() for a, b in zip(x.split(BATCH), y.split(BATCH), strict=True)])


def by_holdfast(model: nn.Module, x: Tensor, y: Tensor, threat: Threat, *, stop: bool) -> tuple[Tensor, Tensor]:
    attack = PGD(steps=STEPS, step_size=FRACTION, loss="ce", start_at="zero")
    ledger = run(attack, wrap(model, batch_size=BATCH), x, y, threat, stop=stop)
    return ledger.best, ~ledger.broken


def _ask(model: nn.Module, y: Tensor, images: list[Tensor]) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        return torch.cat(images), torch.cat([model(part).argmax(1) for part in images]) == y


TOOLS: dict[str, Tool] = {
    "Foolbox": by_foolbox,
    "torchattacks": by_torchattacks,
    "CleverHans": by_cleverhans,
    "Holdfast, early exit off": partial(by_holdfast, stop=False),
    "Holdfast, early exit on": partial(by_holdfast, stop=True),
}
PEERS = list(TOOLS)[:3]


def main() -> None:
    chosen = options(__doc__, repeats=3, images=512, frozen=0)
    x, y = mnist(chosen.images)
    rows: list[list[object]] = []
    for name, place in MODELS.items():
        model = case(*place)
        model.requires_grad_(not chosen.frozen)
        target = wrap(copy.deepcopy(model), shape=tuple(x.shape[1:]))
        for text, threat in THREATS.items():
            kept: dict[str, Outcome] = {}
            for tool in TOOLS:  # the first pass of a shape pays for what later ones find ready
                _once(kept, tool, model, x[:8], y[:8], threat)
            tasks = {tool: partial(_once, kept, tool, model, x, y, threat) for tool in TOOLS}
            seconds = interleaved(tasks, chosen.repeats)
            facts = {tool: _facts(kept[tool], x, y, threat, target) for tool in TOOLS}
            best = min(seconds[peer].cpu for peer in PEERS)
            for tool in TOOLS:
                spent = seconds[tool]
                ratio = f"{spent.cpu / best:.2f}"
                rows.append([name, text, tool, *facts[tool], f"{spent.cpu:.2f}", f"{spent.wall:.2f}", ratio])
                print(*rows[-1], sep="  ", flush=True)
    head = "model, threat, tool, claimed %, judged %, forwards, backwards, CPU s, wall s, ratio".split(", ")
    first = (
        f"PGD-40, step eps/30, cross-entropy, no random start, batches of {BATCH}, first {chosen.images} MNIST test "
        f"images; model parameters {'frozen' if chosen.frozen else 'as loaded, asking for gradients'}. Medians of "
        f"{chosen.repeats} interleaved rounds; forwards and backwards an image; ratio of CPU time to the fastest peer."
    )
    save(
        chosen.save,
        "PGD-40 against the peers",
        [first, table(head, rows)],
        also=("foolbox", "torchattacks", "cleverhans"),
    )


@dataclass(frozen=True)
class Outcome:
    images: Tensor
    survived: Tensor
    forwards: float  # an image
    backwards: float


def _once(kept: dict[str, Outcome], tool: str, model: nn.Module, x: Tensor, y: Tensor, threat: Threat) -> None:
    """One run, counted; counting costs microseconds a batch, and the same for all."""
    COUNTS.forwards = COUNTS.backwards = 0
    images, survived = TOOLS[tool](Counted(model).eval(), x, y, threat)
    kept[tool] = Outcome(images, survived, COUNTS.forwards / len(x), COUNTS.backwards / len(x))


def _facts(got: Outcome, x: Tensor, y: Tensor, threat: Threat, target: Target) -> list[str]:
    """Accuracy as claimed and as judged, and the passes an image."""
    ruling, clean = judge.rule(target, got.images), judge.rule(target, x)
    legal, _ = judge.within(target, threat, x, got.images)
    fallen = (clean.label != y) | (legal & ruling.stable & judge.meets_goal(threat, ruling.label, y))
    claimed, judged = 100 * got.survived.float().mean().item(), 100 * (~fallen).float().mean().item()
    return [f"{claimed:.1f}", f"{judged:.1f}", f"{got.forwards:.1f}", f"{got.backwards:.1f}"]


if __name__ == "__main__":
    main()
