"""The loop that trains: one network, one recipe, one adversary, from the first step or from where it stopped."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from holdfast import attacks
from holdfast.attacks.attack import Attack, perturb, run
from holdfast.data import Source
from holdfast.errors import InputError
from holdfast.harden import objectives
from holdfast.harden.objectives import Objective
from holdfast.harden.recipes import Recipe
from holdfast.harden.schedules import share_of_rate
from holdfast.harden.state import STATE, Epoch, State, blend, packed, table
from holdfast.runs.store import write_bytes
from holdfast.targets import TorchTarget
from holdfast.targets.target import sealed
from holdfast.threat import Threat

_BLOCK = 8192  # rows shuffled at once: a set larger than memory streams
_GAP = 0.1  # by which the judge may find more than the inner attack before that one counts as fooled


@dataclass
class Training:
    """A training to be done: `fit` does it.

    Args:
        target: the network's door, bound; its own copy of the network is not used.
        data: rows to train on.
        held: rows that choose the weights.
        threat: what the network shall withstand.
        recipe: how.
        seed: of the order of rows, of all noise, and of what the network draws itself.
        floor: the least clean accuracy on `held` of the weights chosen.
        folder: where log.csv and the state are written; None: nowhere.
        every: seconds from one stored state to the next; 0: after each step.
        watch: told of each finished epoch.
    """

    target: TorchTarget
    data: Source
    held: Source
    threat: Threat
    recipe: Recipe
    seed: int = 0
    floor: float = 0.0
    folder: Path | None = None
    every: float = 30.0
    watch: Callable[[Epoch], None] = lambda _: None

    def fit(self, net: nn.Module, *, resume: bool = False) -> State:
        """Train `net`, in place; the best weights are the `best_average()` of what comes back.

        Raises:
            InputError: the loss is not finite. After the first epoch, the best weights until then are kept on disk.
        """
        recipe, self.began = self.recipe, time.monotonic()
        x, y = self.held.rows(0, len(self.held))
        self.judged = self._tensors(x, y)
        with sealed(self.seed), torch.enable_grad():
            s = State(net, recipe)
            if resume and self.folder is not None and (self.folder / STATE).exists():
                s.restore((self.folder / STATE).read_bytes())
            while s.place.epoch < recipe.epochs:
                plan = shuffled(len(self.data), recipe.batch_size, self.seed + s.place.epoch + 1)
                for x, y in read(self.data, plan[s.place.batch :]):
                    self._step(s, *self._tensors(x, y), total=recipe.epochs * len(plan))
                    self._store(s)
                self._close(s)
        return s

    def _step(self, s: State, x: Tensor, y: Tensor, *, total: int) -> None:
        """One step on rows x [n, *shape], y [n]."""
        recipe, place = self.recipe, s.place
        done = (place.step + 1) / total
        rate, eps = self._pace(done)
        for group in s.optimiser.param_groups:
            group["lr"] = rate
        objective = objectives.parse(place.objective)
        live = self.target.live(s.net)
        near = objective.near(self._craft(live, eps, self.seed + place.step), x, y)

        s.net.train()
        gamma = recipe.awp if done > recipe.ramp else 0.0
        with perturbed_weights(s.net, lambda: objective.loss(live.outputs, x, near, y)[0], gamma):
            loss, z = objective.loss(live.outputs, x, near, y)
            s.optimiser.zero_grad()
            loss.backward()
        length = nn.utils.clip_grad_norm_(s.net.parameters(), recipe.clip or math.inf)
        if not bool(loss.isfinite() & length.isfinite()):
            raise InputError(self._diverged(s, float(loss.detach()), float(length), rate))
        s.optimiser.step()
        blend(s.average, s.net, min(recipe.ema, (1 + place.step) / (10 + place.step)))

        place.step, place.batch = place.step + 1, place.batch + 1
        place.rows += len(y)
        place.passes += len(y) * (objective.passes + (2 * objective.asks if gamma else 0))
        place.loss += float(loss.detach()) * len(y)
        place.right += int((z.detach().argmax(1) == y).sum())

    def _pace(self, done: float) -> tuple[float, float]:
        """Learning rate and eps where this share of the training is done."""
        rate = self.recipe.rate * share_of_rate(self.recipe.schedule, self.recipe.warmup, done)
        return rate, float(self.threat.eps) * (min(1.0, done / self.recipe.ramp) if self.recipe.ramp else 1.0)

    def _close(self, s: State) -> None:
        """End an epoch: judge the averaged weights on the rows held out, choose, and guard."""
        place, recipe = s.place, self.recipe
        objective = objectives.parse(place.objective)
        clean, inner, robust = self._judge(s, objective)
        rate, eps = self._pace((place.epoch + 1) / recipe.epochs)
        line = Epoch(
            epoch=place.epoch + 1,
            objective=place.objective,
            rate=rate,
            eps=eps,
            loss=place.loss / place.rows,
            trained=place.right / place.rows,
            clean=clean,
            inner=inner,
            robust=robust,
            passes=place.passes,
        )
        place.epoch, place.batch, place.rows, place.loss, place.right = place.epoch + 1, 0, 0, 0.0, 0
        place.full = place.full + 1 if eps == self.threat.eps else 0
        score = (clean >= self.floor, robust, clean)
        if place.full > 1 and fooled(objective, inner, robust, place.best[1]):
            harder = objectives.stronger(objective)
            s.back_to_best(recipe)
            place.objective, place.full = repr(harder), 0
            line.note = (
                f"catastrophic overfitting: {inner:.0%} under the inner attack, {robust:.0%} under the judge; "
                f"back to the weights of epoch {place.best_epoch}, on with {harder!r}"
            )
        elif score >= place.best:
            place.best, place.best_epoch = score, place.epoch
            s.keep()
        place.log.append(line)
        self._store(s, now=True)
        self.watch(line)

    def _judge(self, s: State, objective: Objective) -> tuple[float, float, float]:
        """Accuracy of the averaged weights on the rows held out: clean, under the inner attack, under the judge."""
        x, y = self.judged
        door = self.target.live(s.average)
        with torch.no_grad():
            right = door.task.predict(door.all_scores(x)) == y
            near = objective.near(self._craft(door, float(self.threat.eps), self.seed), x, y)
            inner = door.task.predict(door.all_scores(near)) == y
        stood = right
        if self.recipe.judge:
            books = run(attacks.parse(self.recipe.judge), door, x, y, self.threat, seed=self.seed)
            stood = (books.outcome == attacks.Outcome.SURVIVED) & right
        return tuple(float(column.double().mean()) for column in (right, inner & right, stood))  # pyright: ignore[reportReturnType]

    def _craft(self, live: TorchTarget, eps: float, seed: int) -> objectives.Craft:
        """Crafting against a network in eval mode, so that its batch norms neither see nor learn the search."""

        def craft(attack: Attack, x: Tensor, y: Tensor, widen: float = 1.0) -> Tensor:
            assert isinstance(live.model, nn.Module)
            with evaluating(live.model):
                return perturb(attack, live, x, y, self.threat.at(eps * widen), seed=seed % 2**63)

        return craft

    def _tensors(self, x: np.ndarray, y: np.ndarray) -> tuple[Tensor, Tensor]:
        rows = torch.from_numpy(x).to(self.target.device, self.target.dtype)
        return rows, torch.from_numpy(np.asarray(y, dtype=np.int64)).to(self.target.device)

    def _store(self, s: State, *, now: bool = False) -> None:
        if self.folder is None or not (now or time.monotonic() - self.began >= self.every):
            return
        self.began = time.monotonic()
        write_bytes(self.folder / STATE, s.dump())
        if now:
            write_bytes(self.folder / "log.csv", table(s.place.log).encode())

    def _diverged(self, s: State, loss: float, length: float, rate: float) -> str:
        what = f"the loss is {loss:g} and the gradient's length {length:g}"
        if s.place.step == 0:
            return f"{what} at the first step; the network or its preprocessing gives numbers that cannot be trained."
        where = f"{what} in epoch {s.place.epoch + 1} at learning rate {rate:.3g}: training diverged."
        if not s.place.best_epoch or self.folder is None:
            return f"{where} Try a lower rate."
        kept = self.folder / "model.safetensors"
        write_bytes(kept, packed(s.best_average()))
        return f"{where} The weights of epoch {s.place.best_epoch} are in {kept}; try a lower rate."


def fooled(objective: Objective, inner: float, robust: float, best: float) -> bool:
    """Catastrophic overfitting: a short inner attack no longer finds what the judge finds, on rows held out.

    A gap alone is no proof (a weak network has one too), and some points up or down are noise: a third of what was
    reached must be lost, or half of what the inner attack leaves standing must fall. On training rows, plain
    overfitting would look the same.
    """
    short = 0 < objective.inner <= 4
    return short and inner - robust > _GAP and robust < max(2 / 3 * best, inner / 2)


def shuffled(n: int, batch_size: int, seed: int) -> list[tuple[int, np.ndarray]]:
    """The steps of an epoch: each the first row of a block, and the rows of it that the step takes."""
    order = np.random.default_rng(seed)
    steps: list[tuple[int, np.ndarray]] = []
    for start in order.permutation(np.arange(0, n, _BLOCK)):
        rows = order.permutation(min(_BLOCK, n - start))
        parts = [rows[at : at + batch_size] for at in range(0, len(rows), batch_size)]
        # Batch norm takes no batch of one; the next epoch's shuffle brings the row back.
        steps += [(int(start), part) for part in parts if len(part) > 1 or batch_size == 1 or n == 1]
    return steps


def read(data: Source, plan: list[tuple[int, np.ndarray]]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The rows of each step."""
    block, x, y = -1, np.empty(0), np.empty(0)
    for start, rows in plan:
        if start != block:
            block, (x, y) = start, data.rows(start, start + _BLOCK)
        yield x[rows], np.asarray(y)[rows]


@contextmanager
def evaluating(net: nn.Module) -> Iterator[None]:
    """Eval mode, each module's own flag restored afterwards."""
    flags = [(module, module.training) for module in net.modules()]
    net.eval()
    try:
        yield
    finally:
        for module, flag in flags:
            module.training = flag


@contextmanager
def perturbed_weights(net: nn.Module, loss: Callable[[], Tensor], gamma: float) -> Iterator[None]:
    """Within, the weights are where a step of relative length gamma raises the loss most (AWP, arXiv:2004.05884).

    Each tensor w of two axes or more moves by gamma |w| along its gradient. Differs from the authors' code: the step
    is taken on the network itself in eval mode, not on a proxy, so batch norms see the batch once.
    """
    weights = [w for w in net.parameters() if w.requires_grad and w.ndim > 1] if gamma else []
    saved = [w.detach().clone() for w in weights]
    if weights:
        with evaluating(net):
            slopes = torch.autograd.grad(loss(), weights, allow_unused=True)
        with torch.no_grad():
            for w, g in zip(weights, slopes, strict=True):
                if g is not None:
                    w.add_(g, alpha=float(gamma * w.norm() / g.norm().clamp_min(1e-12)))
    try:
        yield
    finally:
        with torch.no_grad():
            for w, old in zip(weights, saved, strict=True):
                w.copy_(old)
