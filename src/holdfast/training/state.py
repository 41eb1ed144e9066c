"""What a training goes on from: weights, their average, the optimiser, the random state, the
progress.

It is stored whole; a training that was killed and resumed ends, on a CPU, with the same bits.
"""

from __future__ import annotations

import copy
import csv
import io
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from holdfast.errors import InputError
from holdfast.runs.store import NO_DIGEST, digest_holds, with_digest
from holdfast.targets.frameworks.pytorch.module import put_tensors, tensors_of
from holdfast.training.inner_attack import AttackNetwork
from holdfast.training.recipe import Recipe

STATE = "training.safetensors"
Parts = dict[str, nn.Module | torch.optim.Optimizer]  # what a state is made of, by prefix


@dataclass
class Epoch:
    """One line of log.csv."""

    epoch: int
    objective: str
    rate: float  # of learning, at the end
    eps: float  # trained against, at the end
    loss: float  # mean over the epoch
    trained: float  # accuracy at the points trained at
    clean: float  # accuracy of the averaged weights on the rows held out
    inner: float  # the same under the inner attack
    robust: float  # the same under the recipe's judge
    aligned: (
        float  # cosine between the gradients at x and at a random point of the ball, on those rows
    )
    passes: int  # forward and backward passes spent, so far
    note: str = ""
    recall: float = (
        math.nan
    )  # the least clean recall of any class, of the averaged weights on those rows


@dataclass
class Progress:
    """The progress of a training: all of its state but the tensors."""

    epoch: int = 0
    batch: int = 0  # steps done of this epoch
    step: int = 0  # steps done of all
    stronger: int = 0  # times that a guard has made the objective so
    loss: float = 0.0  # sums over this epoch's rows
    right: float = 0  # NaN where the loss does not say it
    rows: int = 0
    passes: int = 0
    best: tuple[bool, float, float] = (
        False,
        -1.0,
        -1.0,
    )  # whether above the floor, robust, clean; of what is kept
    best_epoch: int = 0
    full: int = 0  # epochs since the objective or eps last changed
    log: list[Epoch] = field(default_factory=list)


class State:
    """All that a training goes on from."""

    def __init__(
        self, net: nn.Module, recipe: Recipe, attack_network: AttackNetwork | None = None
    ) -> None:
        self.net, self.attack_network = net, attack_network
        self.average = copy.deepcopy(net).eval().requires_grad_(False)
        self.optimiser = _optimiser(net, recipe)
        self.progress = Progress()
        self.keep()

    def keep(self) -> None:
        """These weights are the best so far."""
        self.best = {name: value.clone() for name, value in gathered(self._weights()).items()}

    def back_to_best(self, recipe: Recipe) -> None:
        put(self._weights(), self.best)
        self.optimiser = _optimiser(self.net, recipe)

    def best_average(self) -> dict[str, Tensor]:
        """The state_dict of the best averaged weights."""
        return under("average.", self.best)

    def dump(self) -> bytes:
        tensors = gathered(self._parts())
        tensors |= {f"best.{name}": value for name, value in self.best.items()}
        tensors["random"] = torch.get_rng_state()
        if (device := _device(self.net)).type == "cuda":
            tensors["random.cuda"] = torch.cuda.get_rng_state(device)
        return stored(tensors, asdict(self.progress))

    def restore(self, content: bytes) -> None:
        tensors, progress = restored(content)
        log = [Epoch(**line) for line in progress["log"]]
        self.progress = Progress(**progress | {"best": tuple(progress["best"]), "log": log})
        put(self._parts(), tensors)
        self.best = under("best.", tensors)
        torch.set_rng_state(tensors["random"])
        if "random.cuda" in tensors and (device := _device(self.net)).type == "cuda":
            torch.cuda.set_rng_state(tensors["random.cuda"], device)

    def _weights(self) -> Parts:
        return {"net.": self.net, "average.": self.average}

    def _parts(self) -> Parts:
        parts = {f"now.{name}": part for name, part in self._weights().items()}
        parts[""] = self.optimiser
        if self.attack_network is not None:
            parts |= {
                "rival.net.": self.attack_network.net,
                "rival.": self.attack_network.optimiser,
            }
        return parts


def gathered(parts: Parts) -> dict[str, Tensor]:
    """The tensors of modules and optimisers, each under the prefix of its part."""
    held = {
        prefix: tensors_of(part) if isinstance(part, nn.Module) else slots(part)
        for prefix, part in parts.items()
    }
    return {prefix + name: v for prefix, own in held.items() for name, v in own.items()}


def put(parts: Parts, tensors: dict[str, Tensor]) -> None:
    """Load what was `gathered` back into its parts."""
    for prefix, part in parts.items():
        if isinstance(part, nn.Module):
            put_tensors(part, under(prefix, tensors))
        else:
            put_slots(part, under(prefix, tensors))


def blend(average: nn.Module, net: nn.Module, share: float) -> None:
    """Move the average towards the network: floats, running statistics too, by 1 - share; the rest
    is copied."""
    with torch.no_grad():
        for old, new in zip(tensors_of(average).values(), tensors_of(net).values(), strict=True):
            if old.is_floating_point():
                old.lerp_(new.to(old), 1 - share)
            else:
                old.copy_(new)


def slots(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The state of an optimiser, by name."""
    kept = optimiser.state_dict()["state"].items()
    return {
        f"optimiser.{i}.{name}": v
        for i, own in kept
        for name, v in own.items()
        if isinstance(v, Tensor)
    }


def put_slots(optimiser: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Have an optimiser remember the `slots` among these tensors."""
    weights = [w for group in optimiser.param_groups for w in group["params"]]
    kept: dict[int, dict[str, Tensor]] = {}
    for name, value in under("optimiser.", tensors).items():
        i, _, slot = name.partition(".")
        w = weights[int(i)]  # whose layout in memory decides the last bit of a step
        kept.setdefault(int(i), {})[slot] = (
            torch.empty_like(w).copy_(value) if value.shape == w.shape else value
        )
    optimiser.load_state_dict(optimiser.state_dict() | {"state": kept})


def stored(tensors: dict[str, Tensor], progress: dict[str, Any]) -> bytes:
    """A state as the bytes of a file that carries a digest of itself."""
    notes = {"place": json.dumps(progress), "digest": NO_DIGEST}
    return with_digest(packed(tensors, notes))


def restored(content: bytes) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the progress, as JSON holds it, in the bytes of a stored state.

    Raises:
        InputError: they are not what was stored.
    """
    if not digest_holds(content):
        raise InputError(
            f"{STATE} is damaged: its content does not fit its digest. Delete that file, and "
            f"--resume trains from the start."
        )
    meta = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
    return load(content), json.loads(meta["place"])


def table(log: list[Any], kind: type = Epoch) -> str:
    """log.csv: one line for each of `log`, which are dataclasses of this kind."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(kind)], lineterminator="\n")
    writer.writeheader()
    for line in log:
        writer.writerow(
            {k: f"{v:.6g}" if isinstance(v, float) else v for k, v in asdict(line).items()}
        )
    return text.getvalue()


def read_log(folder: Path) -> list[Epoch]:
    """log.csv of a folder, read back."""
    kinds = {"epoch": int, "passes": int, "objective": str, "note": str}
    with (folder / "log.csv").open(encoding="utf-8", newline="") as file:
        return [
            Epoch(**{k: kinds.get(k, float)(v) for k, v in line.items()})
            for line in csv.DictReader(file)
        ]


def packed(tensors: Mapping[str, Tensor], notes: dict[str, str] | None = None) -> bytes:
    """A state_dict as the bytes of a .safetensors file, with notes in its metadata."""
    own = {name: value.detach().cpu().clone().contiguous() for name, value in tensors.items()}
    return save(own, metadata=notes)


def _device(net: nn.Module) -> torch.device:
    return next((w.device for w in net.parameters()), torch.device("cpu"))


def _optimiser(net: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    weights = [w for w in net.parameters() if w.requires_grad]
    if recipe.optimiser == "adam":
        return torch.optim.Adam(weights, recipe.rate, weight_decay=recipe.decay)
    return torch.optim.SGD(
        weights,
        recipe.rate,
        recipe.momentum,
        weight_decay=recipe.decay,
        nesterov=recipe.momentum > 0,
    )


def under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Those of the tensors whose names begin so, by the rest of their names."""
    return {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }
