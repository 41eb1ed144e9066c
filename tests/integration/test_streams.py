"""Memory does not grow with the rows of a file: as `benchmarks/streams.py` measures it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "streams.py"
WRITE = """
import sys, streams
from pathlib import Path
streams.write(Path(sys.argv[1]), int(sys.argv[2]))
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
