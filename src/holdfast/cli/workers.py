"""`--workers N`: the shards of one run, each measured by a process of its own on this machine.

Each worker runs the command as it was given, on its shard (see `cli/worker.py`), and says how far
it is. One that dies is started again, and goes on where it was.
"""

from __future__ import annotations

import base64
import functools
import inspect
import json
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
import threading
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Annotated, Any

from holdfast.cli import options, writing
from holdfast.cli.command import Action
from holdfast.errors import InputError

TRIES = 3  # how often a shard may end its worker before it is given up
REFUSED, FINISHED = 2, (0, 3)  # exit codes of a command without gates that came to its end

Workers = Annotated[
    int,
    options.about_run(
        min=1,
        max=1024,
        help="Processes that share the rows, on cores or on one CUDA device each.",
        metavar="N",
    ),
]


def with_workers(name: str, command: Action) -> Action:
    """A command that measures rows, with the option `--workers`."""

    @functools.wraps(command)
    def run(*, workers: int = 1, **given: Any) -> int:
        return command(**given) if workers == 1 else _shared(name, command, workers, given)

    own = inspect.signature(command).parameters.values()
    more = inspect.Parameter(
        "workers", inspect.Parameter.KEYWORD_ONLY, default=1, annotation=Workers
    )
    run.__signature__ = inspect.Signature([*own, more])  # pyright: ignore
    return run


def _shared(name: str, command: Action, workers: int, given: dict[str, Any]) -> int:
    """Measure in so many workers, join their shards, and conclude as the command does."""
    from holdfast.cli.evaluate import conclude
    from holdfast.evaluation.merge import merge
    from holdfast.evaluation.shards import shards_of
    from holdfast.runs import gates
    from holdfast.runs.run import Run

    conditions = [gates.parse(text) for text in given["gate"] or ()]
    if given["shard"] is not None:
        raise InputError(
            f"--shard {given['shard']} is one part of the rows, and --workers {workers} would "
            "share all of them; give one of both."
        )
    kind = "custom" if given.get("attack") else given.get("protocol", name)
    what = f"{given['threat']}-{kind}"
    folder = options.folder_of(given["model"], what, out=given["out"], resume=given["resume"])
    parts = folder.with_name(f"{folder.name}.shards")
    if given["resume"] and (folder / "run.json").exists() and not parts.exists():
        return command(**given)  # which sees that nothing is left, or that something else is asked
    _check_free(folder, parts, workers, resume=given["resume"])
    asked = given | {"out": parts, "gate": None, "json": False}
    with writing.resumable(folder):
        try:
            _Workers(name, asked, workers).run()
        except InputError:
            with suppress(OSError):  # where nothing is kept in it
                parts.rmdir()
            raise
    shutil.rmtree(folder, ignore_errors=True)  # of a run that time cut short, and that went on
    run = merge(parts, folder)
    strict = given.get("strict", False)
    code = conclude(run, conditions, strict=strict, json=given["json"])
    shards = shards_of(parts)
    if not any(Run(shard).unfinished for shard in shards):
        for shard in shards:
            shutil.rmtree(shard)
        with suppress(OSError):  # where something else lies there
            parts.rmdir()
    return code


def _check_free(folder: Path, parts: Path, workers: int, *, resume: bool) -> None:
    """Refuse a folder that holds anything but the same run, unfinished.

    Raises:
        InputError: it does.
    """
    from holdfast.evaluation.shards import Shard, shards_in
    from holdfast.runs.journal import Journal, refuse_taken

    if not parts.exists():
        refuse_taken(folder)
        if Journal(folder).begun:
            raise InputError(
                f"{folder} holds an unfinished run of one process; go on with it by --resume and "
                "without --workers, or choose another --out."
            )
        return
    if not resume:
        raise InputError(
            f"{parts} holds an unfinished run; go on with it by --resume, or choose another --out."
        )
    if others := {shard.n for shard in shards_in(parts)} - {workers}:
        raise InputError(
            f"{parts} was begun with --workers {min(others)}, and --workers is {workers}; use the "
            "same number."
        )
    if _asked(folder) != _asked(parts / str(Shard(0, workers))):  # not what time once cut short
        refuse_taken(folder)


def _asked(run: Path) -> dict[str, Any] | None:
    """What a run was asked, but for its rows; None where there is none."""
    from holdfast.evaluation.facts import question
    from holdfast.runs import store

    note = run / "journal" / "question.json"
    if note.exists():
        return store.read_json(note) | {"rows": ""}
    if (run / "run.json").exists():
        return question(store.read_manifest(run)) | {"rows": ""}
    return None


class _Workers:
    """Processes that run a command, each on one shard."""

    def __init__(self, name: str, asked: dict[str, Any], n: int) -> None:
        self.name, self.asked, self.n = name, asked, n
        self.processes: dict[int, subprocess.Popen[str]] = {}
        self.at: dict[int, tuple[float, str, int, str]] = {}  # the last `Progress` of each
        self.failed: list[str] = []

    def run(self) -> None:
        """Start them, and wait for all.

        Raises:
            InputError: one refused what was asked, or died too often.
        """
        from holdfast.evaluation.chunk import Progress

        with ExitStack() as stack:
            work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="holdfast-")))
            show = stack.enter_context(writing.progress_bar())
            threads = [threading.Thread(target=self._serve, args=(i, work)) for i in range(self.n)]
            for thread in threads:
                thread.start()
            try:
                for thread in threads:
                    while thread.is_alive():
                        thread.join(0.2)
                        if at := [Progress(*p) for p in self.at.values()]:
                            share, live = sum(p.share for p in at) / self.n, sum(p.live for p in at)
                            show(min(at)._replace(share=share, live=live))
            except BaseException:
                self._stop("interrupted")
                raise
        if self.failed:
            raise InputError(self.failed[0])

    def _stop(self, why: str) -> None:
        self.failed.append(why)
        for process in self.processes.values():
            process.kill()

    def _serve(self, i: int, work: Path) -> None:
        """Have shard i measured, by further workers where one dies."""
        errors, code = work / f"{i}", 0
        for attempt in range(TRIES):
            own = {"shard": f"{i}/{self.n}", "resume": self.asked["resume"] or attempt > 0}
            code = self._work(i, self.asked | own | self._device(i), errors)
            if self.failed or code in FINISHED:
                return
            if code == REFUSED:
                break
        said = (errors.read_text(errors="replace").strip().splitlines() or ["it said nothing"])[-1]
        if code == REFUSED:
            return self._stop(said.removeprefix("error: "))
        return self._stop(
            f"the worker of shard {i}/{self.n} died {TRIES} times, the last with code {code}: "
            f"{said.rstrip('.')}. What is finished is kept: the same command with --resume goes on."
        )

    def _work(self, i: int, given: dict[str, Any], errors: Path) -> int:
        """The exit code of one worker."""
        paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
        threads = str(max(1, (os.cpu_count() or 1) // self.n))
        message = base64.b64encode(pickle.dumps((self.name, given, sys.argv))).decode()
        with (
            errors.open("wb") as stderr,
            subprocess.Popen(
                [sys.executable, "-m", "holdfast.cli.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": threads},
                text=True,
            ) as process,
        ):
            self.processes[i] = process
            assert process.stdin is not None
            assert process.stdout is not None
            with suppress(BrokenPipeError):  # of one that died at once
                process.stdin.write(message + "\n")
                process.stdin.flush()
            for line in process.stdout:
                self.at[i] = json.loads(line)
            return process.wait()

    def _device(self, i: int) -> dict[str, str]:
        """A CUDA device of its own, where there are several."""
        if self.asked["device"] not in ("auto", "cuda"):
            return {}
        import torch

        devices = torch.cuda.device_count()
        return {"device": f"cuda:{i % devices}"} if devices > 1 else {}
