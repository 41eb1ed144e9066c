"""A torch module as a target keeps it: an own copy, what decides its answers, and what it computes
in."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from holdfast import usercode
from holdfast.errors import InputError

HALF = (torch.float16, torch.bfloat16)


def frozen(model: nn.Module, device: str | torch.device | None) -> nn.Module:
    """A copy in eval mode, its parameters without gradients.

    Raises:
        InputError: it cannot be copied, or holds no numbers.
    """
    if any(value.is_meta for value in (*model.parameters(), *model.buffers())):
        raise InputError(
            f"the {type(model).__name__} lives on the device meta, where it has shapes but no "
            f"numbers: make it with to_empty(device='cpu'), load its weights, and wrap it then."
        )
    try:
        with torch.inference_mode(False), torch.no_grad(), warnings.catch_warnings():
            # of torch about its own exported programs
            warnings.simplefilter("ignore", FutureWarning)
            own = copy.deepcopy(model)
    except Exception as error:
        raise InputError(
            f"the model cannot be copied ({error}); pass a module that copy.deepcopy accepts."
        ) from error
    with usercode.guarded(f"eval() of the {type(model).__name__}"):
        own.eval()
    for module in own.modules():
        module.training = False  # also where a module overrides train()
    for parameter in own.parameters():  # a scripted module refuses the method for all of them
        parameter.requires_grad_(False)
    return own if device is None else own.to(device)


def content_of(model: nn.Module) -> Iterator[Any]:
    """All that decides what a module gives, in bytes: its parts, then its weights and other
    state."""
    yield repr(model).encode()
    for name, value in sorted(model.state_dict().items()):
        yield from state_content(name, value)


def state_content(name: str, value: Any) -> Iterator[Any]:
    """One entry of a state, in bytes: a tensor, also a quantised one, or what else a module keeps
    there."""
    if isinstance(value, Tensor) and value.is_quantized:
        yield from state_content(f"{name}{value.dtype}{value.qscheme()}", value.int_repr())
        yield from state_content(name, value.dequantize())
    elif isinstance(value, Tensor):
        yield f"{name}{tuple(value.shape)}{value.dtype}".encode()
        yield value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data
    elif isinstance(value, np.ndarray) and value.dtype != object:
        yield f"{name}{value.shape}{value.dtype}".encode()
        yield np.ascontiguousarray(value).tobytes()
    elif isinstance(value, Mapping):
        yield f"{name}{type(value).__name__}{len(value)}".encode()
        for key in sorted(value, key=repr):
            yield from state_content(f"{name}.{key!r}", value[key])
    elif isinstance(value, (list, tuple)):
        yield f"{name}{type(value).__name__}{len(value)}".encode()
        for place, part in enumerate(value):
            yield from state_content(f"{name}.{place}", part)
    elif value is None or isinstance(
        value, (bool, int, float, complex, str, bytes, torch.dtype, torch.device)
    ):
        yield f"{name}{value!r}".encode()
    else:
        yield f"{name}{type(value).__qualname__}".encode()
        yield _other_content(value)


def _other_content(value: Any) -> bytes:
    """An object in bytes, as pickle writes it; where it cannot, nothing: its type alone then
    counts."""
    try:
        if isinstance(value, torch.ScriptObject):  # of packed integers: its pickle holds an address
            return b"".join(bytes(part) for part in state_content("", value.__getstate__()))
        return pickle.dumps(value, protocol=4)
    except Exception:  # noqa: BLE001  # a user's class raises what it likes
        return b""


def modules_of(*models: Any) -> Iterator[nn.Module]:
    """The modules within models, in order; a function has none."""
    return (
        module for model in models if isinstance(model, nn.Module) for module in model.modules()
    )


def first_parameter(model: Any) -> Tensor:
    """Of a model that has none, a number of float32 on the CPU."""
    every = (parameter for module in modules_of(model) for parameter in module.parameters())
    return next(every, torch.zeros((), dtype=torch.float32, device="cpu"))


def is_quantised(model: Any) -> bool:
    """Whether a module has layers that compute in whole numbers, which have no gradient."""
    return any(".quantized" in type(module).__module__ for module in modules_of(model))


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """The tensors of a module's state, by name: what is trained, averaged and stored.

    What else it keeps there (`get_extra_state`, packed integers) stays as it is in the module.
    """
    return {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}


def put_tensors(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Load all of `tensors_of` into a module, strictly; its other state stays."""
    state = model.state_dict()  # changed in place: torch keeps versions of modules with it
    for name in tensors_of(model):
        del state[name]
    state.update(tensors)
    model.load_state_dict(state)


def half_of(model: Any) -> torch.dtype | None:
    """The half precision that a module computes in: that of its first parameter; None for any
    other."""
    kind = first_parameter(model).dtype
    return kind if kind in HALF else None


def recurrent(*models: Any) -> tuple[nn.RNNBase, ...]:
    """The recurrent layers of modules, each once."""
    found = (module for module in modules_of(*models) if isinstance(module, nn.RNNBase))
    return tuple(dict.fromkeys(found))


@contextmanager
def differentiable(layers: tuple[nn.RNNBase, ...]) -> Iterator[None]:
    """Recurrent layers in eval mode that can be differentiated on CUDA too, where gradients are
    on.

    cuDNN keeps what a backward pass needs in train mode alone. Within, layers in eval mode are in
    train mode with no dropout, which computes the same.
    """
    tracked = torch.is_grad_enabled()
    held = [(layer, layer.dropout) for layer in layers if tracked and not layer.training]
    for layer, _ in held:
        layer.training, layer.dropout = True, 0.0
    try:
        yield
    finally:
        for layer, dropout in held:
            layer.training, layer.dropout = False, dropout


def folded(model: nn.Module) -> nn.Module:
    """The model with each batch norm inside the convolution before it, where its graph can be
    read."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the tracer's own making
            from torch.fx.experimental.optimization import fuse

            return fuse(model, inplace=False)
    except Exception:  # noqa: BLE001  # whatever a trace of a user's code may raise
        return model
