"""A network as a list of operators, each either affine or with a relaxation of its own.

`torch.export` writes the list down. An affine operator needs no rule: its bias is what it gives at
0, and torch's own vector-Jacobian product pulls coefficients back through it, where nothing cheaper
does. An operator that is neither known to be affine nor has a relaxation is refused by its name.
"""

from __future__ import annotations

import copy
import io
import logging
import operator
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, replace
from functools import cached_property, partial
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map

from holdfast.bounds.affine import (
    Affine,
    Convolution,
    Elementwise,
    General,
    Linear,
    Reshape,
    Window,
    hull,
    size,
)
from holdfast.bounds.forms import FORMS, At, product
from holdfast.bounds.relaxations import RULES, Rule
from holdfast.errors import InputError, first_line

# Affine operators: which arguments multiply the input, and which only shift the result.
_WEIGHTED: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "linear": ((1,), (2,)),
    "conv1d": ((1,), (2,)),
    "conv2d": ((1,), (2,)),
    "conv3d": ((1,), (2,)),
    "conv_transpose1d": ((1,), (2,)),
    "conv_transpose2d": ((1,), (2,)),
    "batch_norm": ((1,), (2, 3)),
    "div": ((1,), ()),
    "matmul": ((0, 1), ()),
    "mm": ((0, 1), ()),
    "bmm": ((0, 1), ()),
    "einsum": ((1,), ()),
    "addmm": ((1, 2), (0,)),
    "mul": ((0, 1), ()),
    "add": ((), (0, 1)),
    "sub": ((), (0, 1)),
    "rsub": ((), (0, 1)),
    "cat": ((), (0,)),
    "stack": ((), (0,)),
    "pad": ((), (3,)),
    "constant_pad_nd": ((), (2,)),
}
_ONLY_FIRST = set(
    "linear conv1d conv2d conv3d conv_transpose1d conv_transpose2d batch_norm".split()
)
_ONLY_FIRST |= {"div", "index", "index_select", "pad", "constant_pad_nd"}
_UNWEIGHTED = set(
    "view reshape _unsafe_view flatten unflatten permute transpose t numpy_T unsqueeze squeeze "
    "expand expand_as view_as clone contiguous alias detach to _to_copy dropout feature_dropout "
    "slice select narrow index index_select neg sum mean avg_pool1d avg_pool2d avg_pool3d "
    "adaptive_avg_pool1d adaptive_avg_pool2d flip roll movedim repeat tile pixel_shuffle "
    "pixel_unshuffle channel_shuffle upsample_nearest1d upsample_nearest2d upsample_nearest3d "
    "repeat_interleave swapaxes mT".split()
)
_RESHAPES = set("view reshape _unsafe_view flatten unflatten unsqueeze squeeze view_as".split())
_ELEMENTWISE = {"add", "sub", "rsub", "mul", "div", "neg", "batch_norm"}
_MOVES = {"cat", "stack", "pad", "constant_pad_nd"}
_SUMS = {"sum", "mean", *(f"{kind}_pool{d}d" for kind in ("avg", "adaptive_avg") for d in "123")}
_CONVOLUTION = ([1], [0], [1], 1)  # stride, padding, dilation, groups
# The identity: all is computed in float64. No product of torch goes back through `detach`.
_CASTS = {"to", "_to_copy", "clone", "contiguous", "detach"}
_ALIASES = {"subtract": "sub", "multiply": "mul", "divide": "div", "true_divide": "div"}
_FRESH = {"max_pool1d", "max_pool2d", "max_pool3d", "hardtanh", "relu6", "clamp"}
_SILENT = {"_assert_tensor_metadata", "_assert_async", "_assert_scalar", "sym_constrain_range"}


@dataclass(frozen=True)
class Node:
    """One operator; the first node of a graph is the input. A value is [*shape], the graph's own
    batch of 1 included; what bounds it is [n, *shape]."""

    operator: str
    parents: tuple[int, ...]
    shape: tuple[int, ...]
    value: Callable[..., Tensor]  # of the values of its parents
    rule: Rule | None = None  # None: affine
    affine: Affine | None = None
    at_0: Tensor | None = None  # what an affine operator gives at 0; None: 0
    # Of an affine operator: what the sizes of its weights make of sizes, what its shifts add, and
    # how many terms that are not 0 an entry sums, of ones for entries that may not be 0 (None: it
    # rounds nothing).
    spread: Callable[..., Tensor] = torch.clone
    shift: Tensor | float = 0.0
    terms: Callable[..., Tensor] | None = None


@dataclass(frozen=True)
class Graph:
    """The operators of a network in an order in which they may run, constants in float64 where it
    is not made for training."""

    nodes: list[Node]
    device: torch.device

    @property
    def largest(self) -> int:
        """Entries of the largest value."""
        return max(prod(node.shape) for node in self.nodes)

    def windows(self, start: int, window: Window) -> dict[int, Window]:
        """The window of every node that a window of one depends on."""
        found = {start: window}
        for i in range(start, -1, -1):
            if i not in found:
                continue
            node = self.nodes[i]
            needs: tuple[Window, ...] = tuple(
                found[i] if self.nodes[p].shape == node.shape else () for p in node.parents
            )
            if node.affine:
                needs = node.affine.needs(found[i])
            for parent, need in zip(node.parents, needs, strict=True):
                found[parent] = hull(found[parent], need) if parent in found else need
        return found

    def widest(self, windows: dict[int, Window]) -> int:
        """Entries of the largest of these windows."""
        return max(size(window, self.nodes[i].shape) for i, window in windows.items())

    @cached_property
    def separate(self) -> set[int]:
        """Nodes whose intervals are exact over a box: at most one operator before them joins
        entries of the input."""
        alone, exact = {0}, {0}
        for i, node in enumerate(self.nodes):
            if len(node.parents) == 1 and node.parents[0] in alone and node.affine:
                exact.add(i)
            if not isinstance(node.affine, (Elementwise, Reshape)) or len(node.parents) != 1:
                continue
            for kind in (alone, exact):
                if node.parents[0] in kind:
                    kind.add(i)
        return exact

    def __call__(self, x: Tensor) -> Tensor:
        """The scores [n, k] of rows x [n, *shape], in float64."""
        values: list[Tensor] = [x.double()[:, None]]
        for node in self.nodes[1:]:
            values.append(torch.func.vmap(node.value)(*(values[i] for i in node.parents)))
        return values[-1][:, 0]


def unsupported(what: str) -> InputError:
    return InputError(f"not supported: {what}.")


def trace(network: nn.Module, example: Tensor) -> Graph:
    """The graph of a network.

    Args:
        network: a module of torch that answers rows [n, *shape] with scores [n, k]. It is copied,
            and put into evaluation mode.
        example: one row, [1, *shape], of the dtype that it takes, where bounds are to be computed.

    Raises:
        InputError: "not supported: ...", where the network cannot be traced, holds an operator
            without a rule, draws random numbers, or changes its own state.
    """
    return Program.of(network, example).graph()


@dataclass(frozen=True)
class Program:
    """A network as `torch.export` writes it down: operators, and constants by name."""

    exported: torch.export.ExportedProgram
    example: Tensor

    @classmethod
    def of(cls, network: nn.Module, example: Tensor) -> Program:
        """Args, and what is raised: as `trace`."""
        return cls(_export(network, example), example)

    @property
    def names(self) -> dict[str, str]:
        """The names in the network of its parameters, buffers and other constants."""
        signature = self.exported.graph_signature
        return {
            **signature.inputs_to_parameters,
            **signature.inputs_to_buffers,
            **signature.inputs_to_lifted_tensor_constants,
        }

    @property
    def parameters(self) -> set[str]:
        """The names of those that an optimiser may change."""
        return set(self.exported.graph_signature.inputs_to_parameters.values())

    def graph(
        self, others: Mapping[str, Tensor] | None = None, dtype: torch.dtype = torch.float64
    ) -> Graph:
        """Its graph, which computes in this dtype.

        Args:
            others: constants in place of its own, by name; gradients flow to them.
        """
        example, names = self.example, self.names
        stored = {**self.exported.state_dict, **self.exported.constants}
        stored = {name: value.detach() for name, value in stored.items()} | dict(others or {})
        nodes = [Node("input", (), tuple(example.shape), torch.clone)]
        write = _Writer(nodes, example.device, dtype)
        values: dict[Any, Any] = {}  # of what torch calls a node
        for item in self.exported.graph.nodes:
            if item.name in names:
                values[item] = stored[names[item.name]].to(example.device)
            elif item.op == "placeholder":
                values[item] = At(0)
            elif item.op == "call_function" and _name(item) not in _SILENT:
                args, kwargs = torch.fx.map_arg((item.args, item.kwargs), values.__getitem__)
                try:
                    values[item] = _value(item, args, kwargs, example.dtype, write)
                except InputError as error:
                    raise InputError(f"{str(error).rstrip('.')}{_where(item)}.") from None
            elif item.op == "get_attr":  # of a program within, such as what runs under no_grad
                raise unsupported(f"operator {_name(next(iter(item.users)))}")
            elif item.op == "output":
                last = _output([values[part] for part in item.args[0]], nodes)
                return Graph(_needed(nodes[: last + 1]), example.device)
        raise unsupported("a network without an output")


def _value(item: Any, args: Any, kwargs: Any, dtype: torch.dtype, write: _Writer) -> Any:
    """What a node of torch gives: a constant, the place of a `Node`, or several of them."""
    name = _name(item)
    if item.target is operator.getitem:
        part = args[0][args[1]]
        if part is None and item.users:
            raise unsupported("operator argmax")
        return part
    _check(item, args, kwargs, dtype)
    if not _places((args, kwargs)):  # rounded as the network rounds it
        return item.target(*args, **kwargs)
    args, kwargs = tree_map(write.cast, args), tree_map(write.cast, kwargs)
    name = name.rstrip("_")
    if name == "batch_norm" and args[3].requires_grad:
        return _normed(write, *args)
    if name in FORMS:
        return FORMS[name](write, *args, **kwargs)
    if name == "mul" and all(isinstance(arg, At) for arg in args):
        return product(write, *args)
    return write(item.target, *args, **kwargs)


def _normed(write: _Writer, x: At, w: Any, b: Any, mean: Tensor, var: Tensor, *options: Any) -> At:
    """A batch normalisation whose statistics get gradients, which torch's operator gives them not
    where they are given."""
    scale = (var + options[2]).rsqrt()
    scale = scale if w is None else scale * w
    shift = -mean * scale if b is None else b - mean * scale
    axes = [1] * (len(write.shape(x)) - 2)
    scaled = write(torch.ops.aten.mul.Tensor, x, scale.view(-1, *axes))
    return write(torch.ops.aten.add.Tensor, scaled, shift.view(-1, *axes))


def _where(item: Any) -> str:
    """In which module of the network an operator is, such as ", in features.3 (Softsign)"."""
    path, kind = [*(item.meta.get("nn_module_stack") or {"": ("", "")}).values()][-1]
    path, kind = path.removeprefix("model."), str(kind).rpartition(".")[2]
    return f", in {path} ({kind})" if path and path != "model" else ""


def _needed(nodes: list[Node]) -> list[Node]:
    """Those that the last one depends on, and the input."""
    needed = {0, len(nodes) - 1}
    for i in range(len(nodes) - 1, 0, -1):
        if i in needed:
            needed.update(nodes[i].parents)
    order = {old: new for new, old in enumerate(sorted(needed))}
    return [
        replace(nodes[old], parents=tuple(order[parent] for parent in nodes[old].parents))
        for old in order
    ]


def _export(network: nn.Module, example: Tensor) -> torch.export.ExportedProgram:
    try:
        network = _copied(network).eval().requires_grad_(False)
        with _silent():
            return torch.export.export(network, (example,))
    except Exception as error:  # noqa: BLE001  # whatever torch or the network raise
        raise unsupported(
            f"torch.export cannot write the network down ({first_line(error)})"
        ) from None


def _copied(network: nn.Module) -> nn.Module:
    """A copy, also of layers that keep a result with a graph, such as the weight of `weight_norm`
    after a step of training, which Python's copy refuses."""
    kept = [value for part in network.modules() for value in vars(part).values()]
    kept = [value for value in kept if isinstance(value, Tensor) and not value.is_leaf]
    return copy.deepcopy(network, {id(value): value.detach().clone() for value in kept})


@contextmanager
def _silent() -> Iterator[None]:
    """Within, torch prints no graph, warning or error of its own."""
    log = logging.getLogger("torch")
    level = log.level
    with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        log.setLevel(logging.CRITICAL + 1)
        try:
            yield
        finally:
            log.setLevel(level)


def _name(item: Any) -> str:
    """The name of an operator, such as `conv2d`; of several the usual one."""
    return _called(item.target, str(item))


def _called(target: Any, otherwise: str = "") -> str:
    schema = getattr(target, "_schema", None)
    name = schema.name.split("::")[1] if schema else getattr(target, "__name__", otherwise)
    return _ALIASES.get(name, name)


def _places(tree: Any) -> list[int]:
    return [leaf.node for leaf in tree_flatten(tree)[0] if isinstance(leaf, At)]


def _check(item: Any, args: Any, kwargs: Any, dtype: torch.dtype) -> None:
    """Refuse an operator that bounds cannot follow."""
    name = _name(item)
    tags = getattr(item.target, "tags", ())
    if torch.Tag.nondeterministic_seeded in tags and not ("dropout" in name and not args[2]):
        raise unsupported(f"operator {name}, which draws random numbers")
    if name.endswith("_") and not _overwrites_its_own(item):
        raise unsupported(f"operator {name}, which overwrites what others may read")
    name = name.rstrip("_")
    if not _places((args, kwargs)) or name in FORMS:
        return
    if name in RULES:
        if _places((args[1:], kwargs)):
            raise unsupported(f"operator {name} of values that all depend on the input")
        return
    value = item.meta["val"]
    if not isinstance(value, Tensor):
        raise unsupported(f"operator {name}, which gives more than one value")
    made = value.dtype
    if not made.is_floating_point or torch.finfo(made).eps > torch.finfo(dtype).eps:
        raise unsupported(f"operator {name} from {dtype} to {made}")
    if name not in _WEIGHTED and name not in _UNWEIGHTED:
        raise unsupported(f"operator {name}")
    varying = [i for i, arg in enumerate(args) if _places(arg)]
    weighted = [args[i] for i in _WEIGHTED.get(name, ((), ()))[0] if i < len(args)]
    together = len(_places(weighted)) > 1 and name != "mul"
    if (name in _ONLY_FIRST and varying != [0]) or together:
        raise unsupported(f"operator {name} of values that all depend on the input")
    if name == "batch_norm" and args[5]:
        raise unsupported("batch normalisation by the statistics of the batch")
    given = [key for key, value in kwargs.items() if value is not None]
    if name not in _CASTS and given and (given != ["alpha"] or name in ("addmm", "rsub")):
        raise unsupported(f"operator {name} with {', '.join(given)}")


def _overwrites_its_own(item: Any) -> bool:
    """Whether what an operator overwrites is a new tensor, and nothing else reads it."""
    first = item.args[0]
    return len(first.users) == 1 and _name(first).rstrip("_") in {*_WEIGHTED, *RULES, *_FRESH}


def _output(outputs: list[Any], nodes: list[Node]) -> int:
    """The node of the scores."""
    if len(outputs) != 1 or not isinstance(outputs[0], At):
        raise unsupported("a network whose last step is not its only output")
    shape = nodes[outputs[0].node].shape
    if len(shape) != 2 or shape[0] != 1:
        raise unsupported(f"scores of shape {shape[1:]} a row; expected one score a class")
    return outputs[0].node


@dataclass(frozen=True)
class _Writer:
    """See `forms.Write`."""

    nodes: list[Node]
    device: torch.device
    dtype: torch.dtype

    def cast(self, value: Any) -> Any:
        floating = isinstance(value, Tensor) and value.is_floating_point()
        return value.to(self.dtype) if floating else value

    def shape(self, value: Any) -> tuple[int, ...]:
        return self.nodes[value.node].shape if isinstance(value, At) else tuple(value.shape)

    def taken(self, x: At, names: Collection[str]) -> tuple[str, At] | None:
        node = self.nodes[x.node]
        return (node.operator, At(node.parents[0])) if node.operator in names else None

    def lines(self, x: At) -> dict[At, tuple[float, float]]:
        found, slope, at_0 = {x: (1.0, 0.0)}, 1.0, 0.0
        node = self.nodes[x.node]
        while isinstance(node.affine, Elementwise) and len(node.parents) == 1:
            scale = node.affine.scales[0]
            shift = torch.zeros_like(scale) if node.at_0 is None else node.at_0
            one, other = scale.flatten()[0], shift.flatten()[0]
            if not bool((scale == one).all() & (shift == other).all()):
                break
            slope, at_0 = slope * float(one), at_0 + slope * float(other)
            found[At(node.parents[0])] = slope, at_0
            node = self.nodes[node.parents[0]]
        return found

    def rule(self, name: str, rule: Rule, x: At) -> At:
        made = rule.value(self._zeros(x.node))
        return self._append(Node(name, (x.node,), tuple(made.shape), rule.value, rule))

    def __call__(self, target: Any, *args: Any, **kwargs: Any) -> At:
        name = _called(target).rstrip("_")
        if name in RULES:
            if name == "prelu":  # a slope a channel, the second axis
                axes = len(self.shape(args[0])) - 2
                args = (args[0], args[1].view(-1, *[1] * axes))
            return self.rule(name, RULES[name](*args[1:], **kwargs), args[0])
        parents = tuple(dict.fromkeys(_places((args, kwargs))))
        zeros = [self._zeros(i) for i in parents]
        shapes, ones = tuple(tuple(one.shape) for one in zeros), [zero + 1 for zero in zeros]
        if name in _CASTS:
            return self._append(
                Node(name, parents, shapes[0], torch.clone, None, Elementwise(tuple(ones)))
            )
        call = _Call(
            getattr(getattr(torch.ops.aten, name), target._overloadname), args, kwargs, parents
        )
        at_0 = call(*zeros)
        shape = tuple(at_0.shape)
        return self._append(
            Node(
                name,
                parents,
                shape,
                call,
                None,
                _affine(name, call, shape, shapes, ones),
                at_0 if bool((at_0 != 0).any()) else None,
                _sized(name, call, abs, lambda shift: shift * 0),
                _sized(name, call, abs, abs)(*zeros),
                _terms(name, call, ones),
            )
        )

    def _zeros(self, node: int) -> Tensor:
        return torch.zeros(self.nodes[node].shape, dtype=self.dtype, device=self.device)

    def _append(self, node: Node) -> At:
        self.nodes.append(node)
        return At(len(self.nodes) - 1)


def _affine(
    name: str, call: _Call, shape: tuple[int, ...], shapes: tuple[Any, ...], ones: list[Tensor]
) -> Affine:
    """What pulls coefficients back through an operator, the cheapest that does."""
    if name in _RESHAPES:
        return Reshape(shape, shapes[0])
    if name in _ELEMENTWISE and all(one == shape for one in shapes):
        _, pull, *_ = torch.func.vjp(call, *(one * 0 for one in ones))
        return Elementwise(tuple(pull(torch.ones_like(ones[0]))))
    if name == "linear":
        return Linear(call.args[1], shape)
    if name in ("conv1d", "conv2d", "conv3d") and len(shape) == call.args[1].ndim:
        weight, given = call.args[1], list(call.args[3:])
        *options, groups = given + list(_CONVOLUTION[len(given) :])
        if not isinstance(options[1], str):
            axes = len(shape) - 2
            stride, padding, dilation = (tuple(part) * (axes // len(part)) for part in options)
            return Convolution(weight, stride, padding, dilation, groups, shape, shapes[0])
    return General(call, shape, shapes, ones[0].dtype)


@dataclass(frozen=True, repr=False)  # vmap writes down what it calls, all weights included
class _Call:
    """An operator as a function of the values of nodes, its other arguments given."""

    operator: Callable[..., Tensor]
    args: Any
    kwargs: Any
    parents: tuple[int, ...]

    def __call__(self, *given: Tensor) -> Tensor:
        def fill(leaf: Any) -> Any:
            return given[self.parents.index(leaf.node)] if isinstance(leaf, At) else leaf

        args, kwargs = tree_map(fill, (self.args, self.kwargs))
        return self.operator(*args, **kwargs)


def _sized(
    name: str, call: _Call, weight: Callable[[Any], Any], shift: Callable[[Any], Any]
) -> _Call:
    """An affine operator with these functions of what multiplies and of what shifts, nothing
    subtracted."""
    weights, shifts = _WEIGHTED.get(name, ((), ()))

    def changed(i: int, leaf: Any) -> Any:
        if not isinstance(leaf, (Tensor, int, float)) or i not in (*weights, *shifts):
            return leaf
        if i in weights:
            return weight(leaf)
        subtracted = name == "batch_norm" and i == 3  # the mean
        return -shift(leaf) if subtracted else shift(leaf)

    args = [tree_map(partial(changed, i), arg) for i, arg in enumerate(call.args)]
    kwargs = {key: weight(value) for key, value in call.kwargs.items() if key == "alpha"}
    without_sign = {"sub": torch.add, "rsub": torch.add, "neg": torch.clone}
    return replace(call, operator=without_sign.get(name, call.operator), args=args, kwargs=kwargs)


def _terms(name: str, call: _Call, ones: list[Tensor]) -> Callable[..., Tensor] | None:
    """How many terms an entry of an affine operator's result sums at most, of which entries of its
    parents may not be 0."""
    if name in _WEIGHTED and name not in _MOVES:
        return _sized(name, call, lambda weight: weight**0 * (weight != 0), lambda shift: shift * 0)
    if name not in _SUMS:
        return None
    made = call(*ones)
    window = prod(call.args[1]) if name.startswith("avg_pool") else 1
    # windows of an adaptive pool may overlap
    most = max(2 * sum(map(torch.numel, ones)) / made.numel(), window) + 1
    return lambda *_: torch.full_like(made, most)
