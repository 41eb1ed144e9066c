"""What every test shares: one torch thread a worker, reproducible hypothesis, and the way to real cases."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)  # two workers with one thread each are faster than one with two
settings.register_profile("holdfast", deadline=None, derandomize=True, database=None, max_examples=40)
settings.load_profile("holdfast")

CASES = Path(__file__).parents[2] / "shared" / "cases"


@pytest.fixture(scope="session")
def cases() -> Path:
    """The folder of real models and data; tests that ask for it carry the marker `cases`."""
    if not CASES.is_dir():
        pytest.skip(f"{CASES} is absent: this test needs its real models and data")
    return CASES
