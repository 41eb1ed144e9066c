"""JAX: functions of one array. Flax and Equinox models are such functions of their parameters and the array."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from holdfast.targets.foreign import Foreign, chosen, digest_of, need, tensor, versions_of
from holdfast.targets.target import Pullback


class JaxModel(Foreign):
    """A function from a jax array [n, *shape] to scores.

    Compiled for numbers of rows that are powers of two, the last rows repeated to fill them: a search asks about
    ever fewer rows, and each new number would be compiled anew. The pullback keeps what the forward left behind.
    """

    def __init__(
        self,
        function: Callable[[Any], Any],
        *,
        shape: Sequence[int] | None = None,
        layout: str = "nchw",
        output: str | int | None = None,
        digest: bytes | None = None,
        remarks: tuple[tuple[str, str], ...] = (),
        libraries: tuple[str, ...] = (),
    ) -> None:
        self.libraries = libraries  # beside jax, as of Keras
        self.jax = jax = need("jax", "jax", "a JAX function")
        self.function, self.layout, self.remarks = function, layout, remarks
        self.shape = None if shape is None else tuple(shape)
        self._digest = digest

        def scores(x: Any) -> Any:
            return chosen(function(x), output)

        self._infer = jax.jit(scores)
        self._both = jax.jit(lambda x: jax.vjp(scores, x))  # the pullback is a tree of arrays, so it can be returned
        self._back = jax.jit(lambda pullback, cotangent: pullback(cotangent)[0])

    def infer(self, x: Tensor) -> Tensor:
        return tensor(self._infer(self._in(x)))[: len(x)]

    def vjp(self, x: Tensor) -> tuple[Tensor, Pullback]:
        z, pullback = self._both(self._in(x))
        kind = z.dtype

        def back(cotangent: Tensor) -> Tensor:
            rows = torch.cat([cotangent, cotangent.new_zeros(len(z) - len(x), *cotangent.shape[1:])])
            return tensor(self._back(pullback, rows.numpy().astype(kind, copy=False)))[: len(x)]

        return tensor(z)[: len(x)], back

    @property
    def versions(self) -> dict[str, str]:
        return versions_of("jax", *self.libraries)

    def digest(self) -> bytes:
        if self._digest is not None:
            return self._digest
        leaves = self.jax.tree_util.tree_leaves(getattr(self.function, "args", ()))  # parameters bound by a partial
        return digest_of(leaves, getattr(self.function, "__qualname__", type(self.function).__qualname__))

    def _in(self, x: Tensor) -> Any:
        n = 1 << max(len(x) - 1, 0).bit_length()
        x = torch.cat([x, x[-1:].expand(n - len(x), *x.shape[1:])]) if n > len(x) else x
        return x.detach().contiguous().numpy()
