"""Peak memory of an evaluation of 1,000 against 10,000 images.

`holdfast.evaluate` with `pgd(steps=2)` on the shared MNIST model, data read from the gzip IDX files through
`holdfast.data.open_data`; each in a fresh process, whose peak resident size is what the kernel says. A third process
only imports, opens the data and wraps the model: the floor. The goal: 10,000 images take at most 10 % more.

    python benchmarks/memory.py [--repeats 3] [--threads 1]
"""

from __future__ import annotations

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


def once(n: int, threads: int) -> None:
    """One evaluation of n images; prints the peak in KiB, the seconds, and the bytes of the run folder."""
    torch.set_num_threads(threads)
    source = open_data(f"mnist:{CASES / 'data_mnist'}")
    target = holdfast.wrap(case("torch_advertorch_lenet5", "adv"), shape=(1, 28, 28))
    began, size = time.process_time(), 0
    with tempfile.TemporaryDirectory() as folder:
        if n:
            out = Path(folder) / "run"
            holdfast.evaluate(target, source, "linf(0.3)", attacks=["pgd(steps=2)"], samples=n, out=out)
            size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time() - began, size)


def main() -> None:
    chosen = options(__doc__, repeats=3, only=-1)
    if chosen.only >= 0:
        return once(chosen.only, chosen.threads)
    need(CASES / "data_mnist")
    peaks: dict[int, list[float]] = {n: [] for n in COUNTS}
    seconds: dict[int, list[float]] = {n: [] for n in COUNTS}
    sizes: dict[int, float] = {}
    for _ in range(chosen.repeats):
        for n in COUNTS:
            command = [sys.executable, __file__, "--only", str(n), "--threads", str(chosen.threads)]
            said = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
            peaks[n].append(int(said[0]) / 1024)
            seconds[n].append(float(said[1]))
            sizes[n] = int(said[2]) / 2**20
    base = median(peaks[1_000])
    rows = [
        [f"{n:,}", f"{median(peaks[n]):.0f}", f"{median(peaks[n]) / base:.3f}", f"{median(seconds[n]):.1f}", f"{sizes[n]:.1f}"]
        for n in COUNTS
    ]
    head = ["images", "peak MiB", "of 1,000 images", "CPU s", "run folder MiB"]
    first = f"`evaluate` with pgd(steps=2) at linf(0.3), fresh processes, medians of {chosen.repeats}."
    save(chosen.save, "Memory of an evaluation", [first, table(head, rows)])
    return None


if __name__ == "__main__":
    main()
