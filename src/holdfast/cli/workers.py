"""`--workers N` and `--ray ADDRESS`: the shards of one run, measured by processes of this machine
or of a cluster.

Each worker runs the command as it was given, on shard after shard (see `cli/worker.py`), and says
how far it is; `cli/dispatch.py` says which.
"""

from __future__ import annotations

import functools
import inspect
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from holdfast.cli import options, writing
from holdfast.cli.command import Action, with_shared_options
from holdfast.cli.dispatch import TRIES, Dispatch, shards_for
from holdfast.cli.evaluate import check_seconds, conclude, echo_estimate
from holdfast.cli.worker import Job
from holdfast.errors import InputError, SpecError, listed
from holdfast.urls import place, reaching, store_at

if TYPE_CHECKING:
    from holdfast.evaluation.estimate import Forecast
    from holdfast.evaluation.shards import Shard

Workers = Annotated[
    int | None,
    options.about_run(
        min=1,
        max=1024,
        help="Processes that share the rows, on cores or on one CUDA device each; default 1, and "
        "with --ray what the cluster has room for.",
        metavar="N",
    ),
]
Ray = Annotated[
    str | None,
    options.about_run(
        help="Share the rows over a cluster of Ray: auto, local, or host:port of its head.",
        metavar="ADDRESS",
    ),
]
Gpus = Annotated[
    float | None,
    options.about_run(
        min=0,
        help="Of each worker with --ray, such as 0.5; default 1 where the cluster has any.",
        metavar="N",
    ),
]


SHARED = "evaluate", "certify"  # whose rows several processes may share


def whole(name: str, command: Action) -> Action:
    """A command with the options of the functions it names, and those of workers where it measures
    rows."""
    shown = with_shared_options(command)
    return with_workers(name, shown) if name in SHARED else shown


def with_workers(name: str, command: Action) -> Action:
    """A command that measures rows, with the options `--workers`, `--ray`, `--gpus-per-worker`."""

    @functools.wraps(command)
    def run(
        *,
        workers: int | None = None,
        ray: str | None = None,
        gpus_per_worker: float | None = None,
        **given: Any,
    ) -> int:
        if ray is None and gpus_per_worker is not None:
            raise SpecError("--gpus-per-worker is for workers on a cluster; give --ray too.")
        if ray is None and (workers or 1) == 1:
            return command(**given)
        return _shared(name, command, workers, ray, gpus_per_worker, given)

    own = inspect.signature(command).parameters.values()
    more = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind)
        for name, kind in (("workers", Workers), ("ray", Ray), ("gpus_per_worker", Gpus))
    ]
    run.__signature__ = inspect.Signature([*own, *more])  # pyright: ignore
    return run


def _shared(
    name: str,
    command: Action,
    workers: int | None,
    ray: str | None,
    gpus: float | None,
    given: dict[str, Any],
) -> int:
    """Measure in workers, join their shards, and conclude as the command does."""
    from holdfast.evaluation.shards import shards_of
    from holdfast.runs import gates
    from holdfast.runs.journal import left_as_found
    from holdfast.runs.remote import fetched
    from holdfast.runs.run import Run

    conditions = [gates.parse(text) for text in given["gate"] or ()]
    check_seconds(given["max_seconds"])
    sharing = f"--workers {workers}" if ray is None else f"--ray {ray}"
    for option in ("vnnlib", "export", "until"):
        if given.get(option) is not None:
            raise InputError(f"--{option} is for one process; leave out {sharing}.")
    if given["shard"] is not None:
        raise InputError(
            f"--shard {given['shard']} is one part of the rows, and {sharing} would share all of "
            "them; give one of both."
        )
    kind = "custom" if given.get("attack") else given.get("protocol", name)
    what = f"{given['threat']}-{kind}"
    folder = options.folder_of(given["model"], what, out=given["out"], resume=given["resume"])
    parts = place(f"{folder}.shards")
    with writing.resumable(folder) as here:
        begun = fetched(parts)
        if given["resume"] and (here / "run.json").exists() and not begun.exists():
            return command(**given)  # which sees that nothing is left, or that another is asked
        _check_free(here, begun, resume=given["resume"])
        asked = given | {"out": parts, "gate": None, "json": False}
        job = Job(inspect.unwrap(command), asked, sys.argv, os.getcwd())
        with left_as_found(begun):
            failed = _measured(job, begun, workers, ray, gpus)
        if failed:
            raise InputError(_named(failed))
        from holdfast.evaluation.merge import merge  # with torch, which workers did not wait for

        whole = fetched(parts)
        shutil.rmtree(here, ignore_errors=True)  # of a run that time cut short, and that went on
        run = merge(whole, here)
        shards = shards_of(whole)
        unfinished = any(Run(shard).unfinished for shard in shards)
        how = {"strict": given.get("strict", False), "json": given["json"]}
        code = conclude(run, conditions, **how, unfinished=unfinished)
    if not unfinished:  # and what they make is in its place
        for shard in shards:
            _remove(parts, shard)
        with suppress(OSError):  # where something else lies there
            whole.rmdir()
    return code


def _remove(parts: Path | str, shard: Path) -> None:
    """Remove a shard, of a URL the copy here too."""
    shutil.rmtree(shard)
    if not isinstance(parts, Path):
        url = f"{parts}/{shard.name}"
        with reaching(url, "remove"):
            store, path = store_at(url)
            store.rm(path, recursive=True)


def _measured(
    job: Job, begun: Path, workers: int | None, ray: str | None, gpus: float | None
) -> dict[Shard, str]:
    """Have workers measure what is not finished of what was begun; the shards that failed, and
    why."""
    from holdfast.evaluation.shards import Shard, shards_in

    seconds, began = job.given["max_seconds"], time.monotonic()

    def options_of(shard: Shard, again: bool) -> dict[str, Any]:
        left = None if seconds is None else max(seconds - (time.monotonic() - began), 0.0)
        resume = job.given["resume"] or again
        return {"shard": f"{shard.i}/{shard.n}", "resume": resume, "max_seconds": left}

    def cut(rows: list[int]) -> list[Shard]:
        known = shards_in(begun)
        n = known[0].n if known else shards_for(rows[1] - rows[0], engine.workers)
        every = [Shard(i, n) for i in range(n)]
        every[0].rows(*rows)  # which refuses fewer rows than shards
        # a finished one is given where no other would hold what is asked against what was
        return [shard for shard in every if not _finished(begun / str(shard))] or every[:1]

    def estimated(cost: Forecast, shards: int) -> None:
        turns = shards / min(shards, engine.workers)  # that workers take
        seconds, proofs = turns * cost.seconds, turns * cost.proofs
        echo_estimate(replace(cost, rows=shards * cost.rows, seconds=seconds, proofs=proofs))

    with _engine(ray, job, workers, gpus, options_of) as engine, writing.progress_bar() as show:
        return Dispatch(engine, engine.workers, cut, show, estimated).run()


def _engine(
    ray: str | None,
    job: Job,
    workers: int | None,
    gpus: float | None,
    options_of: Callable[[Shard, bool], dict[str, Any]],
) -> AbstractContextManager[Any]:
    """What runs workers, until the block ends.

    Raises:
        InputError: Ray is not installed.
    """
    if ray is None:
        from holdfast.cli.processes import processes

        return processes(job, workers or 1, options_of)
    with ray_installed(ray):
        from holdfast.cli.ray import actors
    return actors(ray, job, workers, gpus, options_of)


@contextmanager
def ray_installed(address: str) -> Iterator[None]:
    """Import it within.

    Raises:
        InputError: it is not.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name != "ray":
            raise
        raise InputError(
            f"--ray {address} needs Ray, which is not installed: pip install 'holdfast[ray]'."
        ) from None


def trained_on(ray: str | None, devices: int, device: str) -> AbstractContextManager[Any]:
    """Within, a training has its processes on a cluster, where one is named.

    Raises:
        SpecError: it has one process alone.
        InputError: Ray is not installed, or the cluster is not there or has no room.
    """
    if ray is None:
        return nullcontext()
    if devices == 1:
        raise SpecError(f"--ray {ray} is for several processes; give --devices too.")
    with ray_installed(ray):
        from holdfast.cli.ray import training
    return training(ray, devices, device)


def _named(failed: dict[Shard, str]) -> str:
    """The sentence on shards that failed."""
    first, *others = [f"{shard.i}/{shard.n}" for shard in failed]
    more = f", and so did that of {listed(others, 10)}" if others else ""
    return (
        f"the worker of shard {first} died {TRIES} times, the last with "
        f"{next(iter(failed.values())).rstrip('.')}{more}. What is finished is kept: the same "
        "command with --resume goes on."
    )


def _finished(run: Path) -> bool:
    from holdfast.runs.journal import Journal

    return (run / "run.json").exists() and not Journal(run).begun


def _check_free(folder: Path, parts: Path, *, resume: bool) -> None:
    """Refuse a folder that holds anything but the same run, unfinished.

    Raises:
        InputError: it does.
    """
    from holdfast.evaluation.shards import shards_in
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
    shards = shards_in(parts)
    if len(numbers := sorted({shard.n for shard in shards})) > 1:
        raise InputError(
            f"{parts} holds shards of {listed(numbers, 5)}; keep those of one number, and move the "
            "others away."
        )
    asked = [_asked(parts / str(shard)) for shard in shards]
    begun = [one for one in asked if one is not None]
    if any(one != begun[0] for one in begun):
        raise InputError(
            f"{parts} holds shards of two questions; keep those of one, and move the others away."
        )
    if _asked(folder) not in begun:  # not what time once cut short
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
