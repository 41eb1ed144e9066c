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
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, replace
from datetime import timedelta
from pathlib import Path
from types import FunctionType
from typing import IO, Any

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
from holdfast.training.distributed import Team
from holdfast.training.loop import Training
from holdfast.training.mixing import Mix
from holdfast.training.objective import Objective
from holdfast.training.state import STATE, Epoch, packed

_BEST = "best.safetensors"
_CARRIED = (
    *(
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
    ),
)


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
        hand_over(training, work, {"net": net, "target": _plain(training.target)})
        failed = run(__name__, work, training)
        if failed is not None:
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
    kind = target.device.type
    if kind not in ("cpu", "cuda"):
        raise InputError(
            f"devices is {devices}, but several processes train on cpu or cuda, not on {kind}."
        )
    there = torch.cuda.device_count() if kind == "cuda" else os.cpu_count() or 1
    if not 1 <= devices <= there:
        what = "CUDA devices" if kind == "cuda" else "cores"
        raise InputError(f"devices is {devices}, but this machine has {there} {what}.")
    if type(objective).rival is not Objective.rival:
        raise InputError(
            f"devices is {devices}, but the attacker of {objective!r} learns in one process; leave "
            "it out."
        )
    if pickled:
        check_portable(_plain(target))
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
    common = (
        os.environ
        | (env or {})
        | {"PYTHONPATH": os.pathsep.join(paths), "WORLD_SIZE": str(training.devices)}
    )
    common["OMP_NUM_THREADS"] = str(max(1, torch.get_num_threads() // training.devices))
    fallen: list[int] = []
    with ExitStack() as stack:
        children = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-m", module, str(work)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE if rank == 0 else subprocess.DEVNULL,
                    stderr=stack.enter_context((work / f"stderr{rank}").open("wb")),
                    env=common | {"RANK": str(rank)},
                    text=True,
                )
            )
            for rank in range(training.devices)
        ]

        def end() -> None:
            for child in children:
                child.kill()

        def guard(rank: int) -> None:
            if children[rank].wait():
                fallen.append(rank)
                end()

        guards = [threading.Thread(target=guard, args=(rank,)) for rank in range(training.devices)]
        for each in guards:
            each.start()
        try:
            failed = _listen(children[0].stdout, training.watch)
            for each in guards:  # before their standard input is closed, which would end them
                each.join()
        except BaseException:
            end()
            raise
    if failed is None and fallen:
        said = (work / f"stderr{fallen[0]}").read_text(errors="replace").strip().splitlines()
        last = (said or [f"it ended with code {children[fallen[0]].returncode}"])[-1].rstrip(".")
        which = f" (process {fallen[0] + 1} of {len(children)})" if len(children) > 1 else ""
        stored = training.folder is not None and (training.folder / STATE).exists()
        more = "What it stored goes on with --resume." if stored else hint
        raise InputError(f"the training's own process{which} died: {last}. {more}".rstrip())
    return failed


def _listen(lines: IO[str] | None, watch: Callable[[Epoch], None]) -> str | None:
    failed = None
    for line in lines or ():
        said = json.loads(line)
        failed = said.get("failed", failed)
        if "epoch" in said:
            watch(Epoch(**said["epoch"]))
    return failed


def serve(work: Path, fit: Callable[[Path, Team, Callable[[Epoch], None]], None]) -> None:
    """In a process of its own: join the team, train, and tell each epoch as a line of JSON."""
    # What frameworks print is not meant for the listener; and where that one is gone, so is the
    # reason to go on.
    line, sys.stdout = sys.stdout, sys.stderr
    threading.Thread(target=lambda: (sys.stdin.read(), os._exit(1)), daemon=True).start()
    memory.manage()
    team = Team(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))

    def tell(**said: Any) -> None:
        print(json.dumps(said), file=line, flush=True)

    if team.size > 1:
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        place = dist.FileStore(str(work / "rendezvous"), team.size)  # pyright: ignore[reportPrivateImportUsage]
        hours = timedelta(hours=24)  # one that died is seen by who started it
        dist.init_process_group(
            backend, store=place, rank=team.rank, world_size=team.size, timeout=hours
        )
    try:
        fit(work, team, lambda epoch: tell(epoch=asdict(epoch)))
    except HoldfastError as error:
        tell(failed=str(error))
    except KeyboardInterrupt:
        sys.exit(130)
    except SystemExit as error:  # of the user's code
        tell(failed=str(usercode.raised("the model", error)))
    finally:
        if team.size > 1:
            dist.destroy_process_group()


def _fit(work: Path, team: Team, watch: Callable[[Epoch], None]) -> None:
    # never a neighbour's device
    devices = {f"cuda:{i}": f"cuda:{team.rank}" for i in range(torch.cuda.device_count())}
    own, job = taken_over(work, devices)
    target = own["target"]
    if target.device.type == "cuda":
        target.batcher = replace(target.batcher, device=torch.device("cuda", team.rank))
    whole = Training(target=target, watch=watch, team=team, **job)
    best = whole.fit(own["net"], resume=True).best_average()
    if team.leads:
        write_bytes(work / _BEST, packed(best))


def emptied(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def hand_over(training: Training, work: Path, own: dict[str, Any]) -> None:
    """Leave in a folder what a training in processes of its own takes, and what else is theirs."""
    mix = {} if training.mix is None else {"mix": training.mix.data}
    for name, source in {"train": training.data, "held": training.held, **mix}.items():
        _store(source, work, name)
    job = {name: getattr(training, name) for name in _CARRIED}
    share = None if training.mix is None else training.mix.share
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
    mix = None if share is None else Mix(_stored(work, "mix"), share)
    return own, job | {"data": _stored(work, "train"), "held": _stored(work, "held"), "mix": mix}


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


def _plain(target: TorchTarget) -> TorchTarget:
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
