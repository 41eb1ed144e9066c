"""The user's own code: what `path/file.py:name` or `package.module:name` names. Finding it runs
it."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any

from holdfast.errors import HoldfastError, InputError, suggest

_FILE = "holdfast_user_"  # how the modules of files are called
# where the module of a file holds the file's place and bytes as it was run
_CONTENT = "__holdfast_content__"


def find(spec: str) -> Callable[..., Any]:
    """The callable that `spec` names. Modules are looked up from the current folder, too.

    Raises:
        InputError: no such file, module or name; or the code raised while it was loaded.
    """
    where, _, name = spec.rpartition(":")
    where = os.path.expanduser(where)
    with importable(home(spec)):
        module = run_file(Path(where)) if where.endswith(".py") else _import(where)
    item = getattr(module, name, None)
    if not callable(item):
        public = [
            word
            for word, value in vars(module).items()
            if callable(value) and not word.startswith("_")
        ]
        raise InputError(f"{where} has no callable {name!r}; {suggest(name, public)}")
    return item


def call(what: str, function: Callable[..., Any], *args: Any) -> Any:
    """Call the user's code; whatever it raises becomes one sentence that names the place."""
    with guarded(what):
        return function(*args)


@contextmanager
def guarded(what: str) -> Iterator[None]:
    """Within, the user's own code runs: whatever it raises becomes one sentence that names the
    place.

    Ctrl-C, running out of memory and Holdfast's own errors go through as they are.

    Raises:
        InputError: it raised, or asked the process to end.
    """
    try:
        yield
    except (HoldfastError, KeyboardInterrupt, MemoryError):
        raise
    except BaseException as error:  # the user's own code may raise anything, SystemExit too
        raise raised(what, error) from error


def raised(what: str, error: BaseException) -> InputError:
    """What the user's code raised, as one sentence."""
    frame = _own_frame(error)
    where = "" if frame is None else f" ({frame.filename}:{frame.lineno})"
    if isinstance(error, SystemExit):
        return InputError(
            f"{what} raised SystemExit: {error.code}, as sys.exit() does{where}. That would end "
            "the program without a "
            f"result: let it return a value, or raise an exception that says what is wrong."
        )
    text = (str(error).strip().splitlines() or ["no message"])[0].rstrip(".")
    return InputError(f"{what} raised {type(error).__name__}: {text}{where}.")


def _own_frame(error: BaseException) -> traceback.FrameSummary | None:
    """The innermost place of an error in the user's code; else the innermost of all."""
    frames = traceback.extract_tb(error.__traceback__)
    libraries = (
        sysconfig.get_path("purelib"),
        sysconfig.get_path("stdlib"),
        os.path.dirname(__file__),
        "<frozen",
    )
    own = [frame for frame in frames if not frame.filename.startswith(libraries)]
    return (own or frames or [None])[-1]


def home(spec: str) -> str:
    """The folder whose modules the code of `spec` may import: its file's own, or the current
    one."""
    where = os.path.expanduser(spec.rpartition(":")[0])
    return str(Path(where).parent.absolute()) if where.endswith(".py") else os.getcwd()


@contextmanager
def importable(folder: str) -> Iterator[None]:
    """Let the code there import its neighbours."""
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        with suppress(ValueError):
            sys.path.remove(folder)


def files() -> list[str]:
    """The files that were run, in their order: what a process of its own has to run too."""
    return [
        str(m.__file__) for name, m in sys.modules.items() if name.startswith(_FILE) and m.__file__
    ]


def stem(module: str) -> str:
    """The name of the file of a module, however it was imported."""
    return module.rpartition(".")[2].removeprefix(_FILE)


def run_file(path: Path) -> ModuleType:
    """The module of a .py file; its classes are found again under its name.

    A file that was run and has not changed is not run again: model and data of one file share its
    classes.
    """
    known = sys.modules.get(f"{_FILE}{path.stem}")
    if known is not None and vars(known).get(_CONTENT) == (str(path.absolute()), _bytes(path)):
        return known
    spec = importlib.util.spec_from_file_location(f"{_FILE}{path.stem}", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise InputError(f"there is no file {path}; expected path/file.py:name.")
    module = importlib.util.module_from_spec(spec)
    vars(module)[_CONTENT] = str(path.absolute()), _bytes(path)
    sys.modules[spec.name] = module  # dataclasses and pickle look their module up by name
    try:
        call(str(path), spec.loader.exec_module, module)
    except InputError:
        del sys.modules[spec.name]  # what did not run is no code of a model
        raise
    return module


def _bytes(path: Path) -> bytes:
    with suppress(OSError):
        return path.read_bytes()
    return b""


def _import(where: str) -> ModuleType:
    try:
        return call(where, importlib.import_module, where)
    except InputError as error:
        cause = error.__cause__
        if not (
            isinstance(cause, ModuleNotFoundError) and f"{where}.".startswith(f"{cause.name}.")
        ):
            raise
    raise InputError(
        f"there is no module {where!r}; expected path/file.py:name or package.module:name."
    )
