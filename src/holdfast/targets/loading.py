"""Models from files. Safe by default: nothing in a file of weights is run unless the user says
so."""

from __future__ import annotations

import hashlib
import inspect
from pathlib import Path
from typing import Any

from torch import nn

from holdfast import usercode
from holdfast.errors import InputError
from holdfast.targets.demo import demo_model
from holdfast.targets.frameworks import lightgbm, xgboost

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


HUGGING_FACE = (
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
        for library in (lightgbm, xgboost):
            if library.holds_booster(head):
                return library.load(path)
    if (path / "config.json").is_file():
        raise InputError(f"{path} is a folder of Hugging Face transformers. {HUGGING_FACE}")
    if path.suffix.lower() in WEIGHTS or path.is_file():
        from holdfast.targets.frameworks.pytorch import files

        return files.from_weights(path, arch, trust)
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
        refuse_strangers(path, file.read(64))
    if kind in (".keras", ".h5", ".hdf5"):
        from holdfast.targets.frameworks import keras

        return (
            keras.load(path, trust=trust) if arch is None else keras.load_weights(made(arch), path)
        )
    if kind == ".tflite":
        from holdfast.targets.frameworks.tensorflow import TFLiteModel

        return TFLiteModel(path, _digest(path))
    if kind == ".onnx":
        from holdfast.targets.frameworks.onnx.model import OnnxModel

        return OnnxModel(path, output=output)
    if kind == ".pt2":
        from holdfast.targets.frameworks.pytorch import files

        return files.exported(path)
    if kind == ".skops":
        from holdfast.targets.frameworks import sklearn

        return sklearn.from_skops(path, trust=trust)
    whole = kind == ".ubj" or path.read_bytes()[:64].lstrip().startswith(b"{")
    return xgboost.load(path) if whole else xgboost.from_trees(path)


def _digest(path: Path) -> bytes:
    """A hash of a file, or of all files of a folder."""
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.relative_to(path).as_posix().encode())
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.digest()


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


def refuse_strangers(path: Path, head: bytes) -> None:
    if head.lstrip().lower().startswith((b"<!doctype", b"<html")):
        raise InputError(f"{path} is a web page (HTML), not weights: the download probably failed.")
    if head.startswith(b"version https://git-lfs"):
        raise InputError(f"{path} is a Git LFS pointer: the file itself was never fetched.")
