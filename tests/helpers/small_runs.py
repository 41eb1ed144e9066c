"""Small runs that the situations change, cut and make again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner, Result

import holdfast
from holdfast.cli.main import app
from holdfast.data import Source, from_arrays
from holdfast.evaluation.build_manifest import build_manifest
from holdfast.evaluation.verify import verify
from holdfast.runs import journal, store
from holdfast.runs.manifest import Facts, Manifest
from holdfast.runs.run import Run

N = 20
GROUPS = ["odd" if i % 2 else "even" for i in range(N)]
ATTACKS = ("pgd(steps=2, restarts=2)", "fgsm")


@contextmanager
def interrupted(monkeypatch: pytest.MonkeyPatch, after: int) -> Iterator[None]:
    """A run within is interrupted after so many records."""
    write, left = store.write_bytes, [after]

    def counted(path: Path, content: bytes) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        write(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(store, "write_bytes", counted)
        patch.setattr(journal, "write_bytes", counted)
        yield


class Bent(nn.Module):
    """A small network whose scores of a row are the same bits in every batch."""

    def __init__(self) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        self.w = nn.Parameter(torch.randn(8, 16, generator=draw))
        self.v = nn.Parameter(torch.randn(4, 8, generator=draw))
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = ((x.flatten(1)[:, None] - 0.5) * self.w).sum(-1).relu()
        return 30 * (hidden[:, None] * self.v).sum(-1)


class Softmax(Bent):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).softmax(1)


@cache
def rows() -> tuple[np.ndarray, np.ndarray]:
    x = torch.rand(N, 1, 4, 4, generator=torch.Generator().manual_seed(3))
    y = Bent()(x).argmax(1)
    y[::7] = (y[::7] + 1) % 4
    return x.numpy(), y.numpy()


def data() -> Source:
    source = from_arrays(*rows())
    source.class_names = tuple(f"class {i}" for i in range(4))
    return source


def measure(out: Path, **more: Any) -> Run:
    options = {"attacks": ATTACKS, "out": out, "groups": GROUPS} | more
    return holdfast.evaluate(Bent(), data(), options.pop("threat", "linf(0.05)"), **options)


def found(folder: Path) -> list[str]:
    """What verify says."""
    return verify(folder, holdfast.wrap(Bent()), data(), groups=GROUPS)


def seal(folder: Path, manifest: Manifest) -> None:
    """Write run.json so that every checksum and digest fits."""
    store.write_manifest(folder, manifest.model_copy(update={"files": store.checksums(folder)}))


def refigured(folder: Path, manifest: Manifest) -> Manifest:
    """run.json with every figure made to fit."""
    facts = Facts(**{name: getattr(manifest, name) for name in Facts.model_fields})
    return build_manifest(folder, facts, store.read_samples(folder), manifest.trials)


def flipped(path: Path, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[bit // 8 % len(content)] ^= 1 << bit % 8
    path.write_bytes(content)


def same(run: Run, known: Path) -> bool:
    """Whether samples and stored examples are equal."""
    return (
        run.samples.equals(store.read_samples(known))
        and run.manifest.files == store.read_manifest(known).files
    )


def command(*args: str) -> Result:
    """One command; a traceback fails the test."""
    done = CliRunner().invoke(app, list(args))
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done
