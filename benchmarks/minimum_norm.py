"""The smallest perturbation that each search finds: ours and the best peer's of the same algorithm, and all together.

Everybody's passes are counted around the model and everybody's images are judged, as in peers.py; ours has as many
steps as make its passes equal to the peer's. A failure counts as infinitely far.

    python benchmarks/minimum_norm.py [--models adv cln] [--norms l2] [--attacks ddn fmn] [--tools adv-lib]
        [--images 100] [--threads 1]
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from typing import Any

from common import case, mnist, options, save, table
from peers import MINIMUM, MODULES, NORMS, PACKAGES, importable, minimum

from holdfast import Threat

CHEAP = ("ddn", "fmn", "sigmazero", "pdpgd", "alma", "vfga", "deepfool", "superdeepfool", "fab", "ead", "cw")
Row = dict[str, Any]


def nearest(rows: Sequence[Row], model: str, norm: str, size: str) -> Row:
    """The row of the smallest median."""
    fits = [row for row in rows if (row["model"], row["norm"]) == (model, norm) and size in row]
    return min(fits, key=lambda row: row[size])


def main() -> None:
    chosen = options(
        __doc__,
        repeats=1,
        images=100,
        also={
            "--models": {"nargs": "*", "default": ["adv", "cln"], "choices": ["adv", "cln"]},
            "--norms": {"nargs": "*", "default": NORMS, "choices": NORMS},
            "--attacks": {"nargs": "*", "default": CHEAP, "help": f"default: {', '.join(CHEAP)}"},
            "--tools": {"nargs": "*", "default": ["adv-lib", "Foolbox"], "choices": list(MODULES)},
        },
    )
    warnings.simplefilter("ignore")
    os.environ["TQDM_DISABLE"] = "1"
    reasons = importable(None)
    tools = [tool for tool in chosen.tools if not reasons[tool]]
    rows: list[Row] = []
    for name in chosen.models:
        model = case("torch_advertorch_lenet5", name).eval().requires_grad_(False)
        x, y = mnist(2 * chosen.images)
        right = (model(x).argmax(1) == y).nonzero()[: chosen.images, 0]
        for norm in chosen.norms:
            cell = (model, x[right], y[right], Threat.parse(f"{norm}(inf)"))
            able = [e for e in MINIMUM if e.tool in tools and e.attack in chosen.attacks and norm in e.norms.split()]
            for row in minimum(cell, sorted(able, key=lambda e: chosen.attacks.index(e.attack)), 1):
                rows.append({"model": name} | row)
                print(rows[-1], flush=True)
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
            pairs.append([model, norm, attack, best["tool"], best["median size"], best["our size"], *passes])
            pairs[-1].append(f"{best['size']:.3f}")
        theirs, ours = (nearest(rows, model, norm, size) for size in ("median size", "our size"))
        share = ours["our size"] / theirs["median size"]
        overall.append([model, norm, f"{theirs['tool']} {theirs['attack']}", theirs["median size"]])
        overall[-1] += [ours["attack"], ours["our size"], f"{share:.3f}"]
    heads = "model, norm, attack, best peer, its median, ours, its passes, ours, ratio".split(", ")
    best_heads = "model, norm, best peer attack, its median, our best attack, our median, ratio".split(", ")
    save(
        chosen.save,
        "The smallest perturbation, ours and the peers'",
        [
            f"`torch_advertorch_lenet5`, the first {chosen.images} test images that each net gets right. "
            "Passes: forwards and backwards an image. Median sizes; a failure is infinitely far.",
            table(heads, pairs),
            "All searches of a norm together:",
            table(best_heads, overall),
        ],
        also=[str(PACKAGES.get(tool, tool)) for tool in tools],
    )


if __name__ == "__main__":
    main()
