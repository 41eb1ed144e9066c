"""What our attacks cost next to the limit: CPU time a pass, over that of a loop written by hand and
of the fastest peer.

The loop by hand takes the algorithm's own steps on the bare model: forward, backward, the paper's
update, the best point so far. Everybody has as many steps; time is divided by the passes that it
paid for, since ours asks some more at the end. Parameters ask for no gradients, which spares all of
them a third of a backward. Then what a run of one row costs apart from its attacks, each in a
process of its own, after the import and the loading of the model.

    python benchmarks/cost.py [--images 200] [--repeats 3] [--steps 40] [--threads 1]
        [--models kw cnn_a] [--attacks pgd fmn] [--norms linf l2]
"""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from common import case, interleaved, options, save, table
from peers import (
    FIXED,
    FRACTION,
    MINIMUM,
    MODELS,
    NORMS,
    ORDER,
    PACKAGES,
    Cell,
    Counted,
    Entry,
    missing,
    prepare,
)
from torch import Tensor, nn

from holdfast import Threat, wrap
from holdfast.attacks import CATALOGUE
from holdfast.attacks.attack import run
from holdfast.losses import ce, margin

TOOLS = ("adv-lib", "Foolbox", "torchattacks")
ATTACKS = {
    "pgd": ("linf", "l2"),
    "ddn": ("l2",),
    "fmn": NORMS,
    "pdpgd": NORMS,
    "alma": ("l2", "l1"),
    "deepfool": ("linf", "l2"),
}
Update = Callable[[Tensor, Tensor, Tensor, Tensor, int], Tensor]  # d, g, gap, met, step: the next d

# ------------------------------------------------------------------ loops by hand


def by_hand(attack: str, cell: Cell, steps: int) -> Callable[[], object] | None:
    """So many steps of an attack as one writes them by hand; None where none is written."""
    model, x, y, threat = cell
    rule = HAND.get((attack, threat.norm.name))
    if rule is None:
        return None
    loss = ce if attack in ("pgd", "ddn") else margin

    def loop() -> Tensor:
        update, d, best = rule(x, threat, steps), torch.zeros_like(x), x.clone()
        smallest = torch.full((len(x),), math.inf)
        for t in range(steps):
            leaf = (x + d).requires_grad_()
            z = model(leaf)
            gap = loss(z, y)
            g = torch.autograd.grad(gap.sum(), leaf)[0]
            met = z.argmax(1) != y
            if attack != "pgd":
                size = d.flatten(1).norm(ORDER[threat.norm.name], dim=1)
                better = met & (size < smallest)
                smallest = torch.where(better, size, smallest)
                best = torch.where(column(better), leaf.detach(), best)
            d = (x + update(d, g, gap.detach(), met, t)).clamp(0, 1) - x
        return best

    return loop


def column(values: Tensor) -> Tensor:
    return values[:, None, None, None]


def length(d: Tensor, order: float = 2) -> Tensor:
    return d.flatten(1).norm(order, dim=1).clamp_min(1e-12)


def faded(t: int, steps: int) -> float:
    return 0.01 + 0.99 * (1 + math.cos(math.pi * t / steps)) / 2


def onto_l2(d: Tensor, radius: Tensor) -> Tensor:
    return d * column((radius / length(d)).clamp_max(1))


def pgd_linf(x: Tensor, threat: Threat, steps: int) -> Update:
    eps = float(threat.eps)
    return lambda d, g, gap, met, t: (d + FRACTION * eps * g.sign()).clamp(-eps, eps)


def pgd_l2(x: Tensor, threat: Threat, steps: int) -> Update:
    eps = torch.full((len(x),), float(threat.eps))
    return lambda d, g, gap, met, t: onto_l2(d + FRACTION * g * column(eps / length(g)), eps)


def ddn(x: Tensor, threat: Threat, steps: int) -> Update:
    radius = torch.ones(len(x))

    def update(d: Tensor, g: Tensor, gap: Tensor, met: Tensor, t: int) -> Tensor:
        radius.mul_(torch.where(met, 0.95, 1.05))
        d = d + faded(t, steps) * g / column(length(g))
        return d * column(radius / length(d))

    return update


def fmn(x: Tensor, threat: Threat, steps: int) -> Update:
    order = ORDER[threat.norm.name]
    dual, radius, seen = {2: 2, math.inf: 1}[order], torch.full((len(x),), math.inf), [~x.bool()]

    def update(d: Tensor, g: Tensor, gap: Tensor, met: Tensor, t: int) -> Tensor:
        nonlocal radius
        found = seen[0] = met if not t else seen[0] | met
        share = 0.05 * faded(t, steps)
        ahead = length(d, order) + gap.abs() / length(g, dual)
        grown = torch.where(found, radius * (1 + share), ahead)
        radius = torch.where(met, radius * (1 - share), grown)
        d = d + faded(t, steps) * g / column(length(g))
        if order == 2:
            return onto_l2(d, radius)
        return d.clamp(-column(radius), column(radius))

    return update


def deepfool(cell: Cell, steps: int) -> Callable[[], object]:
    """DeepFool's own loop: nine gradients a step, of the rows that are not yet there."""
    model, x, y, threat = cell
    order = ORDER[threat.norm.name]

    def loop() -> Tensor:
        done, live, at = x.clone(), torch.arange(len(x)), x
        for _ in range(steps):
            leaf = at.detach().requires_grad_()
            z, c = model(leaf), y[live]
            right = z.argmax(1) == c
            done[live] = leaf.detach()
            if not right.any():
                break
            gaps = z.gather(1, other(c, z.shape[1])) - z.gather(1, c[:, None])
            g = torch.stack(
                [
                    torch.autograd.grad(gap.sum(), leaf, retain_graph=True)[0]
                    for gap in gaps.unbind(1)
                ],
                1,
            )[right]
            live, at, gaps = live[right], at[right], gaps.detach()[right]
            slope = g.flatten(2).norm(2 if order == 2 else 1, dim=2).clamp_min(1e-12)
            nearest = (gaps.abs() / slope).argmin(1)
            rows = torch.arange(len(live))
            g, slope, gap = g[rows, nearest], slope[rows, nearest], gaps[rows, nearest].abs()
            move = g * column(gap / slope**2) if order == 2 else g.sign() * column(gap / slope)
            at = (at + 1.02 * move).clamp(0, 1)
        return done

    return loop


def other(c: Tensor, k: int) -> Tensor:
    """The classes that are not c [n]: [n, k - 1]."""
    every = torch.arange(k - 1).expand(len(c), -1)
    return every + (every >= c[:, None])


HAND: dict[tuple[str, str], Callable[[Tensor, Threat, int], Update]] = {
    ("pgd", "linf"): pgd_linf,
    ("pgd", "l2"): pgd_l2,
    ("ddn", "l2"): ddn,
    ("fmn", "l2"): fmn,
    ("fmn", "linf"): fmn,
}

# ------------------------------------------------------------------ ours and the peers'


def ours(attack: str, cell: Cell, steps: int) -> Callable[[], object]:
    model, x, y, threat = cell
    how = {"step_size": FRACTION, "start_at": "zero"} if attack == "pgd" else {}
    target = wrap(model, shape=tuple(x.shape[1:]))
    return lambda: run(CATALOGUE[attack](steps=steps, **how), target, x, y, threat, stop=False)


def peers(attack: str, norm: str, tools: list[str]) -> Iterator[Entry]:
    for entry in FIXED + MINIMUM:
        if entry.tool in tools and entry.attack == attack and norm in entry.norms.split():
            yield entry


def cell_of(name: str, attack: str, norm: str, images: int) -> Cell:
    """A model, the first images that it gets right, and the threat."""
    model = case(*MODELS[name].place).eval().requires_grad_(False)
    x, y = MODELS[name].data(2 * images)
    text = f"{norm}(inf)"
    if attack == "pgd":
        text = next(text for text in MODELS[name].threats if text.startswith(norm))
    right = (model(x).argmax(1) == y).nonzero()[:images, 0]
    return model, x[right], y[right], Threat.parse(text)


def counted(task: Callable[[nn.Module], Callable[[], object]], cell: Cell) -> float:
    """The passes of an image."""
    call = task(Counted(cell[0]).eval())
    Counted.forwards = Counted.backwards = 0
    call()
    return (Counted.forwards + Counted.backwards) / len(cell[1])


def measured(name: str, attack: str, norm: str, tools: list[str], chosen: Any) -> list[object]:
    """The row of a table: CPU seconds a pass and image of ours, over those of the others."""
    cell = cell_of(name, attack, norm, chosen.images)
    steps, threat = chosen.steps, cell[3]
    tasks: dict[str, Any] = {"Holdfast": lambda model: ours(attack, (model, *cell[1:]), steps)}
    if attack == "deepfool":
        tasks["by hand"] = lambda model: deepfool((model, *cell[1:]), steps)
    elif (attack, norm) in HAND:
        tasks["by hand"] = lambda model: by_hand(attack, (model, *cell[1:]), steps)
    for entry in peers(attack, norm, tools):
        tasks[entry.tool] = lambda model, e=entry: (
            lambda: e.call(model, cell[1].clone(), cell[2].clone(), threat, steps)
        )
    passes = {who: counted(task, cell) for who, task in tasks.items()}
    timed = {who: task(cell[0]) for who, task in tasks.items()}
    spent = interleaved(timed, chosen.repeats, of=min)
    each = {who: spent[who].cpu / passes[who] / len(cell[1]) for who in timed}
    mine, hand = each.pop("Holdfast"), each.pop("by hand", math.nan)
    best = min(each, key=lambda who: each[who], default="")
    row = [name, attack, str(threat), passes["Holdfast"], 1e6 * mine]
    row += ["" if math.isnan(hand) else f"{mine / hand:.2f}"]
    return [*row, best, f"{mine / each[best]:.2f}" if best else ""]


# ------------------------------------------------------------------ one row

ONE_ROW = """
import sys, time
sys.path.insert(0, {benchmarks!r})
import torch
torch.set_num_threads({threads})
import holdfast
from common import case
from peers import MODELS, Counted
from holdfast.evaluation import chunk
model = Counted(case(*MODELS[{name!r}].place).eval().requires_grad_(False))
x, y = MODELS[{name!r}].data(1)
inside, run = [0.0, 0, 0], chunk.run
def timed(*args, **options):
    began, passes = time.process_time(), Counted.forwards + Counted.backwards
    try:
        return run(*args, **options)
    finally:
        inside[0] += time.process_time() - began
        inside[1] += Counted.forwards + Counted.backwards - passes
chunk.run = timed
for _ in range(2):
    inside[:] = [0.0, 0, 0]
    began, Counted.forwards, Counted.backwards = time.process_time(), 0, 0
    holdfast.evaluate(model, (x, y), {threat!r}, protocol={protocol!r})
    print(time.process_time() - began - inside[0],
          Counted.forwards + Counted.backwards - inside[1], inside[0], inside[1])
"""


def one_row(name: str, protocol: str, threads: int) -> list[list[object]]:
    """What the first and the second run of one row in a process cost apart from the attacks."""
    script = ONE_ROW.format(
        benchmarks=str(sys.path[0]),
        threads=threads,
        name=name,
        threat=MODELS[name].threats[0],
        protocol=protocol,
    )
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    rows = []
    for line, which in zip(done.stdout.splitlines()[-2:], ("first", "second"), strict=True):
        cpu, passes, attacks, within = line.split()
        rows.append([name, protocol, which, float(cpu), int(passes), float(attacks), int(within)])
    return rows


def main() -> None:
    chosen = options(
        __doc__,
        repeats=3,
        images=200,
        steps=40,
        also={
            "--models": {"nargs": "*", "default": ["kw", "cnn_a"], "choices": list(MODELS)},
            "--attacks": {"nargs": "*", "default": [*ATTACKS, "one-row"]},
            "--norms": {"nargs": "*", "default": NORMS, "choices": NORMS},
        },
    )
    reasons = prepare(TOOLS, None)
    tools = [tool for tool, reason in reasons.items() if not reason]
    rows = []
    for name in chosen.models:
        for attack in (attack for attack in ATTACKS if attack in chosen.attacks):
            for norm in (norm for norm in ATTACKS[attack] if norm in chosen.norms):
                rows.append(measured(name, attack, norm, tools, chosen))
                print(*rows[-1], flush=True)
    head = "model, attack, threat, passes, us a pass, over by hand, fastest peer, over it"
    parts = [
        f"The first {chosen.images} test images that each model gets right, {chosen.steps} steps, "
        "no row let go before the end (but by DeepFool's own rule); CPU time a pass and image, the "
        f"least of {chosen.repeats} interleaved rounds.",
        table(head.split(", "), rows),
    ]
    if "one-row" in chosen.attacks:
        alone = [
            row
            for name in chosen.models
            for protocol in ("quick", "standard")
            for row in one_row(name, protocol, chosen.threads)
        ]
        head = "model, protocol, run, CPU s, passes, CPU s of attacks, passes of attacks"
        parts += [
            "`holdfast.evaluate` on one row, after the import and the loading of the model: what "
            "it costs apart from the attacks, and in them.",
            table(head.split(", "), alone),
        ]
    save(
        chosen.save,
        "Cost next to the limit",
        [*parts, *missing(reasons)],
        also=[PACKAGES.get(tool, tool) for tool in tools],
    )


if __name__ == "__main__":
    main()
