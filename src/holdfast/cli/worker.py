"""A worker: one command on shard after shard, with model and data opened once.

As a process it is told what to run by a line on its standard input, and each shard by a further
one; it ends when that input does, so that none outlives who started it.
"""

from __future__ import annotations

import base64
import json
import os
import pickle
import platform
import queue
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from holdfast import memory, quiet
from holdfast.cli import options, writing
from holdfast.cli.command import MISTAKES, Action, ending, with_shared_options

if TYPE_CHECKING:
    from holdfast.data import Source
    from holdfast.evaluation.chunk import OnProgress
    from holdfast.targets.target import Target
    from holdfast.threats.threat import Threat

    Opened = tuple[Target, Source, Threat | str, tuple[int, int]]

Answer = tuple[str, Any]  # `what` and `said` of an `Event` of `cli/dispatch.py`


@dataclass(frozen=True)
class Job:
    """What all workers of a run do; it can be pickled."""

    command: Action  # as it is written, without what is done to every command
    given: dict[str, Any]  # its options
    argv: list[str]
    folder: str  # where it was typed

    def open(self) -> Answer:
        """Open model and data, for this process to keep; the rows that are asked for."""
        return _answered("ready", self._open)

    def measure(self, shard: dict[str, Any], on_progress: OnProgress) -> Answer:
        """Run the command with the options of a shard."""
        writing.listener = on_progress
        whole = with_shared_options(self.command)
        return _answered("done", lambda: whole(**self.given | shard))

    def identity(self) -> tuple[dict[str, str], tuple[int, int]]:
        """What has to be equal on all machines, by name; and the rows that are asked for."""
        import torch

        from holdfast.evaluation.prepare import prepare
        from holdfast.version import VERSION

        target, source, threat, rows = self._opened()
        ready = prepare(target, source, threat, "none", samples=rows)
        same = {
            "Holdfast": VERSION,
            "Python": platform.python_version(),
            "torch": torch.__version__,
            **ready.target.identity.versions,
            "the model": ready.target.fingerprint()[:16],
            "the data": ready.source.fingerprint()[:16],
        }
        return same, rows

    def _open(self) -> tuple[int, int]:
        os.chdir(self.folder)
        sys.argv = self.argv
        quiet.silence_frameworks()
        memory.manage()
        target, source, _, rows = self._opened()
        options.opened = target, source
        return rows

    def _opened(self) -> Opened:
        return with_shared_options(_open)(**{"surrogate": None, **self.given})  # pyright: ignore


def _open(
    model: options.Model,
    data: options.Data,
    *,
    adversary: options.ThreatOptions,
    access: options.AccessOptions,
    how: options.ModelOptions,
    rows: options.DataOptions,
    part: options.PartOptions,
) -> Any:
    from holdfast.evaluation.prepare import rows_asked

    target, source = options.open_attacked(model, data, how, rows, **access)
    asked = options.rows_to_measure(source, **part)
    threat = options.open_threat(**adversary)
    return target, source, threat, rows_asked(asked, len(source), source.name)


def _answered(what: str, work: Callable[[], Any]) -> Answer:
    """What came of it; refused where a user has made a mistake. A disk or network that fails may
    work the next time: the shard has failed."""
    try:
        return what, work()
    except KeyboardInterrupt:
        raise
    except MISTAKES as error:
        said = ending(error)[1].removeprefix("error: ")
        return "died" if isinstance(error, OSError) else "refused", said


def main() -> None:
    # written by the process that started this one
    job: Job = pickle.loads(base64.b64decode(sys.stdin.readline()))
    shards: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(shards,), daemon=True).start()
    line, sys.stdout = sys.stdout, sys.stderr  # what frameworks print is not for the listener

    def say(what: str, said: Any) -> None:
        print(json.dumps((what, said)), file=line, flush=True)

    say(*job.open())
    while True:
        say(*job.measure(shards.get(), lambda p: say("progress", p)))


def _listen(shards: queue.SimpleQueue[dict[str, Any]]) -> None:
    for line in sys.stdin:
        shards.put(json.loads(line))
    os._exit(0)


if __name__ == "__main__":
    main()
