"""Models from files. Safe by default: nothing in a file of weights is run unless the user says
so."""

from __future__ import annotations

import hashlib
import inspect
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
from holdfast.errors import InputError
from holdfast.targets.demo import demo_model
from holdfast.targets.frameworks import boosters
from holdfast.targets.frameworks.pytorch.checkpoint import fitted, state_of, without_objects

WEIGHTS = (
    ".safetensors",
    ".pt",
    ".pth",
    ".pkl",
    ".pickle",
    ".joblib",
    ".ckpt",
    ".bin",
    ".model",
    ".net",
)
# whole models
FILES = (".keras", ".h5", ".hdf5", ".onnx", ".tflite", ".pt2", ".skops", ".json", ".ubj")
PICKLES = (".joblib", ".pkl", ".pickle")  # of estimators too, with trust
ENDPOINTS = (".endpoint.yaml", ".endpoint.yml", ".endpoint.json")
_LISTED = 5
_TORCH_MAGIC = bytes.fromhex("80028a0a6cfc9c46f9206aa85019")  # of torch.save before version 1.6


_HUGGING_FACE = (
    "Give path/file.py:factory, whose function returns "
    "AutoModelForImageClassification.from_pretrained(FOLDER) or another class of transformers."
)


def load(
    spec: str, *, arch: str | None = None, trust: bool = False, output: str | int | None = None
) -> Any:
    """The model that a command line names.

    Args:
        spec: a file of weights (with `arch`), a model file of `FILES`, a SavedModel folder,
            `path/file.py:factory`, `package.module:factory`, a config of a live endpoint
            (`*.endpoint.yaml`, `targets/http/endpoint.py`), or `demo`. A factory is called without
            arguments; a function that needs one is itself the model.
        arch: where the architecture of a file of weights comes from, in the same two forms; it is
            called without arguments and given the weights.
        trust: let a file run its code. Only for files whose maker you trust.
        output: which of several outputs are the scores, for formats that need to know when they are
            opened.

    Raises:
        InputError: missing, damaged or dangerous file, wrong architecture, or weights that do not
            fit it.
    """
    if spec == "demo":
        return demo_model()
    path = Path(spec).expanduser()
    if path.name.lower().endswith(ENDPOINTS):
        from holdfast.targets.http import target as http

        return http.load(path)
    if path.suffix.lower() in FILES and ":" not in path.name:
        return _from_file(path, arch, trust, output)
    if (path / "saved_model.pb").is_file():
        from holdfast.targets.frameworks.tensorflow import from_saved_model

        return from_saved_model(path, _digest(path), output)
    if path.is_file() and path.suffix.lower() not in (".safetensors", *PICKLES):
        with path.open("rb") as file:
            head = file.read(64)
        if boosters.holds_lightgbm(head) or boosters.holds_xgboost(head):
            return boosters.load(path)
    if (path / "config.json").is_file():
        raise InputError(f"{path} is a folder of Hugging Face transformers. {_HUGGING_FACE}")
    if path.suffix.lower() in WEIGHTS or path.is_file():
        return _from_weights(path, arch, trust)
    where, _, name = spec.rpartition(":")
    if where and name.isidentifier():
        return made(spec, callables=True)
    raise InputError(
        f"there is no model {spec!r}: expected a file of weights ({', '.join(WEIGHTS[:3])}), a "
        f"model file ({', '.join(FILES)}), a SavedModel folder, an endpoint ({ENDPOINTS[0]}), "
        f"path/file.py:factory, package.module:factory, or demo."
    )


def _from_file(path: Path, arch: str | None, trust: bool, output: str | int | None) -> Any:
    if not path.is_file():
        raise InputError(f"there is no file {path}; check its path.")
    kind = path.suffix.lower()
    if arch is not None and kind not in (".h5", ".hdf5"):
        raise InputError(
            f"{path} holds a whole model, so --arch {arch} says nothing; leave it out."
        )
    with path.open("rb") as file:
        _refuse_strangers(path, file.read(64))
    if kind in (".keras", ".h5", ".hdf5"):
        from holdfast.targets.frameworks import keras

        return (
            keras.load(path, trust=trust) if arch is None else keras.load_weights(made(arch), path)
        )
    if kind == ".tflite":
        from holdfast.targets.frameworks.tensorflow import TFLiteModel

        return TFLiteModel(path, _digest(path))
    if kind == ".onnx":
        from holdfast.targets.frameworks.onnx import OnnxModel

        return OnnxModel(path, output=output)
    if kind == ".pt2":
        return _exported(path)
    from holdfast.targets.frameworks import arrays

    if kind == ".skops":
        return arrays.from_skops(path, trust=trust)
    whole = kind == ".ubj" or path.read_bytes()[:64].lstrip().startswith(b"{")
    return boosters.load(path) if whole else arrays.from_trees(path)


def _exported(path: Path) -> nn.Module:
    """The module of a `torch.export` program."""
    try:
        return _Exported(torch.export.load(path).module())
    except Exception as error:  # torch raises whatever damage leads it to
        raise InputError(
            f"{path} is damaged or no program of torch.export: {_first_line(error)}."
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


def _digest(path: Path) -> bytes:
    """A hash of a file, or of all files of a folder."""
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.relative_to(path).as_posix().encode())
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.digest()


def _from_weights(path: Path, arch: str | None, trust: bool) -> nn.Module:
    if not path.is_file():
        raise InputError(f"there is no file {path}; check its path.")
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


def made(spec: str, *, callables: bool = False) -> Any:
    """What `path/file.py:factory` or `package.module:factory` gives when called.

    With `callables`, a function that cannot be called without an argument is not called: it is the
    model.
    """
    if ":" not in spec:
        raise InputError(
            f"{spec!r} does not name a factory; expected path/file.py:factory or "
            "package.module:factory."
        )
    found = usercode.find(spec)
    with usercode.importable(usercode.home(spec)):
        ready = isinstance(found, nn.Module) or (callables and _is_model(found))
        return found if ready else usercode.call(spec, found)


def _is_model(found: Any) -> bool:
    """Whether a function asks for one argument that it must have: the inputs."""
    try:
        wanted = inspect.signature(found).parameters.values()
    except (TypeError, ValueError):
        return False
    must = [
        p
        for p in wanted
        if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    return len(must) == 1 and not inspect.isclass(found)


def _read(path: Path, trust: bool) -> Any:
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}.") from None
    _refuse_strangers(path, head)
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
        wanted = _wanted(str(error), head)
        if wanted is None:
            raise InputError(
                f"{path} is damaged or no checkpoint: it cannot be unpickled."
            ) from error
        raise InputError(
            f"{path} is a pickle that wants to run code ({wanted}), so it was not opened. "
            "Save the state_dict alone (a scikit-learn estimator: by skops.io.dump, as .skops), "
            f"or give --trust if you trust its maker."
        ) from error
    except (
        AttributeError,
        ImportError,
    ) as error:  # under trust only: the class of a pickled module
        raise InputError(
            f"{path} needs code that is not here: {_first_line(error)}. Run holdfast where it can "
            f"be imported, or save the state_dict alone."
        ) from error
    except (
        Exception
    ) as error:  # torch, safetensors and trusted code raise whatever damage leads them to
        raise InputError(f"{path} is truncated or no checkpoint: {_first_line(error)}.") from error


def _refuse_strangers(path: Path, head: bytes) -> None:
    if head.lstrip().lower().startswith((b"<!doctype", b"<html")):
        raise InputError(f"{path} is a web page (HTML), not weights: the download probably failed.")
    if head.startswith(b"version https://git-lfs"):
        raise InputError(f"{path} is a Git LFS pointer: the file itself was never fetched.")


def _is_script(path: Path) -> bool:
    """Whether a file is a TorchScript program, which an interpreter of its own runs."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _read_safely(path: Path) -> Any:
    """What a file of torch.save holds; of a checkpoint with objects beside its weights, the weights
    alone.

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
        plain = head.startswith(b"\x80") or path.suffix.lower() == ".joblib"
        if zipfile.is_zipfile(path) or head.startswith(_TORCH_MAGIC) or not plain:
            return torch.load(path, map_location="cpu", weights_only=False)
        import joblib

        return joblib.load(path)  # by pickle.dump, or by joblib.dump


def _wanted(refusal: str, head: bytes) -> str | None:
    """What of a pickle the safe reader refused; None where it is no whole pickle."""
    if found := re.search(r"GLOBAL (\S+)", refusal):
        return found[1]
    later = "Unsupported operand" in refusal and head.startswith(
        (b"PK", b"\x80\x03", b"\x80\x04", b"\x80\x05")
    )
    return "or may: its protocol, 3 or later, cannot be checked" if later else None


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")


def _fit(model: nn.Module, content: Any, path: Path, arch: str) -> None:
    own = model.state_dict()
    others = {name for name, value in own.items() if not isinstance(value, torch.Tensor)}
    weights = state_of(content, others)
    if weights is None:
        raise InputError(
            f"{path} holds a {type(content).__name__}, but a dict of weights (a state_dict) is "
            "expected."
        )
    weights = fitted(weights, own, path)
    missing = [
        name for name in own if name not in weights and not name.endswith("num_batches_tracked")
    ]
    unexpected = [name for name in weights if name not in own]
    bent = [
        f"{name} {tuple(weights[name].shape)} for {tuple(own[name].shape)}"
        for name in own
        if name in weights and name not in others and weights[name].shape != own[name].shape
    ]
    told = [
        (
            f"{word}: "
            f"{', '.join(names[:_LISTED])}{f' and {len(names) - _LISTED} more' if len(names) > _LISTED else ''}"
        )
        for word, names in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of another shape", bent),
        )
        if names
    ]
    if told:
        raise InputError(
            f"the weights of {path} do not fit --arch {arch}; {'; '.join(told)}. Is it another "
            "model?"
        )
    model.load_state_dict(weights, strict=False)
