"""Generate: train a generative model on labelled rows, look at its samples as it goes, keep the
best, measure it."""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from holdfast.arguments import checked
from holdfast.data import Source, as_source, to_train_and_measure
from holdfast.data.laid import laid_as
from holdfast.data.part import divide
from holdfast.errors import InputError
from holdfast.evaluation.contract import check_data
from holdfast.evaluation.labels import numbered
from holdfast.generation import quality
from holdfast.generation.folder import (
    NOTE,
    READER,
    WEIGHTS,
    Generator,
    knows_classes,
    load_reader,
    parse,
)
from holdfast.generation.folder import load as load_generator
from holdfast.generation.model import Model
from holdfast.generation.nets import Frame, Reader
from holdfast.generation.quality import Quality
from holdfast.pictures import grid
from holdfast.rng import Keys
from holdfast.runs.journal import begin, run_folder
from holdfast.runs.store import read_json, write_bytes
from holdfast.targets.target import Bounds, refuse_texts, sealed
from holdfast.targets.wrapping import device_of
from holdfast.training.batches import read, shuffled
from holdfast.training.state import (
    STATE,
    Parts,
    blend,
    gathered,
    packed,
    put,
    restored,
    stored,
    table,
)

_SHOWN = 8  # samples of each class in a picture


@dataclass
class Round:
    """One line of log.csv; the samples are drawn by the averaged weights, compared with rows held
    out."""

    round: int
    step: int
    loss: float  # the generator's mean over the round
    critic: float  # the critic's
    fid: float
    kid: float
    right: float  # share of samples that are taken for the class asked for
    classes: int  # of which at least half are
    # of the class whose samples differ least among themselves; 1: as much as real rows do
    spread: float
    note: str = ""


@dataclass
class Progress:
    """The progress of a training: all of its state but the tensors."""

    round: int = 0
    step: int = 0  # done of all
    epoch: int = 0
    batch: int = 0  # steps done of this epoch
    losses: list[float] = field(default_factory=lambda: [0.0, 0.0])  # sums over this round
    count: int = 0  # of the generator's steps in this round
    best: float = math.inf  # KID of what is kept
    best_round: int = 0
    bad: int = 0  # rounds in a row that were noted
    log: list[Round] = field(default_factory=list)


class State:
    """All that a training goes on from."""

    def __init__(self, model: Model, nets: nn.ModuleDict) -> None:
        self.nets, self.optimiser, self.progress = nets, model.optimiser(nets), Progress()
        self.average = copy.deepcopy(nets["generator"]).eval().requires_grad_(False)
        self.parts: Parts = {"now.": nets, "average.": self.average, "": self.optimiser}

    def dump(self) -> bytes:
        return stored(gathered(self.parts), asdict(self.progress))

    def restore(self, content: bytes) -> None:
        tensors, progress = restored(content)
        self.progress = Progress(**{**progress, "log": [Round(**line) for line in progress["log"]]})
        put(self.parts, tensors)


@dataclass
class Training:
    """A training to be done: `fit` does it.

    Args:
        data: rows to train on.
        held: rows that the samples are compared with as the training goes; they choose the weights.
        every: seconds from one stored state to the next; 0: after each step.
        on_round: called with each finished round.
    """

    model: Model
    data: Source
    held: Source
    frame: Frame
    reader: Reader
    folder: Path
    seed: int = 0
    every: float = 30.0
    on_round: Callable[[Round], None] | None = None

    def fit(self) -> None:
        """Train, from the start or from where the folder's state stands; the best generator is in
        the folder.

        Raises:
            InputError: the training diverged, or its samples became all alike; the best generator
                before is kept, if there was one.
        """
        model, k = self.model, self.reader.head.out_features
        self.began = time.monotonic()
        self.real = quality.some(self.held, 5000, self.seed)
        self.f_real = quality.features(self.reader, self.real[0])
        device = self.frame.middle.device
        with sealed(self.seed), torch.enable_grad():
            shape: tuple[int, ...] = tuple(self.frame.shape)  # pyright: ignore
            s = State(model, model.nets(shape, k).to(device))
            if (self.folder / STATE).exists():
                s.restore((self.folder / STATE).read_bytes())
            keys = Keys.of(self.seed, torch.arange(model.batch_size, device=device)).fold("train")
            while s.progress.step < model.steps:
                batches = shuffled(
                    len(self.data), model.batch_size, self.seed + s.progress.epoch + 1
                )
                for x, y in read(
                    self.data,
                    batches[s.progress.batch : s.progress.batch + model.steps - s.progress.step],
                ):
                    self._step(s, x, y, keys)
                if s.progress.batch == len(batches):
                    s.progress.epoch, s.progress.batch = s.progress.epoch + 1, 0
        if not s.progress.best_round:
            raise InputError(
                f"training ended with a {s.progress.log[-1].note}. {self._kept(s)} Try more steps."
            )

    def _step(self, s: State, x: np.ndarray, y: np.ndarray, keys: Keys) -> None:
        progress, model = s.progress, self.model
        u = self.frame.inward(torch.from_numpy(x).float())
        labels = torch.from_numpy(np.asarray(y, dtype=np.int64)).to(u.device)
        own = Keys(keys.rows[: len(u)]).fold(progress.step)
        s.nets.train()
        reports = [
            v
            for v in model.learn(s.nets, s.optimiser, u, labels, own, progress.step)
            if v is not None
        ]
        *paid, critic = torch.stack(reports).tolist()
        if not math.isfinite(sum(paid) + critic):
            what = " and ".join(f"{v:g}" for v in (*paid, critic))
            raise InputError(
                f"the losses of generator and critic are {what} in step {progress.step + 1}: the "
                f"training diverged. {self._kept(s)} Try a lower rate than {model.rate:g}."
            )
        blend(
            s.average,
            s.nets["generator"],
            min(model.ema, (1 + progress.step) / (10 + progress.step)),
        )
        progress.step, progress.batch = progress.step + 1, progress.batch + 1
        progress.losses = [progress.losses[0] + sum(paid), progress.losses[1] + critic]
        progress.count += len(paid)
        if progress.step * model.rounds // model.steps > progress.round:
            self._close(s)
        elif time.monotonic() - self.began >= self.every:
            self.began = time.monotonic()
            write_bytes(self.folder / STATE, s.dump())

    def _close(self, s: State) -> None:
        """End a round: draw, compare, keep what is best, and name what goes wrong."""
        progress, k = s.progress, self.reader.head.out_features
        reader = None if knows_classes(s.average) else self.reader
        drawer = Generator(self.model, s.average, self.frame, k, reader)
        progress.round += 1
        y = torch.arange(k).repeat(max(2, self.model.glance // k))
        x = drawer.draw(y, torch.arange(len(y)), self.seed)
        made = quality.features(self.reader, x)
        right, spread = quality.by_class(self.reader, x, y, *self.real)
        steps = max(1, self.model.steps // self.model.rounds)
        line = Round(
            round=progress.round,
            step=progress.step,
            loss=progress.losses[0] / max(1, progress.count),
            critic=progress.losses[1] / steps,
            fid=quality.fid(made, self.f_real),
            kid=quality.kid(made, self.f_real),
            right=float(np.mean(right)),
            classes=sum(share >= 0.5 for share in right),
            # NaN: too few rows
            spread=min((share for share in spread if not math.isnan(share)), default=float("nan")),
        )
        line.note = wrong(progress.log, line, spread, self.model.rounds)
        progress.losses, progress.count = [0.0, 0.0], 0
        progress.bad = progress.bad + 1 if line.note else 0
        if not line.note and line.kid < progress.best:
            progress.best, progress.best_round = line.kid, progress.round
            weights = s.average.state_dict() | {"low": self.frame.low, "high": self.frame.high}
            write_bytes(self.folder / WEIGHTS, packed(weights))
        progress.log.append(line)
        if len(self.frame.shape) == 3:
            picture = grid(self.frame.inward(x[: _SHOWN * k]).cpu().numpy(), k)
            write_bytes(self.folder / "samples" / f"round-{progress.round:03}.png", picture)
        write_bytes(self.folder / STATE, s.dump())
        write_bytes(self.folder / "log.csv", table(progress.log, Round).encode())
        if self.on_round is not None:
            self.on_round(line)
        if progress.bad > 1:
            raise InputError(
                f"training stopped in round {progress.round}: {line.note}. {self._kept(s)}"
            )

    def _kept(self, s: State) -> str:
        if not s.progress.best_round:
            return "No generator was good enough to keep."
        return f"The generator of round {s.progress.best_round} is in {self.folder / WEIGHTS}."


def wrong(log: list[Round], line: Round, spread: list[float], rounds: int) -> str:
    """Mode collapse or divergence, in words; empty where there is neither.

    Samples of a class that hardly differ are a collapse, but not in the first half, before which
    they did not differ yet; an FID that was once halved and has come back is a divergence (a KID of
    few rows may be below 0).
    """
    differed = line.round > rounds / 2 or any(past.spread > 0.6 for past in log)
    if line.spread < 0.3 and differed:
        c = int(np.nanargmin(spread))
        return (
            f"mode collapse: samples of class {c} differ among themselves {line.spread:.0%} as "
            "much as real rows do"
        )
    best = min((past.fid for past in log), default=math.inf)
    if log and best < log[0].fid / 2 and line.fid > log[0].fid:
        return f"divergence: FID is {line.fid:.3g}, after {best:.3g}"
    return ""


@dataclass(frozen=True)
class Made:
    """What training a generator leaves."""

    generator: Generator
    quality: Quality
    folder: Path


@checked
def generate(
    data: Any,
    model: Model | str = "gan",
    *,
    out: Path | str | None = None,
    test: Any = None,
    bounds: tuple[float, float] = (0.0, 1.0),
    layout: str | None = None,
    resume: bool = False,
    seed: int = 0,
    device: str = "cpu",
    every: float = 30.0,
    on_round: Callable[[Round], None] | None = None,
) -> Made:
    """Train a generative model on labelled rows, and measure what it draws.

    Args:
        data: what `holdfast.data.as_source` takes: images of 8x8 to 64x64, [c, h, w], [h, w, c] or
            [h, w], or rows of a table [f]; classes 0..k-1.
        model: `gan`, `wgan-gp` or `diffusion`, with any field changed as in `gan(steps=2000)`; or
            an `Own`, of your own networks.
        out: the folder; None: a new temporary one, which is the caller's to delete.
        test: rows to measure on; None: the test split that `data` names, or a fifth of `data`,
            which then trains nothing.
        bounds: of the raw inputs. Each feature of a table is scaled by its own range within them.
        layout: of images: nchw or nhwc; None: what the shape says.
        resume: go on with an unfinished training in `out`.
        every: seconds from one stored state to the next.
        on_round: called with each finished round.

    Raises:
        InputError: the data cannot be learnt from, `out` holds something else, or the training
            diverged.
        SpecError: the model cannot be understood.
    """
    model = parse(model) if isinstance(model, str) else model
    box, device = Bounds(*bounds), str(device_of(device))
    data, test = _sources(data, test, box, seed)
    frame, k = _frame(data, box, layout)
    with sealed(seed):
        # networks that do not fit are refused before anything is written
        model.nets(tuple(frame.shape), k)
    asked = {"model": repr(model), "data": data.fingerprint()[:16], "seed": str(seed)}
    given = {"shape": list(data.shape), "layout": frame.layout, "classes": k}
    with run_folder(out) as folder:
        begin(folder, NOTE, asked | given, "a generator", resume=resume)
        train, held = divide(data, 0.1, 5000, seed, "held-out")
        reader = _reader(folder, frame.to(device), k, train, seed)
        if not (folder / "quality.json").exists():
            Training(model, train, held, frame, reader, folder, seed, every, on_round).fit()
            drawer = load_generator(folder, device)
            y = torch.arange(model.judged) % k
            x = drawer.draw(y, torch.arange(len(y)), seed + 1)
            found = quality.measure(reader, x, y, train, test, seed=seed)
            write_bytes(folder / "quality.json", json.dumps(asdict(found), indent=1).encode())
            (folder / STATE).unlink(missing_ok=True)
        found = Quality(**read_json(folder / "quality.json"))
        return Made(load_generator(folder, device), found, folder)


def _sources(data: Any, test: Any, box: Bounds, seed: int) -> tuple[Source, Source]:
    """What to train on and what to measure on: checked, and never the same rows."""
    data, test = to_train_and_measure(
        data, test, lambda given, split: as_source(given, split=split, scale=box.high <= 1)
    )
    if test is None:
        data, test = divide(data, 0.2, 10_000, seed, "test")
    else:
        test = laid_as(test, data.shape, f"those of {data.name} are")
    for source in (data, test):
        refuse_texts(source.columns or ())
        check_data(source, box)
    (data, test), _ = numbered(None, data, test)
    if test.fingerprint() == data.fingerprint():
        raise InputError(
            f"{data.name} would train the generator and measure it too; give other rows (--test)."
        )
    return data, test


def _reader(folder: Path, frame: Frame, k: int, train: Source, seed: int) -> Reader:
    """The classifier whose features are compared: trained, unless the folder holds it."""
    if not (folder / READER).exists():
        own = quality.reader(frame, k, train, seed)
        write_bytes(folder / READER, packed(own.state_dict()))
    return load_reader(folder, frame, k)


def _frame(data: Source, box: Bounds, layout: str | None) -> tuple[Frame, int]:
    """The frame of the data, and how many classes there are; one pass over the data."""
    low, high, labels = np.inf, -np.inf, np.zeros(0, np.int64)
    for start in range(0, len(data), 4096):
        x, y = data.rows(start, start + 4096)
        low, high = np.minimum(low, x.min(0)), np.maximum(high, x.max(0))
        labels = np.union1d(labels, np.asarray(y, np.int64))
    k = int(labels.max()) + 1
    if k < 2 or len(labels) < k:
        raise InputError(
            f"{data.name} has rows of the classes {labels.tolist()[:20]}; expected each of 0 to "
            f"{k - 1}."
        )
    if len(data.shape) > 1:
        low, high = np.full((), box.low), np.full((), box.high)
    nhwc = len(data.shape) == 3 and data.shape[-1] in (1, 3) and data.shape[0] not in (1, 3)
    limits = (torch.from_numpy(np.asarray(v, np.float32)) for v in (low, high))
    return Frame(data.shape, layout or ("nhwc" if nhwc else "nchw"), *limits), k
