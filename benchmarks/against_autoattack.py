"""Holdfast's protocols against the original AutoAttack: the same models, images, eps and device, in
one run.

Rows through the model are counted around it, for everyone; everybody's images are judged by
holdfast.evaluation.judge. Where protocol `autoattack` and the original disagree on an image, its
number is listed.

    python benchmarks/against_autoattack.py --autoattack PATH [--models kw trades] [--norms linf l2]
        [--protocols standard] [--images 1000] [--first 0] [--device cuda] [--workers 8]
"""

from __future__ import annotations

import contextlib
import io
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import case, cifar10, mnist, options, save, table
from peers import Counted, commit, upper
from protocols import MODELS, THREATS
from torch import Tensor, nn

import holdfast
from holdfast import Threat, wrap
from holdfast.evaluation import judge

BATCH = 2500
OWN = ("autoattack", "quick", "standard", "thorough")
Row = dict[str, Any]


def original(
    model: nn.Module, x: Tensor, y: Tensor, threat: Threat, device: str
) -> tuple[Tensor, list[int]]:
    """The standard version, one attack after the other on what is still robust: which rows are
    broken by images that are judged again."""
    from autoattack import AutoAttack

    attack = AutoAttack(
        model, norm=upper(threat, 0), eps=threat.eps, device=device, verbose=False, seed=0
    )
    names, attack.version = attack.attacks_to_run, "custom"
    target = wrap(model, shape=tuple(x.shape[1:]), batch_size=BATCH, device=device)
    broken, counts = judge.rule(target, x.to(device)).label.cpu() != y, []
    for name in names:
        attack.attacks_to_run, rows = [name], (~broken).nonzero()[:, 0]
        with contextlib.redirect_stdout(io.StringIO()):
            images = attack.run_standard_evaluation(x[rows], y[rows], bs=BATCH).cpu()
        before = Counted.forwards, Counted.backwards
        ruling = judge.rule(target, images.to(device))
        Counted.forwards, Counted.backwards = before
        hit = (
            judge.within(target, threat, x[rows], images)[0]
            & ruling.stable.cpu()
            & (ruling.label.cpu() != y[rows])
        )
        broken[rows[hit]] = True
        counts.append(int(hit.sum()))
    return broken, counts


def by_us(
    model: nn.Module, x: Tensor, y: Tensor, threat: Threat, protocol: str, device: str
) -> tuple[Tensor, list[int]]:
    target = wrap(model, batch_size=BATCH, device=device)
    run = holdfast.evaluate(target, (x.numpy(), y.numpy()), threat, protocol=protocol)
    robust = run.samples["status"].to_numpy(zero_copy_only=False) == "robust"
    return torch.from_numpy(~robust), [trial.broken for trial in run.manifest.trials]


def cell(
    name: str, norm: str, first: int, images: int, device: str, protocols: Sequence[str], path: str
) -> list[Row]:
    """One model under one threat, by everybody."""
    torch.set_num_threads(1)
    if path:
        sys.path.insert(0, path)
    kind = "cifar" if "cifar" in MODELS[name][0] else "mnist"
    threat = next(
        Threat.parse(text) for text in THREATS.get(name, THREATS[kind]) if text.startswith(norm)
    )
    x, y = (part[first:] for part in (cifar10 if kind == "cifar" else mnist)(first + images))
    model = Counted(case(*MODELS[name]).eval().requires_grad_(False)).to(device)
    wrapped = wrap(model, batch_size=BATCH, device=device, shape=tuple(x.shape[1:]))
    right = int((wrapped.batcher.in_parts(wrapped.labels, x.to(device)).cpu() == y).sum())
    rows: list[Row] = []
    broken_by: dict[str, Tensor] = {}
    for who in ["original"] * bool(path) + list(protocols):
        Counted.forwards = Counted.backwards = 0
        torch.manual_seed(0)
        began = time.perf_counter()
        if who == "original":
            broken_by[who], counts = original(model, x, y, threat, device)
        else:
            broken_by[who], counts = by_us(model, x, y, threat, who, device)
        seconds = time.perf_counter() - began
        left = int((~broken_by[who]).sum())
        row = {
            "model": name,
            "threat": str(threat),
            "who": who,
            "robust %": f"{100 * left / len(y):.2f}",
            "left": left,
        }
        row |= {"broken by each": "/".join(map(str, counts))}
        row |= {"passes": (Counted.forwards + Counted.backwards) / right, "wall s": seconds}
        base = rows[0] if path and rows else None
        if base is not None:
            row |= {
                "of its passes": row["passes"] / base["passes"],
                "of its time": seconds / base["wall s"],
            }
        rows.append(row)
        print(
            " ".join(
                f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in row.items()
            ),
            flush=True,
        )
    if {"original", "autoattack"} <= broken_by.keys():
        ours, its = (
            broken_by[a] & ~broken_by[b]
            for a, b in (("autoattack", "original"), ("original", "autoattack"))
        )
        rows[0]["apart"] = f"here alone: {_ids(ours, first)}; original alone: {_ids(its, first)}"
        print(name, norm, rows[0]["apart"], flush=True)
    return rows


def _ids(rows: Tensor, first: int) -> str:
    return ", ".join(str(first + int(i)) for i in rows.nonzero()[:, 0]) or "none"


def main() -> None:
    chosen = options(
        __doc__,
        repeats=1,
        images=1000,
        first=0,
        workers=1,
        also={
            "--models": {"nargs": "*", "default": list(MODELS), "choices": list(MODELS)},
            "--norms": {"nargs": "*", "default": ["linf", "l2"], "choices": ["linf", "l2"]},
            "--protocols": {"nargs": "*", "default": list(OWN), "choices": list(OWN)},
            "--autoattack": {
                "default": "",
                "help": "a checkout of the original AutoAttack; none: ours alone",
            },
            "--device": {"default": "cpu"},
        },
    )
    jobs = [
        (
            name,
            norm,
            chosen.first,
            chosen.images,
            chosen.device,
            tuple(chosen.protocols),
            chosen.autoattack,
        )
        for norm in chosen.norms
        for name in chosen.models
    ]
    done: dict[int, list[Row]] = {}
    with ProcessPoolExecutor(chosen.workers, get_context("spawn")) as pool:
        waiting = {pool.submit(cell, *job): number for number, job in enumerate(jobs)}
        for future in as_completed(waiting):
            done[waiting[future]] = future.result()
    rows = [row for number in sorted(done) for row in done[number]]
    names = (
        "model, threat, who, robust %, left, broken by each, passes, wall s, of its passes, "
        "of its time"
    ).split(", ")
    where = torch.cuda.get_device_name() if chosen.device.startswith("cuda") else "CPU"
    said = (
        f"Test images {chosen.first} to {chosen.first + chosen.images - 1}, on {where}, "
        f"{chosen.workers} processes "
        "side by side. Passes: forwards and backwards of an image that was right at first, counted "
        "around the model; ours with the probe, the checks and the judge."
    )
    means = []
    for who in dict.fromkeys(row["who"] for row in rows):
        mine = [row for row in rows if row["who"] == who]
        means.append([who, len(mine), f"{np.mean([float(r['robust %']) for r in mine]):.2f}"])
        means[-1] += [
            f"{np.mean([r[c] for r in mine if c in r]):.3f}" if any(c in r for r in mine) else ""
            for c in names[-2:]
        ]
    apart = "\n".join(
        f"- {row['model']}, {row['threat']}: {row['apart']}" for row in rows if "apart" in row
    )
    checkout = (
        [f"The original is at commit {commit(Path(chosen.autoattack))}."]
        if chosen.autoattack
        else []
    )
    save(
        chosen.save,
        "The protocols against the original AutoAttack",
        [
            said,
            table(names, [[row.get(column, "") for column in names] for row in rows]),
            "Means over these cells:",
            table(["who", "cells", "robust %", *names[-2:]], means),
            *(
                ["Rows on which protocol `autoattack` and the original disagree:", apart]
                if apart
                else []
            ),
            *checkout,
        ],
    )


if __name__ == "__main__":
    main()
