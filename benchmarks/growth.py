"""Memory and time of an evaluation as rows, workers and classes grow.

A linear network, the nearest of some centres, under `quick` at linf(0.1) on made bytes [1, 28, 28],
each measurement in fresh processes. Memory is the peak of what they hold of the machine, pages that
they share counted once; time is that of the CPU, from opening the data on.

rows: 10 classes, as arrays in memory, from Parquet files of 100,000 rows in row groups of 4,096,
and from the same files on S3, which moto plays on this machine. The goal: memory within 10 % or
200 MB of that of 10,000 rows, and CPU time within 5 % of that of arrays.
workers: `holdfast evaluate --workers N`, the whole command, on Parquet.
classes: arrays of 2,000 rows under pgd(steps=40) at linf(0.01), which breaks hardly a row.

What is measured joins what benchmarks/results/growth.json holds; the tables and docs/growth.svg
are made of all of it.

    python benchmarks/growth.py [rows] [workers] [classes] [--most 1000000] [--s3 1000000]
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from functools import cache
from pathlib import Path
from statistics import median

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from common import RESULTS, ROOT, options, save, table
from torch import nn

import holdfast

ROWS, WORKERS = (1_000, 10_000, 100_000, 1_000_000), (1, 2, 3, 4)
CLASSES, SHARED = (10, 30, 100, 300, 1_000), 20_000  # rows that workers share
FILE, GROUP, PIXELS = 100_000, 4_096, 28 * 28
ASKED = ("linf(0.1)", "quick")
EVEN = ("linf(0.01)", "pgd(steps=40)")  # breaks hardly a row, so that each costs as much
KEPT, PLOT = RESULTS / "growth.json", ROOT / "docs" / "growth.svg"
Spent = tuple[float, float]  # peak MiB, and CPU seconds
Found = dict[str, dict[str, dict[str, Spent]]]  # by what grows, series and size


@cache
def centres(classes: int) -> np.ndarray:
    return np.random.default_rng(0).integers(60, 196, (classes, PIXELS))


def piece(start: int, n: int, classes: int = 10) -> tuple[np.ndarray, np.ndarray]:
    """Rows `start` to `start` + n: bytes around the centre of a class each."""
    rng = np.random.default_rng([1, start])
    y = rng.integers(0, classes, n)
    x = centres(classes)[y] + rng.normal(0, 120, (n, PIXELS))
    return x.clip(0, 255).astype(np.uint8), y


def pieces(n: int, first: int = 0) -> list[tuple[int, int]]:
    return [(start, min(GROUP, n - start)) for start in range(first, n, GROUP)]


def write(folder: Path, n: int) -> None:
    """Parquet files of n rows."""
    fields = {"x": pa.list_(pa.uint8(), PIXELS), "y": pa.int64()}
    schema = pa.schema(fields, metadata={"shape": "[1, 28, 28]"})
    for first in range(0, n, FILE):
        with pq.ParquetWriter(folder / f"rows-{first:07d}.parquet", schema) as writer:
            for part in pieces(min(n, first + FILE), first):
                x, y = piece(*part)
                lists = pa.FixedSizeListArray.from_arrays(pa.array(x.ravel()), PIXELS)
                writer.write_table(pa.table([lists, pa.array(y)], schema=schema))


def nearest(classes: int = 10) -> nn.Module:
    """The nearest of the centres."""
    net, at = nn.Sequential(nn.Flatten(), nn.Linear(PIXELS, classes)), centres(classes)
    weight = torch.tensor(at / 255)
    net[1].weight.data = weight.float()
    net[1].bias.data = -weight.square().sum(1).float() / 2
    return net


def once(data: str, n: int, classes: int | None) -> None:
    """One evaluation; prints the peak in MiB, and the CPU seconds from opening the data on."""
    (threat, protocol), attacks = ASKED, ()
    if classes is not None:
        (threat, *attacks), protocol = EVEN, "custom"
    classes = classes or 10
    given: object = data
    if data == "arrays":
        parts = [piece(*part, classes) for part in pieces(n)]
        x, y = (np.concatenate(column) for column in zip(*parts, strict=True))
        given = (x.reshape(-1, 1, 28, 28), y)
    began, net = time.process_time(), nearest(classes)
    with tempfile.TemporaryDirectory() as folder:
        how = {"protocol": protocol, "attacks": attacks, "out": Path(folder, "run")}
        holdfast.evaluate(net, given, threat, **how)
    spent = time.process_time() - began
    print(_kept_of(Path("/proc/self/status"), "VmHWM") / 1024, spent)


def measured(data: str, n: int, classes: int | None = None) -> Spent:
    command = [sys.executable, __file__, "--data", data, "--rows", str(n)]
    command += [] if classes is None else ["--classes", str(classes)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    peak, seconds = map(float, done.stdout.split())
    print(
        f"{data}, {n:,} rows, {classes or 10} classes: {peak:.0f} MiB, {seconds:.1f} s", flush=True
    )
    return peak, seconds


def on_s3(folder: Path, n: int) -> Spent:
    """The same with the files on S3, which moto plays."""
    import s3fs
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    keys = dict.fromkeys(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), "testing")
    address = "http://{}:{}".format(*server.get_host_and_port())
    os.environ.update(keys, AWS_ENDPOINT_URL=address)
    try:
        store = s3fs.S3FileSystem(skip_instance_cache=True)  # of another server
        store.makedirs("data", exist_ok=True)  # moto keeps what an earlier server held
        for path in folder.iterdir():
            store.put_file(str(path), f"data/{n}/{path.name}")
        return measured(f"s3://data/{n}", n)
    finally:
        server.stop()


def shared(data: Path, workers: int) -> Spent:
    """By the whole command with so many workers."""
    asked = (f"{Path(__file__).resolve()}:nearest", str(data), "--threat", ASKED[0])
    before = os.times()
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "holdfast", "evaluate", *asked, "--protocol", ASKED[1]]
        command += ["--workers", str(workers), "--out", str(Path(folder, "run"))]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        child = subprocess.Popen(command, start_new_session=True, **quiet)
        peak, done = 0.0, threading.Event()
        waits = threading.Thread(target=lambda: (child.wait(), done.set()))
        waits.start()
        while not done.wait(0.2):
            peak = max(peak, _held_by(child.pid))
        waits.join()
    if child.returncode:
        raise SystemExit(f"{workers} workers ended with {child.returncode}")
    now = os.times()
    seconds = now.children_user + now.children_system
    seconds -= before.children_user + before.children_system
    print(f"{workers} workers: {peak:.0f} MiB, {seconds:.1f} s", flush=True)
    return peak, seconds


def _held_by(session: int) -> float:
    """MiB that the processes of a session hold, shared pages by their parts."""
    total = 0
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it may end meanwhile
            state = (process / "stat").read_text().rpartition(")")[2].split()
            if int(state[3]) == session:
                total += _kept_of(process / "smaps_rollup", "Pss")
    return total / 1024


def _kept_of(file: Path, what: str) -> int:
    """KiB that a file of the kernel's says: not ru_maxrss, in which a parent's memory counts."""
    return int(file.read_text().partition(f"\n{what}:")[2].split()[0])


def of_rows(repeats: int, least: int, most: int, s3: int) -> dict[str, dict[str, Spent]]:
    """From `least` to `most` rows of Parquet and of arrays, and to `s3` on S3."""
    found: dict[str, dict[str, Spent]] = {}
    for n in (n for n in ROWS if least <= n <= max(most, s3)):
        runs: dict[str, list[Spent]] = {}
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder), n)
            for _ in range(repeats if n < ROWS[-1] else 1):
                if n <= s3:
                    runs.setdefault("Parquet on S3", []).append(on_s3(Path(folder), n))
                if n <= most:
                    runs.setdefault("Parquet", []).append(measured(folder, n))
                    runs.setdefault("arrays", []).append(measured("arrays", n))
        for data, spent in runs.items():
            peaks, seconds = zip(*spent, strict=True)
            found.setdefault(data, {})[str(n)] = max(peaks), median(seconds)
    return found


def of_workers() -> dict[str, dict[str, Spent]]:
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), SHARED)
        return {f"{SHARED:,} rows": {str(n): shared(Path(folder), n) for n in WORKERS}}


def of_classes() -> dict[str, dict[str, Spent]]:
    return {"2,000 rows": {str(k): measured("arrays", 2_000, k) for k in CLASSES}}


def plot(found: Found) -> None:
    """Memory and time against what grows, for docs."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt

    mpl.rcParams["svg.hashsalt"] = "holdfast"
    figure, axes = plt.subplots(len(found), 2, figsize=(6, 2.3 * len(found)), layout="constrained")
    for row, (what, series) in zip(axes, found.items(), strict=True):
        for which, (axis, name) in enumerate(zip(row, ("peak MiB", "CPU seconds"), strict=True)):
            for data, sizes in series.items():
                at = sorted(map(int, sizes))
                axis.plot(at, [sizes[str(n)][which] for n in at], marker="o", ms=4, label=data)
            axis.set(xlabel=what, ylabel=name)
            if what == "workers":
                axis.set(xticks=WORKERS)
            else:
                axis.set(xscale="log")
            if what == "rows" and which:
                axis.set(yscale="log")
            else:
                axis.set_ylim(bottom=0)
            axis.grid(alpha=0.3)
        if series:
            row[0].legend(frameon=False, fontsize=8, loc="lower right")
    figure.savefig(PLOT, metadata={"Date": None})


def lines(found: Found) -> list[str]:
    """The tables."""
    texts = [f"`evaluate` under `{ASKED[1]}` at {ASKED[0]}, a linear network, fresh processes."]
    rows, head = [], ["data", "rows", "peak MiB", "more than of 10,000 rows", "CPU s", "of arrays"]
    for data, sizes in found.get("rows", {}).items():
        base = sizes.get(str(ROWS[1]), (np.nan, np.nan))[0]
        for n, (peak, seconds) in sorted(sizes.items(), key=lambda pair: int(pair[0])):
            share = seconds / found["rows"].get("arrays", {}).get(n, (np.nan, np.nan))[1]
            cells = [f"{peak:.0f}", f"{peak - base:+.0f}", f"{seconds:.1f}", f"{share:.3f}"]
            rows.append([data, f"{int(n):,}", *(cell.replace("nan", "") for cell in cells)])
    texts.append(table(head, rows))
    for what in ("workers", "classes"):
        for data, sizes in found.get(what, {}).items():
            cells = [[n, f"{peak:.0f}", f"{cpu:.1f}"] for n, (peak, cpu) in sizes.items()]
            how = f", `{EVEN[1]}` at {EVEN[0]}" if what == "classes" else ""
            texts += [f"{data}{how}:", table([what, "peak MiB", "CPU s"], cells)]
    return texts


def main() -> None:
    kinds = {"rows": of_rows, "workers": of_workers, "classes": of_classes}
    also = {"what": {"nargs": "*"}, "--data": {"default": ""}, "--classes": {"type": int}}
    counts = {"rows": 0, "least": ROWS[0], "most": ROWS[-1], "s3": ROWS[-1]}
    chosen = options(__doc__, repeats=2, also=also, **counts)
    if chosen.rows:
        return once(chosen.data, chosen.rows, chosen.classes)
    new: Found = {}
    for what in chosen.what or kinds:
        sizes = (chosen.least, chosen.most, chosen.s3)
        new[what] = kinds[what](*((chosen.repeats, *sizes) if what == "rows" else ()))
    found: Found = {what: {} for what in kinds}
    if KEPT.exists():
        found |= json.loads(KEPT.read_text())
    for what, series in new.items():
        for data, sizes in series.items():
            found[what].setdefault(data, {}).update(sizes)
    KEPT.write_text(json.dumps(found, indent=1) + "\n")
    save(chosen.save, "Memory and time against rows, workers and classes", lines(found))
    return plot(found)


if __name__ == "__main__":
    main()
