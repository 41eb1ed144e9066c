"""Reference models: networks of the kind of an audited one, trained on halves of the rows given."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from holdfast.data import Source
from holdfast.data.part import Joined, Part
from holdfast.errors import InputError
from holdfast.rng import Keys
from holdfast.runs.journal import Journal
from holdfast.targets import Target, TorchTarget
from holdfast.targets.frameworks.pytorch.module import put_tensors, tensors_of
from holdfast.targets.target import sealed
from holdfast.training.network import wrapped_like
from holdfast.training.prepare import single
from holdfast.training.start import fresh
from holdfast.training.train import train


@dataclass(frozen=True)
class ToTrain:
    """Reference models that are to be trained.

    Raises:
        InputError: an odd number of them.
    """

    count: int  # even: of each two, one is trained on the rows that the other is not
    epochs: int = 30  # and the rest as `holdfast.train` takes it
    batch_size: int = 64
    devices: int = 1

    def __post_init__(self) -> None:
        if self.count < 2 or self.count % 2:
            raise InputError(
                f"{self.count} reference models are to be trained, but they come in pairs, each of "
                "which divides the rows between its two: give an even number, such as 4."
            )

    @property
    def options(self) -> dict[str, Any]:
        return {"epochs": self.epochs, "batch_size": self.batch_size, "devices": self.devices}


def halves(sizes: Sequence[int], count: int, seed: int) -> list[np.ndarray]:
    """Which rows each reference is trained on, of sources of these sizes n: [count, n] bool each.

    Two at a time divide the rows of each source between them, so half of all see a row.
    """
    found = list[np.ndarray]()
    for role, n in enumerate(sizes):
        keys, own = Keys.of(seed, torch.arange(n)), list[np.ndarray]()
        for pair in range(count // 2):
            draw = keys.fold("reference", role, pair).uniform((), torch.float64)
            first = (draw.argsort().argsort() < n // 2).numpy()
            own += [first, ~first]
        found.append(np.stack(own))
    return found


def trained(
    target: Target,
    sources: Sequence[Source],
    seen: Sequence[np.ndarray],
    asked: ToTrain,
    seed: int,
    journal: Journal,
    on_progress: Callable[[str], None],
) -> list[Target]:
    """Networks like the target's, each from new weights by `holdfast.train`, and wrapped alike.

    One that the journal has is not trained again.

    Args:
        seen: of each source the rows that each is trained on, see `halves`.

    Raises:
        InputError: the target is no torch module that can begin anew, or cannot be trained.
    """
    own, made = single(target), list[Target]()
    if not isinstance(own, TorchTarget) or not isinstance(own.model, nn.Module):
        raise InputError(
            f"references are trained of torch modules, and the model is a {target.name}; train "
            "some yourself, and name each by --reference."
        )
    for i in range(asked.count):
        name, columns, own_seed = f"reference-{i}", sources[0].columns, (seed + i) % 2**63
        net = copy.deepcopy(own.model)
        if journal.find(name) is None:
            on_progress(f"training reference {i + 1} of {asked.count}")
            with sealed(own_seed):
                fresh(net)
            parts = zip(sources, seen, strict=True)
            rows = Joined(*(Part(source, saw[i].nonzero()[0], "half") for source, saw in parts))
            done = train(wrapped_like(own, net, columns), rows, seed=own_seed, **asked.options)
            journal.write(name, {key: w.cpu().numpy() for key, w in tensors_of(done).items()})
        stored, _ = journal.read(name)
        like = tensors_of(net)
        put_tensors(net, {key: torch.from_numpy(w).view_as(like[key]) for key, w in stored.items()})
        made.append(wrapped_like(own, net.eval(), columns))
    return made


def keep(journal: Journal, count: int) -> None:
    """Put the weights of references with what an audit leaves."""
    for i in range(count):
        name = f"reference-{i}.safetensors"
        (journal.folder / name).replace(journal.folder.parent / name)
