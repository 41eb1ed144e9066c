"""Rows without a proof, for other verifiers: the model as ONNX, and each row as VNN-LIB 1.0."""

from __future__ import annotations

import warnings
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

from holdfast.bounds import region
from holdfast.bounds.graph import unsupported
from holdfast.bounds.margins import check_no_schema, check_threat
from holdfast.certification.vnnlib import Outputs, written
from holdfast.data import Source
from holdfast.errors import InputError, first_line
from holdfast.evaluation.prepare import prepare
from holdfast.evaluation.protocols import NONE
from holdfast.runs.run import Run
from holdfast.runs.store import write_bytes
from holdfast.targets import loading
from holdfast.targets.batch import read
from holdfast.targets.registry import adapted
from holdfast.targets.target import Target
from holdfast.targets.wrappers import itself
from holdfast.threats.threat import Targeted, Threat, as_threat

MODEL = "model.onnx"
TRIED = 4  # random inputs at which the written model is held against the own one
TOLERANCE = 1e-4  # between both, as a share of the largest score


def check_exported(threat: Threat | str) -> None:
    """Raises InputError: what a threat allows is no box, or its goal is no class."""
    threat = as_threat(threat)
    check_threat(threat)
    check_no_schema(threat)
    if not threat.norm.boxed:
        raise unsupported(f"VNN-LIB of {threat}, which allows no box; expected linf")
    if isinstance(threat.goal, Targeted) and isinstance(threat.goal.t, str):
        raise unsupported(f"VNN-LIB of rows whose goal is {threat.goal.t}; expected a class")


def export(
    folder: Path, run: Run, target: Target, source: Source, threat: Threat | str
) -> list[Path]:
    """Write the model and a property of each row that is neither proved nor broken.

    Inputs and outputs of both are those of the target: raw inputs, and scores.

    Returns the files of the properties, `row-ID.vnnlib` each; with `unsat` of another verifier, the
    row is proved.

    Raises:
        InputError: the threat allows no box, or the model cannot be written as ONNX.
    """
    check_exported(threat)
    ready = prepare(target, source, threat, NONE.name)
    target, source, threat = ready.target, ready.source, ready.threat
    content = onnx_of(target)
    write_bytes(folder / MODEL, content)
    check_answers(folder / MODEL, target)
    status, ids, labels = (run.samples[name].to_pylist() for name in ("status", "id", "label"))
    found = list[Path]()
    for one, row, label in zip(status, ids, labels, strict=True):
        if one != "robust":
            continue
        batch, _ = read(source, row, row + 1)
        x = target.batcher.place(batch).x
        here = region(x, threat.of_rows(torch.tensor([row])), target.bounds)
        lo, hi = ((here.x + side)[0].flatten().cpu().numpy() for side in (here.lo, here.hi))
        goal = threat.of_rows(torch.tensor([row])).goal
        aim = int(torch.as_tensor(goal.t)) if isinstance(goal, Targeted) else None
        said = f"row {row} of {source.name}, class {label}, under {threat}"
        text = written(lo, hi, unsafe(label, target.task.k, aim), said.replace("\n", " "))
        found.append(folder / f"row-{row}.vnnlib")
        write_bytes(found[-1], text.encode())
    return found


def unsafe(label: int, k: int, aim: int | None = None) -> list[Outputs]:
    """The scores that are no answer of a class: another one has at least its score. With an aim,
    that class has at least the score of each other."""
    every = np.eye(k)
    if aim is None:
        others = [j for j in range(k) if j != label]
        return [Outputs((every[label] - every[j])[None], np.zeros(1)) for j in others]
    rows = [every[j] - every[aim] for j in range(k) if j != aim]
    return [Outputs(np.stack(rows), np.zeros(k - 1))]


def onnx_of(target: Target) -> bytes:
    """The model as ONNX, from one raw input [1, *shape] to scores [1, k]: the bytes of its own file
    where that is this already.

    Raises:
        InputError: it is no network that proofs follow, or torch cannot write it down.
    """
    target = itself(target)
    network = target.network()
    if (own := _own_file(target)) is not None:
        return own
    example = torch.zeros(1, *(target.shape or ()), dtype=target.batcher.dtype)
    try:
        with warnings.catch_warnings(), torch.no_grad(), TemporaryDirectory() as folder:
            warnings.simplefilter("ignore")
            file = Path(folder) / MODEL
            torch.onnx.export(
                network.cpu().eval(),
                (example,),
                file,
                dynamo=False,
                input_names=["X"],
                output_names=["Y"],
            )
            return file.read_bytes()
    except Exception as error:
        raise InputError(f"torch cannot write this model as ONNX: {first_line(error)}.") from error


def _own_file(target: Any) -> bytes | None:
    """The content of a file of ONNX that takes raw inputs and gives scores itself."""
    model = target.model
    path, taken = getattr(model, "given", None), getattr(model, "shape", None)
    if not isinstance(path, Path) or path.suffix != ".onnx" or model.ending is not None:
        return None
    if taken != target.shape or target.preprocess or target.output is not None:
        return None
    if target.inputs.layout != model.layout or target.head.single:
        return None
    return path.read_bytes()


def check_answers(path: Path, target: Target) -> None:
    """Hold a file of ONNX against the model, at random inputs.

    Raises:
        InputError: they answer otherwise.
    """
    run, draws = adapted(loading.load(str(path))), torch.Generator().manual_seed(0)
    u = torch.rand(TRIED, *(target.shape or ()), generator=draws)
    low, high = target.bounds.sides(u)
    x = target.bounds.clamp(low + u * (high - low))
    given = torch.cat([_scores(run, row[None]) for row in x])
    own = target.scores(target.batcher.place(x)).cpu().double()
    gap = (_centred(given) - _centred(own)).abs().max()
    if not gap <= TOLERANCE * own.abs().max().clamp_min(1):
        raise unsupported("ONNX of a model that answers otherwise than what torch writes of it")


def _scores(run: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        return run(x).flatten(1).double()


def _centred(z: Tensor) -> Tensor:
    return z - z.amax(1, keepdim=True)
