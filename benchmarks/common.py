"""What the benchmarks share: the shared cases, interleaved timing, and a table with what it was
measured on."""

from __future__ import annotations

import argparse
import gzip
import importlib.metadata
import importlib.util
import multiprocessing
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[1]
CASES = ROOT.parent / "shared" / "cases"
RESULTS = ROOT / "benchmarks" / "results"


@dataclass(frozen=True)
class Seconds:
    """Of the repeats: their medians, where nothing else is said."""

    cpu: float
    wall: float


def options(
    doc: str | None,
    *,
    repeats: int = 5,
    also: Mapping[str, Mapping[str, Any]] | None = None,
    **counts: int,
) -> argparse.Namespace:
    """The command line of a benchmark: threads, repeats, where to write, the counts that it names,
    and what else."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--threads", type=int, default=1, help="torch threads, the same for everyone (default 1)"
    )
    parser.add_argument(
        "--repeats", type=int, default=repeats, help=f"interleaved rounds (default {repeats})"
    )
    parser.add_argument(
        "--save", default=Path(sys.argv[0]).stem, help="the name under benchmarks/results/"
    )
    for name, usual in counts.items():
        parser.add_argument(f"--{name}", type=int, default=usual, help=f"default {usual}")
    for name, how in (also or {}).items():
        parser.add_argument(name, **how)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    return chosen


def interleaved(
    tasks: Mapping[str, Callable[[], object]],
    repeats: int,
    of: Callable[[list[float]], float] = median,
) -> dict[str, Seconds]:
    """Time every task once a round, A B C A B C, so that a busy minute of the machine falls on all
    of them. Of the rounds, `of` picks a figure."""
    cpu: dict[str, list[float]] = {name: [] for name in tasks}
    wall: dict[str, list[float]] = {name: [] for name in tasks}
    for _ in range(repeats):
        for name, task in tasks.items():
            began, spent = time.perf_counter(), time.process_time()
            task()
            cpu[name].append(time.process_time() - spent)
            wall[name].append(time.perf_counter() - began)
    return {name: Seconds(of(cpu[name]), of(wall[name])) for name in tasks}


def spread(
    work: Callable[..., list[Any]],
    jobs: Sequence[tuple[Any, ...]],
    workers: int,
    begin: Callable[..., None],
    *how: Any,
) -> list[Any]:
    """The rows of all jobs in their order, each `work(*job)`, printed when done; `begin(*how)` is
    called first.

    With more than one worker in so many processes, each with one torch thread; both functions are
    then module-level.
    """
    if workers == 1:
        begin(*how)
        return [row for job in jobs for row in _messages(work(*job))]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, _begin_alone, (begin, how)) as pool:
        futures = [pool.submit(work, *job) for job in jobs]
        for future in as_completed(futures):
            _messages(future.result())
    return [row for future in futures for row in future.result()]


def _begin_alone(begin: Callable[..., None], how: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    begin(*how)


def _messages(rows: list[Any]) -> list[Any]:
    for row in rows:
        print(
            " ".join(
                f"{k}={v:.3g}" if isinstance(v, float) else f"{k}={v}" for k, v in row.items()
            ),
            flush=True,
        )
    return rows


def loader(name: str) -> Any:
    """The module that loads a shared case."""
    folder = need(CASES / name)
    found = importlib.util.spec_from_file_location(name, folder / "load.py")
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def case(name: str, *choice: str) -> Any:
    """What the loader of a shared case gives: a model, or arrays."""
    return loader(name).load(*choice)


def mnist_train(n: int, folder: Path = CASES / "data_mnist") -> tuple[np.ndarray, np.ndarray]:
    """The first n training images [n, 1, 28, 28] float32 in [0, 1], and their classes int64."""
    with np.load(need(folder) / "mnist_train_png.npz") as stored:
        return stored["x"][:n, None].astype(np.float32) / 255, stored["y"][:n].astype(np.int64)


def mnist(n: int, folder: Path = CASES / "data_mnist") -> tuple[Tensor, Tensor]:
    """The first n test images [n, 1, 28, 28] in [0, 1], and their classes."""
    need(folder)
    with gzip.open(folder / "t10k-images-idx3-ubyte.gz") as file:
        x = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 1, 28, 28)
    with gzip.open(folder / "t10k-labels-idx1-ubyte.gz") as file:
        y = np.frombuffer(file.read(), np.uint8, offset=8)
    return torch.tensor(x[:n]).float() / 255, torch.tensor(y[:n]).long()


def cifar10(n: int) -> tuple[Tensor, Tensor]:
    """The first n test images [n, 3, 32, 32] in [0, 1], and their classes; there are 1,000."""
    x, y = case("data_cifar10", "first1000")
    return torch.tensor(x[:n]).permute(0, 3, 1, 2).contiguous().float() / 255, torch.tensor(
        y[:n]
    ).long()


def need(folder: Path) -> Path:
    """A folder of the shared cases; without it there is nothing to measure, which is no failure."""
    if not folder.is_dir():
        print(
            f"skipped: there is no {folder.name} under ../shared/cases, and this benchmark "
            "measures on it."
        )
        raise SystemExit(0)
    return folder


class Basic(nn.Module):
    """A residual block of ResNet-18 (He et al. 2016, arXiv:1512.03385)."""

    def __init__(self, wide: int, out: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(wide, out, 3, stride, 1, bias=False),
            nn.BatchNorm2d(out),
            nn.ReLU(),
            nn.Conv2d(out, out, 3, 1, 1, bias=False),
            nn.BatchNorm2d(out),
        )
        same = stride == 1 and wide == out
        self.skip = (
            nn.Identity()
            if same
            else nn.Sequential(nn.Conv2d(wide, out, 1, stride, bias=False), nn.BatchNorm2d(out))
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.skip(x))


def resnet18(seed: int = 0) -> nn.Module:
    """ResNet-18 as used at 32x32, with random weights: time does not depend on what it has
    learnt."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers: list[nn.Module] = [
            nn.Conv2d(3, 64, 3, 1, 1, bias=False),
            nn.BatchNorm2d(64),
            nn.ReLU(),
        ]
        wide = 64
        for out, first in ((64, 1), (128, 2), (256, 2), (512, 2)):
            for stride in (first, 1):
                layers.append(Basic(wide, out, stride))
                wide = out
        layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10)]
        return nn.Sequential(*layers).eval()


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table; floats to three digits."""
    body = [
        [f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows
    ]
    return "\n".join(
        "| " + " | ".join(row) + " |" for row in [list(head), ["---"] * len(head), *body]
    )


def save(name: str, title: str, parts: Sequence[str], *, also: Sequence[str] = ()) -> None:
    """Print the result and keep it under benchmarks/results/, with versions, cores and date.

    Args:
        also: further distributions whose versions matter.
    """
    versions = ", ".join(
        f"{lib} {importlib.metadata.version(lib)}" for lib in ("holdfast", "torch", *also)
    )
    card = f", {torch.cuda.get_device_name()}" if torch.cuda.is_initialized() else ""
    settings = (
        f"Measured {datetime.now(UTC):%Y-%m-%d} with Python {platform.python_version()}, "
        f"{versions}; {platform.machine()} CPU with {os.cpu_count()} cores{card}, torch threads: "
        f"{torch.get_num_threads()}."
    )
    text = "\n\n".join([f"# {title}", settings, *parts]) + "\n"
    print(text)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.md").write_text(text, encoding="utf-8")
