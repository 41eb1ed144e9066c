"""The epochs of a training as TensorBoard's event files, in addition to log.csv."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from holdfast.targets.adapter import need
from holdfast.training.state import Epoch


def writer() -> Any:
    """The class that writes event files.

    Raises:
        InputError: TensorBoard is not installed.
    """
    return need("torch.utils.tensorboard", "tensorboard", "--tensorboard").SummaryWriter


def written(folder: Path, on_epoch: Callable[[Epoch], None] | None) -> Callable[[Epoch], None]:
    """`on_epoch` that writes each epoch first: its numbers as scalars, its note as text."""
    events = writer()(str(folder))

    def write(line: Epoch) -> None:
        for name, value in vars(line).items():
            if name != "epoch" and not isinstance(value, str):
                events.add_scalar(name, value, line.epoch)
        if line.note:
            events.add_text("note", line.note, line.epoch)
        events.flush()
        if on_epoch is not None:
            on_epoch(line)

    return write
