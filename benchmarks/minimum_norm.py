"""The smallest perturbation that each search finds: ours and the best peer's of the same algorithm,
and all together.

Everybody's passes are counted around the model and everybody's images are judged, as in peers.py;
ours has as many steps as make its passes equal to the peer's. A failure counts as infinitely far.

    python benchmarks/minimum_norm.py [--models adv cln] [--norms l2] [--attacks ddn fmn] [--tools
        adv-lib Foolbox] [--images 100] [--threads 1] [--workers 1]
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from common import case, mnist, options, save, spread, table
from peers import MINIMUM, MODULES, NORMS, PACKAGES, minimum, missing, prepare

from holdfast import Threat

ATTACKS = tuple(dict.fromkeys(e.attack for e in MINIMUM))
Row = dict[str, Any]


def nearest(rows: Sequence[Row], model: str, norm: str, size: str) -> Row:
    """The row of the smallest median."""
    fits = [row for row in rows if (row["model"], row["norm"]) == (model, norm) and size in row]
    return min(fits, key=lambda row: row[size])


def measure(name: str, norm: str, place: int, images: int) -> list[Row]:
    """One entry of MINIMUM on the first images that a net gets right."""
    model = case("torch_advertorch_lenet5", name).eval().requires_grad_(False)
    x, y = mnist(2 * images)
    right = (model(x).argmax(1) == y).nonzero()[:images, 0]
    cell = (model, x[right], y[right], Threat.parse(f"{norm}(inf)"))
    return [{"model": name} | row for row in minimum(cell, [MINIMUM[place]], 1)]


def main() -> None:
    chosen = options(
        __doc__,
        repeats=1,
        images=100,
        workers=1,
        also={
            "--models": {"nargs": "*", "default": ["adv", "cln"], "choices": ["adv", "cln"]},
            "--norms": {"nargs": "*", "default": NORMS, "choices": NORMS},
            "--attacks": {"nargs": "*", "default": ATTACKS, "choices": ATTACKS},
            "--tools": {"nargs": "*", "default": list(MODULES), "choices": list(MODULES)},
        },
    )
    reasons = prepare(chosen.tools, None)
    tools = [tool for tool, reason in reasons.items() if not reason]
    jobs = [
        (name, norm, place, chosen.images)
        for name in chosen.models
        for norm in chosen.norms
        for place, e in sorted(enumerate(MINIMUM), key=lambda pair: ATTACKS.index(pair[1].attack))
        if e.tool in tools and e.attack in chosen.attacks and norm in e.norms.split()
    ]
    rows = spread(measure, jobs, chosen.workers, prepare, tools, None)
    pairs, overall = [], []
    for model, norm in dict.fromkeys((row["model"], row["norm"]) for row in rows):
        here = [row for row in rows if (row["model"], row["norm"]) == (model, norm)]
        for attack in dict.fromkeys(row["attack"] for row in here):
            same = [row for row in here if row["attack"] == attack]
            if not any("size" in row for row in same):
                pairs.append([model, norm, attack, "", "", "", "", "", same[0].get("note", "")])
                continue
            best = nearest([row for row in same if "size" in row], model, norm, "median size")
            passes = (f"{best['F'] + best['B']:.0f}", f"{best['our F + B']:.0f}")
            pairs.append(
                [model, norm, attack, best["tool"], best["median size"], best["our size"], *passes]
            )
            pairs[-1].append(f"{best['size']:.3f}")
        theirs, ours = (nearest(rows, model, norm, size) for size in ("median size", "our size"))
        share = ours["our size"] / theirs["median size"]
        overall.append([model, norm, f"{theirs['tool']} {theirs['attack']}", theirs["median size"]])
        overall[-1] += [ours["attack"], ours["our size"], f"{share:.3f}"]
    heads = "model, norm, attack, best peer, its median, ours, its passes, ours, ratio".split(", ")
    best_heads = (
        "model, norm, best peer attack, its median, our best attack, our median, ratio".split(", ")
    )
    save(
        chosen.save,
        "The smallest perturbation, ours and the peers'",
        [
            f"`torch_advertorch_lenet5`, the first {chosen.images} test images that each net gets "
            "right. "
            "Passes: forwards and backwards an image. Median sizes; a failure is infinitely far.",
            table(heads, pairs),
            "All searches of a norm together:",
            table(best_heads, overall),
            *missing(reasons),
        ],
        also=[str(PACKAGES.get(tool, tool)) for tool in tools],
    )


if __name__ == "__main__":
    main()
