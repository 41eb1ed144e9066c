"""Run folders on any store that fsspec reaches: work goes on in a local copy.

A file of a store is there whole or not at all, and `run.json` goes up last: a folder that holds it
is finished.
"""

from __future__ import annotations

import atexit
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath

from holdfast.errors import HoldfastError, InputError
from holdfast.runs.store import NOTES
from holdfast.urls import downloaded, named, place, reaching, store_at

EVERY = 30.0  # seconds between two uploads of what is new


def fetched(folder: Path | str) -> Path:
    """A folder to read: a local one as it is; of a URL a copy, which goes when Python ends.

    Raises:
        InputError: the store cannot be reached or read.
    """
    at = place(folder)
    if isinstance(at, Path):
        return at
    copy = _Copy(at)
    copy.come_down()
    return copy.folder


@contextmanager
def mirrored(folder: Path | str) -> Iterator[Path]:
    """A folder to work in: a local one as it is; of a URL a copy, as `fetched`, whose new files go
    up from time to time, and at the end, however it comes.

    Raises:
        InputError: the store cannot be reached or written: before anything is done; or at the end,
            and then the copy is kept and named.
    """
    at = place(folder)
    if isinstance(at, Path):
        yield at
        return
    copy = _Copy(at)
    copy.check_writable()
    copy.come_down()
    try:
        with copy.going_up():
            yield copy.folder
    except HoldfastError as error:
        raise type(error)(named(error)) from error


class _Copy:
    """A local copy of a folder of a store."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.fs, self.root = store_at(url)
        self.temporary = Path(tempfile.mkdtemp(prefix="holdfast-"))
        atexit.register(self._remove)
        self.folder = self.temporary / (PurePosixPath(self.root).name or "run")
        self.known: dict[str, tuple[int, int]] = {}  # what is alike on both sides, as it is here
        downloaded[str(self.folder)] = url

    def _remove(self) -> None:
        shutil.rmtree(self.temporary, ignore_errors=True)

    def check_writable(self) -> None:
        mark = self.temporary / ".holdfast"
        mark.touch()
        with reaching(self.url, "write"):
            self.fs.put_file(str(mark), f"{self.root}/{mark.name}")
            self.fs.rm_file(f"{self.root}/{mark.name}")

    def come_down(self) -> None:
        with reaching(self.url, "read"):
            for path in self.fs.find(self.root):
                name = path.removeprefix(f"{self.root}/")
                # a name of a store may be any text, and must not lead out of the copy
                pure = PurePosixPath(name)
                if path == self.root or pure.is_absolute() or ".." in pure.parts:
                    raise InputError(f"{self.url} holds {name}, which is no file of a run.")
                (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
                self.fs.get_file(path, str(self.folder / name))
        self.known = self._here()

    def _here(self) -> dict[str, tuple[int, int]]:
        """The files of the copy: when they were changed, and their sizes."""
        paths = [p for p in self.folder.rglob("*") if p.suffix != ".part" and p.is_file()]
        states = {path.relative_to(self.folder).as_posix(): path.stat() for path in paths}
        return {name: (state.st_mtime_ns, state.st_size) for name, state in states.items()}

    def go_up(self) -> None:
        """Make the store like the copy. Whenever this is cut short, what is there is no finished
        run, or a whole one; and one to go on with, or none that was begun."""
        here = self._here()
        changed = [name for name, state in here.items() if self.known.get(name) != state]
        gone = self.known.keys() - here.keys()
        with reaching(self.url, "write"):
            for name in [name for name in {*changed, *gone} & self.known.keys() if _ends(name)]:
                self._drop(name)
            for name in sorted(changed, key=lambda name: (_ends(name), not _begins(name))):
                self.fs.put_file(str(self.folder / name), f"{self.root}/{name}")
                self.known[name] = here[name]
            for name in sorted(gone & self.known.keys(), key=_begins, reverse=True):
                self._drop(name)

    def _drop(self, name: str) -> None:
        self.fs.rm_file(f"{self.root}/{name}")
        del self.known[name]

    @contextmanager
    def going_up(self) -> Iterator[None]:
        """Upload every `EVERY` seconds what is new, and all of it in the end."""
        done = threading.Event()

        def go_up_often() -> None:
            while not done.wait(EVERY):
                with suppress(InputError, OSError):  # the next time, or the last
                    self.go_up()

        thread = threading.Thread(target=go_up_often, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
            self._go_up_last()

    def _go_up_last(self) -> None:
        try:
            self.go_up()
        except InputError as error:
            atexit.unregister(self._remove)
            del downloaded[str(self.folder)]
            raise InputError(
                f"{error} What was computed is kept in {self.folder}: copy it there; a command "
                "that takes --resume goes on with it as --out."
            ) from error


def _ends(name: str) -> bool:
    """Whether a file says that a run is finished."""
    return PurePosixPath(name).name == "run.json"


def _begins(name: str) -> bool:
    """Whether a file says that a run was begun."""
    return PurePosixPath(name).name in NOTES
