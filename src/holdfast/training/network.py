"""The network that hardening trains: an own copy of it, in its own framework."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, Protocol

from safetensors.torch import load_file
from torch import nn

from holdfast.runs.store import write_bytes
from holdfast.targets import TorchTarget, wrap
from holdfast.targets.frameworks.pytorch.module import half_of, put_tensors
from holdfast.training import workers
from holdfast.training.loop import Training
from holdfast.training.state import packed


class Network(Protocol):
    """What the framework of a network has to answer."""

    file: str  # what a folder holds once it is trained
    kind: str  # its class
    trains: bool  # whether it has anything to train
    normed: bool  # whether it has batch norm
    pickled: bool  # whether other processes get it as it is, pickled

    def train(self, training: Training) -> None:
        """Train it, and leave it as `file` in the training's folder.

        Raises:
            InputError: the training diverged.
        """

    def read(self, folder: Path) -> Any:
        """What `file` holds there: what `wrap` takes, in eval mode."""


class TorchNetwork:
    """A torch module. Parameters that the given one froze stay as they are."""

    file, pickled = "model.safetensors", True

    def __init__(self, given: Any, target: TorchTarget) -> None:
        assert isinstance(target.model, nn.Module)
        self.net = copy.deepcopy(target.model)
        if half_of(self.net) is not None:
            self.net.float()  # half precision cannot be trained
        fixed = (
            {n for n, w in given.named_parameters() if not w.requires_grad}
            if isinstance(given, nn.Module)
            else {}
        )
        for name, weight in self.net.named_parameters():
            weight.requires_grad_(name not in fixed and weight.is_floating_point())
        self.kind = type(self.net).__name__
        self.trains = any(weight.requires_grad for weight in self.net.parameters())
        self.normed = any(
            isinstance(m, nn.modules.batchnorm._BatchNorm) for m in self.net.modules()
        )

    def train(self, training: Training) -> None:
        assert training.folder is not None
        write_bytes(training.folder / self.file, packed(workers.train(training, self.net)))

    def read(self, folder: Path) -> nn.Module:
        put_tensors(self.net, load_file(folder / self.file))
        return self.net.eval()


def settings(target: TorchTarget) -> dict[str, Any]:
    """What `wrap` takes to make such a target of another model, but for its probabilities."""
    return {
        "bounds": target.bounds,
        "preprocess": target.preprocess,
        "batch_size": target.batcher.size,
        "device": target.batcher.device,
        "layout": target.inputs.layout,
        "output": target.output,
    }


def wrapped_like(like: TorchTarget, model: Any) -> TorchTarget:
    """A trained model, wrapped as the one that it came from is."""
    head = like.head
    own = wrap(
        model, probabilities=head.probabilities, task=head.truth_task, draws=1, **settings(like)
    )
    assert isinstance(own, TorchTarget)
    assert like.shape is not None
    own.bind(like.shape)
    return own
