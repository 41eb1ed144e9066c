"""Holdfast's black-box attacks and its peers' of the same name: what each finds with how many
questions.

Every input that reaches the model is a question, and one image is attacked at a time, so that each
question belongs to an image. An example counts from the question on that asked about it, whether
the tool noticed it or not, for everyone alike; at the budget the tool is stopped. All examples are
judged by holdfast.evaluation.judge.

- searches for the smallest perturbation: its size after a twelfth, a third and all of the budget;
- searches within eps: which question found the first example.

    python benchmarks/queries.py [--models lenet cnn_a] [--attacks hopskipjump square] [--tools ART]
        [--images 20] [--budget 3000] [--autoattack PATH] [--workers 1]

The work is cut into (model, threat, attack, tool, a few images) and shared among processes.
"""

from __future__ import annotations

import contextlib
import functools
import io
import itertools
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch
from common import ROOT, case, cifar10, mnist, options, save, spread, table
from peers import (
    CLASSES,
    MODULES,
    PACKAGES,
    Outcome,
    art,
    commit,
    foolbox,
    judged,
    missing,
    order,
    prepare,
    steps,
    torchattacks,
    upper,
)
from peers import eps as radius
from torch import Tensor, nn
from torch.nn.functional import one_hot

from holdfast import Threat, wrap
from holdfast.attacks import parse
from holdfast.attacks.attack import run
from holdfast.attacks.problem import legal_size

ENDLESS = 10**5  # more steps than a budget pays for
PART = 5  # images that one process attacks at a time


@dataclass(frozen=True)
class Model:
    place: tuple[str, ...]  # in the shared cases
    data: Callable[[int], tuple[Tensor, Tensor]]
    eps: Mapping[str, str]  # of the searches within a ball, by norm or by attack


MODELS = {
    "lenet": Model(
        ("torch_advertorch_lenet5", "cln"),
        mnist,
        {"linf": "0.15", "l2": "2", "l0": "25", "simba": "8"},
    ),
    "cnn_a": Model(("torch_cnn_a_cifar",), cifar10, {"linf": "8/255", "l2": "0.75", "simba": "4"}),
    "marabou": Model(
        ("torch_marabou_cifar", "small"), cifar10, {"linf": "4/255", "l2": "0.5", "simba": "4"}
    ),
}

# ------------------------------------------------------------------ listening


class Find(NamedTuple):
    question: int
    size: float
    image: Tensor


class Spent(BaseException):
    """The budget is spent, or the goal met; a tool that catches exceptions does not catch this."""


class Log:
    """The questions about one image, and each legal example that is smaller than all before it."""

    def __init__(self, x: Tensor, y: Tensor, threat: Threat, limit: float, budget: int) -> None:
        self.x, self.y, self.norm, self.limit, self.budget = x, y, threat.norm, limit, budget
        self.first = math.isfinite(float(threat.eps))  # whether the first example ends it
        self.found, self.asked, self.listening = list[Find](), 0, True

    def __deepcopy__(self, _: object) -> Log:
        return self  # some tools copy the model

    def hear(self, x: Tensor, labels: Tensor) -> None:
        for i in (labels != self.y).nonzero()[:, 0].tolist():
            size = float(self.norm.size(x[i : i + 1].double() - self.x.double()))
            inside = bool(((x[i] >= 0) & (x[i] <= 1)).all())
            if inside and size <= self.limit and (not self.found or size < self.found[-1].size):
                self.found.append(Find(self.asked + i + 1, size, x[i].clone()))
        self.asked += len(x)
        if self.asked >= self.budget or (self.found and self.first):
            raise Spent

    def by(self, question: int) -> Tensor:
        """The smallest example found by then, or x."""
        return next(
            (find.image for find in reversed(self.found) if find.question <= question), self.x[0]
        )


class Watched(nn.Module):
    """Answers for the model, and tells the log."""

    def __init__(self, model: nn.Module, log: Log) -> None:
        super().__init__()
        self.model, self.log = model, log

    def forward(self, x: Tensor) -> Tensor:
        x = x.float()  # some tools ask in float64
        z = self.model(x)
        if self.log.listening:
            room = self.log.budget - self.log.asked
            self.log.hear(x.detach()[:room], z.detach().argmax(1)[:room])
        return z


# ------------------------------------------------------------------ the tools

Tool = Callable[[Watched, Tensor, Tensor, Threat, int], object]  # model, x, y, threat, budget


def ours(write: Callable[[int], str]) -> Tool:
    def call(model: Watched, x: Tensor, y: Tensor, threat: Threat, budget: int) -> object:
        model.log.listening = False  # while the model's kind is found out
        target = wrap(model, shape=tuple(x.shape[1:]))
        model.log.listening = True
        return run(parse(write(budget)), target, x, y, threat, seed=torch.initial_seed())

    return call


def bare(kind: str, **how: Any) -> Tool:
    """An attack of ART's that takes no batch size, or asks for probabilities and one-hot labels."""

    def call(model: Watched, x: Tensor, y: Tensor, threat: Threat, budget: int) -> object:
        from art.attacks import evasion
        from art.estimators.classification import PyTorchClassifier

        net, shape = nn.Sequential(model, nn.Softmax(1)), tuple(x.shape[1:])
        net = PyTorchClassifier(
            net, nn.NLLLoss(), shape, CLASSES, clip_values=(0, 1), device_type="cpu"
        )
        given = {
            name: value(threat, budget) if callable(value) else value for name, value in how.items()
        }
        return getattr(evasion, kind)(net, **given, verbose=False).generate(
            x.numpy(), one_hot(y, CLASSES).numpy()
        )

    return call


def autoattack_square(model: Watched, x: Tensor, y: Tensor, threat: Threat, budget: int) -> object:
    from autoattack.square import SquareAttack

    size = float(threat.eps)
    return SquareAttack(
        model, norm=upper(threat, 0), n_queries=budget, eps=size, seed=0, device="cpu"
    ).perturb(x, y)


def geoda(model: Watched, x: Tensor, y: Tensor, threat: Threat, budget: int) -> object:
    """ART's calls what numpy 2 has no more (and leaves a file where it runs)."""
    with mock.patch.object(np, "mat", np.asmatrix, create=True):
        return art("GeoDA", norm=order, max_iter=steps, verbose=False)(model, x, y, threat, budget)


def pixels(threat: Threat, _: int) -> int:
    return int(threat.eps)


@dataclass(frozen=True)
class Contest:
    norms: str
    ours: Callable[[int], str]
    peers: Mapping[str, Tool]
    bounded: bool = False


HOPS = "HopSkipJumpAttack"
QUIET: dict[str, Any] = {"verbose": False}
ZOO = {
    "learning_rate": 0.1,
    "initial_const": 10.0,
    "nb_parallel": 32,
    "use_resize": False,
    "use_importance": False,
}
CONTESTS = {
    "hopskipjump": Contest(
        "l2 linf",
        lambda _: "hopskipjump",
        {
            "Foolbox": lambda model, x, y, threat, n: foolbox(HOPS, constraint=threat.norm.name)(
                model, x, y, threat, n
            ),
            "ART": art("HopSkipJump", norm=order, max_iter=ENDLESS, **QUIET),
        },
    ),
    "boundary": Contest(
        "l2",
        lambda _: "boundary",
        {
            "Foolbox": foolbox("BoundaryAttack", steps=ENDLESS),
            "ART": art("BoundaryAttack", targeted=False, max_iter=ENDLESS, **QUIET),
        },
    ),
    "geoda": Contest(
        "l2 linf",
        lambda n: f"geoda(steps=20, probes={n // 20 - 10})",
        {"ART": geoda},
    ),
    "signopt": Contest(
        "l2",
        lambda _: "signopt",
        {"ART": art("SignOPTAttack", targeted=False, query_limit=ENDLESS, **QUIET)},
    ),
    "simba, pixel": Contest(
        "l2",
        lambda _: f"simba(steps={ENDLESS})",
        {"ART": bare("SimBA", attack="px", max_iter=steps, epsilon=0.2)},
        bounded=True,
    ),
    "simba, dct": Contest(
        "l2",
        lambda _: f'simba(steps={ENDLESS}, basis="dct")',
        {"ART": bare("SimBA", attack="dct", max_iter=steps, epsilon=0.2)},
        bounded=True,
    ),
    "square": Contest(
        "linf l2",
        lambda n: f"square(steps={n}, schedule={n})",
        {
            "ART": art("SquareAttack", norm=order, eps=radius, max_iter=steps, **QUIET),
            "torchattacks": torchattacks("Square", norm=upper, eps=radius, n_queries=steps),
            "AutoAttack": autoattack_square,
        },
        bounded=True,
    ),
    "spsa": Contest(
        "linf",
        lambda _: f"spsa(steps={ENDLESS})",
        {"torchattacks": torchattacks("SPSA", eps=radius, nb_iter=ENDLESS)},
        bounded=True,
    ),
    "zoo": Contest(
        "l2",
        lambda n: f"zoo(steps={n // 65}, samples=32, searches=1, c=100.0, rate=0.1)",
        {
            "ART": art(
                "ZooAttack", max_iter=lambda _, n: n // 65 - 1, abort_early=False, **ZOO, **QUIET
            )
        },
    ),
    "onepixel": Contest(
        "l0",  # pixels are features only where there is one plane
        lambda _: f"onepixel(steps={ENDLESS})",
        {
            "torchattacks": torchattacks("OnePixel", pixels=pixels, steps=ENDLESS),
            "ART": bare("PixelAttack", th=pixels, max_iter=ENDLESS),
        },
        bounded=True,
    ),
}

# ------------------------------------------------------------------ measuring


@dataclass(frozen=True)
class Score:
    """What a tool found: sizes [marks, n] by each mark of the budget, and the first question within
    eps, [n]."""

    sizes: Tensor
    first: Tensor
    note: str = ""

    def __str__(self) -> str:
        return f"{int(self.sizes[-1].isfinite().sum())} of {len(self.first)} broken {self.note}"


class Cell(NamedTuple):
    """What is measured together: one tool on some images."""

    place: str
    threat: str
    attack: str
    tool: str
    images: range


@functools.cache
def right(place: str, n: int) -> tuple[nn.Module, Tensor, Tensor]:
    """A model, and the first n images that it gets right."""
    model = case(*MODELS[place].place).eval().requires_grad_(False)
    x, y = MODELS[place].data(3 * n + 20)
    at = (model(x).argmax(1) == y).nonzero()[:n, 0]
    return model, x[at], y[at]


def measure(cell: Cell, marks: Sequence[int]) -> Score:
    contest, threat = CONTESTS[cell.attack], Threat.parse(cell.threat)
    call = ours(contest.ours) if cell.tool == "Holdfast" else contest.peers[cell.tool]
    model, x, y = right(cell.place, cell.images.stop)
    x, y = x[cell.images.start :], y[cell.images.start :]
    found, note = list[list[Tensor]](), ""
    limit = legal_size(threat, wrap(model, shape=tuple(x.shape[1:])), 1)
    first = torch.full((len(x),), torch.inf, dtype=torch.float64)
    for i, number in enumerate(cell.images):
        torch.manual_seed(number)
        np.random.seed(number)  # noqa: NPY002 - what the peers draw from
        log = Log(x[i : i + 1], y[i : i + 1], threat, float(limit), marks[-1])
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                call(
                    Watched(model, log).eval(),
                    x[i : i + 1].clone(),
                    y[i : i + 1].clone(),
                    threat,
                    marks[-1],
                )
        except Spent:
            pass
        except Exception as error:  # noqa: BLE001 - a peer's crash is a result
            note = f"{type(error).__name__}: {error}".split("\n")[0][:120]
        found.append([log.by(mark) for mark in marks])
        if log.found:
            first[i] = log.found[0].question
    rulings = [
        ruled(model, x, y, threat, [images[j] for images in found]) for j in range(len(marks))
    ]
    return Score(torch.stack(rulings), first.where(rulings[-1].isfinite(), torch.inf), note)


def ruled(
    model: nn.Module, x: Tensor, y: Tensor, threat: Threat, images: Sequence[Tensor]
) -> Tensor:
    """The sizes of what the judge takes for an example; inf for the rest."""
    stack = torch.stack(list(images))
    broken, size = judged(Outcome(stack, y, 0, 0), (model, x, y, threat))
    return size.where(broken, torch.inf)


def joined(parts: Sequence[Score]) -> Score:
    """The scores of all images."""
    notes = [part.note for part in parts if part.note]
    return Score(
        torch.cat([p.sizes for p in parts], 1), torch.cat([p.first for p in parts]), *notes[:1]
    )


def over(mine: float, theirs: float) -> float:
    return math.nan if mine == theirs == math.inf else mine / theirs


def of_sizes(mine: Score, its: Score, marks: Sequence[int]) -> dict[str, object]:
    """Medians by each mark, ours over theirs; and the mean of the ratios image by image at the
    last."""
    row: dict[str, object] = {
        f"size at {m}": median(s.tolist()) for m, s in zip(marks, its.sizes, strict=True)
    }
    if mine is its:
        return row
    for m, a, b in zip(marks, mine.sizes, its.sizes, strict=True):
        row[f"ratio at {m}"] = over(median(a.tolist()), median(b.tolist()))
    for m, a, b in zip(marks, mine.sizes, its.sizes, strict=True):
        pairs = (a / b)[(a / b).isfinite() & (b < math.inf)]
        row[f"pairwise at {m}"] = float(pairs.log().mean().exp())
    return row


def of_questions(mine: Score, its: Score, _: Sequence[int]) -> dict[str, object]:
    """Medians over the quickest k images of each, where k is what the weaker of the two broke."""
    broke = [sorted(q for q in score.first.tolist() if q < math.inf) for score in (mine, its)]
    row: dict[str, object] = {
        "broken %": 100 * len(broke[1]) / len(its.first),
        "median": median(its.first.tolist()),
    }
    k = min(len(part) for part in broke)
    if mine is its or not k:
        return row
    a, b = (float(median(part[:k])) for part in broke)
    return row | {"our equal": a, "its equal": b, "ratio": a / b}


def cells(place: str, attacks: Sequence[str], tools: Sequence[str], n: int) -> Iterator[Cell]:
    """All that is measured of a model; Holdfast comes before its peers, and images in their
    order."""
    spec, parts = MODELS[place], [range(i, min(i + PART, n)) for i in range(0, n, PART)]
    for attack in attacks:
        contest = CONTESTS[attack]
        for norm in contest.norms.split():
            eps = (
                spec.eps.get(attack.split(",")[0], spec.eps.get(norm)) if contest.bounded else "inf"
            )
            if eps is None:
                continue
            threat = str(Threat.parse(f"{norm}({eps})"))
            for tool in ("Holdfast", *(tool for tool in contest.peers if tool in tools)):
                yield from (Cell(place, threat, attack, tool, part) for part in parts)


def measured(cell: Cell, marks: Sequence[int]) -> list[dict[str, Any]]:
    return [{"cell": cell, "score": measure(cell, marks)}]


def compared(
    scores: Mapping[Cell, Score], marks: Sequence[int]
) -> Iterator[tuple[bool, dict[str, object]]]:
    """A line for each tool, and whether it is about a search within eps."""
    mine: Score | None = None
    for key, parts in itertools.groupby(scores, lambda cell: cell[:4]):
        place, threat, attack, tool = key
        score = joined([scores[cell] for cell in parts])
        mine = score if tool == "Holdfast" or mine is None else mine
        row: dict[str, object] = {"model": place, "threat": threat, "attack": attack, "tool": tool}
        row |= (of_questions if CONTESTS[attack].bounded else of_sizes)(mine, score, marks)
        yield CONTESTS[attack].bounded, row | ({"note": score.note} if score.note else {})


def batches(n: int, norm: str, foolbox_too: bool) -> list[dict[str, object]]:
    """HopSkipJump on the same images, 1, 10 and all at a time: median sizes, and how many rows are
    not those of 1."""
    model, x, y = right("lenet", n)
    attack, ids, lines = (
        parse("hopskipjump(steps=4, probes=30)"),
        torch.arange(n),
        list[dict[str, object]](),
    )
    threat = Threat.parse(f"{norm}(inf)")

    def mine(net: nn.Module, x: Tensor, y: Tensor, at: Tensor) -> Tensor:
        return run(attack, wrap(net, batch_size=len(at)), x[at], y[at], threat, ids=at).best

    def foolbox_its(net: nn.Module, x: Tensor, y: Tensor, at: Tensor) -> Tensor:
        how = {"steps": 4, "initial_gradient_eval_steps": 30, "constraint": threat.norm.name}
        torch.manual_seed(0)
        return foolbox(HOPS, **how)(net, x[at], y[at], threat, 0)[0]

    kinds = [("Holdfast, float64", mine, torch.float64), ("Holdfast, float32", mine, torch.float32)]
    for tool, find, dtype in kinds + [("Foolbox", foolbox_its, torch.float32)] * foolbox_too:
        net, rows = model.to(dtype), x.to(dtype)
        found = [
            torch.cat([find(net, rows, y, at) for at in ids.split(size)]) for size in (1, 10, n)
        ]
        sizes = [float(threat.norm.size(part - rows).median()) for part in found]
        apart = [int((part != found[0]).flatten(1).any(1).sum()) for part in found[1:]]
        lines.append({"threat": str(threat), "tool": tool} | dict(enumerate((*sizes, *apart))))
    model.float()
    return lines


def call(task: Callable[..., list[Any]], *given: object) -> list[Any]:
    return task(*given)


def begin(tools: Sequence[str], checkout: Path | None, place: str) -> None:
    """Make a process ready: the tools, and a folder of its own, where some of them leave files."""
    prepare(tools, checkout)
    os.chdir(tempfile.mkdtemp(dir=place))


# ------------------------------------------------------------------ telling

NOTES = """\
The first {images} test images that each model gets right, {budget} questions each; one image at \
a time, for everyone. An example counts from the question that asked about it, whether the tool \
kept it or not. Every example was judged: in the box, within eps, misclassified twice. `ratio` \
is ours over theirs, so below 1 is in our favour. Equal options for ZOO (32 features a step, \
rate 0.1, one search under a high weight) and SimBA (steps of 0.2); the rest as the tools ship \
them, the schedules of Square and GeoDA for this budget. ART's start in HopSkipJump and Boundary \
takes no seed."""
SIZES = """\
The smallest perturbation: medians of its size (none: infinite); `pairwise` is the geometric mean \
of the ratios image by image."""
QUESTIONS = """\
Within eps: the images broken, and the median question that found the first example. `our equal` \
and `its equal` are medians over as many of the quickest images as the weaker of the two broke, \
so that both have the same success."""
BATCHES = """\
HopSkipJump (4 steps, 30 probes) on the same {images} images, so many at a time: median sizes, \
and in how many rows the example differs from that of batches of 1. In float32 the kernels of \
other batch sizes round otherwise, and an answer on the very boundary may turn."""
FORMAT = {"broken %": ".0f", "median": ".0f", "our equal": ".0f", "its equal": ".0f"}


def described(found: Sequence[Mapping[str, object]]) -> str:
    names = list(dict.fromkeys(key for row in found for key in row if key != "note"))
    names += ["note"] * any("note" in row for row in found)
    return table(names, [[cell(key, row.get(key, "")) for key in names] for row in found])


def cell(key: str, value: object) -> str:
    usual = ".2f" if key.startswith("ratio") or key.startswith("pairwise") else ".3g"
    return format(value, FORMAT.get(key, usual)) if isinstance(value, float) else str(value)


def main() -> None:
    chosen = options(
        __doc__,
        repeats=1,
        images=20,
        workers=1,
        budget=3000,
        also={
            "--models": {"nargs": "*", "default": list(MODELS)[:2], "choices": list(MODELS)},
            "--attacks": {"nargs": "*", "default": list(CONTESTS), "choices": list(CONTESTS)},
            "--tools": {"nargs": "*", "default": list(MODULES), "choices": list(MODULES)},
            "--autoattack": {"type": Path, "help": "a checkout of the original AutoAttack"},
        },
    )
    checkout = chosen.autoattack and chosen.autoattack.resolve()
    met = {tool for contest in CONTESTS.values() for tool in contest.peers}
    reasons = prepare([tool for tool in chosen.tools if tool in met], checkout)
    tools = [tool for tool, reason in reasons.items() if not reason]
    marks = [chosen.budget // 12, chosen.budget // 3, chosen.budget]
    last = missing(reasons)
    if "AutoAttack" in tools:
        last.append(f"- AutoAttack is the original, at commit {commit(checkout)}")
    also = [str(PACKAGES.get(tool, tool)) for tool in tools if tool != "AutoAttack"]
    norms = ("l2", "linf") if "hopskipjump" in chosen.attacks else ()
    jobs: list[tuple[Any, ...]] = [(batches, 50, norm, "Foolbox" in tools) for norm in norms]
    for name in chosen.models:
        jobs += [
            (measured, cell, marks) for cell in cells(name, chosen.attacks, tools, chosen.images)
        ]
    with tempfile.TemporaryDirectory() as place:
        found = spread(call, jobs, chosen.workers, begin, tools, checkout, place)
        os.chdir(ROOT)
    lines = [list(row.values()) for row in found if "cell" not in row]
    scores = {row["cell"]: row["score"] for row in found if "cell" in row}
    kept: dict[bool, list[dict[str, object]]] = {False: [], True: []}
    for bounded, row in compared(scores, marks):
        kept[bounded].append(row)
    parts = [
        f"{text}\n\n{described(kept[within])}"
        for within, text in ((False, SIZES), (True, QUESTIONS))
        if kept[within]
    ]
    if lines:
        head = ["threat", "tool", "at 1", "at 10", "at 50", "rows apart at 10", "rows apart at 50"]
        parts.append(f"{BATCHES.format(images=50)}\n\n{table(head, lines)}")
    notes = NOTES.format(images=chosen.images, budget=chosen.budget)
    save(
        chosen.save,
        "Questions that black-box attacks need",
        [notes, *parts, "\n".join(last)],
        also=also,
    )


if __name__ == "__main__":
    main()
