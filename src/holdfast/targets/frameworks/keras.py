"""Keras 3 models on any backend: live ones, `.keras` and legacy `.h5` files."""

from __future__ import annotations

import json
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from holdfast.errors import InputError, first_line
from holdfast.targets.adapter import (
    Adapter,
    autograd_vjp,
    chosen,
    digest_of,
    need,
)
from holdfast.targets.frameworks.pytorch import activation
from holdfast.targets.head import LINEAR
from holdfast.targets.loading import made
from holdfast.targets.registry import Framework
from holdfast.targets.target import Pullback

HDF5 = (".h5", ".hdf5")


class KerasOnTorch(Adapter):
    """A Keras model whose backend is torch: a torch function as it is."""

    layout, libraries = "nhwc", ("keras",)

    def __init__(self, model: Any, output: str | int | None, digest: bytes) -> None:
        self.model, self.output, self._digest = model, output, digest
        self.shape, self._asked = _shape(model), False

    def __call__(self, x: Tensor) -> Tensor:
        with activation.Reading():
            out = chosen(self.model(x, training=False), self.output)
        if not self._asked:
            self.ending, self._asked = activation.ending(out), True
            if self.ending == LINEAR:
                self.ending, self.probabilities = None, False
        if self.ending is None:
            return out
        return activation.logits_of(out)

    infer = __call__

    def vjp(self, x: Tensor) -> tuple[Tensor, Pullback]:
        return autograd_vjp(self, x)

    def network(self, example: Tensor) -> Callable[[Tensor], Tensor]:
        return self.__call__  # of an adapter its ending would be applied to them


def read(path: Path, *, trust: bool = False) -> Any:
    """The model of a `.keras` or `.h5` file.

    Raises:
        InputError: damaged, weights alone, made by a Keras that this one cannot read, or it wants
            to run code.
    """
    keras = need("keras", "keras", f"{path}")
    try:
        with _as_now(path) as readable:
            return keras.models.load_model(readable, compile=False, safe_mode=not trust)
    except Exception as error:  # keras raises whatever a file leads it to
        first = first_line(error)
        if "safe_mode" in str(error) or "lambda" in str(error).lower():
            raise InputError(
                f"{path} wants to run code of its own (a Lambda layer), so it was not opened; give "
                f"--trust if you trust its maker."
            ) from error
        if path.suffix == ".keras" and not zipfile.is_zipfile(path):
            first = "it is no .keras archive"
        raise InputError(
            f"{path} cannot be opened as a Keras model: {first}. If it holds weights alone, give "
            f"path/file.py:factory that builds the model and loads them."
        ) from error


@contextmanager
def _as_now(path: Path) -> Iterator[Path]:
    """The file, or a copy that Keras 3 can read of one by a Keras before 2.2.3, which stored a
    Sequential as a list."""
    said = _config(path)
    if said.get("class_name") != "Sequential" or not isinstance(said.get("config"), list):
        yield path
        return
    import h5py

    with tempfile.TemporaryDirectory(prefix="holdfast-") as folder:
        copy = Path(shutil.copy(path, Path(folder) / "model.h5"))
        with h5py.File(copy, "r+") as file:
            said["config"] = {"name": "sequential", "layers": _with_entry(said["config"])}
            file.attrs["model_config"] = json.dumps(said)
        yield copy


def _with_entry(layers: list[Any]) -> list[Any]:
    """The layers of a Sequential with the shape of its inputs in a layer of its own, where the
    first one holds it."""
    for layer in layers:
        if layer["class_name"] == "Sequential" and isinstance(layer["config"], list):
            layer["config"] = {"name": layer.get("name"), "layers": _with_entry(layer["config"])}
    shape = layers[0]["config"].pop("batch_input_shape", None) if layers else None
    if shape is None or layers[0]["class_name"] == "InputLayer":
        return layers
    entry = {
        "batch_shape": shape,
        "dtype": layers[0]["config"].get("dtype", "float32"),
        "name": "entry",
    }
    return [{"class_name": "InputLayer", "config": entry}, *layers]


def _config(path: Path) -> dict[str, Any]:
    """What an HDF5 file says of its model; nothing where it is another file."""
    import h5py

    if path.suffix.lower() == ".keras" or not h5py.is_hdf5(path):
        return {}
    with h5py.File(path, "r") as file:
        text = file.attrs.get("model_config", "{}")
    said = json.loads(text)
    return said if isinstance(said, dict) else {}


def load_weights(model: Any, path: Path) -> Any:
    """A model that was just built, with the weights of a file.

    Raises:
        InputError: no Keras model, or the weights do not fit it.
    """
    if not hasattr(model, "load_weights"):
        raise InputError(
            f"--arch gives a {type(model).__name__}, but the weights of {path} need a Keras model."
        )
    try:
        model.load_weights(path)
    except Exception as error:  # keras and h5py raise whatever a file leads them to
        raise InputError(
            f"the weights of {path} do not fit --arch: {str(error).splitlines()[0].rstrip('.')}."
        ) from error
    return model


def adapt(model: Any, *, output: str | int | None = None, **_: Any) -> Adapter:
    """A live Keras model as a function of torch tensors, in inference mode, by its own backend."""
    keras = need("keras", "keras", "a Keras model")
    whole = [i for i in getattr(model, "inputs", None) or () if "int" in str(i.dtype)]
    if whole:
        raise InputError(
            f"the Keras model takes {whole[0].dtype} inputs, as models of text do with tokens; "
            "only inputs that can "
            f"change by a little are supported, such as images and tables of numbers."
        )
    weights = map(keras.ops.convert_to_numpy, model.weights)
    digest = digest_of(weights, _architecture(model), str(output))
    adapted = _adapted(keras, _of_one(keras, model, output), output, digest)
    adapted.trainable = model
    return adapted


def _architecture(model: Any) -> str:
    """The architecture as text, in which layers and operations are named by their place.

    Keras numbers its own names (dense, dense_1, ...) by what the process built before.
    """
    said = json.loads(model.to_json())
    names: dict[str, str] = {}
    for name in _names(said):
        names.setdefault(name, f"layer {len(names)}")
    return json.dumps(_renamed(said, names))


def _names(said: Any) -> Iterator[str]:
    """What layers and operations are called in the JSON of a model, in their order."""
    if isinstance(said, dict):
        config = said.get("config")
        if isinstance(config, dict) and "DTypePolicy" not in str(said.get("class_name")):
            name = config.get("name")
            if isinstance(name, str):
                yield name
        said = list(said.values())
    if isinstance(said, list):
        for part in said:
            yield from _names(part)


def _renamed(said: Any, names: dict[str, str]) -> Any:
    """The same JSON with other names."""
    if isinstance(said, dict):
        return {key: _renamed(value, names) for key, value in said.items()}
    if isinstance(said, list):
        return [_renamed(value, names) for value in said]
    return names.get(said, said)


def _adapted(keras: Any, model: Any, output: str | int | None, digest: bytes) -> Adapter:
    backend = keras.config.backend()
    if backend == "torch":
        return KerasOnTorch(model, output, digest)
    if backend == "jax":
        from holdfast.targets.frameworks.jax import JaxModel

        trained = [v.value for v in model.trainable_variables]
        fixed = [v.value for v in model.non_trainable_variables]
        return JaxModel(
            lambda x: model.stateless_call(trained, fixed, x, training=False)[0],
            shape=_shape(model),
            layout="nhwc",
            output=output,
            digest=digest,
            libraries=("keras",),
        )
    from holdfast.targets.frameworks.tensorflow import TensorFlowModel

    return TensorFlowModel(
        lambda x: model(x, training=False),
        shape=_shape(model),
        output=output,
        digest=digest,
        libraries=("keras",),
    )


def of_rows(model: Any, split: Callable[[Any, Any], list[Any]], features: int) -> Any:
    """A Keras model of several inputs, given flat rows of so many features."""
    keras = need("keras", "keras", "a Keras model")
    rows = keras.Input((features,))
    return keras.Model(rows, model(split(rows, keras.ops.reshape)))


def _of_one(keras: Any, model: Any, output: str | int | None) -> Any:
    """The model of one tensor, and not of a list of one."""
    one = (
        len(getattr(model, "outputs", None) or ()) == len(getattr(model, "inputs", None) or ()) == 1
    )
    if output is not None or not one:
        return model
    try:
        return keras.Model(model.inputs[0], model.outputs[0])
    except (AttributeError, ValueError, TypeError):  # no graph of layers
        return model


def _shape(model: Any) -> tuple[int, ...] | None:
    shape = getattr(model, "input_shape", None)
    if not isinstance(shape, tuple) or any(side is None for side in shape[1:]):
        return None
    return tuple(shape[1:])


def _matches(model: Any) -> bool:
    return any(
        kind.__module__.partition(".")[0] == "keras" and kind.__name__ == "Model"
        for kind in type(model).__mro__
    )


def _load(path: Path, *, arch: str | None, trust: bool, **_: Any) -> Any:
    return read(path, trust=trust) if arch is None else load_weights(made(arch), path)


FRAMEWORK = Framework(
    "keras",
    _matches,
    adapt,
    suffixes=(".keras", *HDF5),
    weights=HDF5,
    load=_load,
    of_rows=of_rows,
)
