"""Peak memory of an evaluation of 1,000 against 10,000 images.

`holdfast.evaluate` with `pgd(steps=2)` on the shared MNIST model, data read from the gzip IDX files
through `holdfast.data.open_data`; each in a fresh process, whose peak resident size is what the
kernel says. Zero images: what importing, opening the data and wrapping the model take. The goal:
10,000 images take at most 10 % more than 1,000.

What is resident is not what is held: the C allocator keeps and splits freed blocks. So the same is
measured with the allocator as it comes, with torch's huge pages, and with these and blocks from 1
MiB on given back as soon as they are free; where the last is flat, nothing is held.

    python benchmarks/memory.py [--repeats 2] [--threads 1]
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import torch
from common import CASES, case, need, options, save, table

import holdfast
from holdfast.data import open_data

COUNTS = (0, 1_000, 10_000)
ALLOCATORS: dict[str, dict[str, str]] = {
    "as it comes": {},
    "huge pages": {"THP_MEM_ALLOC_ENABLE": "1"},
    "huge pages, given back": {"THP_MEM_ALLOC_ENABLE": "1", "MALLOC_MMAP_THRESHOLD_": str(2**20)},
}


def once(n: int, threads: int) -> None:
    """One evaluation of n images; prints the peak in KiB, the seconds, and the bytes of the run
    folder."""
    torch.set_num_threads(threads)
    source = open_data(f"mnist:{CASES / 'data_mnist'}")
    target = holdfast.wrap(case("torch_advertorch_lenet5", "adv"), shape=(1, 28, 28))
    began, size = time.process_time(), 0
    with tempfile.TemporaryDirectory() as folder:
        if n:
            out = Path(folder) / "run"
            holdfast.evaluate(
                target, source, "linf(0.3)", attacks=["pgd(steps=2)"], samples=n, out=out
            )
            size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time() - began, size)


def main() -> None:
    chosen = options(__doc__, repeats=2, only=-1)
    if chosen.only >= 0:
        return once(chosen.only, chosen.threads)
    need(CASES / "data_mnist")
    keys = [(allocator, n) for allocator in ALLOCATORS for n in COUNTS]
    peaks: dict[tuple[str, int], list[float]] = {key: [] for key in keys}
    seconds: dict[tuple[str, int], list[float]] = {key: [] for key in keys}
    folder: dict[tuple[str, int], float] = {}
    for _ in range(chosen.repeats):
        for allocator, n in keys:
            command = [sys.executable, __file__, "--only", str(n), "--threads", str(chosen.threads)]
            env = os.environ | ALLOCATORS[allocator]
            said = subprocess.run(
                command, check=True, capture_output=True, text=True, env=env
            ).stdout.split()
            peaks[allocator, n].append(int(said[0]) / 1024)
            seconds[allocator, n].append(float(said[1]))
            folder[allocator, n] = int(said[2]) / 2**20
    rows = []
    for allocator, n in keys:
        peak, base = median(peaks[allocator, n]), median(peaks[allocator, 1_000])
        spent = median(seconds[allocator, n])
        rows.append(
            [
                allocator,
                f"{n:,}",
                f"{peak:.0f}",
                f"{peak / base:.2f}",
                f"{spent:.1f}",
                f"{folder[allocator, n]:.1f}",
            ]
        )
    head = ["allocator", "images", "peak MiB", "of 1,000 images", "CPU s", "run folder MiB"]
    first = (
        f"`evaluate` with pgd(steps=2) at linf(0.3), fresh processes, medians of {chosen.repeats}."
    )
    save(chosen.save, "Memory of an evaluation", [first, table(head, rows)])
    return None


if __name__ == "__main__":
    main()
