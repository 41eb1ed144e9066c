"""Models of other frameworks, as functions of torch tensors. One file a framework says how; this
one says what."""

from __future__ import annotations

import hashlib
import importlib
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from holdfast.data.columns import Column
from holdfast.errors import InputError, first_line
from holdfast.targets.target import Access, Pullback, refuse_texts
from holdfast.targets.trees import NO_TREES, Trees
from holdfast.tasks import Form

_INSTALLED_AS = {"sklearn": "scikit-learn"}


class Adapter(ABC):
    """A model that runs outside torch: takes float32 [n, *shape] on the CPU, and gives its own
    output as a tensor.

    It can be called like a torch function, and differentiated with respect to its input like one.
    """

    access: Access = Access.GRADIENTS
    shape: tuple[int, ...] | None = None  # of one input, where the model says it
    layout: str = "nchw"  # that the model wants of images
    classes: int | None = None  # where the output does not tell
    ending: str | None = (
        None  # the activation at its end, where the output is the logits before that one
    )
    probabilities: bool | None = (
        None  # whether the model says that it gives probabilities; None: it does not say
    )
    gives_logits: bool = False  # `network` does, though the output is their probabilities
    log_odds: bool = True  # scores that are no probabilities are the log odds of some
    approximate: bool = False  # `vjp` may differ from `infer` in the last digits
    rewrites: bool = False  # the model was seen to change its input in place
    remarks: tuple[tuple[str, str], ...] = ()  # what a report should say: check, text
    class_labels: tuple[Any, ...] | None = None  # what the model calls its classes; None: 0..k-1
    form: Form | None = None  # of its outputs, where it gives several, side by side
    numbers: str | None = (
        None  # its outputs are no scores of classes: what to say where they are taken for some
    )
    trainable: Any = None  # the framework's own model, where hardening knows how to train it

    libraries: tuple[str, ...] = ()  # the modules that it runs in, besides torch and numpy
    _digest: bytes | None = None  # of its content, where that was known from the start

    @abstractmethod
    def infer(self, x: Tensor) -> Tensor:
        """The output [n, ...], without a gradient."""

    def vjp(self, x: Tensor) -> tuple[Tensor, Pullback]:
        """The output, and the pullback of cotangents on it to gradients on x."""
        raise NotImplementedError

    def pull(self, x: Tensor, cotangent: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """The output, and the pulled-back `cotangent` of it; a framework that compiles both as one
        is faster."""
        z, pullback = self.vjp(x)
        return z, pullback(cotangent(z))

    def of_table(self, columns: Sequence[Column]) -> Adapter:
        """The same model of rows x [n, columns] of a table: see `Target.of_table`."""
        refuse_texts(columns)
        return self

    def network(self, example: Tensor) -> Callable[[Tensor], Tensor]:
        """The same model as torch functions of one row [1, *shape], such as `example`, before its
        last activation where `ending` names one.

        Raises:
            InputError: it is not known as such.
        """
        names = ", ".join(self.libraries) or type(self).__name__
        raise InputError(
            f"not supported: proofs of a model of {names}, whose graph is not known in torch."
        )

    def whole(self) -> Adapter:
        """The same model, giving all of its outputs side by side where there are several."""
        return self

    def digest(self) -> bytes:
        """A hash of all that decides the output."""
        assert self._digest is not None
        return self._digest

    def trees(self) -> Trees:
        """The trees that the output is a sum of, read anew.

        Raises:
            InputError: it is none, or one of a kind that is not supported.
        """
        raise InputError(NO_TREES)

    def __call__(self, x: Tensor) -> Tensor:
        x = x.contiguous()
        if torch.is_grad_enabled() and x.requires_grad:
            return _Cross.apply(x, self)
        return self.infer(x.detach())


class _Cross(torch.autograd.Function):
    """The step from torch into another framework, and back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, model: Adapter) -> Tensor:
        z, ctx.pullback = model.vjp(x.detach())
        return z

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor, None]:
        return ctx.pullback(cotangents[0].contiguous()), None


def said_by(model: object) -> Adapter | type[Adapter]:
    """An adapter, which says what its model wants and gives; of any other model the class, whose
    defaults say nothing."""
    return model if isinstance(model, Adapter) else Adapter


def autograd_vjp(function: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Pullback]:
    """The value of a torch function at x, and its pullback."""
    with torch.inference_mode(False), torch.enable_grad():
        leaf = x.detach().clone().requires_grad_()
        z = function(leaf)

    def pullback(cotangent: Tensor) -> Tensor:
        with torch.inference_mode(False), torch.enable_grad():
            return torch.autograd.grad((z * cotangent).sum(), leaf, retain_graph=True)[0]

    return z.detach(), pullback


def need(module: str, extra: str, what: str) -> Any:
    """The framework, imported now; its absence is one sentence.

    Raises:
        InputError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InputError(
            f"{what} needs {getattr(error, 'name', None) or module}, which is not installed: "
            f"pip install 'holdfast[{extra}]'."
        ) from error


@contextmanager
def reading(path: object, kind: str) -> Iterator[None]:
    """Within, a library reads a file of this kind; whatever it raises becomes one sentence."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # the libraries' own, and of text that is none
        raise InputError(f"{path} is no {kind}, or damaged: {first_line(error)}.") from error


def versions_of(*modules: str) -> dict[str, str]:
    """Of those of these modules that are imported: the version of each, by the name that it is
    installed under."""
    found = {
        _INSTALLED_AS.get(name, name): getattr(sys.modules.get(name), "__version__", None)
        for name in modules
    }
    return {name: str(version) for name, version in found.items() if version is not None}


def tensor(array: Any) -> Tensor:
    """A framework's array as a tensor that owns its memory: float32, or int64 for labels."""
    array = np.array(array)
    if array.dtype != np.float64:
        array = array.astype({"f": np.float32}.get(array.dtype.kind, np.int64), copy=False)
    return torch.from_numpy(array)


def digest_of(arrays: Iterable[Any], *texts: str) -> bytes:
    """A hash of weights and of the words that say how they are used."""
    digest = hashlib.sha256("\0".join(texts).encode())
    for array in arrays:
        array = np.ascontiguousarray(array)
        digest.update(f"{array.shape}{array.dtype}".encode())
        digest.update(array.tobytes())
    return digest.digest()


def digest_of_files(path: Path) -> bytes:
    """A hash of a file, or of all files of a folder."""
    files = sorted(p for p in (path, *path.rglob("*")) if p.is_file())
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.relative_to(path).as_posix().encode())
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.digest()


def of_dicts(output: Any) -> bool:
    """Whether a model gives a list of dicts, one a row, as detectors of objects do."""
    listed = isinstance(output, (list, tuple)) and len(output) > 0
    return listed and all(hasattr(part, "keys") for part in output)


def named(output: Any) -> dict[str, Any]:
    """The parts of a model's output by name or place; one alone as logits."""
    if is_dataclass(output) and not hasattr(output, "keys"):
        output = {field.name: getattr(output, field.name) for field in fields(output)}
    if isinstance(output, Mapping):
        return {str(name): part for name, part in output.items() if part is not None}
    if isinstance(output, (list, tuple)):
        return {str(place): part for place, part in enumerate(output)}
    return {"logits": getattr(output, "logits", output)}


def chosen(output: Any, output_name: str | int | None) -> Any:
    """The scores among a model's outputs: the one that is wanted, the only one, or the one called
    logits.

    Raises:
        InputError: there are several, and none is wanted; or the wanted one is not among them.
    """
    if of_dicts(output):
        raise InputError(
            f"the model returns a {type(output).__name__} of dicts "
            f"({', '.join(map(str, output[0].keys()))}), as detectors of objects do: say --task "
            '"detection(iou=0.5, score=0.5)", with the boxes of each image as its truth.'
        )
    found = named(output)
    name, said = str(output_name), f"{output_name!r} is not among them"
    if output_name is None:
        name, said = "logits", "none was chosen"
        if len(found) == 1:
            (name,) = found
    if name in found:
        return found[name]
    raise InputError(
        f"the model returns a {type(output).__name__} with {', '.join(found) or 'nothing'}, and "
        f"{said}; say which part is the scores [n, classes] with --output (in Python: output=...)."
    )
