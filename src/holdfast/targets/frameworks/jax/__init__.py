"""JAX: functions of one array. Flax and Equinox models are such functions of their parameters and
the array."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from holdfast.targets.adapter import Adapter, chosen, digest_of, need, tensor
from holdfast.targets.registry import Framework
from holdfast.targets.target import Pullback

ARRAYS = ("jax", "jaxlib")


class JaxModel(Adapter):
    """A function from a jax array [n, *shape] to scores.

    Compiled for at most eight numbers of rows between one power of two and the next, the last row
    repeated to fill them: a search asks about ever fewer rows, and each new number would be
    compiled anew. The pullback keeps what the forward left behind.
    """

    def __init__(
        self,
        function: Callable[[Any], Any],
        *,
        shape: tuple[int, ...] | None = None,
        layout: str = "nchw",
        output: str | int | None = None,
        digest: bytes | None = None,
        libraries: tuple[str, ...] = (),
    ) -> None:
        self.libraries = ("jax", *libraries)  # of Keras too
        self.jax = jax = need("jax", "jax", "a JAX function")
        need("jax.extend", "jax", "a JAX function")
        self.function, self.shape, self.layout = function, shape, layout
        self._digest = digest

        def scores(x: Any) -> Any:
            jaxpr_of_scores = jax.make_jaxpr(lambda x: chosen(function(x), output))(x)
            self.ending, z = _before(jax, jaxpr_of_scores, [x])
            self.probabilities = None
            if self.ending is None:
                z = chosen(function(x), output)
                self.probabilities = _says(jaxpr_of_scores.jaxpr)
            return z

        self._scores, self._infer = scores, jax.jit(scores)
        # the pullback is a tree of arrays, so it can be returned
        self._both = jax.jit(lambda x: jax.vjp(scores, x))
        self._back = jax.jit(lambda pullback, cotangent: pullback(cotangent)[0])

    def infer(self, x: Tensor) -> Tensor:
        return tensor(self._infer(self._in(x)))[: len(x)]

    def vjp(self, x: Tensor) -> tuple[Tensor, Pullback]:
        z, pullback = self._both(self._in(x))
        kind = z.dtype

        def back(cotangent: Tensor) -> Tensor:
            rows = torch.cat(
                [cotangent, cotangent.new_zeros(len(z) - len(x), *cotangent.shape[1:])]
            )
            return tensor(self._back(pullback, rows.numpy().astype(kind, copy=False)))[: len(x)]

        return tensor(z)[: len(x)], back

    def network(self, example: Tensor) -> Callable[[Tensor], Tensor]:
        from holdfast.targets.frameworks.jax.network import network

        return network(self._scores, example)

    def digest(self) -> bytes:
        if self._digest is not None:
            return self._digest
        # parameters bound by a partial
        leaves = self.jax.tree_util.tree_leaves(getattr(self.function, "args", ()))
        return digest_of(
            leaves, getattr(self.function, "__qualname__", type(self.function).__qualname__)
        )

    def _in(self, x: Tensor) -> Any:
        step = max((1 << (len(x) - 1).bit_length()) // 16, 1)
        if missing := -len(x) % step:
            x = torch.cat([x, x[-1:].expand(missing, *x.shape[1:])])
        return x.detach().contiguous().numpy()


_SHAPES = ("reshape", "squeeze", "expand_dims", "convert_element_type", "slice")
_PRODUCTS = ("dot_general", "conv_general_dilated")


def _before(jax: Any, closed: Any, args: Sequence[Any]) -> tuple[str | None, Any]:
    """The activation that gives a function's only result at these arguments, and the logits before
    it, in its shape; None twice where there is none."""
    jaxpr, shapes = closed.jaxpr, []
    made, var = _made(jaxpr), jaxpr.outvars[0]

    def value(variable: Any) -> Any:
        return jax.extend.core.jaxpr_as_fun(closed.replace(jaxpr=_giving(jaxpr, variable)))(*args)[
            0
        ]

    while (step := made.get(id(var))) is not None and step.primitive.name in _SHAPES:
        shapes.append(step)
        var = step.invars[0]
    if step is None:
        return None, None
    if step.primitive.name in ("jit", "pjit"):  # a function within it
        inner, place = step.params["jaxpr"], [id(out) for out in step.outvars].index(id(var))
        inner = inner.replace(jaxpr=_giving(inner.jaxpr, inner.jaxpr.outvars[place]))
        kind, z = _before(jax, inner, [value(given) for given in step.invars])
    else:
        kind, z = _activation(step, made)
        if kind is not None:
            z = value(z)
    sliced = any(step.primitive.name == "slice" for step in shapes)
    if kind is None or (kind == "softmax" and sliced):
        return None, None
    for step in reversed(shapes):
        z = step.primitive.bind(z, **step.params)
    return kind, z


def _made(jaxpr: Any) -> dict[int, Any]:
    """Which step gives a variable."""
    return {id(out): step for step in jaxpr.eqns for out in step.outvars}


def _giving(jaxpr: Any, variable: Any) -> Any:
    """The same steps with another result."""
    return jaxpr.replace(outvars=[variable], debug_info=jaxpr.debug_info.with_unknown_names())


def _activation(step: Any, made: dict[int, Any]) -> tuple[str | None, Any]:
    """Whether a step is the end of a sigmoid or of a softmax, which is exp(z) / sum(exp(z)); and
    its logits."""
    if step.primitive.name == "logistic":
        return "sigmoid", step.invars[0]
    if step.primitive.name != "div":
        return None, None
    exp, total = made.get(id(step.invars[0])), made.get(id(step.invars[1]))
    while total is not None and total.primitive.name in ("broadcast_in_dim", *_SHAPES):
        total = made.get(id(total.invars[0]))
    if (
        exp is None
        or total is None
        or (exp.primitive.name, total.primitive.name) != ("exp", "reduce_sum")
    ):
        return None, None
    shape = step.outvars[0].aval.shape
    if (
        total.invars[0] is not exp.outvars[0]
        or total.params["axes"] != (len(shape) - 1,)
        or len(shape) != 2
    ):
        return None, None
    z, shifted = exp.invars[0], made.get(id(exp.invars[0]))
    if shifted is not None and shifted.primitive.name == "sub":
        top = made.get(id(shifted.invars[1]))
        if (
            top is not None
            and top.primitive.name in ("stop_gradient", "broadcast_in_dim")
            and top.outvars[0].aval.shape[1:] == (1,)
        ):
            z = shifted.invars[0]
    return "softmax", z


def _says(jaxpr: Any) -> bool | None:
    """Whether the result is one of probabilities: not that of a linear layer, which has no
    bounds; None where that cannot be seen."""
    made = _made(jaxpr)
    step = made.get(id(jaxpr.outvars[0]))
    while step is not None and step.primitive.name in _SHAPES:
        step = made.get(id(step.invars[0]))
    if step is not None and step.primitive.name == "add":
        step = made.get(id(step.invars[0])) or made.get(id(step.invars[1]))
    if step is not None and step.primitive.name in _PRODUCTS:
        return False
    return None


def _matches(model: Any) -> bool:
    return callable(model) and type(model).__module__.partition(".")[0] in ARRAYS


FRAMEWORK = Framework(
    "jax",
    _matches,
    lambda model, *, output=None, **_: JaxModel(model, output=output),
    arrays=ARRAYS,
)
