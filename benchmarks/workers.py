"""What two workers gain on this machine, beside what two native loops of gradients gain on it.

`holdfast evaluate --protocol standard`, the whole command, as one process and with `--workers 2`;
and PGD in plain torch on the same network and rows, as one process with torch's own number of
threads and as two of one thread with half of the rows each, from the first step to the last. One
after the other, so that a busy minute of the machine falls on all. The goal: the gain of the
workers is at least 0.9 of that of the loops.

Networks: an adversarially trained LeNet-5 on MNIST images at linf(0.3); a ResNet-18 for 32x32
inputs with random weights, on CIFAR-10 images that it gives its own labels, with a budget a row and
a small eps, so that each row costs the same. `quick` on few rows shows what workers cost where
there is little to do.

    python benchmarks/workers.py [--repeats 3]
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from common import case, cifar10, mnist, options, resnet18, save, table
from torch import Tensor, nn

HERE = Path(__file__).resolve()
# rows, steps of the native loop, and what the command is asked
TASKS: dict[str, tuple[str, int, int, tuple[str, ...]]] = {
    "LeNet-5, standard": ("cnn", 400, 600, ("--threat", "linf(0.3)")),
    "ResNet-18, standard": (
        "resnet18", 8, 100, ("--threat", "linf(1e-4)", "--max-queries", "150"),
    ),
    "LeNet-5, quick on 100 rows": (
        "cnn", 100, 600, ("--threat", "linf(0.3)", "--protocol", "quick"),
    ),
}  # fmt: skip


def cnn() -> nn.Module:
    """LeNet-5, trained by PGD."""
    return case("torch_advertorch_lenet5", "adv").eval()


NETWORKS = {"cnn": cnn, "resnet18": resnet18}


def rows(name: str, n: int) -> tuple[Tensor, Tensor]:
    """Inputs of a network, and labels."""
    if name == "cnn":
        return mnist(n)
    x, _ = cifar10(n)
    with torch.no_grad():
        return x, resnet18()(x).argmax(1)


def native(name: str, start: int, stop: int, steps: int) -> None:
    """PGD on rows start to stop, once the standard input says so; prints the seconds."""
    x, y = rows(name, stop)
    x, y, net, eps = x[start:], y[start:], NETWORKS[name](), 0.01
    print("ready", flush=True)
    sys.stdin.readline()
    began, d = time.perf_counter(), torch.zeros_like(x)
    for _ in range(steps):
        d.requires_grad_()
        loss = nn.functional.cross_entropy(net((x + d).clamp(0, 1)), y, reduction="sum")
        (g,) = torch.autograd.grad(loss, d)
        d = (d.detach() + eps / 10 * g.sign()).clamp(-eps, eps)
    print(time.perf_counter() - began, flush=True)


def loops(name: str, n: int, steps: int, processes: int) -> float:
    """Seconds until the last of so many processes has done its part of n rows."""
    env = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    if processes > 1:
        env["OMP_NUM_THREADS"] = "1"
    at = [i * n // processes for i in range(processes + 1)]
    children = [
        subprocess.Popen(
            [sys.executable, str(HERE), "--native", name, str(start), str(stop), str(steps)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=env,
            text=True,
        )
        for start, stop in pairwise(at)
    ]
    for child in children:
        assert child.stdout is not None
        child.stdout.readline()
    return max(float(child.communicate("go\n")[0]) for child in children)


def command(name: str, data: Path, asked: tuple[str, ...], workers: int, out: Path) -> float:
    """Seconds of the whole command."""
    env = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    began = time.perf_counter()
    subprocess.run(
        [
            *(sys.executable, "-m", "holdfast", "evaluate", f"{HERE}:{name}", str(data), *asked),
            *("--workers", str(workers), "--out", str(out)),
        ],
        env=env,
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    return time.perf_counter() - began


def main() -> None:
    if sys.argv[1:2] == ["--native"]:
        name, *numbers = sys.argv[2:]
        return native(name, *map(int, numbers))
    chosen = options(__doc__, repeats=3)
    lines = []
    for title, (name, n, steps, asked) in TASKS.items():
        for _ in range(chosen.repeats):
            with tempfile.TemporaryDirectory() as folder:
                data = Path(folder) / "rows.npz"
                x, y = rows(name, n)
                np.savez(data, x=x.numpy(), y=y.numpy())
                seconds = [
                    loops(name, n, steps, 1),
                    command(name, data, asked, 1, Path(folder) / "one"),
                    loops(name, n, steps, 2),
                    command(name, data, asked, 2, Path(folder) / "two"),
                ]
            loop, whole = seconds[0] / seconds[2], seconds[1] / seconds[3]
            lines.append([title, *(f"{s:.1f}" for s in seconds), *_gains(loop, whole)])
            print(*lines[-1], sep=" | ", flush=True)
    save(chosen.save, "Two workers beside two native loops", [TEXT, table(HEAD, lines)])


TEXT = (
    "Wall-clock seconds, each row of the table one round of the four, measured one after the other."
)
HEAD = ["what", "loop", "command", "2 loops", "2 workers", "loops gain", "workers gain", "ratio"]


def _gains(loop: float, whole: float) -> list[str]:
    return [f"{loop:.2f}", f"{whole:.2f}", f"{whole / loop:.2f}"]


if __name__ == "__main__":
    main()
