"""STRIP before networks with a known backdoor: what it refuses of clean and of triggered rows, and
what is left where the adversary knows of it.

The networks of `backdoor_badnets` (a white square of 5x5 pixels), MNIST. Clean images to add, rows
to fit the limit and rows to measure on are three parts of the test images, drawn at random. An
adaptive adversary starts from the triggered row and changes it within linf(eps) by APGD of 40 steps
towards the target class, through network and detector: a success is answered as the target and not
refused.

    python benchmarks/strip.py [--rows 2000] [--attacked 100]
"""

from __future__ import annotations

from dataclasses import replace

import torch
from common import loader, mnist, options, save, table
from torch import Tensor

from holdfast.attacks import parse, run
from holdfast.audit.prepare import chosen
from holdfast.decisions import REFUSED
from holdfast.intervals import exact_interval
from holdfast.targets import wrap
from holdfast.targets.defences.detectors import Strip
from holdfast.targets.target import Target
from holdfast.threats.threat import Targeted, Threat

SIZES = (0.02, 0.05, 0.1, 0.2)
ATTACK = "apgd(steps=40)"


def answers(target: Target, x: Tensor) -> Tensor:
    target.bind(tuple(x.shape[1:]))
    return target.batcher.in_parts(target.labels, x)


def share(found: Tensor) -> str:
    return str(exact_interval(int(found.sum()), len(found)))


def refusals(name: str, count: int, rate: float, rows: int) -> tuple[list[str], Target, Tensor]:
    """A line on what is refused, the defended network, and the rows whose trigger works."""
    case = loader("backdoor_badnets")
    net, goal, source = case.load(name), case.TARGET[name], case.SOURCE.get(name)
    (x, y), order = mnist(10_000), chosen(10_000, 10_000, seed=0)
    x, y = x[order], y[order]
    one = Strip(x[4000:7000], count=count).fitted(wrap(net), x[7000:], rate)
    target = wrap(net, preprocess=one)
    victims = y[:rows] == source if source is not None else y[:rows] != goal
    clean, triggered = answers(target, x[:rows]), answers(target, case.trigger(x[:rows][victims]))
    worked = answers(wrap(net), case.trigger(x[:rows][victims])) == goal
    line = [name, str(count), f"{rate:.0%}", share(clean == REFUSED)]
    line += [share(triggered[worked] == REFUSED), share(triggered == goal)]
    return line, target, case.trigger(x[:rows][victims])[worked]


def adaptive(name: str, target: Target, x: Tensor, seed: int = 0) -> list[str]:
    goal, line = loader("backdoor_badnets").TARGET[name], [name, str(len(x))]
    y = torch.full((len(x),), (goal + 1) % 10)  # no row's class is the target
    for eps in SIZES:
        threat = replace(Threat.linf(eps), goal=Targeted(goal))
        found = run(parse(ATTACK), target, x, y, threat, seed=seed)
        line.append(share(answers(target, found.best) == goal))
    return line


def left(name: str, target: Target, rows: int, eps: float = 0.1) -> list[str]:
    """Of clean rows, those that are right and stay so: without STRIP, with it against examples made
    on the network alone, and against examples that come through it. A refusal counts as robust."""
    x, y = mnist(10_000)
    at = chosen(10_000, rows, seed=0)
    alone, threat = wrap(loader("backdoor_badnets").load(name)), Threat.linf(eps)
    x, y = x[at], y[at]
    blind, knowing = (run(parse(ATTACK), one, x, y, threat).best for one in (alone, target))
    right = answers(target, x) == y

    def robust(one: Target, found: Tensor) -> Tensor:
        said = answers(one, found)
        return (said == y) | (said == REFUSED)

    kept = (robust(target, blind) & right, robust(target, knowing) & right)
    return [name, share(robust(alone, blind)), *map(share, kept)]


def main() -> None:
    asked = options(__doc__, rows=2000, attacked=50)
    refused, attacked, robust = list[list[str]](), list[list[str]](), list[list[str]]()
    for name in ("mnist_all_to_1", "mnist_4_to_7"):
        for count, rate in ((20, 0.01), (20, 0.05), (100, 0.01)):
            line, target, triggered = refusals(name, count, rate, asked.rows)
            refused.append(line)
            print(*line, flush=True)
            if (count, rate) == (20, 0.01):
                attacked.append(adaptive(name, target, triggered[: asked.attacked]))
                robust.append(left(name, target, asked.attacked))
                print(*attacked[-1], *robust[-1], flush=True)
    heads = ["network", "clean images", "rate", "clean refused", "triggered refused", "get through"]
    parts = [
        table(heads, refused),
        "Triggered rows: refused, of those that the network without STRIP answers as the target; "
        "and of all, those that get through as the target.",
        "With an adversary who knows of it (20 clean images, rate 1 %), the share of triggered "
        f"rows that get through as the target, by {ATTACK} within linf(eps):",
        table(["network", "rows", *(f"eps {eps:g}" for eps in SIZES)], attacked),
    ]
    heads = ["network", "without STRIP", "with it, blind", "with it, adaptive"]
    parts += [
        f"Clean rows that stay robust under linf(0.1), {asked.attacked} rows, {ATTACK}; blind: "
        "examples made on the network alone.",
        table(heads, robust),
    ]
    save("strip", "STRIP before networks with a backdoor", parts)


if __name__ == "__main__":
    main()
