"""Files of torch: weights, pickles, TorchScript and exported programs. Nothing in a file of weights
is run unless the user says so."""

from __future__ import annotations

import os
import pickle
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from holdfast import usercode
from holdfast.errors import InputError, first_line
from holdfast.targets.frameworks.pytorch.checkpoint import (
    fitted,
    nearest,
    state_of,
    without_objects,
)
from holdfast.targets.loading import made
from holdfast.targets.registry import HEAD

_HUGGING_FACE = (
    "Give path/file.py:factory, whose function returns "
    "AutoModelForImageClassification.from_pretrained(FOLDER) or another class of transformers."
)
_LISTED = 5
# how the buffers of a layer that normalises the inputs are called
_CONSTANTS = frozenset("mu sigma mean std new_mean new_std".split())
_TORCH_MAGIC = bytes.fromhex("80028a0a6cfc9c46f9206aa85019")  # of torch.save before version 1.6


def _exported(path: Path) -> nn.Module:
    """The module of a `torch.export` program."""
    try:
        return _Exported(torch.export.load(path).module())
    except Exception as error:  # torch raises whatever damage leads it to
        raise InputError(
            f"{path} is damaged or no program of torch.export: {first_line(error)}."
        ) from error


class _Exported(nn.Module):
    """A program's module, which refuses train() and eval()."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.train(False)

    def train(self, mode: bool = True) -> _Exported:
        self.training = False
        return self

    def forward(self, x: torch.Tensor) -> Any:
        return self.inner(x)


def load(path: Path, arch: str | None, trust: bool) -> nn.Module:
    """A whole module, or the one of `arch` with the weights of a file.

    Raises:
        InputError: damaged or dangerous, no `arch`, or one that the weights do not fit.
    """
    if path.is_dir():
        raise InputError(f"{path} is a folder of Hugging Face transformers. {_HUGGING_FACE}")
    if path.suffix.lower() == ".pt2":
        return _exported(path)
    if path.suffix.lower() == ".joblib" and not trust:
        raise InputError(
            f"{path} is a pickle by joblib, which may run code, so it was not opened. Save the "
            f"estimator by skops.io.dump, as .skops, or give --trust if you trust its maker."
        )
    content = _read(path, trust)
    if isinstance(content, nn.Module) or hasattr(content, "predict"):
        return content
    if (
        arch is None
        and path.suffix.lower() == ".safetensors"
        and (path.parent / "config.json").is_file()
    ):
        raise InputError(f"{path} holds the weights of a Hugging Face model. {_HUGGING_FACE}")
    if arch is None:
        raise InputError(
            f"{path} holds weights alone; say what they belong to with --arch path/file.py:factory."
        )
    model = made(arch)
    if not isinstance(model, nn.Module):
        raise InputError(
            f"--arch {arch} gives a {type(model).__name__}, but weights need a torch module."
        )
    _fit(model, content, path, arch)
    # built here a moment ago: its train mode would say nothing of the user's model
    return model.eval()


def _read(path: Path, trust: bool) -> Any:
    with path.open("rb") as file:
        head = file.read(HEAD)
    try:
        if path.suffix.lower() == ".safetensors":
            return load_file(path)
        if _is_script(path):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of torch, that torch.export is its successor
                return torch.jit.load(str(path), map_location="cpu")
        if trust:
            return _read_trusted(path, head)
        with warnings.catch_warnings():  # torch warns of a pickle's protocol, then raises
            warnings.simplefilter("ignore")
            return _read_safely(path)
    except pickle.UnpicklingError as error:
        called = _named_code(str(error), head)
        if called is None:
            raise InputError(
                f"{path} is damaged or no checkpoint: it cannot be unpickled."
            ) from error
        raise InputError(
            f"{path} is a pickle that wants to run code ({called}), so it was not opened. "
            "Save the state_dict alone (a scikit-learn estimator: by skops.io.dump, as .skops), "
            f"or give --trust if you trust its maker."
        ) from error
    except (
        AttributeError,
        ImportError,
    ) as error:  # under trust only: the class of a pickled module
        raise InputError(
            f"{path} needs code that is not here: {first_line(error)}. Run holdfast where it can "
            f"be imported, or save the state_dict alone."
        ) from error
    except (
        Exception
    ) as error:  # torch, safetensors and trusted code raise whatever damage leads them to
        raise InputError(f"{path} is truncated or no checkpoint: {first_line(error)}.") from error


def _is_script(path: Path) -> bool:
    """Whether a file is a TorchScript program, which an interpreter of its own runs."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _read_safely(path: Path) -> Any:
    """What a file of torch.save holds; of a checkpoint with objects next to its weights, the
    weights alone.

    Raises:
        pickle.UnpicklingError: it holds objects, and no weights that could be had without them.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        found = without_objects(path)
        if found is None:
            raise
        return found


def _read_trusted(path: Path, head: bytes) -> Any:
    with usercode.importable(os.getcwd()):
        pickled = head.startswith(b"\x80") or path.suffix.lower() == ".joblib"
        if zipfile.is_zipfile(path) or head.startswith(_TORCH_MAGIC) or not pickled:
            return torch.load(path, map_location="cpu", weights_only=False)
        import joblib

        return joblib.load(path)  # by pickle.dump, or by joblib.dump


def _named_code(refusal: str, head: bytes) -> str | None:
    """What of a pickle the safe reader refused; None where it is no whole pickle."""
    if found := re.search(r"GLOBAL (\S+)", refusal):
        return found[1]
    later = "Unsupported operand" in refusal and head.startswith(
        (b"PK", b"\x80\x03", b"\x80\x04", b"\x80\x05")
    )
    return "or may: its protocol, 3 or later, cannot be checked" if later else None


def _listed(names: list[str]) -> str:
    """The first of these names, and how many more there are."""
    shown = ", ".join(names[:_LISTED])
    return f"{shown} and {len(names) - _LISTED} more" if len(names) > _LISTED else shown


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _fit(model: nn.Module, content: Any, path: Path, arch: str) -> None:
    own = model.state_dict()
    others = {name for name, value in own.items() if not isinstance(value, torch.Tensor)}
    weights = state_of(content, others)
    if weights is None:
        raise InputError(
            f"{path} holds a {type(content).__name__}, but a dict of weights (a state_dict) is "
            "expected."
        )
    # constants of a normalisation that a file may leave out, since the architecture sets them
    constant = {name for name, _ in model.named_buffers() if _last(name) in _CONSTANTS}
    varied = {name: value for name, value in own.items() if name not in constant}
    fitting = fitted(weights, own, path)
    if not own.keys() <= fitting.keys() and constant:
        fitting = fitted(weights, varied, path)
    missing = [
        name for name in varied if name not in fitting and not name.endswith("num_batches_tracked")
    ]
    unexpected = [name for name in fitting if name not in own]
    bent = [
        f"{name} {tuple(fitting[name].shape)} for {tuple(own[name].shape)}"
        for name in own
        if name in fitting and name not in others and fitting[name].shape != own[name].shape
    ]
    differences = [
        f"{word}: {_listed(names)}"
        for word, names in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of another shape", bent),
        )
        if names
    ]
    constants = all(_last(name) in _CONSTANTS for name in unexpected)
    if differences and not missing and unexpected and constants:
        raise InputError(
            f"{path} also holds {_listed(unexpected)}, by which its model normalises the inputs; "
            f"the architecture of --arch {arch} does not. Give the one that does."
        )
    if differences:
        if missing and (closest := nearest(weights, varied)):
            differences.append(closest)
        raise InputError(
            f"the weights of {path} do not fit --arch {arch}; {'; '.join(differences)}. Is it "
            "another model?"
        )
    try:
        model.load_state_dict(fitting, strict=False)
    # values without data, or versions of modules that are none
    except (RuntimeError, AttributeError, TypeError, ValueError) as error:
        raise InputError(
            f"the weights of {path} cannot be loaded ({first_line(error)}); the file is damaged, "
            "or holds them sparse, quantised or without their values."
        ) from error
