"""Checkpoints of torch: the weights among what else they hold, and the names under which frameworks
save them."""

from __future__ import annotations

import copy
import pickle
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import (
    Tensor,
    _utils,  # pyright: ignore[reportPrivateUsage]
)

from holdfast.errors import InputError

_CONTAINERS = (
    "state_dict",
    "model_state_dict",
    "model",
    "net",
    "weights",
    "model_state",
    "ema",
    "state_dict_ema",
    "ema_model_state_dict",
)
_DEEPEST = 4  # containers within each other; a hostile one may hold itself
# parts of a name under which a model is kept a second time
_DUPLICATES = ("ema", "teacher", "attacker")
# what DataParallel and torch.compile put before or between a model's own names
_WRAPPERS = ("module", "_orig_mod")
_NOT_WEIGHTS = frozenset(
    "hyper_parameters datamodule_hyper_parameters hparams hparams_type args config cfg opt "
    "callbacks loops optimizer "
    "optimizer_states lr_scheduler lr_schedulers scheduler".split()
)  # settings and states of a training, which may hold objects
# modules whose objects are settings, wherever
_VALUES = ("numpy", "argparse", "omegaconf", "datetime", "pathlib")
_ALLOWED: dict[tuple[str, str], Any] = (
    {
        ("collections", "OrderedDict"): OrderedDict,
        ("torch", "Size"): torch.Size,
        ("torch", "device"): torch.device,
    }
    | {
        ("torch._utils", name): getattr(_utils, name)
        for name in ("_rebuild_tensor_v2", "_rebuild_parameter")
    }
    | {
        ("torch", str(t).removeprefix("torch.")): t
        for t in (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    }
)


class _Object:
    """In the place of an object of a pickle that was not made: it takes whatever the pickle does to
    it, and does nothing."""

    named = ("", "")

    def __new__(cls, *_: Any, **__: Any) -> _Object:
        return object.__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    __setstate__ = __setitem__ = append = extend = __init__


class _Unpickler(pickle.Unpickler):
    """Reads tensors and plain containers; nothing else that a pickle names is imported, called or
    made."""

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        named = (module_name, global_name)
        return _ALLOWED.get(named) or type("_Object", (_Object,), {"named": named})


def _load(file: Any, **_: Any) -> Any:
    return _Unpickler(file).load()


def without_objects(path: Path) -> dict[str, Any] | None:
    """The weights of a checkpoint whose settings, stored with them, hold objects (as Lightning's
    do); None: it has none.

    Only what lies under the names that training code uses for settings may hold any objects. They
    are never made.
    """
    if not zipfile.is_zipfile(path):
        return None
    reader = SimpleNamespace(__name__="pickle", Unpickler=_Unpickler, load=_load)
    try:
        content = torch.load(path, map_location="cpu", weights_only=False, pickle_module=reader)
    except Exception:  # noqa: BLE001  # a file that needs more than tensors to be read at all
        return None
    if not isinstance(content, dict):
        return None
    kept = {name: value for name, value in content.items() if name not in _NOT_WEIGHTS}
    weights = state_of(kept)
    return None if weights is None or _holds_object(kept) else weights


def _holds_object(value: Any) -> bool:
    kind = value if isinstance(value, type) else type(value)
    if issubclass(kind, _Object):
        return kind.named[0].partition(".")[0] not in _VALUES
    if isinstance(value, Mapping):
        return any(_holds_object(part) for pair in value.items() for part in pair)
    return isinstance(value, (list, tuple, set)) and any(_holds_object(part) for part in value)


def state_of(
    content: Any, others: Collection[str] = (), depth: int = _DEEPEST
) -> dict[str, Tensor] | None:
    """The dict of weights in a checkpoint, under one of the names that people give it; None: there
    is none.

    `others` are the names of what is no tensor in the model's own.
    """
    if not isinstance(content, Mapping) or depth == 0:
        return None
    if content and all(
        isinstance(k, str) and (isinstance(v, Tensor) or k in others) for k, v in content.items()
    ):
        # With the versions of modules that torch keeps with it.
        return copy.copy(content)  # pyright: ignore[reportReturnType]
    return next(
        (
            found
            for key in _CONTAINERS
            if (found := state_of(content.get(key), others, depth - 1)) is not None
        ),
        None,
    )


def fitted(weights: dict[str, Tensor], own: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Weights under a model's own names, where they only differ in what wrappers put before them.

    `module.` and `_orig_mod.` go wherever they are; then one prefix (`model.`, `net.`,
    `backbone.`) under which every weight of the model lies. What lies next to it belongs to other
    parts, such as a loss.

    Raises:
        InputError: the model's weights lie under several prefixes, as those of an average
            next to the trained ones do.
    """
    if not own or own.keys() <= weights.keys():
        return weights
    bare = {_bare(name): value for name, value in weights.items()}
    names = {_bare(name): name for name in own}
    if len(bare) < len(weights) or len(names) < len(own):
        return weights
    if not names.keys() <= bare.keys():
        prefixes = _prefixes(names, bare)
        if len(prefixes) > 1:
            prefixes = [
                p for p in prefixes if not any(word in p.lower() for word in _DUPLICATES)
            ] or prefixes
        if len(prefixes) > 1:
            raise InputError(
                f"{path} holds the model's weights {len(prefixes)} times, under "
                f"{', '.join(prefixes)}; save the state_dict of one of them alone."
            )
        if prefixes:
            start = prefixes[0]
            bare = {
                name.removeprefix(start): value
                for name, value in bare.items()
                if name.startswith(start)
            }
        else:  # the other way: the model is wrapped, and the weights are those of what is inside
            first = next(iter(names)).partition(".")[0] + "."
            inner = {
                name.removeprefix(first): own_name
                for name, own_name in names.items()
                if name.startswith(first)
            }
            if len(inner) == len(names) and inner.keys() <= bare.keys():
                names = inner
    if not names.keys() & bare.keys():
        return weights
    return {names.get(name, name): value for name, value in bare.items()}


def _prefixes(names: Iterable[str], bare: Mapping[str, Any]) -> list[str]:
    """What comes before each of these names in `bare`."""
    weights = [name for name in names if not name.endswith("num_batches_tracked")]
    if not weights:
        return []
    ends = [name.removesuffix(weights[0]) for name in bare if name.endswith(f".{weights[0]}")]
    return [start for start in ends if all(start + name in bare for name in weights)]


def nearest(weights: Iterable[str], own: Collection[str]) -> str | None:
    """What stands before most of a model's own names in those of a checkpoint, in words; None:
    before none."""
    required = {_bare(name) for name in own}
    parts = [_bare(name).split(".") for name in weights]
    ends = [(".".join(p[:i]), ".".join(p[i:])) for p in parts for i in range(1, len(p))]
    found = Counter(start for start, end in ends if end in required)
    if not found:
        return None
    (start, count), *_ = found.most_common(1)
    return f"without {start}. {count} of {len(required)} names are the model's"


def _bare(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)
