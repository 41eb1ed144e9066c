"""The model interface: every model of every framework, reached through scores and a pullback.

Losses are torch functions of the scores; their cotangent goes back through the model's own
framework. No adapter knows a loss, no loss knows a framework.
"""

from __future__ import annotations

import copy
import hashlib
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from enum import IntEnum
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from holdfast import usercode
from holdfast.data.columns import Column
from holdfast.errors import HoldfastError, InputError
from holdfast.rng import Keys, content
from holdfast.targets.batch import Batch, Batcher, Rows, out_of_memory
from holdfast.targets.head import Head
from holdfast.tasks import Classes, Form
from holdfast.tensors import as_tensor

Pullback = Callable[[Tensor], Tensor]
Given = TypeVar("Given", bound="Target")


class Access(IntEnum):
    """How much a target gives; each level includes those below."""

    LABELS = 1
    SCORES = 2
    GRADIENTS = 3


LEVELS = 255  # steps between the 256 values that 8 bits hold


FLOAT32 = torch.finfo(torch.float32).max


@dataclass(frozen=True)
class Bounds:
    """The box of legal inputs, in raw units.

    `each` are lows and highs of every feature ([*shape] each), where they differ: `Bounds.of((lows,
    highs))`. The numbers are then their extremes.
    """

    low: float = 0.0
    high: float = 1.0
    each: tuple[Tensor, Tensor] | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if not -FLOAT32 <= self.low < self.high <= FLOAT32:
            raise InputError(
                f"bounds are [{self.low:g}, {self.high:g}], but they are two finite numbers, the "
                "lower one first, within the range of float32."
            )

    @staticmethod
    def of(bounds: Bounds | tuple[Any, Any]) -> Bounds:
        """Bounds from two numbers, or from two arrays of one shape: tensors, NumPy arrays, lists or
        Series.

        Raises:
            InputError: not finite, or a low above its high.
        """
        if isinstance(bounds, Bounds):
            return bounds
        if not isinstance(bounds, (tuple, list)) or len(bounds) != 2:
            raise InputError(
                f"bounds are {bounds!r:.60}, but they are two numbers, or two arrays, the lower "
                "first."
            )
        if all(isinstance(side, (int, float)) for side in bounds):
            return Bounds(*bounds)
        low, high = (as_tensor(side, "bounds").cpu() for side in bounds)
        if not low.ndim and not high.ndim:
            return Bounds(float(low), float(high))
        low, high = torch.broadcast_tensors(low.double(), high.double())
        if not bool((low.isfinite() & high.isfinite() & (low <= high)).all()):
            raise InputError(
                "bounds hold a low and a high for each feature: finite numbers, the low not above "
                "the high."
            )
        return Bounds(float(low.min()), float(high.max()), (low, high))

    def sides(self, like: Tensor) -> tuple[Any, Any]:
        """Low and high, to broadcast against [n, *shape]."""
        if self.each is None:
            return self.low, self.high
        return self.each[0].to(like), self.each[1].to(like)

    def clamp(self, x: Tensor) -> Tensor:
        return x.clamp(*self.sides(x))

    def inside(self, x: Tensor) -> Tensor:
        """Whether all of each row is: [n] bool; NaN is not."""
        low, high = self.sides(x)
        return ((x >= low) & (x <= high)).flatten(1).all(1)

    def as_8bit(self, x: Tensor, origin: Tensor | None = None) -> Tensor:
        """Inputs x [n, *shape] as a file of 8 bits holds them: each value at the nearest of 256
        levels of the range.

        With an `origin` [n, *shape] it is the neighbouring level on that side, so that nothing
        moves away from there.
        """
        level = (x.double() - self.low) / (self.high - self.low) * LEVELS
        rounded = level.round()
        if origin is not None:
            own = ((origin.double() - self.low) / (self.high - self.low) * LEVELS).round()
            exact = (level - rounded).abs() < 1e-3  # a level, but for what float32 adds
            rounded = torch.where(exact, rounded, own.clamp(level.floor(), level.ceil()))
        return rounded.to(x.dtype) / LEVELS * (self.high - self.low) + self.low

    @property
    def ulp(self) -> float | Tensor:
        """What rounding a legal input to float32 adds at most: one number, or [*shape]."""
        if self.each is None:
            return 2.0**-24 * max(abs(self.low), abs(self.high))
        return 2.0**-24 * self.each[0].abs().maximum(self.each[1].abs())


@dataclass(frozen=True)
class Inputs:
    """What an input is, besides its shape and its bounds."""

    layout: str = "nchw"  # of raw images; in nhwc the channels come last
    # what a question needs besides x: shapes by name
    context: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Cost:
    """What one question costs a row."""

    forwards: int = 1  # passes of the model
    draws: int = 1  # random answers of the model, whose mean is asked for
    pullback: int = 0  # forwards of one pullback, where it is estimated from them


@dataclass(frozen=True)
class GradientInfo:
    """How far `linearize` speaks for the model under test."""

    approximate: bool = False  # its scores may differ in the last digits, or in precision
    # it is that of another model, whose scores say nothing of this one's margins
    substitute: bool = False
    # the least lead of a class over the next that a search takes for an answer, and not for luck
    min_lead: float = 0.0


@dataclass
class Identity:
    """What a report says of the model, besides its fingerprint and what `describe` says."""

    remarks: tuple[tuple[str, str], ...] = ()  # of how it was taken: check, text
    class_labels: tuple[Any, ...] | None = None  # its own (texts, -1 and 1); None: 0..k-1
    # of the libraries, besides torch and numpy, that it runs in
    versions: Mapping[str, str] = field(default_factory=dict)
    was_training: bool = False  # it came in train mode
    rewrites: bool = False  # it was seen to change its input, and is given a copy each time


class Target(ABC):
    """A model under test. Inputs are raw: [n, *shape] within `bounds`; eps is in the same units.

    An adapter writes the richest method that it can; the others follow from it. Calls change
    nothing: not the model, not the inputs. Each takes a `Batch`, or inputs alone where the model
    needs nothing else.
    """

    name: str = ""  # the type of the user's model, where it was wrapped
    access: Access = Access.GRADIENTS
    bounds: Bounds = Bounds()
    task: Classes
    form: Form = Form()  # of its outputs, where the task is not one of classes
    shape: tuple[int, ...] | None = None
    head: Head = Head()
    inputs: Inputs = Inputs()
    cost: Cost = Cost()
    gradients: GradientInfo = GradientInfo()
    losses: Sequence[str] = ()  # of its task alone, which attacks may ascend: see `ascending`

    @cached_property
    def identity(self) -> Identity:
        return Identity()

    @cached_property
    def batcher(self) -> Batcher:
        return Batcher()

    def __repr__(self) -> str:
        if inner := getattr(self, "inner", None):
            return f"{type(self).__name__}({inner!r})"
        libraries = ", ".join(self.identity.versions)
        said = f"{self.name or type(getattr(self, 'model', self)).__name__}"
        return f"Target({said}{libraries and f' of {libraries}'})"

    def bind(self, shape: tuple[int, ...]) -> None:
        """Fix the shape of one input, and learn what depends on it.

        Raises:
            InputError: another shape is fixed already.
        """
        if self.shape is not None and tuple(self.shape) != tuple(shape):
            raise InputError(f"inputs are {tuple(shape)}, but the model takes {tuple(self.shape)}.")
        if self.bounds.each is not None and tuple(self.bounds.each[0].shape) != tuple(shape):
            raise InputError(
                f"the bounds have shape {tuple(self.bounds.each[0].shape)}, but an input is "
                f"{tuple(shape)}."
            )
        self.shape = tuple(shape)

    def of_table(self, columns: Sequence[Column]) -> Target:
        """A copy that is asked about rows of a table with these columns, and gives the model their
        names, types and texts, where it wants them.

        Raises:
            InputError: the model takes other columns, or numbers alone where there are texts.
        """
        refuse_texts(columns)
        return self

    def linearize(self, x: Rows) -> tuple[Tensor, Pullback]:
        """Scores [n, k], and the pullback: cotangents [n, k] to gradients on x [n, *shape]."""
        raise NotImplementedError

    def pull(self, x: Rows, cotangent: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """Scores [n, k], and the gradient on x [n, *shape] of what has this cotangent [n, k] at
        them.

        One gradient step asks no more, and a compiled framework can do it in one call.
        """
        z, pullback = self.linearize(x)
        return z, pullback(cotangent(z))

    def ascending(self, loss: str) -> Target:
        """The same target, whose gradients are those of one of its `losses`; its scores stay."""
        return self

    @abstractmethod
    def scores(self, x: Rows) -> Tensor:
        """Logits [n, k], at least float32, without a gradient; [n, k + 1] where the task
        refuses."""

    def labels(self, x: Rows) -> Tensor:
        """Decisions [n], int64; negative where the model gave none."""
        if self.shape is None:
            self.bind(tuple(Batch.of(x).x.shape[1:]))
        return self.task.predict(self.scores(x))

    def confidence(self, z: Tensor) -> Tensor:
        """How probable the decision on scores z [n, k] is, as the model has it: [n]."""
        return z.softmax(1).amax(1)

    @abstractmethod
    def fingerprint(self) -> str:
        """A SHA-256 of all that decides the scores."""

    def network(self) -> nn.Module:
        """The model as a module of torch, from raw inputs [n, *shape] to scores [n, k], for proofs
        over what it computes.

        Raises:
            InputError: it is none, or not one that proofs can follow.
        """
        raise InputError(
            f"not supported yet: proofs of a {type(self).__name__}, which is no network of torch."
        )

    def describe(self) -> dict[str, object]:
        """What the manifest says of the target, besides its fingerprint.

        Raises:
            InputError: the shape of its inputs is not known yet, and so not all that decides.
        """
        if self.shape is None:
            raise InputError(
                "a model is described, and has its fingerprint, once the shape of its inputs is "
                "known: say it with wrap(..., shape=...), or ask the model about some inputs first."
            )
        box = b"".join(side.numpy().tobytes() for side in self.bounds.each or ())
        own: dict[str, object] = {"box": hashlib.sha256(box).hexdigest()} if box else {}
        return own | {
            "bounds": [self.bounds.low, self.bounds.high],
            "shape": list(self.shape),
            "classes": self.task.k,
            "access": self.access.name.lower(),
        }


def refuse_texts(columns: Sequence[Column]) -> None:
    """Raises InputError: a column holds texts, of which a model of numbers can make nothing."""
    if odd := [column.name for column in columns if column.values]:
        raise InputError(
            f"column {odd[0]} holds texts, but the model takes numbers: encode or drop it, or give "
            "a model that takes a table with names, such as an estimator of scikit-learn fitted on "
            "a DataFrame."
        )


def copied(target: Given) -> Given:
    """The same model with a state of its own, and so of each target within it: what an evaluation
    learns of it stays with the copy."""
    twin = copy.copy(target)
    for name, part in vars(target).items():
        if isinstance(part, Target):
            setattr(twin, name, copied(part))
        elif isinstance(part, (Batcher, Identity)):
            setattr(twin, name, replace(part))
        elif isinstance(part, list):
            setattr(twin, name, [copied(p) if isinstance(p, Target) else p for p in part])
    return twin


@contextmanager
def asking(what: str, *, learning: bool = False) -> Iterator[None]:
    """Within, code of the user's is asked about inputs: what it raises becomes one sentence that
    says `what` it was.

    Running out of memory goes through, for then the same is asked in smaller parts; and while one
    is `learning` what the code is, each Exception.

    Raises:
        InputError: it raised anything else, SystemExit too.
    """
    try:
        yield
    except (HoldfastError, KeyboardInterrupt):
        raise
    except BaseException as error:  # a user's code may raise anything
        if out_of_memory(error) or (learning and isinstance(error, Exception)):
            raise
        raise usercode.raised(what, error) from error


_DRAWING: ContextVar[tuple[int | str, ...]] = ContextVar("drawing", default=())


@contextmanager
def drawing(*path: int | str) -> Iterator[None]:
    """Within, what draws by `drawing_of` draws anew: further down this path."""
    before = _DRAWING.set((*_DRAWING.get(), *path))
    try:
        yield
    finally:
        _DRAWING.reset(before)


def drawing_of(x: Tensor) -> Keys:
    """The keys of a random step before a model: of each row's content, the seed and the draw, and
    of no neighbour."""
    return Keys(content(x)).fold(*_DRAWING.get())


@contextmanager
def sealed(seed: int) -> Iterator[None]:
    """Random state of torch, numpy and Python put back afterwards; within, a randomised model draws
    from `seed`."""
    python, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices), torch.inference_mode(False), torch.no_grad():
        # torch.manual_seed notes a stack trace for an idle GPU each time
        torch.default_generator.manual_seed(seed)
        if devices:
            torch.cuda.manual_seed_all(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        path = _DRAWING.set((seed,))
        try:
            yield
        finally:
            _DRAWING.reset(path)
            random.setstate(python)
            np.random.set_state(legacy)  # noqa: NPY002
