"""Gradients of a torch function on inputs that stay as they are."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def apart_from(x: Tensor, inner: Tensor) -> Tensor:
    """Inputs `inner` made from x, copied where they still lie in its memory: a model may write to
    what it is given."""
    shared = inner.untyped_storage().data_ptr() == x.untyped_storage().data_ptr()
    return inner.clone() if shared else inner


def back(leaf: Tensor, z: Tensor, cotangent: Tensor, *, again: bool) -> Tensor:
    """The gradient on `leaf` of what has this cotangent at z. Only for another one is the graph
    kept: that costs."""
    if not z.requires_grad:  # no path from the input to the scores: the gradient is exactly zero
        return torch.zeros_like(leaf)
    with torch.inference_mode(False), torch.enable_grad():
        # As a product: with grad_outputs, autograd would first import half of torch.fx and sympy.
        pulled = (z * cotangent.to(z.dtype)).sum()
        return torch.autograd.grad(pulled, leaf, retain_graph=again, materialize_grads=True)[0]


def kept(ask: Callable[[], object]) -> int:
    """The bytes that a question keeps for its gradient, which is not taken; a model's parameters
    among them."""
    held: dict[int, torch.UntypedStorage] = {}  # alive, so that each has a place of its own

    def note(x: Tensor) -> None:
        held[x.untyped_storage().data_ptr()] = x.untyped_storage()

    with torch.autograd.graph.saved_tensors_hooks(note, lambda nothing: nothing):
        ask()
    return sum(storage.nbytes() for storage in held.values())
