"""What frameworks print on standard error for themselves is kept out of what a command prints. The
command line alone asks for it: it changes the environment and imports of the whole process, which
no library may do."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import logging
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

# print from native code while they are imported
NOISY = ("tensorflow", "onnxruntime", "jax", "lightgbm")
# Of TensorFlow (and of absl, which it logs with): errors alone. One that the user has set stays.
_ENVIRONMENT = {"TF_CPP_MIN_LOG_LEVEL": "3", "ABSL_MIN_LOG_LEVEL": "2", "GLOG_minloglevel": "2"}


def silence_frameworks() -> None:
    """From now on frameworks print errors alone in this process and its children."""
    if _silenced():
        return
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    for name in ("tensorflow", "absl", "jax"):
        logging.getLogger(name).setLevel(logging.ERROR)
    sys.meta_path.insert(0, _QuietImports())


@contextmanager
def native_output() -> Iterator[None]:
    """Within, what native code writes to standard error is dropped, if `silence_frameworks` was
    called.

    TensorFlow, TFLite and onnxruntime have no setting for some of their lines. Where the code
    within raises, what was written is printed after all, as it may say why.
    """
    # None: the command was started with standard error closed
    if not _silenced() or sys.stderr is None:
        yield
        return
    sys.stderr.flush()
    with tempfile.TemporaryFile() as written:
        real = os.dup(2)
        os.dup2(written.fileno(), 2)
        try:
            yield
        except BaseException:
            sys.stderr.flush()
            written.seek(0)
            os.write(real, written.read())
            raise
        finally:
            sys.stderr.flush()
            os.dup2(real, 2)
            os.close(real)


def _silenced() -> bool:
    return any(isinstance(finder, _QuietImports) for finder in sys.meta_path)


class _QuietImports(importlib.abc.MetaPathFinder):
    """Finds the noisy modules as Python does, and imports them within `native_output`; the user's
    code does it too."""

    def __init__(self) -> None:
        self.left = set(NOISY)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in self.left:
            return None
        self.left.remove(fullname)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            loader: Any = spec.loader
            loader.exec_module = native_output()(loader.exec_module)
        return spec
