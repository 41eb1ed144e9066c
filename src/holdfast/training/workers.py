"""Workers: a training in processes of its own, as many as share it. Data go there as files, the
network pickled.

A worker's standard output is a line of JSON an epoch. It ends when its standard input does, so none
outlives who started it; and where one dies, all are ended.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, replace
from datetime import timedelta
from pathlib import Path
from types import FunctionType
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor, nn

from holdfast import memory, usercode
from holdfast.data import Source, from_arrays
from holdfast.errors import HoldfastError, InputError
from holdfast.runs.store import write_bytes
from holdfast.targets import TorchTarget
from holdfast.training.batches import GeneratedRows
from holdfast.training.distributed import ProcessGroup
from holdfast.training.loop import Training
from holdfast.training.objective import Objective
from holdfast.training.state import STATE, Epoch, packed

_BEST = "best.safetensors"
_CARRIED = (
    "threat",
    "recipe",
    "objective",
    "penalties",
    "seed",
    "floor",
    "min_recall",
    "balance",
    "folder",
    "every",
    "precision",
    "devices",
)


class Process(AbstractContextManager[Any], Protocol):
    """What serves a training, as `subprocess.Popen` has it."""

    @property
    def stdout(self) -> Iterable[str] | None: ...
    @property
    def returncode(self) -> int: ...
    def wait(self) -> int: ...
    def kill(self) -> None: ...


def train(training: Training, net: nn.Module) -> dict[str, Tensor]:
    """The best weights that a training of `net` finds: here, or in as many processes as it has
    devices.

    Raises:
        InputError: the training diverged, or a process of it died.
    """
    if training.devices == 1:
        return training.fit(net, resume=True).best_average()
    with ExitStack() as stack:
        if training.folder is None:
            work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="holdfast-")))
        else:
            work = emptied(training.folder / "work")
            stack.callback(shutil.rmtree, work, ignore_errors=True)
        hand_over(training, work, {"net": net, "target": _without_twin(training.target)})
        if (failed := run(__name__, work, training)) is not None:
            raise InputError(failed)
        if not (work / _BEST).exists():
            raise InputError(
                "the training's own process ended without a result; did the model end it "
                "(os._exit)?"
            )
        return load_file(work / _BEST)


def check(devices: int, target: TorchTarget, objective: Objective, *, pickled: bool = True) -> None:
    """Refuse more processes than there are devices for, and what cannot be shared by several.

    Raises:
        InputError: that.
    """
    if devices == 1:
        return
    if (kind := target.batcher.device.type) not in ("cpu", "cuda"):
        raise InputError(
            f"devices is {devices}, but several processes train on cpu or cuda, not on {kind}."
        )
    there, what = os.cpu_count() or 1, "cores"
    if kind == "cuda":
        there, what = torch.cuda.device_count(), "CUDA devices"
    if elsewhere is None and not 1 <= devices <= there:
        raise InputError(f"devices is {devices}, but this machine has {there} {what}.")
    if type(objective).attack_network is not Objective.attack_network:
        raise InputError(
            f"devices is {devices}, but the attacker of {objective!r} learns in one process; leave "
            "it out."
        )
    if pickled:
        check_portable(_without_twin(target))
    elif kind == "cuda":
        raise InputError(f"devices is {devices}, but a Keras model is trained on one CUDA device.")


def run(
    module: str,
    work: Path,
    training: Training,
    env: Mapping[str, str] | None = None,
    hint: str = "",
) -> str | None:
    """Have `module` serve a training from a folder; why it failed, where the training itself did.

    `hint` is what to think of where a process died before it had stored anything.

    Raises:
        InputError: a process of it died.
    """
    paths = [path or os.getcwd() for path in sys.path]
    own = {
        "PYTHONPATH": os.pathsep.join(paths),
        "WORLD_SIZE": str(training.devices),
        "OMP_NUM_THREADS": str(max(1, torch.get_num_threads() // training.devices)),
    }
    dead: list[int] = []
    start = _process if elsewhere is None or training.devices == 1 else elsewhere
    with ExitStack() as stack:
        children = [
            stack.enter_context(start(module, work, rank, {**(env or {}), **own}))
            for rank in range(training.devices)
        ]

        def end() -> None:
            for child in children:
                child.kill()

        def guard(rank: int) -> None:
            if children[rank].wait():
                dead.append(rank)
                end()

        guards = [threading.Thread(target=guard, args=(rank,)) for rank in range(training.devices)]
        for each in guards:
            each.start()
        try:
            failed = _listen(children[0].stdout, training.on_epoch)
            for each in guards:  # before their standard input is closed, which would end them
                each.join()
        except BaseException:
            end()
            raise
    if failed is None and dead:
        code = children[dead[0]].returncode
        raise InputError(_died(training, work, dead[0], code, hint))
    return failed


def _process(module: str, work: Path, rank: int, env: Mapping[str, str]) -> Process:
    """A process of this machine."""
    with (work / f"stderr{rank}").open("wb") as stderr:
        return subprocess.Popen(
            [sys.executable, "-m", module, str(work)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE if rank == 0 else subprocess.DEVNULL,
            stderr=stderr,
            env=os.environ | env | {"RANK": str(rank)},
            text=True,
        )


# what starts the processes of a training that several share, where these are not on this machine
elsewhere: Callable[[str, Path, int, Mapping[str, str]], Process] | None = None


def _died(training: Training, work: Path, rank: int, code: int, hint: str) -> str:
    said = (work / f"stderr{rank}").read_text(errors="replace").strip().splitlines()
    last, which = (said or [f"it ended with code {code}"])[-1].rstrip("."), ""
    if training.devices > 1:
        which = f" (process {rank + 1} of {training.devices})"
    if training.folder is not None and (training.folder / STATE).exists():
        hint = "What it stored goes on with --resume."
    return f"the training's own process{which} died: {last}. {hint}".rstrip()


def _listen(lines: Iterable[str] | None, on_epoch: Callable[[Epoch], None] | None) -> str | None:
    failed = None
    for line in lines or ():
        said = json.loads(line)
        failed = said.get("failed", failed)
        if "epoch" in said and on_epoch is not None:
            on_epoch(Epoch(**said["epoch"]))
    return failed


def serve(work: Path, fit: Callable[[Path, ProcessGroup, Callable[[Epoch], None]], None]) -> None:
    """In a process of its own: join the group, train, and print each epoch as a line of JSON."""
    # What frameworks print is not meant for the listener; and where that one is gone, so is the
    # reason to go on.
    line, sys.stdout = sys.stdout, sys.stderr
    threading.Thread(target=lambda: (sys.stdin.read(), os._exit(1)), daemon=True).start()
    memory.manage()
    group = ProcessGroup(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))

    def send(**said: Any) -> None:
        print(json.dumps(said), file=line, flush=True)

    if group.size > 1:
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        store = dist.FileStore(  # pyright: ignore[reportPrivateImportUsage]
            str(work / "rendezvous"), group.size
        )
        hours = timedelta(hours=24)  # one that died is seen by who started it
        dist.init_process_group(
            backend, store=store, rank=group.rank, world_size=group.size, timeout=hours
        )
    try:
        fit(work, group, lambda epoch: send(epoch=asdict(epoch)))
    except HoldfastError as error:
        send(failed=str(error))
    except KeyboardInterrupt:
        sys.exit(130)
    except SystemExit as error:  # of the user's code
        send(failed=str(usercode.raised("the model", error)))
    finally:
        if group.size > 1:
            dist.destroy_process_group()


def _fit(work: Path, group: ProcessGroup, on_epoch: Callable[[Epoch], None]) -> None:
    # never a neighbour's device
    there = torch.cuda.device_count()
    device = torch.device("cuda", group.rank % max(there, 1))
    own, job = taken_over(work, {f"cuda:{i}": str(device) for i in range(there)})
    target = own["target"]
    if target.batcher.device.type == "cuda":
        target.batcher = replace(target.batcher, device=device)
    whole = Training(target=target, on_epoch=on_epoch, group=group, **job)
    best = whole.fit(own["net"], resume=True).best_average()
    if group.leads:
        write_bytes(work / _BEST, packed(best))


def emptied(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def hand_over(training: Training, work: Path, own: dict[str, Any]) -> None:
    """Leave in a folder what a training in processes of its own takes, and what else is theirs."""
    sources, share = {"train": training.data, "held": training.held}, None
    if training.generated is not None:
        sources["generated"], share = training.generated.data, training.generated.share
    for name, source in sources.items():
        _store(source, work, name)
    job = {name: getattr(training, name) for name in _CARRIED}
    (work / "code.json").write_text(json.dumps(usercode.files()))
    torch.save((own, job, share), work / "training.pt")


def taken_over(
    work: Path, devices: dict[str, str] | None = None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What was handed over: what else was given, and the fields of the training but its target.

    Args:
        devices: where tensors go, by where they were; None: where they were.
    """
    with ExitStack() as stack:
        for file in map(Path, json.loads((work / "code.json").read_text())):
            stack.enter_context(usercode.importable(str(file.parent.absolute())))
            usercode.run_file(file)
        # Written by the process that started this one.
        own, job, share = torch.load(work / "training.pt", map_location=devices, weights_only=False)
    generated = share and GeneratedRows(_stored(work, "generated"), share)
    return own, job | {
        "data": _stored(work, "train"),
        "held": _stored(work, "held"),
        "generated": generated,
    }


def _store(source: Source, work: Path, name: str) -> None:
    """A source as two arrays on disk, block by block; the process of its own reads them as it needs
    them."""
    shapes = {"x": (len(source), *source.shape), "y": (len(source),)}
    files = {
        part: np.lib.format.open_memmap(work / f"{name}.{part}.npy", "w+", dtype, shapes[part])
        for part, dtype in (("x", source.rows(0, 1)[0].dtype), ("y", np.dtype(np.int64)))
    }
    for start in range(0, len(source), 1024):
        files["x"][start : start + 1024], files["y"][start : start + 1024] = source.rows(
            start, start + 1024
        )


def _stored(work: Path, name: str) -> Source:
    x, y = (np.load(work / f"{name}.{part}.npy", mmap_mode="r") for part in ("x", "y"))
    return from_arrays(x, y, scale=False)


def _without_twin(target: TorchTarget) -> TorchTarget:
    """The same without a faster twin, which may be a traced graph and cannot be pickled."""
    assert isinstance(target.model, nn.Module)
    return target.live(target.model)


def check_portable(thing: Any) -> None:
    """Refuse what a process of its own could not read.

    Raises:
        InputError: it cannot, since a part was defined in the script that runs, or cannot be
            pickled at all.
    """
    try:
        _Portable(io.BytesIO()).dump(thing)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        first = str(error).splitlines()[0].rstrip(".")
        raise InputError(f"the model cannot be trained in several processes: {first}.") from error


class _Portable(pickle.Pickler):
    def persistent_id(self, obj: Any) -> None:
        if isinstance(obj, (type, FunctionType)) and obj.__module__ == "__main__":
            raise InputError(
                f"the model cannot be trained in several processes: {obj.__qualname__} is defined "
                f"in the script that runs. Put it into a file that can be imported."
            )


if __name__ == "__main__":
    serve(Path(sys.argv[1]), _fit)
