"""Holdfast against its peers: the same models, images and eps, everybody's examples judged,
everybody's passes counted.

Two tasks:

- fixed eps: PGD-40 of all who have it, and the strongest bundled routine of each, against
  Holdfast's protocols;
- minimum norm: each of Holdfast's attacks that a peer has too, ours with as many steps as make the
  passes equal.

Passes are rows through the model, forwards and backwards, counted around the model; parameters ask
for no gradients, which spares the peers a third of a backward. `claimed` is the tool's own word, or
the model's on its images where it returns only images; `judged` is that of
holdfast.evaluation.judge, which also holds the images to the box and to eps. A tool that cannot be
imported, and one that crashes on a task, is listed with the reason.

    python benchmarks/peers.py [--quick] [--models kw trades] [--threats "linf(0.1)" l2(1)]
        [--images 20] [--tools Foolbox ART] [--attacks pgd strong ddn] [--autoattack PATH]
        [--threads 1] [--workers 1] [--docs]
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import io
import math
import os
import re
import subprocess
import sys
import types
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import geometric_mean, mean
from typing import Any

import numpy as np
import torch
from common import ROOT, Seconds, case, cifar10, interleaved, mnist, options, save, spread, table
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import holdfast
from holdfast import Threat, wrap
from holdfast.attacks import CATALOGUE
from holdfast.attacks.attack import run
from holdfast.evaluation import judge
from holdfast.evaluation.protocols import PROTOCOLS

BATCH, CLASSES, PGD_STEPS, FRACTION = 256, 10, 40, 1 / 30
ORDER = {"linf": math.inf, "l2": 2, "l1": 1, "l0": 0}
NORMS = tuple(ORDER)

Found = tuple[Tensor, Tensor]  # images, and which rows survived
Tool = Callable[[nn.Module, Tensor, Tensor, Threat, int], Found]  # model, x, y, threat, steps
Value = Callable[[Threat, int], Any]  # of an option of a tool that depends on threat and steps


@dataclass(frozen=True)
class Model:
    place: tuple[str, ...]  # in the shared cases
    data: Callable[[int], tuple[Tensor, Tensor]]
    threats: tuple[str, ...]


MODELS = {
    "kw": Model(("torch_kw_mnist",), mnist, ("linf(0.1)", "l2(1)")),
    "cnn_a": Model(("torch_cnn_a_cifar",), cifar10, ("linf(2/255)", "l2(0.25)")),
    "trades": Model(("torch_trades_mnist",), mnist, ("linf(0.3)", "l2(1.5)")),
    "advertorch": Model(("torch_advertorch_lenet5", "adv"), mnist, ("linf(0.3)", "l2(1.5)")),
}

# ------------------------------------------------------------------ counting


class Counted(nn.Module):
    """Counts rows, for the class and not for the object, since a tool may copy the model."""

    forwards = backwards = 0

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        if x.requires_grad:
            x.register_hook(Tensor.contiguous)  # some tools call `view` on the gradient
        z = self.model(x)
        Counted.forwards += len(x)
        if z.requires_grad:
            z.register_hook(_count_backward)
        return z


def _count_backward(cotangent: Tensor) -> None:
    Counted.backwards += len(cotangent)


# ------------------------------------------------------------------ the tools


def _options(how: dict[str, Any], threat: Threat, steps: int) -> dict[str, Any]:
    """An attack's options, those of threat and steps worked out."""
    return {name: value(threat, steps) if callable(value) else value for name, value in how.items()}


def eps(threat: Threat, _: int) -> float:
    return float(threat.eps)


def stride(threat: Threat, _: int) -> float:
    return float(threat.eps) * FRACTION


def order(threat: Threat, _: int) -> float:
    return ORDER[threat.norm.name]


def name(threat: Threat, _: int) -> str:
    return threat.norm.name


def upper(threat: Threat, _: int) -> str:
    return threat.norm.name.capitalize()


def steps(_: Threat, n: int) -> int:
    return n


def split(parts: int) -> Value:
    """The steps of one of so many rounds."""
    return lambda _, n: max(1, n // parts)


def _each(
    attack: Callable[[Tensor, Tensor], Tensor], model: nn.Module, x: Tensor, y: Tensor
) -> Found:
    """The images of an attack that returns only images, and what the model says of them."""
    images = [attack(a, b).detach() for a, b in zip(x.split(BATCH), y.split(BATCH), strict=True)]
    with torch.no_grad():
        return torch.cat(images), torch.cat([model(part).argmax(1) for part in images]) == y


def foolbox(kinds: str, **how: Any) -> Tool:
    """One of `kinds` by the norm that its name begins with, or the only one."""

    def call(model: nn.Module, x: Tensor, y: Tensor, threat: Threat, n: int) -> Found:
        import foolbox as library

        names = kinds.split()
        fits = [name for name in names if name.lower().startswith(threat.norm.name)]
        attack = getattr(library.attacks, (fits or names)[0])(**_options(how, threat, n))
        size = threat.eps if math.isfinite(threat.eps) else None
        wrapped = library.PyTorchModel(model, bounds=(0, 1), device="cpu")
        got = [
            attack(wrapped, a, b, epsilons=size)
            for a, b in zip(x.split(BATCH), y.split(BATCH), strict=True)
        ]
        return torch.cat([images for _, images, _ in got]), ~torch.cat([hit for _, _, hit in got])

    return call


def torchattacks(kinds: str, **how: Any) -> Tool:
    """One of `kinds`: the second for L2, where there are two."""

    def call(model: nn.Module, x: Tensor, y: Tensor, threat: Threat, n: int) -> Found:
        import torchattacks as library

        names = kinds.split()
        kind = names[-1] if threat.norm.name == "l2" else names[0]
        return _each(getattr(library, kind)(model, **_options(how, threat, n)), model, x, y)

    return call


def art(kind: str, *, aimed: bool = False, **how: Any) -> Tool:
    """An `aimed` attack is told the class to reach, the next one, and not the true one."""

    def call(model: nn.Module, x: Tensor, y: Tensor, threat: Threat, n: int) -> Found:
        from art.attacks import evasion
        from art.estimators.classification import PyTorchClassifier

        classifier = PyTorchClassifier(
            model,
            nn.CrossEntropyLoss(),
            tuple(x.shape[1:]),
            CLASSES,
            clip_values=(0, 1),
            device_type="cpu",
        )
        attack = getattr(evasion, kind)(classifier, batch_size=BATCH, **_options(how, threat, n))
        return _each(
            lambda a, b: torch.from_numpy(
                attack.generate(a.numpy(), ((b + aimed) % CLASSES).numpy())
            ),
            model,
            x,
            y,
        )

    return call


def cleverhans(kind: str, **how: Any) -> Tool:
    def call(model: nn.Module, x: Tensor, y: Tensor, threat: Threat, n: int) -> Found:
        function = getattr(importlib.import_module(f"cleverhans.torch.attacks.{kind}"), kind)
        return _each(lambda a, b: function(model, a, y=b, **_options(how, threat, n)), model, x, y)

    return call


def secml(place: str, kind: str, **how: Any) -> Tool:
    def call(model: nn.Module, x: Tensor, y: Tensor, threat: Threat, n: int) -> Found:
        attack = getattr(importlib.import_module(f"secmlt.adv.evasion.{place}"), kind)(
            **_options(how, threat, n)
        )

        def images(a: Tensor, b: Tensor) -> Tensor:
            found = attack(model, DataLoader(TensorDataset(a, b), batch_size=BATCH))
            return torch.cat([part for part, _ in found])

        return _each(images, model, x, y)

    return call


def advlib(kind: str, **how: Any) -> Tool:
    def call(model: nn.Module, x: Tensor, y: Tensor, threat: Threat, n: int) -> Found:
        function = getattr(importlib.import_module("adv_lib.attacks"), kind)
        return _each(lambda a, b: function(model, a, b, **_options(how, threat, n)), model, x, y)

    return call


def autoattack(model: nn.Module, x: Tensor, y: Tensor, threat: Threat, _: int) -> Found:
    from autoattack import AutoAttack

    attack = AutoAttack(
        model, norm=upper(threat, 0), eps=threat.eps, device="cpu", verbose=False, seed=0
    )
    with contextlib.redirect_stdout(io.StringIO()):
        return _each(partial(attack.run_standard_evaluation, bs=BATCH), model, x, y)


def autoattack_fab(model: nn.Module, x: Tensor, y: Tensor, threat: Threat, n: int) -> Found:
    from autoattack.fab_pt import FABAttack_PT

    attack = FABAttack_PT(
        model,
        norm=upper(threat, 0),
        n_restarts=1,
        n_iter=n,
        eps=math.inf,
        seed=0,
        verbose=False,
        device="cpu",
    )
    return _each(attack.perturb, model, x, y)


def holdfast_attack(attack: str) -> Tool:
    def call(model: nn.Module, x: Tensor, y: Tensor, threat: Threat, n: int) -> Found:
        found = run(CATALOGUE[attack](steps=n), wrap(model, batch_size=BATCH), x, y, threat)
        return found.best, ~found.broken

    return call


def holdfast_pgd(model: nn.Module, x: Tensor, y: Tensor, threat: Threat, n: int) -> Found:
    attack = CATALOGUE["pgd"](steps=n, step_size=FRACTION, loss="ce", start_at="zero")
    found = run(attack, wrap(model, batch_size=BATCH), x, y, threat)
    return found.best, ~found.broken


def holdfast_protocol(protocol: str) -> Tool:
    """The whole evaluation: clean pass, checks of the model, attacks, judge, evidence on disk."""

    def call(model: nn.Module, x: Tensor, y: Tensor, threat: Threat, _: int) -> Found:
        done = holdfast.evaluate(wrap(model, batch_size=BATCH), (x, y), threat, protocol=protocol)
        images = x.clone()
        for ids, found in done.examples():
            images[torch.from_numpy(ids)] = torch.from_numpy(found)
        return images, torch.from_numpy(
            done.samples["status"].to_numpy(zero_copy_only=False) == "robust"
        )

    return call


# ------------------------------------------------------------------ who does what


@dataclass(frozen=True)
class Entry:
    tool: str
    attack: str  # our name of it
    norms: str
    call: Tool
    steps: int = 0  # 0: as the tool has it
    label: str = ""  # what the tool calls it, where that says more
    against: tuple[str, ...] = ()  # our rows to hold it against; the first that there is

    @property
    def title(self) -> str:
        return self.label or self.attack


MODULES = {
    "Foolbox": "foolbox",
    "ART": "art.attacks.evasion",
    "torchattacks": "torchattacks",
    "CleverHans": "cleverhans.torch.attacks.projected_gradient_descent",
    "adv-lib": "adv_lib.attacks",
    "secml-torch": "secmlt.adv.evasion.pgd",  # imports adv-lib where there is one
    "AutoAttack": "autoattack",
}
PACKAGES = {"ART": "adversarial-robustness-toolbox"}  # where another than the tool's name

BALL = {"eps": eps, "random_start": False}
CLEVERHANS = {"clip_min": 0.0, "clip_max": 1.0, "rand_init": False, "sanity_checks": False}
ART = {"norm": order, "eps": eps, "eps_step": lambda t, _: 2 * t.eps}
DLR = "difference_logits_ratio"
SECML = {"perturbation_model": name, "num_steps": steps}
PGD: dict[str, tuple[str, Tool]] = {
    "Foolbox": (
        "linf l2",
        foolbox("LinfPGD L2PGD", abs_stepsize=stride, steps=steps, random_start=False),
    ),
    "ART": (
        "linf l2",
        art(
            "ProjectedGradientDescent",
            norm=order,
            eps=eps,
            eps_step=stride,
            max_iter=steps,
            verbose=False,
        ),
    ),
    "torchattacks": ("linf l2", torchattacks("PGD PGDL2", alpha=stride, steps=steps, **BALL)),
    "CleverHans": (
        "linf l2",
        cleverhans(
            "projected_gradient_descent",
            eps=eps,
            eps_iter=stride,
            nb_iter=steps,
            norm=order,
            **CLEVERHANS,
        ),
    ),
    "secml-torch": (
        "linf l2",
        secml("pgd", "PGDNative", epsilon=eps, step_size=stride, random_start=False, **SECML),
    ),
    "adv-lib": (
        "linf",
        advlib("pgd_linf", ε=eps, steps=steps, random_init=False, relative_step_size=FRACTION),
    ),
}
STRONG: list[tuple[str, str, str, Tool]] = [
    (
        "ART",
        "strong",
        "APGD, DLR, 5 starts",
        art("AutoProjectedGradientDescent", loss_type=DLR, verbose=False, **ART),
    ),
    ("ART", "slow", "AutoAttack", art("AutoAttack", **ART)),  # minutes for a handful of images
    (
        "torchattacks",
        "strong",
        "AutoAttack",
        torchattacks("AutoAttack", norm=upper, eps=eps, seed=0),
    ),
    ("adv-lib", "strong", "APGD, targeted", advlib("apgd_targeted", norm=order, eps=eps)),
    ("AutoAttack", "strong", "standard", autoattack),
]
FIXED = [
    Entry(tool, "pgd", norms, call, 40, "PGD-40", ("PGD-40",))
    for tool, (norms, call) in PGD.items()
]
FIXED += [
    Entry(tool, kind, "linf l2", call, 0, label, ("autoattack", "standard"))
    for tool, kind, label, call in STRONG
]

_e = Entry
_search5: dict[str, Any] = {"binary_search_steps": 5}
MINIMUM = [
    _e(
        "Foolbox",
        "deepfool",
        "linf l2",
        foolbox("LinfDeepFoolAttack L2DeepFoolAttack", steps=steps),
        50,
    ),
    _e("ART", "deepfool", "l2", art("DeepFool", max_iter=steps, verbose=False), 50),
    _e("torchattacks", "deepfool", "l2", torchattacks("DeepFool", steps=steps), 50),
    _e("adv-lib", "deepfool", "linf l2", advlib("df", norm=order, steps=steps), 50),
    _e("adv-lib", "superdeepfool", "l2", advlib("sdf", steps=steps), 50),
    _e("Foolbox", "cw", "l2", foolbox("L2CarliniWagnerAttack", steps=split(5), **_search5), 500),
    _e(
        "ART", "cw", "l2", art("CarliniL2Method", max_iter=split(5), verbose=False, **_search5), 500
    ),
    _e("torchattacks", "cw", "l2", torchattacks("CW", steps=steps), 500),
    _e(
        "CleverHans",
        "cw",
        "l2",
        cleverhans("carlini_wagner_l2", n_classes=CLASSES, max_iterations=split(5)),
        500,
    ),
    _e(
        "adv-lib", "cw", "l2", advlib("carlini_wagner_l2", max_iterations=split(5), **_search5), 500
    ),
    _e("ART", "cw", "linf", art("CarliniLInfMethod", max_iter=split(10), verbose=False), 500),
    _e("adv-lib", "cw", "linf", advlib("carlini_wagner_linf", max_iterations=split(10)), 500),
    _e(
        "ART",
        "cw",
        "l0",
        art("CarliniL0Method", max_iter=split(50), verbose=False, **_search5),
        500,
    ),
    _e("Foolbox", "ddn", "l2", foolbox("DDNAttack", steps=steps), 100),
    _e("secml-torch", "ddn", "l2", secml("ddn", "DDNNative", num_steps=steps, eps_init=1.0), 100),
    _e("adv-lib", "ddn", "l2", advlib("ddn", steps=steps, levels=None), 100),
    _e(
        "Foolbox",
        "fmn",
        "linf l2 l1 l0",
        foolbox("LInfFMNAttack L2FMNAttack L1FMNAttack L0FMNAttack", steps=steps),
        100,
    ),
    _e(
        "secml-torch",
        "fmn",
        "linf l2 l1 l0",
        secml("fmn", "FMNNative", max_step_size=1.0, **SECML),
        100,
    ),
    _e("adv-lib", "fmn", "linf l2 l1 l0", advlib("fmn", norm=order, steps=steps), 100),
    _e(
        "torchattacks",
        "fab",
        "linf l2 l1",
        torchattacks("FAB", norm=upper, eps=1e6, steps=steps),
        50,
    ),
    _e("adv-lib", "fab", "linf l2 l1", advlib("fab", norm=order, n_iter=steps), 50),
    _e("AutoAttack", "fab", "linf l2 l1", autoattack_fab, 50),
    _e("adv-lib", "pdpgd", "linf l2 l1", advlib("pdpgd", norm=order, num_steps=steps), 200),
    _e(
        "adv-lib",
        "pdpgd",
        "l0",
        advlib("pdpgd", norm=order, num_steps=steps, proximal_operator=23),
        200,
    ),
    _e("adv-lib", "alma", "l2 l1", advlib("alma", distance=name, num_steps=steps), 200),
    _e(
        "Foolbox",
        "ead",
        "l1",
        foolbox("EADAttack", steps=split(5), decision_rule="L1", **_search5),
        500,
    ),
    _e(
        "ART",
        "ead",
        "l1",
        art("ElasticNet", max_iter=split(5), decision_rule="L1", verbose=False, **_search5),
        500,
    ),
    _e(
        "torchattacks", "ead", "l1", torchattacks("EADL1", max_iterations=split(5), **_search5), 500
    ),
    _e("adv-lib", "sigmazero", "l0", advlib("sigma_zero", num_steps=steps), 200),
    _e("adv-lib", "vfga", "l0", advlib("vfga", targeted=False, max_iter=steps), 100),
    _e(
        "Foolbox",
        "brendelbethge",
        # each norm is first compiled for about 45 CPU seconds, outside what is timed
        "linf l2 l1 l0",
        foolbox(
            " ".join(f"{n}BrendelBethgeAttack" for n in ("Linfinity", "L2", "L1", "L0")),
            steps=steps,
        ),
        100,
    ),
    _e(
        "ART",
        "jsma",
        "l0",
        art("SaliencyMapMethod", aimed=True, theta=1.0, gamma=1.0, verbose=False),
        100,
    ),
    _e("torchattacks", "jsma", "l0", torchattacks("JSMA", gamma=1.0), 100),
]

# ------------------------------------------------------------------ measuring

UNTIMED = Seconds(math.nan, math.nan)


@dataclass(frozen=True)
class Outcome:
    images: Tensor
    survived: Tensor
    forwards: float  # an image
    backwards: float
    seconds: Seconds = UNTIMED

    @property
    def passes(self) -> float:
        return self.forwards + self.backwards


Cell = tuple[nn.Module, Tensor, Tensor, Threat]


def once(cell: Cell, call: Tool, n: int) -> Outcome | str:
    """One run, counted; or why there is none."""
    model, x, y, threat = cell
    Counted.forwards = Counted.backwards = 0
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 - what the peers draw from
    try:
        images, survived = call(Counted(model).eval(), x.clone(), y.clone(), threat, n)
    except Exception as error:  # noqa: BLE001 - a peer's crash is a result
        return f"{type(error).__name__}: {error}".split("\n")[0][:120]
    return Outcome(images, survived, Counted.forwards / len(x), Counted.backwards / len(x))


def timed(cell: Cell, call: Tool, n: int, repeats: int = 1) -> Outcome | str:
    """The same with its time: the median over repeats, after a short run that pays for what later
    ones find ready."""
    model, x, y, threat = cell
    if n:
        once((model, x[:2], y[:2], threat), call, 2)
    kept: list[Outcome | str] = []
    seconds = interleaved({"": lambda: kept.append(once(cell, call, n))}, repeats)[""]
    return replace(kept[-1], seconds=seconds) if isinstance(kept[-1], Outcome) else kept[-1]


def judged(got: Outcome, cell: Cell) -> tuple[Tensor, Tensor]:
    """Which images are legal and, twice asked, misclassified; and their sizes."""
    model, x, y, threat = cell
    target = wrap(model, shape=tuple(x.shape[1:]), batch_size=BATCH)
    ruling = judge.rule(target, got.images)
    legal, size = judge.within(target, threat, x, got.images)
    return legal & ruling.stable & judge.meets_goal(threat, ruling.label, y), size


def fixed(cell: Cell, entries: Sequence[Entry], repeats: int) -> Iterator[dict[str, Any]]:
    """The rows of one model and threat at a fixed eps, ours first."""
    model, x, y, threat = cell
    with torch.no_grad():
        wrong = model(x).argmax(1) != y
    asked = {entry.attack.replace("slow", "strong") for entry in entries}
    ours = [Entry("Holdfast", "pgd", "", holdfast_pgd, 40, "PGD-40")]
    ours += [Entry("Holdfast", "strong", "", holdfast_protocol(p), 0, p) for p in PROTOCOLS]
    done: dict[str, Outcome] = {}
    for entry in [*(row for row in ours if row.attack in asked), *entries]:
        got = timed(cell, entry.call, entry.steps, repeats)
        row: dict[str, Any] = {"threat": str(threat), "tool": entry.tool, "attack": entry.title}
        if isinstance(got, str):
            yield row | {"note": got}
            continue
        broken, _ = judged(got, cell)
        row |= {
            "claimed %": 100 * float(got.survived.float().mean()),
            "judged %": 100 * float((~(broken | wrong)).float().mean()),
            **_costs(got),
        }
        mine = next((done[name] for name in entry.against if name in done), None)
        if entry.tool == "Holdfast":
            done[entry.title] = got
        elif mine is not None:
            row |= {
                "against": next(name for name in entry.against if name in done),
                **_ratios(mine, got),
            }
        yield row


def minimum(cell: Cell, entries: Sequence[Entry], repeats: int) -> Iterator[dict[str, Any]]:
    """The rows of one model and norm for the smallest perturbation: a peer, and ours at equal
    passes."""
    threat = cell[3]
    for entry in entries:
        row: dict[str, Any] = {"norm": threat.norm.name, "attack": entry.title, "tool": entry.tool}
        got = timed(cell, entry.call, entry.steps, repeats)
        if isinstance(got, str):
            yield row | {"note": got}
            continue
        success, size = _sizes(got, cell)
        row |= {
            "claimed %": 100 * float((~got.survived).float().mean()),
            "judged %": success,
            "median size": size,
            **_costs(got),
        }
        mine = (
            _equal(cell, entry, got.passes, repeats) if entry.attack in CATALOGUE else "not there"
        )
        if isinstance(mine, str):
            yield row | {"note": f"ours: {mine}"}
            continue
        success, smallest = _sizes(mine, cell)
        row |= {"our %": success, "our size": smallest, "our F + B": mine.passes}
        yield row | {"size": _over(smallest, size), **_ratios(mine, got)}


def _equal(cell: Cell, entry: Entry, passes: float, repeats: int) -> Outcome | str:
    """Our attack with the number of steps that costs so many passes, found on a few rows."""
    model, x, y, threat = cell
    call, n = holdfast_attack(entry.attack), entry.steps
    for _ in range(2):
        pilot = once((model, x[:8], y[:8], threat), call, n)
        if isinstance(pilot, str):
            return pilot
        n = min(max(1, round(n * passes / pilot.passes)), 20 * entry.steps)
    return timed(cell, call, n, repeats)


def _sizes(got: Outcome, cell: Cell) -> tuple[float, float]:
    """Success in per cent and the median size, where a failure is infinitely far."""
    broken, size = judged(got, cell)
    return 100 * float(broken.float().mean()), float(size.where(broken, torch.inf).median())


def _costs(got: Outcome) -> dict[str, Any]:
    return {
        "F": got.forwards,
        "B": got.backwards,
        "CPU s": got.seconds.cpu,
        "wall s": got.seconds.wall,
    }


def _ratios(mine: Outcome, theirs: Outcome) -> dict[str, Any]:
    return {
        "passes": _over(mine.passes, theirs.passes),
        "CPU": _over(mine.seconds.cpu, theirs.seconds.cpu),
    }


def _over(mine: float, theirs: float) -> float:
    return math.nan if mine == theirs == math.inf else mine / theirs


# ------------------------------------------------------------------ telling

COLUMNS = {
    "fixed": "model, threat, tool, attack, claimed %, judged %, F, B, CPU s, wall s, against, "
    "passes, CPU, note",
    "minimum": "model, norm, attack, tool, claimed %, judged %, median size, F, B, CPU s, wall s, "
    "our %, our size, our F + B, size, passes, CPU, note",
}
FORMAT = {
    "claimed %": ".1f",
    "judged %": ".1f",
    "our %": ".1f",
    "F": ".0f",
    "B": ".0f",
    "our F + B": ".0f",
}
FORMAT |= {"CPU s": ".2f", "wall s": ".2f", "size": ".2f", "passes": ".2f", "CPU": ".2f"}


def _cells(row: dict[str, Any], columns: Sequence[str]) -> list[str]:
    given = [row.get(column, "") for column in columns]
    return [
        format(v, FORMAT.get(c, ".3g")) if isinstance(v, float) else str(v)
        for c, v in zip(columns, given, strict=True)
    ]


def _table(rows: Sequence[dict[str, Any]], columns: str) -> str:
    names = [name for name in columns.split(", ") if any(name in row for row in rows)]
    return table(names, [_cells(row, names) for row in rows])


def _mean(
    rows: Sequence[dict[str, Any]], column: str, how: Callable[..., float] = mean
) -> dict[str, float]:
    seen = [
        row[column]
        for row in rows
        if 0 < row.get(column, math.nan) < math.inf or row.get(column) == 0
    ]
    seen = [value for value in seen if value > 0] if how is geometric_mean else seen
    return {column: how(seen)} if seen else {}


def short(rows: dict[str, list[dict[str, Any]]]) -> list[str]:
    """One row a tool and attack: means over models and threats, of ratios the geometric ones."""
    parts = []
    for task, keys, means, ratios in (
        ("fixed", ("tool", "attack"), ("claimed %", "judged %", "F", "B"), ("passes", "CPU")),
        ("minimum", ("attack", "tool"), ("judged %", "our %", "F", "B"), ("size", "passes", "CPU")),
    ):
        groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
        for row in rows[task]:
            groups.setdefault(tuple(row[key] for key in keys), []).append(row)
        lines = []
        for found in groups.values():
            line = {key: found[0][key] for key in keys} | {"cells": str(len(found))}
            for column in means:
                line |= _mean(found, column)
            for column in ratios:
                line |= _mean(found, column, geometric_mean)
            failed = sum("F" not in row for row in found)
            lines.append(line | ({"note": f"crashed on {failed}"} if failed else {}))
        if lines:
            parts.append(_table(lines, ", ".join([*keys, "cells", *means, *ratios, "note"])))
    return parts


def commit(checkout: Path) -> str:
    command = ["git", "--git-dir", str(checkout / ".git"), "rev-parse", "--short", "HEAD"]
    return (
        subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
        or "unknown"
    )


def into_docs(parts: Sequence[str]) -> None:
    path = ROOT / "docs" / "comparison.md"
    text = path.read_text(encoding="utf-8")
    inner = "\n\n".join(parts)
    new, times = re.subn(
        r"(<!-- bench -->\n).*?(<!-- /bench -->)",
        lambda m: f"{m[1]}\n{inner}\n\n{m[2]}",
        text,
        flags=re.DOTALL,
    )
    assert times == 1, f"{path} has no place for the tables: <!-- bench --> ... <!-- /bench -->"
    path.write_text(new, encoding="utf-8")


def missing(reasons: dict[str, str]) -> list[str]:
    return [f"- not measured: {tool}: {reason}" for tool, reason in reasons.items() if reason]


NOTES = """\
Passes are rows through the model, an image; forwards (F) and backwards (B) count alike. \
`passes` and `CPU` are ours over theirs, so below 1 is in our favour; so is `size`, our median \
size over theirs. `claimed` is the tool's word, or the model's on its images; `judged` also asks \
twice, and holds the images to the box and to eps. Rows that the model gets wrong unchanged \
count as broken in `judged`, also where a tool's image leads them back. Batches of {batch}; \
parameters ask for no gradients, for everyone; each run is timed once ({repeats} round, \
{workers} cells at a time), so a CPU ratio within 20 % of 1 says nothing.

Fixed eps: PGD-40 takes steps of eps / 30 from zero on the cross-entropy, for everyone; ours \
lets rows go that are broken. The others run as their tools ship them; ours are whole \
evaluations, with the checks of the model, the judge and the evidence on disk in passes and \
time. Minimum norm: on the images that the model gets right; ours has as many steps as make its \
passes equal to theirs on eight images, and where it ends by itself it spends less. A failure \
counts as infinitely far. The searches with constants (C&W, EAD) have 500 steps over all rounds, \
far fewer than their authors' 10,000 and more."""


def report(
    rows: dict[str, list[dict[str, Any]]],
    reasons: dict[str, str],
    images: int,
    chosen: argparse.Namespace,
) -> None:
    """Save the full tables, and put the short ones into the docs where asked."""
    notes = NOTES.format(batch=BATCH, repeats=chosen.repeats, workers=chosen.workers)
    absent = missing(reasons)
    if STAND_INS and reasons.get("adv-lib") == "":
        absent.append(
            f"- adv-lib imports {' and '.join(STAND_INS)}, and uses neither here: empty modules "
            "replace them"
        )
    if chosen.autoattack:
        absent.append(f"- AutoAttack is the original, at commit {commit(chosen.autoattack)}")
    full = [_table(rows[task], COLUMNS[task]) for task in COLUMNS if rows[task]]
    installed = [
        PACKAGES.get(tool, tool) for tool in reasons if not reasons[tool] and tool != "AutoAttack"
    ]
    save(
        chosen.save,
        "Holdfast and its peers",
        [f"The first {images} test images of each model. {notes}", *full, "\n".join(absent)],
        also=installed,
    )
    if chosen.docs:
        into_docs(short(rows))


# ------------------------------------------------------------------ the run


def prepare(tools: Sequence[str], checkout: Path | None) -> dict[str, str]:
    """Import these tools into this process, and make them quiet. Why one cannot be measured; empty
    where it can."""
    warnings.simplefilter("ignore")
    os.environ["TQDM_DISABLE"] = "1"
    if checkout is not None:
        sys.path.insert(0, str(checkout))
    reasons = {}
    for tool, module in ((tool, MODULES[tool]) for tool in tools):
        reasons[tool] = ""
        try:
            with stand_ins() if tool == "adv-lib" else contextlib.nullcontext():
                importlib.import_module(module)
        except Exception as error:  # noqa: BLE001 - whatever a peer's import raises is the reason
            reasons[tool] = f"{type(error).__name__}: {error}"
    if checkout is None and "AutoAttack" in tools:
        reasons["AutoAttack"] = "no checkout named (--autoattack)"
    return reasons


STAND_INS = [name for name in ("torchvision", "visdom") if importlib.util.find_spec(name) is None]


@contextlib.contextmanager
def stand_ins() -> Iterator[None]:
    """Empty modules for what adv-lib imports (for LPIPS and for plots) and, in what is measured
    here, never uses."""
    for module in STAND_INS:
        sys.modules[module] = types.ModuleType(module)
        sys.modules[module].models = None  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        for module in STAND_INS:
            del sys.modules[module]


def measure(
    task: str, name: str, threat: str, images: int, places: Sequence[int], repeats: int
) -> list[dict]:
    """The rows of these entries of FIXED or MINIMUM on one of MODELS."""
    model = case(*MODELS[name].place).eval().requires_grad_(False)
    x, y = MODELS[name].data(images)
    if task == "fixed":
        found = fixed((model, x, y, Threat.parse(threat)), [FIXED[i] for i in places], repeats)
    else:
        right = (model(x).argmax(1) == y).nonzero()[:, 0]
        found = minimum(
            (model, x[right], y[right], Threat.parse(threat)), [MINIMUM[i] for i in places], repeats
        )
    return [{"model": name} | row for row in found]


def main() -> None:
    chosen = options(
        __doc__,
        repeats=1,
        images=20,
        workers=1,
        also={
            "--models": {"nargs": "*", "default": list(MODELS)[:2], "choices": list(MODELS)},
            "--threats": {
                "nargs": "*",
                "default": [],
                "help": "default: each model's own, and all norms",
            },
            "--tools": {"nargs": "*", "default": list(MODULES), "choices": list(MODULES)},
            "--attacks": {
                "nargs": "*",
                "default": [],
                "help": "pgd, strong, slow (ART's AutoAttack), or names of ours; default: all but "
                "slow",
            },
            "--autoattack": {"type": Path, "help": "a checkout of the original AutoAttack"},
            "--quick": {"action": "store_true", "help": "one model, 10 images, Linf and L2"},
            "--docs": {"action": "store_true", "help": "renew the tables of docs/comparison.md"},
        },
    )
    reasons = prepare(chosen.tools, chosen.autoattack)
    tools = [tool for tool, reason in reasons.items() if not reason]
    attacks = chosen.attacks or ["pgd", "strong", *CATALOGUE]
    images, names = (10, chosen.models[:1]) if chosen.quick else (chosen.images, chosen.models)

    def able(entries: Sequence[Entry], norm: str) -> list[int]:
        fits = [
            e.tool in tools and e.attack in attacks and norm in e.norms.split() for e in entries
        ]
        return [i for i, fit in enumerate(fits) if fit]

    jobs = []
    for name in names:
        threats = chosen.threats or MODELS[name].threats
        norms = (
            {Threat.parse(text).norm.name for text in threats}
            if chosen.threats or chosen.quick
            else set(NORMS)
        )
        # whose rows are held together
        shared = [(text, able(FIXED, Threat.parse(text).norm.name)) for text in threats]
        jobs += [
            ("fixed", name, text, images, places, chosen.repeats)
            for text, places in shared
            if places
        ]
        alone = [(norm, i) for norm in NORMS if norm in norms for i in able(MINIMUM, norm)]
        jobs += [
            ("minimum", name, f"{norm}(inf)", images, [i], chosen.repeats) for norm, i in alone
        ]
    found = spread(measure, jobs, chosen.workers, prepare, tools, chosen.autoattack)
    rows = {
        task: [row for row in found if key in row]
        for task, key in (("fixed", "threat"), ("minimum", "norm"))
    }
    report(rows, reasons, images, chosen)


if __name__ == "__main__":
    main()
