"""Workers as processes of this machine."""

from __future__ import annotations

import base64
import json
import os
import pickle
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from holdfast.cli.dispatch import Event
from holdfast.cli.worker import Job

if TYPE_CHECKING:
    from holdfast.evaluation.shards import Shard


class Processes:
    """The engine of `--workers N`: see `cli/dispatch.py`."""

    def __init__(
        self,
        job: Job,
        workers: int,
        options_of: Callable[[Shard, bool], dict[str, Any]],
        work: Path,
    ) -> None:
        self.job, self.workers, self.options_of, self.work = job, workers, options_of, work
        self.processes: dict[int, subprocess.Popen[str]] = {}
        self.listeners: list[threading.Thread] = []
        self.happened: queue.SimpleQueue[tuple[subprocess.Popen[str], Event]] = queue.SimpleQueue()

    def start(self, worker: int) -> None:
        if worker in self.processes:
            self.processes[worker].kill()
        paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
        threads = str(max(1, (os.cpu_count() or 1) // self.workers))
        with self._errors(worker).open("wb") as stderr:
            process = self.processes[worker] = subprocess.Popen(
                [sys.executable, "-m", "holdfast.cli.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": threads},
                text=True,
            )
        job = replace(self.job, given=self.job.given | self._device(worker))
        self._tell(worker, base64.b64encode(pickle.dumps(job)).decode())
        self.listeners.append(threading.Thread(target=self._listen, args=(worker, process)))
        self.listeners[-1].start()

    def give(self, worker: int, shard: Shard, *, again: bool) -> None:
        self._tell(worker, json.dumps(self.options_of(shard, again)))

    def events(self) -> Iterator[Event]:
        with suppress(queue.Empty):
            process, event = self.happened.get(timeout=0.2)
            while True:
                if process is self.processes[event.worker]:  # and not what was before it
                    yield event
                process, event = self.happened.get_nowait()

    def stop(self) -> None:
        for process in self.processes.values():
            process.kill()
        for listener in self.listeners:
            listener.join()

    def _tell(self, worker: int, line: str) -> None:
        stdin = self.processes[worker].stdin
        assert stdin is not None
        with suppress(BrokenPipeError):  # of one that died at once
            stdin.write(line + "\n")
            stdin.flush()

    def _listen(self, worker: int, process: subprocess.Popen[str]) -> None:
        from holdfast.evaluation.chunk import Progress

        assert process.stdout is not None
        with process:
            for line in process.stdout:
                what, said = json.loads(line)
                if what == "progress":
                    said = Progress(*said)
                self.happened.put((process, Event(worker, what, said)))
            code = process.wait()
        said = self._errors(worker).read_text(errors="replace").strip().splitlines()
        why = f"code {code}: {(said or ['it said nothing'])[-1]}"
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


@contextmanager
def processes(
    job: Job, workers: int, options_of: Callable[[Shard, bool], dict[str, Any]]
) -> Iterator[Processes]:
    """The engine, whose processes end with the block."""
    with tempfile.TemporaryDirectory(prefix="holdfast-") as work:
        engine = Processes(job, workers, options_of, Path(work))
        try:
            yield engine
        finally:
            engine.stop()
