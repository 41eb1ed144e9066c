"""What two workers gain on this machine, and what two native loops of gradients gain on it.

`holdfast evaluate --protocol standard`, the whole command, as one process and with `--workers 2`;
and PGD in plain torch on the same network and rows, from the first step to the last, as one process
and as two with half of the rows each. Each process has one thread, but for a single one with
--threads. One after the other, so that a busy minute of the machine falls on all. The goal: the
gain of the workers is at least 0.9 of that of the loops.

Networks: an adversarially trained LeNet-5 on MNIST images at linf(0.3); a ResNet-18 for 32x32
inputs with random weights, on CIFAR-10 images that it gives its own labels, with a budget a row and
a small eps, so that each row costs the same. `quick` on few rows shows what workers cost where
there is little to do, and so do 100 rows next to 300: estimate, probe and report are not shared.

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
Spent = tuple[float, float]  # seconds by the clock, and of the CPU
# rows, steps of the native loop, and what the command is asked
TASKS: dict[str, tuple[str, int, int, tuple[str, ...]]] = {
    "LeNet-5, standard, 100 rows": ("cnn", 100, 150, ("--threat", "linf(0.3)")),
    "LeNet-5, standard, 300 rows": ("cnn", 300, 50, ("--threat", "linf(0.3)")),
    "ResNet-18, standard, 60 queries a row, 4 rows": (
        "resnet18", 4, 20, ("--threat", "linf(1e-4)", "--max-queries", "60"),
    ),
    "LeNet-5, quick, 100 rows": (
        "cnn", 100, 150, ("--threat", "linf(0.3)", "--protocol", "quick"),
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
    """PGD on rows start to stop, once the standard input says so; prints the seconds by the clock
    and of the CPU."""
    x, y = rows(name, stop)
    x, y, net, eps = x[start:], y[start:], NETWORKS[name](), 0.01
    print("ready", flush=True)
    sys.stdin.readline()
    began, spent, d = time.perf_counter(), time.process_time(), torch.zeros_like(x)
    for _ in range(steps):
        d.requires_grad_()
        loss = nn.functional.cross_entropy(net((x + d).clamp(0, 1)), y, reduction="sum")
        (g,) = torch.autograd.grad(loss, d)
        d = (d.detach() + eps / 10 * g.sign()).clamp(-eps, eps)
    print(time.perf_counter() - began, time.process_time() - spent, flush=True)


def threads_of(processes: int) -> dict[str, str]:
    """The environment of each of so many processes."""
    threads = 1 if processes > 1 else torch.get_num_threads()
    return os.environ | {"OMP_NUM_THREADS": str(threads)}


def loops(name: str, n: int, steps: int, processes: int) -> Spent:
    """Until the last of so many processes has done its part of n rows."""
    at = [i * n // processes for i in range(processes + 1)]
    children = [
        subprocess.Popen(
            [sys.executable, str(HERE), "--native", name, str(start), str(stop), str(steps)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=threads_of(processes),
            text=True,
        )
        for start, stop in pairwise(at)
    ]
    for child in children:
        assert child.stdout is not None
        child.stdout.readline()
    for child in children:
        assert child.stdin is not None
        child.stdin.write("go\n")
        child.stdin.flush()
    spent = [tuple(map(float, child.communicate()[0].split())) for child in children]
    return max(wall for wall, _ in spent), sum(cpu for _, cpu in spent)


def command(name: str, data: Path, asked: tuple[str, ...], workers: int, out: Path) -> Spent:
    """By the whole command and its workers."""
    began, spent = time.perf_counter(), os.times()
    subprocess.run(
        [
            *(sys.executable, "-m", "holdfast", "evaluate", f"{HERE}:{name}", str(data), *asked),
            *("--workers", str(workers), "--out", str(out)),
        ],
        env=threads_of(workers),
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    now = os.times()
    cpu = now.children_user + now.children_system - spent.children_user - spent.children_system
    return time.perf_counter() - began, cpu


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
                once = [
                    loops(name, n, steps, 1),
                    loops(name, n, steps, 2),
                    command(name, data, asked, 1, Path(folder) / "one"),
                    command(name, data, asked, 2, Path(folder) / "two"),
                ]
            (loop, loop_cpu), (loop2, loop2_cpu), (one, one_cpu), (two, two_cpu) = once
            gains = loop / loop2, one / two, 2 * loop_cpu / loop2_cpu, 2 * one_cpu / two_cpu
            lines.append(
                [
                    title,
                    *(f"{wall:.0f} / {cpu:.0f}" for wall, cpu in once),
                    *(f"{gain:.2f}" for gain in gains),
                    f"{gains[1] / gains[0]:.2f}",
                    f"{gains[3] / gains[2]:.2f}",
                ]
            )
            print(*lines[-1], sep=" | ", flush=True)
    save(chosen.save, "Two workers and two native loops", [TEXT, table(HEAD, lines)])


TEXT = (
    "Seconds by the clock / of the CPU, each row one round, measured one after the other on a "
    "machine that others use too. The gain by the CPU is that of two idle cores: twice the seconds "
    "of one process over those of two. The last columns are the gain of the workers over that of "
    "the loops, by the clock and by the CPU."
)
HEAD = ["what", "1 loop", "2 loops", "1 process", "2 workers"]
HEAD += ["gain of loops", "of workers", "by CPU of loops", "of workers", "ratio", "by CPU"]


if __name__ == "__main__":
    main()
