"""The loop that trains: one network, one recipe, one adversary, from the first step or from where
it stopped."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from holdfast import attacks
from holdfast.attacks.attack import run
from holdfast.bounds.graph import Program
from holdfast.data import Source
from holdfast.errors import InputError
from holdfast.memory import keep_freed
from holdfast.runs.store import write_bytes
from holdfast.targets import TorchTarget
from holdfast.targets.target import sealed
from holdfast.threats.threat import Threat
from holdfast.training import augmentation
from holdfast.training.augmentation import Batch
from holdfast.training.balance import Balance
from holdfast.training.batches import GeneratedRows, Steps, read, shuffled
from holdfast.training.distributed import ProcessGroup
from holdfast.training.inner_attack import AttackNetwork, InnerAttack, evaluating
from holdfast.training.objective import Net, Objective, Regularizer
from holdfast.training.recipe import Recipe
from holdfast.training.sharpness import perturbed_weights
from holdfast.training.start import STARTS
from holdfast.training.state import STATE, Epoch, Progress, State, blend, packed, table

# how much more the judge may find than the inner attack, before that attack counts as fooled
_GAP = 0.1


@dataclass
class Training:
    """A training to be done: `fit` does it.

    Args:
        target: the network, wrapped and bound; its own copy of the network is not used.
        data: rows to train on.
        held: rows that choose the weights.
        threat: what the network shall withstand.
        recipe: how.
        objective: the one that the recipe names.
        penalties: the regularisers that it names.
        seed: of the order of rows, of all noise, and of the network's own random steps.
        floor: the least clean accuracy on `held` of the weights chosen.
        min_recall: the least clean recall there of any class.
        balance: of the classes in `data`; of none: all count alike.
        folder: where log.csv and the state are written; None: nowhere.
        every: seconds from one stored state to the next; 0: after each step; inf: none is.
        on_epoch: called with each finished epoch.
        generated: further rows to train on.
        precision: of the passes that train, the inner attack's too; bfloat16 is mixed, and the
            judge's are float32.
        devices: processes that share every step; on accelerators each has one of its own.
            `workers.train` starts them.
        group: which of these processes this is.
    """

    target: TorchTarget
    data: Source
    held: Source
    threat: Threat
    recipe: Recipe
    objective: Objective
    penalties: Sequence[Regularizer] = ()
    seed: int = 0
    floor: float = 0.0
    min_recall: float = 0.0
    balance: Balance = field(default=Balance(()))
    folder: Path | None = None
    every: float = 30.0
    on_epoch: Callable[[Epoch], None] | None = None
    generated: GeneratedRows | None = None
    precision: str = "float32"
    devices: int = 1
    group: ProcessGroup = field(default_factory=ProcessGroup)
    attack_network: AttackNetwork | None = field(default=None, init=False)
    program: Program | None = field(default=None, init=False)

    @cached_property
    def changes(self) -> list[augmentation.Augmentation]:
        return augmentation.parse(self.recipe.augment)

    def fit(self, net: nn.Module, *, resume: bool = False) -> State:
        """Train `net`, in place; the best weights are the `best_average()` of what comes back.

        Raises:
            InputError: the loss is not finite. After the first epoch, the best weights until then
                are kept on disk.
        """
        recipe, self.began = self.recipe, time.monotonic()
        x, y = self.held.rows(0, len(self.held))
        self.judged = self._tensors(x, y)
        keep_freed()
        if self.target.channels_last:
            net.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        with sealed(self.seed + self.group.rank), torch.enable_grad():
            STARTS[recipe.start](net, self.seed)
            self.attack_network = self.objective.attack_network(self.target)
            self.program = self.objective.program(self.target, self.threat)
            s = State(net, recipe, self.attack_network)
            if resume and self.folder is not None and (self.folder / STATE).exists():
                s.restore((self.folder / STATE).read_bytes())
                # whose random state it is; the others draw on from seeds of their own
                if not self.group.leads:
                    torch.manual_seed(int(torch.randint(2**62, ())) + self.group.rank)
            while s.progress.epoch < recipe.epochs and not self._ends_early(s.progress):
                steps = shuffled(
                    len(self.data), recipe.batch_size, self.seed + s.progress.epoch + 1
                )
                for x, y in self._read(steps, s):
                    self._step(s, *self._tensors(x, y), total=recipe.epochs * len(steps))
                    self._store(s)
                self._close(s)
        return s

    def _read(self, steps: Steps, s: State) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The rows of the steps that are left of an epoch."""
        if self.generated is None:
            return read(self.data, steps[s.progress.batch :])
        return self.generated.read(
            self.data, steps, s.progress.batch, self.seed + s.progress.epoch + 1
        )

    def _step(self, s: State, x: Tensor, y: Tensor, *, total: int) -> None:
        """One step on rows x [n, *shape], y [n]."""
        progress = s.progress
        done = (progress.step + 1) / total
        rate, eps = self._rate_and_eps(done)
        for group in s.optimiser.param_groups:
            group["lr"] = rate
        objective = self._objective(progress)
        n, mine = len(y), self.group.share(len(y))
        inner = self._inner_attack(
            self.target.live(s.net, self.precision), eps, self.seed + progress.step, mine.start
        )
        size = self.recipe.move[1] * (done > self.recipe.ramp)
        batch = augmentation.augmented(self.changes, x, y, self.target, self.seed + progress.step)
        batch = batch.part(mine)
        x, y = batch.x, batch.y
        objective.teach(inner, x, y)
        x_adv = objective.points(inner, x, y).requires_grad_(objective.replays > 1)
        loss, z = self._update(s, objective, inner, batch, x_adv, size, n)
        for _ in range(objective.replays - 1):
            assert x_adv.grad is not None
            x_adv = inner.ascend(
                x, x_adv.detach(), x_adv.grad, objective.step_size
            ).requires_grad_()
            loss, z = self._update(s, objective, inner, batch, x_adv, size, n)
        right = self._right(z, y, n)
        self.group.follow([part for part in s.net.buffers() if part.is_floating_point()])
        blend(s.average, s.net, self._past(progress.step, total))

        progress.step, progress.batch = progress.step + 1, progress.batch + 1
        progress.rows += n
        further = sum(part.passes for part in self.penalties) + 2 * objective.asks * bool(size)
        further += 2 * batch.further_forwards(objective.asks)
        progress.passes += n * (objective.passes + objective.replays * further)
        progress.loss += float(loss) * n
        progress.right += right

    def _right(self, z: Tensor, y: Tensor, n: int) -> float:
        """How many of n points trained at are right, where those of this share have scores z."""
        return round(self.group.shares([unbroken(z.argmax(1), y)])[0] * n)

    def _update(
        self,
        s: State,
        objective: Objective,
        inner: InnerAttack,
        batch: Batch,
        x_adv: Tensor,
        size: float,
        n: int,
    ) -> tuple[Tensor, Tensor]:
        """One step of the optimiser, at points x_adv: the loss of all n rows there, and the scores
        of this share."""

        def mean(tensors: list[Tensor]) -> None:
            self.group.mean(tensors, n)

        net = Net(inner.live.outputs, self.target.scores, inner)

        def ask(y: Tensor) -> tuple[Tensor, Tensor]:
            rows, z = objective.loss(net, batch.x, x_adv, y)
            return self._weighed(rows, y).mean(), z

        s.net.train()
        with perturbed_weights(s.net, lambda: ask(batch.y)[0], self.recipe.move[0], size, mean):
            loss, z = batch.loss(ask, net)
            with evaluating(s.net):
                loss = loss + sum(
                    part.penalty(net, inner, batch.x, batch.y, z) for part in self.penalties
                )
            s.optimiser.zero_grad()
            loss.backward()
        loss = loss.detach()
        mean([loss, *(w.grad for w in s.net.parameters() if w.grad is not None)])
        length = nn.utils.clip_grad_norm_(s.net.parameters(), self.recipe.clip or math.inf)
        if not bool(loss.isfinite() & length.isfinite()):
            raise InputError(self._diverged(s, float(loss), float(length)))
        s.optimiser.step()
        return loss, z.detach()

    def _weighed(self, rows: Tensor, y: Tensor) -> Tensor:
        """The losses of points [m n], all first points first, of classes y [n], each times the
        weight of its class."""
        if not self.balance.weights:
            return rows
        return rows * rows.new_tensor(self.balance.weights)[y].repeat(len(rows) // len(y))

    def _objective(self, progress: Progress) -> Objective:
        """That of the recipe, stronger by as much as a guard has made it."""
        objective = self.objective
        for _ in range(progress.stronger):
            objective = objective.stronger()
        return objective

    def _past(self, step: int, total: int) -> float:
        """The share of its old value that the average keeps at this step."""
        alike = step - round(total * (1 - self.recipe.swa))  # steps of the last ones before
        if self.recipe.swa and alike >= 0:
            return alike / (alike + 1)
        return min(self.recipe.ema, (1 + step) / (10 + step))

    def _rate_and_eps(self, done: float) -> tuple[float, float]:
        """Learning rate and eps where this share of the training is done."""
        return self.recipe.rate_at(done), float(self.threat.eps) * min(
            1.0, done / (self.recipe.ramp or done)
        )

    def _ends_early(self, progress: Progress) -> bool:
        """Whether `patience` epochs at full eps have brought nothing better."""
        return 0 < self.recipe.patience <= min(progress.full, progress.epoch - progress.best_epoch)

    def _close(self, s: State) -> None:
        """End an epoch: judge the averaged weights on the rows held out, choose, and guard."""
        progress, recipe = s.progress, self.recipe
        objective = self._objective(progress)
        clean, inner, robust, accuracy, recall = self._judge(s, objective)
        rate, eps = self._rate_and_eps((progress.epoch + 1) / recipe.epochs)
        line = Epoch(
            epoch=progress.epoch + 1,
            objective=repr(objective),
            rate=rate,
            eps=eps,
            loss=progress.loss / progress.rows,
            trained=progress.right / progress.rows,
            clean=clean,
            inner=inner,
            robust=robust,
            aligned=self._aligned(s),
            passes=progress.passes,
            recall=recall,
        )
        if not progress.epoch:
            begun = "" if recipe.start == "given" else f"began with new weights ({recipe.start})"
            line.note = "; ".join(filter(None, (begun, self.balance.note)))
        progress.epoch += 1
        progress.batch = progress.rows = progress.right = 0
        progress.loss = 0.0
        progress.full = progress.full + 1 if eps == self.threat.eps else 0
        least = self.balance.least_recall(self.min_recall, self.target.task.k)
        # of a detector or a segmenter no recall is known
        score = (accuracy >= self.floor and not recall < least, robust, clean)
        if progress.full > 1 and fooled(objective, inner, robust, progress.best[1]):
            s.back_to_best(recipe)
            progress.stronger, progress.full = progress.stronger + 1, 0
            line.note = (
                f"catastrophic overfitting: {inner:.0%} under the inner attack, {robust:.0%} under "
                f"the judge; back to the weights of epoch {progress.best_epoch}, on with "
                f"{objective.stronger()!r}"
            )
        elif score >= progress.best:
            progress.best, progress.best_epoch = score, progress.epoch
            s.keep()
        progress.log.append(line)
        self._store(s, now=True)
        if self.group.leads and self.on_epoch is not None:
            self.on_epoch(line)

    def _judge(self, s: State, objective: Objective) -> tuple[float, float, float, float, float]:
        """Of the averaged weights on the rows held out: accuracy clean, under the inner attack,
        under the judge. Where the objective has bounds, the second is what they prove, and the
        third counts no other row.

        Means over the classes where these are unequal; then the clean accuracy over all rows, and
        the least recall of a class.
        """
        mine = self.group.share(len(self.judged[1]))
        x, y = (column[mine] for column in self.judged)
        model = self.target.live(s.average)
        with torch.no_grad():
            right = model.task.predict(model.batcher.in_parts(model.scores, x)) == y
            search = self._inner_attack(model, float(self.threat.eps), self.seed, mine.start)
            proved = inner = objective.proved(search, x, y)
            if inner is None:
                x_adv = objective.points(search, x, y)
                inner = unbroken(model.task.predict(model.batcher.in_parts(model.scores, x_adv)), y)
        robust = right
        if self.recipe.judge:
            ids = torch.arange(mine.start, mine.stop)
            found = run(
                attacks.parse(self.recipe.judge), model, x, y, self.threat, ids=ids, seed=self.seed
            )
            robust = (found.outcome == attacks.Outcome.SURVIVED) & right
        if proved is not None:
            robust = robust & proved
        each = self._per_class(self.judged[1])[mine]  # [n, classes there]
        weight = torch.ones_like(each[:, 0])
        if self.balance.unequal:
            weight = each.mean(1)
        columns = [held * weight for held in (right, inner & right, robust)]
        recalls = [right * column for column in each.unbind(1)]
        *figures, accuracy = self.group.shares([*columns, *recalls, right])
        return *figures[:3], accuracy, min(figures[3:])  # pyright: ignore[reportReturnType]

    def _per_class(self, y: Tensor) -> Tensor:
        """Weights [n, classes there] whose mean with a column of rows is that of each class,
        float64."""
        there, index, count = y.unique(return_inverse=True, return_counts=True)
        return F.one_hot(index, len(there)).double() * (len(y) / count)

    def _aligned(self, s: State) -> float:
        """The mean cosine of the gradients at those rows and at random points close to them.
        Without a judge it is not asked."""
        if not self.recipe.judge:
            return math.nan
        mine = self.group.share(len(self.judged[1]))
        inner = self._inner_attack(
            self.target.live(s.average), float(self.threat.eps), self.seed, mine.start
        )
        return self.group.shares([inner.aligned(*(column[mine] for column in self.judged))])[0]

    def _inner_attack(
        self, live: TorchTarget, eps: float, seed: int, start: int = 0
    ) -> InnerAttack:
        return InnerAttack(
            live,
            self.target,
            self.threat.at(eps),
            seed % 2**63,
            eps / float(self.threat.eps),
            start,
            self.attack_network,
            self.program,
        )

    def _tensors(self, x: np.ndarray, y: np.ndarray) -> tuple[Tensor, Tensor]:
        rows = self.target.batcher.place(torch.from_numpy(x))
        return rows, torch.from_numpy(np.asarray(y, dtype=np.int64)).to(self.target.batcher.device)

    def _store(self, s: State, *, now: bool = False) -> None:
        if self.folder is None or not self.group.leads or math.isinf(self.every):
            return
        if not now and time.monotonic() - self.began < self.every:
            return
        self.began = time.monotonic()
        write_bytes(self.folder / STATE, s.dump())
        if now:
            write_bytes(self.folder / "log.csv", table(s.progress.log).encode())

    def _diverged(self, s: State, loss: float, length: float) -> str:
        rate = s.optimiser.param_groups[0]["lr"]
        what = f"the loss is {loss:g} and the gradient's length {length:g}"
        if s.progress.step == 0:
            return (
                f"{what} at the first step; the network or its preprocessing gives numbers that "
                "cannot be trained."
            )
        epoch = s.progress.epoch + 1
        where = f"{what} in epoch {epoch} at learning rate {rate:.3g}: training diverged."
        if not s.progress.best_epoch or self.folder is None or not self.group.leads:
            return f"{where} Try a lower rate."
        kept = self.folder / "model.safetensors"
        write_bytes(kept, packed(s.best_average()))
        return (
            f"{where} The weights of epoch {s.progress.best_epoch} are in {kept}; try a lower rate."
        )


def unbroken(labels: Tensor, y: Tensor) -> Tensor:
    """Which rows have the right label at all of their points, [m n] of labels, all first points
    first: [n]."""
    return (labels.view(-1, len(y)) == y).all(0)


def fooled(objective: Objective, inner: float, robust: float, best: float) -> bool:
    """Catastrophic overfitting: a short inner attack no longer finds what the judge finds, on rows
    held out.

    A gap alone is no proof (a weak network has one too), and some points up or down are noise: a
    third of the best robust accuracy must be lost, or half of the rows that the inner attack does
    not break. On training rows, ordinary overfitting would look the same.
    """
    short = 0 < objective.steps <= 4
    return short and inner - robust > _GAP and robust < max(2 / 3 * best, inner / 2)
