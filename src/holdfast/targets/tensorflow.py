"""TensorFlow: functions of tensors, `tf.function`s, SavedModel folders; TFLite files for scores alone."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from holdfast.errors import InputError
from holdfast.quiet import native_output
from holdfast.targets.foreign import Foreign, chosen, digest_of, need, tensor, versions_of
from holdfast.targets.target import Access, Pullback


class TensorFlowModel(Foreign):
    """A function from one tf.Tensor [n, *shape] to scores.

    A gradient step is one compiled call: the graph asks back for the cotangent in its middle, so there is no second
    forward and no open tape (measured: 1.02 to 1.04 of a compiled step that knows its loss).
    """

    layout = "nhwc"

    def __init__(
        self,
        function: Callable[[Any], Any],
        *,
        shape: Sequence[int] | None = None,
        output: str | int | None = None,
        digest: bytes | None = None,
        remarks: tuple[tuple[str, str], ...] = (),
        libraries: tuple[str, ...] = (),
    ) -> None:
        self.libraries = libraries  # beside tensorflow, as of Keras
        self.tf = need("tensorflow", "tensorflow", "a TensorFlow model")
        self.function, self.output, self.remarks = function, output, remarks
        self.shape = None if shape is None else tuple(shape)
        self._digest = digest
        self._compiled: dict[tuple[Any, ...], tuple[Any, Any, Any]] = {}
        self._ask: Callable[[Tensor], Tensor] = lambda z: z
        self._failed: BaseException | None = None

    def infer(self, x: Tensor) -> Tensor:
        return tensor(self._calls(x)[0](self._in(x)))

    def vjp(self, x: Tensor) -> tuple[Tensor, Pullback]:
        _, both, _ = self._calls(x)
        at = self._in(x)
        return self.infer(x), lambda cotangent: tensor(both(at, self._in(cotangent)))

    def pull(self, x: Tensor, cotangent: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        self._ask, self._failed = cotangent, None
        z, g = self._calls(x)[2](self._in(x))
        if self._failed is not None:
            raise self._failed
        return tensor(z), tensor(g)

    @property
    def versions(self) -> dict[str, str]:
        return versions_of("tensorflow", *self.libraries)

    def digest(self) -> bytes:
        if self._digest is not None:
            return self._digest
        weights = getattr(self.function, "variables", None) or ()
        name = getattr(self.function, "__qualname__", type(self.function).__qualname__)
        return digest_of((v.numpy() for v in weights), name)

    def _in(self, x: Tensor) -> Any:
        return self.tf.convert_to_tensor(x.detach().contiguous().numpy())

    def _scores(self, x: Any) -> Any:
        return chosen(self.function(x), self.output)

    def _calls(self, x: Tensor) -> tuple[Any, Any, Any]:
        """For inputs of one shape and type and any number of rows: the output, its vjp, and both in one."""
        key = (*x.shape[1:], x.dtype)
        if key not in self._compiled:
            tf = self.tf
            rows = tf.TensorSpec([None, *x.shape[1:]], tf.float64 if x.dtype == torch.float64 else tf.float32)

            def slope(x: Any, c: Callable[[Any], Any] | Any) -> tuple[Any, Any]:
                with tf.GradientTape(watch_accessed_variables=False) as tape:
                    tape.watch(x)
                    z = self._scores(x)
                g = tape.gradient(z, x, output_gradients=c(z) if callable(c) else c, unconnected_gradients="zero")
                return z, tf.convert_to_tensor(g)

            def asked(z: Any) -> Any:
                c = tf.numpy_function(self._cotangent, [z], z.dtype)
                c.set_shape(z.shape)
                return c

            infer = tf.function(self._scores, input_signature=[rows])
            out = infer.get_concrete_function().structured_outputs
            self._compiled[key] = (
                infer,
                tf.function(lambda x, c: slope(x, c)[1], input_signature=[rows, tf.TensorSpec(out.shape, out.dtype)]),
                tf.function(lambda x: slope(x, asked), input_signature=[rows]),
            )
        return self._compiled[key]

    def _cotangent(self, z: np.ndarray) -> np.ndarray:
        """Asked by the graph in mid-flight; what fails here is raised once the graph has returned."""
        try:
            return self._ask(tensor(z)).detach().numpy().astype(z.dtype, copy=False)
        except BaseException as error:  # noqa: BLE001
            self._failed = error
            return np.zeros_like(z)


class TFLiteModel(Foreign):
    """A TFLite file: scores alone, one batch size; quantised inputs and outputs are converted by their own scales."""

    access = Access.SCORES
    layout = "nhwc"

    def __init__(self, path: Path, digest: bytes) -> None:
        tf = need("tensorflow", "tensorflow", f"{path}")
        try:
            with warnings.catch_warnings(), native_output():
                warnings.simplefilter("ignore")  # it will move to a package of its own
                self.net = tf.lite.Interpreter(model_path=str(path))
            with native_output():
                self.net.allocate_tensors()
        except ValueError as error:
            raise InputError(f"{path} is no TFLite model, or damaged: {str(error).splitlines()[0]}.") from error
        (self.entry,), (self.exit, *more) = self.net.get_input_details(), self.net.get_output_details()
        if more:
            raise InputError(f"{path} has {1 + len(more)} outputs; one with the scores is expected.")
        self.shape = tuple(int(side) for side in self.entry["shape"][1:])
        self._digest = digest

    def infer(self, x: Tensor) -> Tensor:
        if tuple(self.net.get_input_details()[0]["shape"]) != tuple(x.shape):
            self.net.resize_tensor_input(self.entry["index"], list(x.shape))
            self.net.allocate_tensors()
        self.net.set_tensor(self.entry["index"], self._coded(x.numpy().astype(np.float32)))
        self.net.invoke()
        z = self.net.get_tensor(self.exit["index"])
        scale, zero = self.exit["quantization"]
        return tensor((z.astype(np.float32) - zero) * scale if scale else z)

    @property
    def versions(self) -> dict[str, str]:
        return versions_of("tensorflow")

    def digest(self) -> bytes:
        return self._digest

    def _coded(self, x: np.ndarray) -> np.ndarray:
        kind, (scale, zero) = self.entry["dtype"], self.entry["quantization"]
        if not scale:
            return x.astype(kind)
        span = np.iinfo(kind)
        return np.clip(np.round(x / scale) + zero, span.min, span.max).astype(kind)


def from_saved_model(folder: Path, digest: bytes, output: str | int | None = None) -> TensorFlowModel:
    """The `serving_default` signature of a SavedModel folder.

    Raises:
        InputError: it cannot be read, has no such signature, or one of several inputs.
    """
    tf = need("tensorflow", "tensorflow", f"{folder}")
    try:
        loaded = tf.saved_model.load(str(folder))
    except (OSError, ValueError) as error:
        raise InputError(f"{folder} cannot be read as a SavedModel: {str(error).splitlines()[0]}.") from error
    call = getattr(loaded, "signatures", {}).get("serving_default")
    if call is None:
        raise InputError(f"{folder} has no signature serving_default; export it with one of a single input.")
    inputs = call.structured_input_signature[1]
    if len(inputs) != 1:
        raise InputError(f"{folder} takes {len(inputs)} inputs ({', '.join(inputs)}); one is expected.")
    (name, spec), kept = next(iter(inputs.items())), loaded
    sides = tuple(spec.shape.as_list()[1:]) if spec.shape.rank else (None,)
    shape = None if None in sides else [int(side) for side in sides if side is not None]

    def function(x: Any) -> Any:
        return (kept and call)(**{name: tf.cast(x, spec.dtype)})

    return TensorFlowModel(function, shape=shape, output=output, digest=digest)
