"""Workers as processes of this machine."""

from __future__ import annotations

import multiprocessing
import os
import queue
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from holdfast.cli import worker as workers
from holdfast.cli.dispatch import Event

if TYPE_CHECKING:
    from holdfast.evaluation.shards import Shard


_CARDS = "/dev/nvidiactl", "/dev/kfd"  # what drivers of Nvidia and AMD make


class Processes:
    """The engine of `--workers N`: see `cli/dispatch.py`. What is asked for all rows, as what the
    probe finds, the first worker that needs it finds out, and the others are given it."""

    def __init__(
        self,
        job: workers.Job,
        number: int,
        options_of: Callable[[Shard, bool], dict[str, Any]],
        work: Path,
    ) -> None:
        self.job, self.workers, self.options_of, self.work = job, number, options_of, work
        self.kind: Any = multiprocessing.get_context("fork" if _may_fork() else "spawn")
        self.processes: dict[int, Any] = {}
        self.lines: dict[int, Connection] = {}
        self.listeners: list[threading.Thread] = []
        self.happened: queue.SimpleQueue[tuple[Any, Event]] = queue.SimpleQueue()
        self.estimates = not job.given["resume"]  # the next shard has its cost estimated
        self.found: Any = None  # what was asked for all rows
        self.finding: int | None = None  # the worker that finds it out, and those that wait for it
        self.waiting: list[int] = []

    def start(self, worker: int) -> None:
        if worker in self.processes:
            self.processes[worker].kill()
        threads = max(1, (os.cpu_count() or 1) // self.workers)
        job = replace(self.job, given=self.job.given | self._device(worker))
        line, its = self.kind.Pipe()
        # a forked worker must let go of these, or they do not end when this process does
        held = [*self.lines.values(), line] if self.kind.get_start_method() == "fork" else []
        given = (job, its, held, threads, self._errors(worker))
        process = self.kind.Process(target=workers.main, args=given)
        process.start()
        its.close()
        self.processes[worker], self.lines[worker] = process, line
        self.listeners.append(threading.Thread(target=self._listen, args=(worker, process, line)))
        self.listeners[-1].start()

    def give(self, worker: int, shard: Shard, *, again: bool) -> None:
        self._send(worker, "shard", (self.options_of(shard, again), self.estimates))
        self.estimates = False

    def events(self) -> Iterator[Event]:
        with suppress(queue.Empty):
            process, event = self.happened.get(timeout=0.2)
            while True:
                if process is self.processes[event.worker]:  # and not what was before it
                    self._share(event)
                    if event.what not in ("asks", "found"):
                        yield event
                process, event = self.happened.get_nowait()

    def stop(self) -> None:
        for process in self.processes.values():
            process.kill()
        for listener in self.listeners:
            listener.join()

    def _share(self, event: Event) -> None:
        """Have one worker find out what several ask for, and give them what it found."""
        if event.what == "asks":
            self.waiting.append(event.worker)
        elif event.what == "found":
            self.found = event.said
        elif event.what == "died":
            self.waiting = [worker for worker in self.waiting if worker != event.worker]
            if self.finding == event.worker:
                self.finding = None
        if self.found is None and self.finding is None and self.waiting:
            self.finding = self.waiting.pop(0)
            self._send(self.finding, "answer", None)
        while self.found is not None and self.waiting:
            self._send(self.waiting.pop(), "answer", self.found)

    def _send(self, worker: int, what: str, said: Any) -> None:
        with suppress(BrokenPipeError):  # of one that died at once
            self.lines[worker].send((what, said))

    def _listen(self, worker: int, process: Any, line: Connection) -> None:
        with suppress(EOFError, OSError):
            while True:
                self.happened.put((process, Event(worker, *line.recv())))
        process.join()
        said = self._errors(worker).read_text(errors="replace").strip().splitlines()
        why = f"code {process.exitcode}: {(said or ['it said nothing'])[-1]}"
        self.happened.put((process, Event(worker, "died", why)))

    def _errors(self, worker: int) -> Path:
        return self.work / f"stderr{worker}"

    def _device(self, worker: int) -> dict[str, str]:
        """A CUDA device of its own, where there are several."""
        if self.job.given["device"] not in ("auto", "cuda"):
            return {}
        import torch

        devices = torch.cuda.device_count()
        return {"device": f"cuda:{worker % devices}"} if devices > 1 else {}


def _may_fork() -> bool:
    """Whether workers may be forked off: not with a card, nor where torch may have threads already.
    Then what they and the join of their shards need is imported here, once for all."""
    if sys.platform != "linux" or "torch" in sys.modules or any(map(os.path.exists, _CARDS)):
        return False
    import holdfast.certification
    import holdfast.evaluation.merge
    import holdfast.reporting.html  # noqa: F401

    return True


@contextmanager
def processes(
    job: workers.Job, number: int, options_of: Callable[[Shard, bool], dict[str, Any]]
) -> Iterator[Processes]:
    """The engine, whose processes end with the block."""
    with tempfile.TemporaryDirectory(prefix="holdfast-") as work:
        engine = Processes(job, number, options_of, Path(work))
        try:
            yield engine
        finally:
            engine.stop()
