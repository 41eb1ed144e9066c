"""Models from files. Safe by default: nothing in a file of weights is run unless the user says
so."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from torch import nn

from holdfast import usercode
from holdfast.errors import InputError
from holdfast.targets.demo import demo_model
from holdfast.targets.registry import frameworks, of_file


def load(
    spec: str, *, arch: str | None = None, trust: bool = False, output: str | int | None = None
) -> Any:
    """The model that a command line names.

    Args:
        spec: a file of weights (with `arch`), a file or folder that one of the `frameworks` reads,
            `path/file.py:factory`, `package.module:factory`, or `demo`. A factory is called without
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
    framework = of_file(path)
    if framework is not None:
        if arch is not None and not path.name.lower().endswith(framework.weights):
            raise InputError(
                f"{path} holds a whole model, so --arch {arch} says nothing; leave it out."
            )
        return framework.load(path, arch=arch, trust=trust, output=output)
    where, _, name = spec.rpartition(":")
    if where and name.isidentifier():
        return made(spec, callables=True)
    suffixes = [suffix for framework in frameworks() for suffix in framework.suffixes if suffix]
    raise InputError(
        f"there is no model {spec!r}: expected a file of weights or of a whole model "
        f"({', '.join(suffixes)}), a SavedModel folder, path/file.py:factory, "
        f"package.module:factory, or demo."
    )


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
        if isinstance(found, nn.Module) or (callables and _is_model(found)):
            return found
        return usercode.call(spec, found)


def _is_model(found: Any) -> bool:
    """Whether a function asks for one argument that it must have: the inputs."""
    try:
        parameters = inspect.signature(found).parameters.values()
    except (TypeError, ValueError):
        return False
    must = [
        p
        for p in parameters
        if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    return len(must) == 1 and not inspect.isclass(found)
