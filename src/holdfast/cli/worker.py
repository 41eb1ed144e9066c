"""A worker: one command on shard after shard, with model and data opened once.

As a process it is given each shard through a line that ends when who started it does, so that none
outlives that one.
"""

from __future__ import annotations

import os
import platform
import queue
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from holdfast import memory, quiet
from holdfast.cli import options, writing
from holdfast.cli.command import MISTAKES, Action, ending, with_shared_options

if TYPE_CHECKING:
    from holdfast.data import Source
    from holdfast.evaluation.chunk import OnProgress
    from holdfast.evaluation.estimate import Forecast
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

    def measure(
        self,
        shard: dict[str, Any],
        on_progress: OnProgress,
        on_estimate: Callable[[Forecast], None] | None = None,
    ) -> Answer:
        """Run the command with the options of a shard."""
        writing.listener, writing.estimated = on_progress, on_estimate
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
    seed: options.Seed = 0,
) -> Any:
    from holdfast.evaluation.prepare import rows_asked

    rows |= options.drawn(part, seed)
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


def main(job: Job, line: Connection, held: Sequence[Connection], threads: int, log: Path) -> None:
    """A worker that is a process, until `line` ends.

    Args:
        held: ends of others' lines, which this process has without need.
        threads: of torch and of what else reads OMP_NUM_THREADS.
        log: where all that is printed goes.
    """
    for other in held:
        other.close()
    sys.stdout = sys.stderr = log.open("w", buffering=1)
    for standard in (1, 2):
        os.dup2(sys.stderr.fileno(), standard)
    os.environ["OMP_NUM_THREADS"] = str(threads)
    quiet.silence_frameworks()
    memory.manage()
    import torch

    from holdfast.evaluation import probing

    torch.set_num_threads(threads)
    queues: dict[str, queue.SimpleQueue[Any]] = {
        what: queue.SimpleQueue() for what in ("shard", "answer")
    }
    threading.Thread(target=_listen, args=(line, queues), daemon=True).start()

    def once(work: Callable[[], Any]) -> Any:
        line.send(("asks", None))
        if (found := queues["answer"].get()) is None:  # no worker has begun it
            found = work()
            line.send(("found", found))
        return found

    probing.once = once
    line.send(job.open())
    while True:
        shard, estimates = queues["shard"].get()
        on_estimate = (lambda cost: line.send(("estimate", cost))) if estimates else None
        line.send(job.measure(shard, lambda p: line.send(("progress", p)), on_estimate))


def _listen(line: Connection, queues: dict[str, queue.SimpleQueue[Any]]) -> None:
    with suppress(EOFError, OSError):
        while True:
            what, said = line.recv()
            queues[what].put(said)
    os._exit(0)
