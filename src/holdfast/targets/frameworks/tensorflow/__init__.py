"""TensorFlow: functions of tensors, `tf.function`s, SavedModel folders; TFLite files for scores
alone."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from holdfast.errors import InputError
from holdfast.quiet import native_output
from holdfast.targets.adapter import (
    Adapter,
    chosen,
    digest_of,
    digest_of_files,
    need,
    tensor,
)
from holdfast.targets.registry import Framework
from holdfast.targets.target import Access, Pullback


class TensorFlowModel(Adapter):
    """A function from one tf.Tensor [n, *shape] to scores.

    A gradient step is one compiled call: the graph asks back for the cotangent in its middle, so
    there is no second forward and no open tape (measured: 1.02 to 1.04 of a compiled step that
    knows its loss).
    """

    layout = "nhwc"

    def __init__(
        self,
        function: Callable[[Any], Any],
        *,
        shape: tuple[int, ...] | None = None,
        output: str | int | None = None,
        digest: bytes | None = None,
        libraries: tuple[str, ...] = (),
    ) -> None:
        self.libraries = ("tensorflow", *libraries)  # of Keras too
        self.tf = need("tensorflow", "tensorflow", "a TensorFlow model")
        self.function, self.shape, self.output = function, shape, output
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

    def network(self, example: Tensor) -> Callable[[Tensor], Tensor]:
        from holdfast.targets.frameworks.tensorflow.network import network

        rows = self.tf.TensorSpec(tuple(example.shape), self._in(example).dtype)
        ask = self.tf.function(self._reader(rows), input_signature=[rows])
        with native_output():
            graph = _inlined(ask.get_concrete_function())
        if graph is None:
            return super().network(example)
        return network(graph)

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

    def _reader(self, rows: Any) -> Callable[[Any], Any]:
        """The function from tensors of this kind to scores, or to what stands before their last
        activation."""
        graph = self.tf.function(self._scores, input_signature=[rows]).get_concrete_function()
        # a function, a SavedModel
        nested = _before_shapes(graph.outputs[0]).op.type.endswith("PartitionedCall")
        if nested:
            graph = _inlined(graph)
        if graph is None:
            return self._scores
        self.ending, logits = _before(self.tf, graph.outputs[0])
        self.probabilities = _says(graph.outputs[0])
        if self.ending is None:
            return self._scores
        if nested:
            return graph.prune(graph.inputs, logits)
        return lambda x: _before(self.tf, self._scores(x))[1]

    def _calls(self, x: Tensor) -> tuple[Any, Any, Any]:
        """For inputs of one shape and type and any number of rows: the output, its vjp, and both in
        one."""
        key = (*x.shape[1:], x.dtype)
        if key not in self._compiled:
            tf = self.tf
            rows = tf.TensorSpec([None, *x.shape[1:]], self._in(x).dtype)
            scores = self._reader(rows)

            def slope(x: Any, ask: Callable[[Any], Any]) -> tuple[Any, Any]:
                with tf.GradientTape(watch_accessed_variables=False) as tape:
                    tape.watch(x)
                    z = scores(x)
                g = tape.gradient(z, x, output_gradients=ask(z), unconnected_gradients="zero")
                return z, tf.convert_to_tensor(g)

            def asked(z: Any) -> Any:
                c = tf.numpy_function(self._cotangent, [z], z.dtype)
                c.set_shape(z.shape)
                return c

            infer = tf.function(scores, input_signature=[rows])
            out = infer.get_concrete_function().structured_outputs
            self._compiled[key] = (
                infer,
                tf.function(
                    lambda x, c: slope(x, lambda _: c)[1],
                    input_signature=[rows, tf.TensorSpec(out.shape, out.dtype)],
                ),
                tf.function(lambda x: slope(x, asked), input_signature=[rows]),
            )
        return self._compiled[key]

    def _cotangent(self, z: np.ndarray) -> np.ndarray:
        """Asked by the graph in mid-flight; what fails here is raised once the graph has
        returned."""
        try:
            return self._ask(tensor(z)).detach().numpy().astype(z.dtype, copy=False)
        except BaseException as error:  # noqa: BLE001
            self._failed = error
            return np.zeros_like(z)


_SHAPES = ("Identity", "Reshape", "Squeeze", "ExpandDims", "StridedSlice")
_ACTIVATIONS = {"Softmax": "softmax", "Sigmoid": "sigmoid"}


def _before_shapes(z: Any) -> Any:
    """The tensor of a graph of which z is another shape or a part."""
    while z.op.type in _SHAPES:
        z = z.op.inputs[0]
    return z


def _before(tf: Any, z: Any) -> tuple[str | None, Any]:
    """The activation that gives z [n, k] of a graph, and the logits before it in z's shape, added
    to that graph; None twice where there is none."""
    source = _before_shapes(z)
    kind = _ACTIVATIONS.get(source.op.type)
    if kind is None:
        return None, None
    steps = []
    while z is not source:
        steps.append(z.op)
        z = z.op.inputs[0]
    if kind == "softmax" and (
        source.shape[-1] in (None, 1)
        or any(op.type == "StridedSlice" for op in steps)
        or any(side != 1 for side in source.shape[1:-1])  # over groups of outputs
    ):
        return None, None
    logits = source.op.inputs[0]
    with logits.graph.as_default():
        for op in reversed(steps):
            logits = _shaped(tf, op, logits)
    return kind, logits


def _shaped(tf: Any, op: Any, z: Any) -> Any:
    """What a change of shape makes of another tensor."""
    if op.type == "Reshape":
        return tf.reshape(z, op.inputs[1])
    if op.type == "Squeeze":
        return tf.squeeze(z, list(op.get_attr("squeeze_dims")) or None)
    if op.type == "ExpandDims":
        return tf.expand_dims(z, op.inputs[1])
    if op.type == "StridedSlice":
        masks = ("begin_mask", "end_mask", "ellipsis_mask", "new_axis_mask", "shrink_axis_mask")
        begin, end, strides = op.inputs[1:]
        masked = {name: op.get_attr(name) for name in masks}
        return tf.raw_ops.StridedSlice(input=z, begin=begin, end=end, strides=strides, **masked)
    return z


def _says(z: Any) -> bool | None:
    """Whether z is one of probabilities: not what a linear layer gives, which has no bounds; None
    where that cannot be seen."""
    op = _before_shapes(z).op
    if op.type in ("BiasAdd", "AddV2", "Add"):
        op = _before_shapes(op.inputs[0]).op
    return {"MatMul": False, "Conv2D": False}.get(op.type)


def _inlined(graph: Any) -> Any:
    """A function's graph, with those of the functions that it calls in it; None where that cannot
    be."""
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    try:
        return convert_variables_to_constants_v2(graph)
    except Exception:  # noqa: BLE001  # whatever a graph of a user's leads TensorFlow to
        return None


class TFLiteModel(Adapter):
    """A TFLite file: scores alone, one batch size; quantised inputs and outputs are converted by
    their own scales."""

    access = Access.SCORES
    layout, libraries = "nhwc", ("tensorflow",)

    def __init__(self, path: Path, digest: bytes) -> None:
        tf = need("tensorflow", "tensorflow", f"{path}")
        try:
            with warnings.catch_warnings(), native_output():
                warnings.simplefilter("ignore")  # it will move to a package of its own
                self.net = tf.lite.Interpreter(model_path=str(path))
            with native_output():
                self.net.allocate_tensors()
        except ValueError as error:
            raise InputError(
                f"{path} is no TFLite model, or damaged: {str(error).splitlines()[0]}."
            ) from error
        (self.entry,), (self.exit, *more) = (
            self.net.get_input_details(),
            self.net.get_output_details(),
        )
        if more:
            raise InputError(
                f"{path} has {1 + len(more)} outputs; one with the scores is expected."
            )
        self.shape = tuple(int(side) for side in self.entry["shape"][1:])
        self.probabilities = self._says()
        self._digest = digest

    def _says(self) -> bool | None:
        """Whether its last operator gives probabilities."""
        names = [op["op_name"] for op in self.net._get_ops_details()]
        passing = ("DEQUANTIZE", "QUANTIZE", "RESHAPE", "DELEGATE")
        last = next((name for name in reversed(names) if name not in passing), None)
        return {"SOFTMAX": True, "LOGISTIC": True, "FULLY_CONNECTED": False}.get(last or "")

    def infer(self, x: Tensor) -> Tensor:
        if tuple(self.net.get_input_details()[0]["shape"]) != tuple(x.shape):
            self.net.resize_tensor_input(self.entry["index"], list(x.shape))
            self.net.allocate_tensors()
        self.net.set_tensor(self.entry["index"], self._coded(x.numpy().astype(np.float32)))
        self.net.invoke()
        z = self.net.get_tensor(self.exit["index"])
        scale, zero = self.exit["quantization"]
        if scale:
            z = (z.astype(np.float32) - zero) * scale
        return tensor(z)

    def _coded(self, x: np.ndarray) -> np.ndarray:
        kind, (scale, zero) = self.entry["dtype"], self.entry["quantization"]
        if not scale:
            return x.astype(kind)
        span = np.iinfo(kind)
        return np.clip(np.round(x / scale) + zero, span.min, span.max).astype(kind)


def from_saved_model(
    folder: Path, digest: bytes, output: str | int | None = None
) -> TensorFlowModel:
    """The `serving_default` signature of a SavedModel folder.

    Raises:
        InputError: it cannot be read, has no such signature, or one of several inputs.
    """
    tf = need("tensorflow", "tensorflow", f"{folder}")
    try:
        loaded = tf.saved_model.load(str(folder))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{folder} cannot be read as a SavedModel: {str(error).splitlines()[0]}."
        ) from error
    call = getattr(loaded, "signatures", {}).get("serving_default")
    if call is None:
        raise InputError(
            f"{folder} has no signature serving_default; export it with one of a single input."
        )
    inputs = call.structured_input_signature[1]
    if len(inputs) != 1:
        raise InputError(
            f"{folder} takes {len(inputs)} inputs ({', '.join(inputs)}); one is expected."
        )
    (name, spec), kept = next(iter(inputs.items())), loaded
    shape = None
    if spec.shape.rank and spec.shape[1:].is_fully_defined():
        shape = tuple(spec.shape[1:])

    def function(x: Any) -> Any:
        return (kept and call)(**{name: tf.cast(x, spec.dtype)})

    return TensorFlowModel(function, shape=shape, output=output, digest=digest)


def _matches(model: Any) -> bool:
    return callable(model) and type(model).__module__.partition(".")[0] == "tensorflow"


def _load(path: Path, *, output: str | int | None, **_: Any) -> Adapter:
    if path.is_dir():
        return from_saved_model(path, digest_of_files(path), output)
    return TFLiteModel(path, digest_of_files(path))


FRAMEWORK = Framework(
    "tensorflow",
    _matches,
    lambda model, *, output=None, **_: TensorFlowModel(model, output=output),
    suffixes=(".tflite",),
    recognises=lambda path, _: (path / "saved_model.pb").is_file(),
    load=_load,
    arrays=("tensorflow",),
)
