"""Memory does not grow with the rows of a file: as `benchmarks/growth.py` measures it."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.made_up_runs import samples

from holdfast.evaluation.merge import _examples
from holdfast.runs import store
from holdfast.runs.metrics import column_of, measure, narrow
from holdfast.runs.samples import Samples

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "growth.py"
WRITE = """
import sys, growth
from pathlib import Path
growth.write(Path(sys.argv[1]), int(sys.argv[2]))
"""


def peak(rows: int, folder: Path) -> float:
    """Of an evaluation of so many rows of Parquet, in MiB."""
    path = folder / f"{rows}.parquet"
    wrote = [sys.executable, "-c", WRITE, str(path), str(rows)]
    subprocess.run(wrote, check=True, cwd=SCRIPT.parent)
    asked = [sys.executable, str(SCRIPT), "--data", str(path), "--rows", str(rows)]
    done = subprocess.run(asked, check=True, capture_output=True, text=True)
    return float(done.stdout.split()[0])


@pytest.mark.slow
def test_a_hundred_thousand_rows_take_the_memory_of_ten_thousand(tmp_path: Path) -> None:
    assert peak(100_000, tmp_path) < peak(10_000, tmp_path) + 200


def test_samples_are_written_and_read_in_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = samples(200, 4, 0.25)
    monkeypatch.setattr(store, "GROUP", 64)
    parts = [narrow(table.slice(start, 70)) for start in range(0, 200, 70)]
    store.write_samples(tmp_path, pa.concat_tables(parts))
    assert pq.ParquetFile(tmp_path / "samples.parquet").num_row_groups == 4
    assert store.read_samples(tmp_path).equals(table)
    assert Samples(tmp_path).of_ids([130, 3]).equals(table.take([3, 130]))
    assert not len(Samples(tmp_path).of_ids([]))


def test_no_samples_are_a_table_too(tmp_path: Path) -> None:
    none = samples(9, 4, 0.25).slice(0, 0)
    store.write_samples(tmp_path, none)
    assert store.read_samples(tmp_path).equals(none)


def test_a_narrow_table_has_the_same_figures() -> None:
    table = samples(200, 4, 0.25)
    held = pa.concat_tables([narrow(table.slice(0, 90)), narrow(table.slice(90))])
    assert held.nbytes < 0.75 * table.nbytes
    assert measure(held, 4, [(0.25, 0.25)]) == measure(table, 4, [(0.25, 0.25)])
    assert column_of(held, "status").tolist() == table.column("status").to_pylist()
    long = pa.table({"queries": [1 << 40]})
    assert narrow(long).equals(long)


def test_examples_are_merged_piece_by_piece(tmp_path: Path) -> None:
    x = np.random.default_rng(0).random((1024, 16, 16), np.float32)
    for shard, first in (("a", 0), ("b", 8500)):
        for start in range(first, first + 8500, 1024):
            ids = np.arange(start, min(start + 1024, first + 8500))
            place = tmp_path / shard / "adversarial" / f"{start:09d}.safetensors"
            store.write_tensors(place, {"id": ids, "x": x[ids % 1024]})
    tracemalloc.start()
    _examples([tmp_path / "a", tmp_path / "b"], tmp_path / "all", [16, 16], [(0, 17_000)])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 17 * x.nbytes / 2
    pieces = list(store.examples(tmp_path / "all"))
    assert [ids[0] for ids, _ in pieces] == [*range(0, 17_000, 1024)]
    for ids, shown in pieces:
        np.testing.assert_array_equal(ids, np.arange(ids[0], min(ids[0] + 1024, 17_000)))
        np.testing.assert_array_equal(shown, x[ids % 1024])
