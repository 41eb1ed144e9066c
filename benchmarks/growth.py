"""Memory and time of an evaluation against the rows of a Parquet file, here and on S3.

`holdfast.evaluate` of a linear network under `quick` at linf(0.1) on made bytes [1, 28, 28], each
in a fresh process, whose peak resident size is what the kernel says. The data are arrays in memory,
a Parquet file in row groups of 4,096 rows, and the same file on S3, which moto plays on this
machine. The goal: memory within 10 % or 200 MB of that of 10,000 rows, and CPU time within 5 % of
that of arrays.

    python benchmarks/growth.py [--most 1000000] [--arrays 100000] [--s3 100000]
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from common import ROOT, options, save, table
from torch import nn

import holdfast

ROWS = (1_000, 10_000, 100_000, 1_000_000)
GROUP, PIXELS = 4_096, 28 * 28
CENTRES = np.random.default_rng(0).integers(60, 196, (10, PIXELS))
PLOT = ROOT / "docs" / "rows.svg"


def piece(start: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows `start` to `start` + n: bytes around the centre of a class each."""
    rng = np.random.default_rng([1, start])
    y = rng.integers(0, 10, n)
    return (CENTRES[y] + rng.normal(0, 120, (n, PIXELS))).clip(0, 255).astype(np.uint8), y


def pieces(n: int) -> list[tuple[int, int]]:
    return [(start, min(GROUP, n - start)) for start in range(0, n, GROUP)]


def write(path: Path, n: int) -> None:
    """A Parquet file of n rows."""
    fields = {"x": pa.list_(pa.uint8(), PIXELS), "y": pa.int64()}
    schema = pa.schema(fields, metadata={"shape": "[1, 28, 28]"})
    with pq.ParquetWriter(path, schema) as writer:
        for part in pieces(n):
            x, y = piece(*part)
            lists = pa.FixedSizeListArray.from_arrays(pa.array(x.ravel()), PIXELS)
            writer.write_table(pa.table([lists, pa.array(y)], schema=schema))


def nearest() -> nn.Module:
    """The nearest of the centres."""
    net, centres = nn.Sequential(nn.Flatten(), nn.Linear(PIXELS, 10)), torch.tensor(CENTRES / 255)
    net[1].weight.data = centres.float()
    net[1].bias.data = -centres.square().sum(1).float() / 2
    return net


def once(data: str, n: int) -> None:
    """One evaluation; prints the peak in MiB, and the CPU seconds from opening the data on."""
    given: object = data
    if data == "arrays":
        parts = [piece(*part) for part in pieces(n)]
        x, y = (np.concatenate(column) for column in zip(*parts, strict=True))
        given = (x.reshape(-1, 1, 28, 28), y)
    began = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        holdfast.evaluate(nearest(), given, "linf(0.1)", protocol="quick", out=Path(folder, "run"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(peak, time.process_time() - began)


def measured(data: str, n: int, **env: str) -> tuple[float, float]:
    command = [sys.executable, __file__, "--data", data, "--rows", str(n)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ | env)
    peak, seconds = map(float, done.stdout.split())
    print(f"{data} {n:,}: {peak:.0f} MiB, {seconds:.1f} s", flush=True)
    return peak, seconds


def on_s3(path: Path, n: int) -> tuple[float, float]:
    """The same with the file on S3, which moto plays."""
    import s3fs
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    keys = dict.fromkeys(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), "testing")
    address = "http://{}:{}".format(*server.get_host_and_port())
    os.environ.update(keys, AWS_ENDPOINT_URL=address)
    try:
        store = s3fs.S3FileSystem(skip_instance_cache=True)  # of another server
        store.mkdir("data")
        store.put_file(str(path), "data/rows.parquet")
        return measured("s3://data/rows.parquet", n)
    finally:
        server.stop()


def plot(found: dict[tuple[str, int], tuple[float, float]]) -> None:
    """Memory and time against rows, for docs."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
    for which, (axis, name) in enumerate(zip(axes, ("peak MiB", "CPU seconds"), strict=True)):
        for data in dict.fromkeys(name for name, _ in found):
            rows = [n for kind, n in found if kind == data]
            axis.plot(rows, [found[data, n][which] for n in rows], marker="o", label=data)
        axis.set(xscale="log", xlabel="rows", ylabel=name)
        axis.set_ylim(bottom=0)
    axes[1].set(yscale="log")
    axes[0].legend(frameon=False)
    figure.savefig(PLOT, metadata={"Date": None})


def main() -> None:
    also = {"--data": {"default": ""}}
    chosen = options(__doc__, also=also, rows=0, most=ROWS[-1], arrays=100_000, s3=100_000)
    if chosen.rows:
        return once(chosen.data, chosen.rows)
    found: dict[tuple[str, int], tuple[float, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for n in (n for n in ROWS if n <= chosen.most):
            path = Path(folder, f"{n}.parquet")
            write(path, n)
            found["Parquet", n] = measured(str(path), n)
            if n <= chosen.arrays:
                found["arrays", n] = measured("arrays", n)
            if n <= chosen.s3:
                found["Parquet on S3", n] = on_s3(path, n)
            path.unlink()
    rows = []
    for (data, n), (peak, seconds) in found.items():
        base, arrays = found[data, ROWS[1]][0], found.get(("arrays", n), (0.0, 0.0))[1]
        more, share = f"{peak - base:+.0f}", f"{seconds / arrays:.3f}" if arrays else ""
        rows.append([data, f"{n:,}", f"{peak:.0f}", more, f"{seconds:.1f}", share])
    head = ["data", "rows", "peak MiB", "more than of 10,000 rows", "CPU s", "of arrays"]
    first = "`evaluate` under `quick` at linf(0.1), a linear network, fresh processes, 2 cores."
    save(chosen.save, "Memory and time against rows", [first, table(head, rows)])
    return plot(found)


if __name__ == "__main__":
    main()
