"""Workers as actors of a cluster of Ray, and the processes of a training. Results go to the folder
that all machines see; what comes back is how far they are."""

from __future__ import annotations

import logging
import os
import queue
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stdout, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
import typer
from ray.exceptions import RayError
from ray.util.placement_group import placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from holdfast.cli.dispatch import Event
from holdfast.cli.worker import Answer, Job
from holdfast.errors import InputError, SpecError, first_line

if TYPE_CHECKING:
    from holdfast.evaluation.chunk import Progress
    from holdfast.evaluation.shards import Shard

    OptionsOf = Callable[[Shard, bool], dict[str, Any]]

GRACE = 3.0  # seconds for which what is left of a lost machine may still write to its shard
WAITED = 60.0  # seconds without a ready worker after which that is said
STORE = 80_000_000  # bytes of Ray's own for objects, of which there are next to none


class Actor:
    """A worker on a machine of the cluster."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.progress: Progress | None = None

    def open(self) -> Answer:
        """Open model and data; the rows, what has to be equal everywhere, and the machine."""
        from holdfast.evaluation import probing

        found: list[Any] = []

        def once(work: Callable[[], Any]) -> Any:
            if not found:
                found.append(work())
            return found[0]

        probing.once = once
        what, said = self.job.open()
        if what == "ready":
            said = said, self.job.identity()[0], socket.gethostname()
        return what, said

    def measure(self, shard: dict[str, Any]) -> Answer:
        def note(progress: Progress) -> None:
            self.progress = progress

        self.progress = None
        return self.job.measure(shard, note)

    @ray.method(concurrency_group="asked")
    def at(self) -> Progress | None:
        return self.progress


class Actors:
    """The engine of `--ray`: see `cli/dispatch.py`.

    Where an actor died a new one is placed, instead of a restart by Ray, which would not wait until
    the scheduler has seen it.
    """

    def __init__(
        self, job: Job, workers: int, gpus: float, options_of: OptionsOf, same: dict[str, str]
    ) -> None:
        self.job, self.workers, self.options_of, self.same = job, workers, options_of, same
        needs: Any = {"num_cpus": 1, "num_gpus": gpus, "concurrency_groups": {"asked": 1}}
        self.kind: Any = ray.remote(**needs)(Actor)
        self.actors: dict[int, Any] = {}
        self.calls: dict[Any, int] = {}  # to open or to measure: one at most of each worker
        self.asked: dict[Any, int] = {}  # for the progress, likewise
        self.dead: list[tuple[float, Event]] = []  # and when that is passed on
        self.began = self.last = time.monotonic()
        self.waiting = True

    def start(self, worker: int) -> None:
        if worker in self.actors:
            ray.kill(self.actors[worker])
        self.actors[worker] = self.kind.remote(self.job)
        self.calls[self.actors[worker].open.remote()] = worker

    def give(self, worker: int, shard: Shard, *, again: bool) -> None:
        self.calls[self.actors[worker].measure.remote(self.options_of(shard, again))] = worker

    def events(self) -> Iterator[Event]:
        self._ask()
        if self.calls:
            ray.wait([*self.calls], timeout=0.3)
        else:
            time.sleep(0.3)
        if refs := [*self.calls, *self.asked]:
            for ref in ray.wait(refs, num_returns=len(refs), timeout=0)[0]:
                if ref in self.asked:
                    yield from self._progress(ref)
                else:
                    yield from self._answer(ref)
        now = time.monotonic()
        due = [event for when, event in self.dead if when <= now]
        self.dead = [pair for pair in self.dead if pair[0] > now]
        yield from due
        if self.waiting and now > self.began + WAITED:
            self.waiting = False
            typer.echo("no worker of the cluster is ready yet; waiting.", err=True)

    def _ask(self) -> None:
        """Ask the workers how far they are: each second, and less often where they are many."""
        now = time.monotonic()
        if now < self.last + max(1.0, self.workers / 200):
            return
        self.last = now
        for worker in set(self.calls.values()) - set(self.asked.values()):
            self.asked[self.actors[worker].at.remote()] = worker

    def _progress(self, ref: Any) -> Iterator[Event]:
        worker = self.asked.pop(ref)
        with suppress(RayError):
            progress = ray.get(ref)
            if progress is not None and worker in self.calls.values():
                yield Event(worker, "progress", progress)

    def _answer(self, ref: Any) -> Iterator[Event]:
        worker = self.calls.pop(ref)
        try:
            what, said = ray.get(ref)
        except RayError as error:
            self.dead.append((time.monotonic() + GRACE, Event(worker, "died", _why(error))))
            return
        if what == "ready":
            self.waiting = False
            said, same, host = said
            if odd := differing(self.same, same, host):
                what, said = "refused", odd
        yield Event(worker, what, said)

    def stop(self) -> None:
        for actor in self.actors.values():
            ray.kill(actor)


def _why(error: RayError) -> str:
    cause = getattr(error, "cause", None) or error
    return f"{type(cause).__name__}: {first_line(cause)}"


def differing(ours: dict[str, str], theirs: dict[str, str], host: str) -> str | None:
    """A sentence on the first thing that is not equal here and on another machine."""
    for name in {**ours, **theirs}:
        here, there = ours.get(name, "none"), theirs.get(name, "none")
        if here != there and name.startswith("the "):
            return (
                f"on {host} {name} has the hash {there}, and here {here}; let all machines see the "
                "same files."
            )
        if here != there:
            return f"on {host} {name} is {there}, and here {here}; install the same everywhere."
    return None


@contextmanager
def actors(
    address: str, job: Job, workers: int | None, gpus: float | None, options_of: OptionsOf
) -> Iterator[Actors]:
    """The engine on a cluster, which is left with the block.

    Raises:
        SpecError: the address or the number of GPUs cannot be understood.
        InputError: nothing answers there, or the cluster has too few GPUs; or model or data are not
            what they should be.
    """
    if gpus is not None and not (gpus <= 1 or gpus.is_integer()):
        raise SpecError(
            f"--gpus-per-worker is {gpus}; expected a part of one, such as 0.5, or a whole number."
        )
    _checked(address)
    here = replace(job, given=job.given | {"device": "cpu"})  # which may be the only one here
    same, (start, stop) = here.identity()
    with cluster(address, workers or 1):
        gpus, room = _room(address, gpus, job.given["device"])
        workers = workers or max(1, min(room, stop - start))
        engine = Actors(job, workers, gpus, options_of, same)
        try:
            yield engine
        finally:
            engine.stop()


@contextmanager
def cluster(address: str, processes: int) -> Iterator[None]:
    """Within, Ray is connected to a cluster; one on this machine has room for so many processes.

    Raises:
        SpecError: the address cannot be understood.
        InputError: nothing answers there.
    """
    place = _checked(address)
    with ExitStack() as stack:
        # Ray prints of each death there, where --json has its result
        stack.enter_context(redirect_stdout(stack.enter_context(open(os.devnull, "w"))))
        local: dict[str, Any] = {}
        if place == "local":
            folder = stack.enter_context(
                tempfile.TemporaryDirectory(
                    prefix=f"ray-{os.getpid()}-", ignore_cleanup_errors=True
                )
            )
            local = {
                "num_cpus": max(processes, os.cpu_count() or 1),
                "object_store_memory": STORE,
                "include_dashboard": False,
                "_temp_dir": folder,
            }
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            ray.init(place, log_to_driver=False, logging_level=logging.ERROR, **local)
        except (
            Exception
        ) as error:  # Ray has its own kinds, and bare ones where it starts too slowly
            raise InputError(f"--ray {address}: {first_line(error)}.") from error
        stack.callback(ray.shutdown)
        yield


def _room(address: str, gpus: float | None, device: str) -> tuple[float, int]:
    """The GPUs of a worker, and the workers that the cluster has room for."""
    has = ray.cluster_resources()
    there = has.get("GPU", 0.0)
    if gpus is None:
        gpus = float(there >= 1 and device in ("auto", "cuda"))
    if gpus > there:
        raise InputError(
            f"--gpus-per-worker is {gpus:g}, but the cluster at {address} has {there:g} GPUs; give "
            "0, or begin its machines with --num-gpus."
        )
    room = has.get("CPU", 1.0)
    return gpus, int(min(room, there / gpus) if gpus else room)


class Member:
    """A process of a training, on a machine of the cluster."""

    def run(self, log: str, command: list[str], folder: str, env: dict[str, str]) -> Iterator[Any]:
        """The lines that it prints, and last its code."""
        pipe = subprocess.PIPE
        with (
            open(log, "wb") as stderr,
            subprocess.Popen(
                command, stdin=pipe, stdout=pipe, stderr=stderr, cwd=folder,
                env=os.environ | env, text=True,
            ) as process,
        ):  # fmt: skip
            assert process.stdout is not None
            for line in process.stdout:  # noqa: UP028 (Ray sends values to it)
                yield line
            yield process.wait()


class Remote:
    """A process of a training as `subprocess.Popen` has one here; it ends with its machine."""

    def __init__(self, member: Any, log: Path, *given: Any) -> None:
        self.member, self.log, self.returncode = member, log, -1
        self.lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self.stdout = iter(self.lines.get, None)
        said = member.run.options(num_returns="streaming").remote(str(log), *given)
        self.follower = threading.Thread(target=self._follow, args=(said,), daemon=True)
        self.follower.start()

    def _follow(self, said: Any) -> None:
        try:
            for ref in said:
                line: Any = ray.get(ref)
                if isinstance(line, int):
                    self.returncode = line
                else:
                    self.lines.put(line)
        except RayError as error:
            with self.log.open("a") as log:  # of a machine that cannot write there any more
                log.write(f"\n{_why(error)}\n")
        self.lines.put(None)

    def wait(self) -> int:
        self.follower.join()
        return self.returncode

    def kill(self) -> None:
        ray.kill(self.member)

    def __enter__(self) -> Remote:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


@contextmanager
def training(address: str, devices: int, device: str) -> Iterator[None]:
    """Within, the processes of a training are placed together on a cluster, each with one GPU where
    the network is on one.

    Raises:
        SpecError: the address cannot be understood.
        InputError: nothing answers there, or the cluster lacks room.
    """
    with cluster(address, devices):
        needs = {"CPU": 1.0} | ({"GPU": 1.0} if device == "cuda" else {})
        group = placement_group([needs] * devices)
        if not group.wait(WAITED):
            each = " and one GPU" * (device == "cuda")
            raise InputError(
                f"--devices is {devices}, but the cluster at {address} has no room for so many "
                f"processes with one CPU{each} each."
            )

        def start(module: str, work: Path, rank: int, env: Mapping[str, str]) -> Remote:
            place = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=rank)
            kind: Any = ray.remote(num_cpus=1, num_gpus=needs.get("GPU", 0))(Member)
            member = kind.options(scheduling_strategy=place).remote()
            command = [sys.executable, "-m", module, str(work.absolute())]
            log, own = work.absolute() / f"stderr{rank}", {**env, "RANK": str(rank)}
            return Remote(member, log, command, os.getcwd(), own)

        from holdfast.training import workers

        workers.elsewhere = start
        try:
            yield
        finally:
            workers.elsewhere = None


def _checked(address: str) -> str:
    """An address that Ray can be given: it waits long for one that does not answer."""
    place = os.environ.get("RAY_ADDRESS", "auto") if address == "auto" else address
    if place in ("auto", "local"):
        return place
    found = re.fullmatch(r"([\w.-]+|\[[\da-fA-F:]+\]):(\d{1,5})", place)
    if found is None or int(found[2]) > 65535:
        raise SpecError(
            f"--ray is {place!r}; expected auto, local, or host:port of the head of a cluster."
        )
    try:
        socket.create_connection((found[1].strip("[]"), int(found[2])), timeout=5).close()
        ask = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--address", place]
        subprocess.run([*ask, "--skip-version-check"], timeout=20, capture_output=True, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        why = getattr(error, "strerror", None) or "no answer of Ray's"
        raise InputError(
            f"--ray {address}: no cluster answers at {place} ({why}); expected the address that "
            "`ray start --head` printed."
        ) from error
    return place
