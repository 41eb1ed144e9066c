"""Keras models, hardened: trained on Keras's own torch backend by the one loop, and carried back.

A Keras 3 model is written once for every backend, and on the torch backend it is a torch function.
So the model is rebuilt there, trained as any torch module is, and its weights go back into the
model as it came: every objective, recipe and guard works, on every device of torch, and no second
trainer has to be kept right. The other way, gradients on the weights through each framework,
would need one more pass per framework and could not differentiate twice, which some objectives do.

The backend is chosen when Keras is imported, so the training has a process of its own. What the two
backends make of the same weights is compared before training and after; a model whose layers call
one framework directly cannot come along. Training sees the logits before a softmax at the end,
which stays where it is.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from holdfast import usercode
from holdfast.data import Source
from holdfast.errors import InputError
from holdfast.runs.store import write_bytes
from holdfast.targets import TorchTarget, wrap
from holdfast.targets.frameworks.keras import KerasOnTorch, read
from holdfast.training import workers
from holdfast.training.distributed import ProcessGroup
from holdfast.training.loop import Training
from holdfast.training.network import settings, wrapped_like
from holdfast.training.state import Epoch

_KEPT = "model.safetensors"  # what a training that diverged leaves of its best weights
_PROBED = 64  # held rows on which the backends are compared
APART = 1e-3  # by which their scores may differ, relative to the largest: rounding
_HINT = "Perhaps the model cannot be trained on Keras's torch backend."
_PORTABLE = "Give a model of Keras's own layers, or of layers written with keras.ops."


class KerasNetwork:
    """A Keras model on any backend. Layers that are not trainable stay as they are.

    Args:
        model: the live model. It is saved, and never changed.
    """

    file, pickled = "model.keras", False

    def __init__(self, model: Any) -> None:
        self.model, self.kind = model, type(model).__name__
        self.trains = bool(model.trainable_variables)
        self.normed = any(
            type(layer).__name__ == "BatchNormalization" for layer in model._flatten_layers()
        )

    def train(self, training: Training) -> None:
        assert training.folder is not None
        work = workers.emptied(training.folder / "work")
        try:
            self._hand_over(training, work)
            # in processes whose Keras runs on torch
            env = {
                "KERAS_BACKEND": "torch",
                "KERAS_TORCH_DEVICE": str(training.target.batcher.device),
            }
            failed = workers.run(__name__, work, training, env, _HINT)
            if (work / "weights.safetensors").exists():
                write_bytes(training.folder / self.file, self._carried_back(work))
            if failed is not None:
                raise InputError(failed.replace(_KEPT, self.file))
            target = training.target
            hardened = wrapped_like(target, self.read(training.folder))
            hardened.head = replace(hardened.head, odds=target.head.odds)
            _agree(hardened, training.held, work / "after.npy", "the hardened file gives")
        finally:
            (training.folder / _KEPT).unlink(missing_ok=True)
            shutil.rmtree(work, ignore_errors=True)

    def read(self, folder: Path) -> Any:
        # it was written here, from a model that runs here
        return read(folder / self.file, trust=True)

    def _hand_over(self, training: Training, work: Path) -> None:
        self.model.save(work / "model.keras")
        target = training.target
        np.save(work / "before.npy", _probe(target, training.held))
        workers.check_portable(target.preprocess)
        own = {
            "code": _own_code(),
            "settings": settings(target),
            "probabilities": target.head.probabilities,
            "odds": target.head.odds,
        }
        workers.hand_over(training, work, own)

    def _carried_back(self, work: Path) -> bytes:
        """The .keras file of the model as it came, with the trained weights."""
        weights = load_file(work / "weights.safetensors")
        own = read(work / "model.keras", trust=True)
        own.set_weights([weights[str(i)].numpy() for i in range(len(weights))])
        return packed(own)


class Rebuilt(nn.Module):
    """A Keras model on the torch backend as a plain torch module.

    What it trains are parameters; its statistics and random states are buffers, and move in train
    mode.

    Args:
        flat: it takes [n, features], whatever the shape of the data.
    """

    def __init__(self, model: Any, *, flat: bool) -> None:
        super().__init__()
        trained, fixed = model.trainable_variables, model.non_trainable_variables
        self.trained = nn.ParameterList([v.value.detach().clone() for v in trained])
        self.fixed = [f"fixed{i}" for i in range(len(fixed))]
        for name, v in zip(self.fixed, fixed, strict=True):
            self.register_buffer(name, v.value.detach().clone())

        # A function, which copies of this module share: the model says how, and its own weights lie
        # idle.
        def ask(x: Tensor, values: list[Tensor], training: bool) -> tuple[Any, list[Any]]:
            with keras.StatelessScope(list(zip((*trained, *fixed), values, strict=True))) as scope:
                z = model(x.flatten(1) if flat else x, training=training)
            return z, [scope.get_current_value(v) for v in fixed]

        self.ask = ask

    def forward(self, x: Tensor) -> Any:
        held = [getattr(self, name) for name in self.fixed]
        z, after = self.ask(x, [*self.trained, *held], self.training)
        if self.training:
            for name, value in zip(self.fixed, after, strict=True):
                setattr(self, name, value.detach())
        return z


def packed(model: Any) -> bytes:
    """A Keras model as the bytes of a .keras file."""
    with tempfile.TemporaryDirectory(prefix="holdfast-") as folder:
        file = Path(folder) / "model.keras"
        model.save(file)
        return file.read_bytes()


def _train(work: Path, group: ProcessGroup, on_epoch: Callable[[Epoch], None]) -> None:
    own, job = workers.taken_over(work)
    for where in own["code"]:
        usercode.find(where)
    model, held = _again(work / "model.keras"), job["held"]
    target = wrap(model, **own["settings"])
    target.bind(held.shape)
    target.head = replace(target.head, probabilities=own["probabilities"], odds=own["odds"])
    assert isinstance(target, TorchTarget)
    _agree(target, held, work / "before.npy", "rebuilt on Keras's torch backend, the model gives")
    assert isinstance(target.model, KerasOnTorch)
    bare, shape = target.model.model, target.model.shape
    net = Rebuilt(bare, flat=shape is not None and len(shape) == 1).to(target.batcher.device)
    training = Training(target=target, on_epoch=on_epoch, group=group, **job)
    failed, kept = None, work.parent / _KEPT
    try:
        best = training.fit(net, resume=True).best_average()
    except InputError as error:
        if not kept.exists() and error.__cause__ is not None:  # the model itself raised
            raise InputError(f"{error} {_HINT} {_PORTABLE}") from error
        if not kept.exists():
            raise
        best, failed = load_file(kept), error
    if not group.leads:
        return
    net.load_state_dict(best)
    _put(net, bare)
    np.save(work / "after.npy", _probe(target, held))
    weights = {str(i): torch.from_numpy(np.array(w)) for i, w in enumerate(model.get_weights())}
    save_file(weights, work / "weights.safetensors")
    if failed is not None:
        raise failed


def _put(net: Rebuilt, bare: Any) -> None:
    """The weights of `net` into the model that it was made of, whose layers are those of the whole
    one."""
    with torch.no_grad():
        for v, value in zip(
            (*bare.trainable_variables, *bare.non_trainable_variables),
            (*net.trained, *net.buffers()),
            strict=True,
        ):
            v.assign(value)


def _own_code() -> list[str]:
    """Where the registered classes and functions of the user come from, as `usercode` spells it:
    one a module."""
    found = {}
    for thing in keras.saving.get_custom_objects().values():
        module = getattr(sys.modules.get(thing.__module__), "__spec__", None)
        if module is not None:  # a script has none, and must not run again
            where = thing.__module__ if module.parent else module.origin
            found[where] = f"{where}:{thing.__qualname__.partition('.')[0]}"
    return list(found.values())


def _again(file: Path) -> Any:
    """The model of a file that was written here.

    Raises:
        InputError: parts of it are unknown to a process of its own.
    """
    try:
        return read(file, trust=True)
    except InputError as error:
        first = (str(error.__cause__) or "its file cannot be read").splitlines()[0].rstrip(".")
        raise InputError(
            f"the model cannot be built again from its file: {first}. Layers of your own are "
            "registered "
            f"(@keras.saving.register_keras_serializable()) in a file that can be imported."
        ) from error


def _probe(target: TorchTarget, held: Source) -> np.ndarray:
    x, _ = held.rows(0, _PROBED)
    return (
        target.batcher.in_parts(target.scores, target.batcher.place(torch.from_numpy(x)))
        .cpu()
        .numpy()
    )


def _agree(target: TorchTarget, held: Source, file: Path, what: str) -> None:
    """Refuse a model of which two backends make different things.

    Raises:
        InputError: the scores differ by more than rounding.
    """
    here, there = _probe(target, held), np.load(file)
    apart = float(np.abs(here - there).max())
    if not apart <= APART * max(1.0, float(np.abs(there).max())):
        raise InputError(
            f"{what} other scores than on the other backend (by up to {apart:.3g}); a layer of it "
            f"does not do the same on each. {_PORTABLE}"
        )


if __name__ == "__main__":
    workers.serve(Path(sys.argv[1]), _train)
