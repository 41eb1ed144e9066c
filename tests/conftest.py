"""What every test shares: one torch thread a worker, reproducible hypothesis, and the way to real
cases."""

from __future__ import annotations

import functools
import gc
import resource
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
import torch
import typer.testing
from hypothesis import settings

torch.set_num_threads(1)  # two workers with one thread each are faster than one with two
# else built anew for each command
typer.testing._get_command = functools.cache(typer.testing._get_command)
settings.register_profile(
    "holdfast", deadline=None, derandomize=True, database=None, max_examples=40
)
settings.load_profile("holdfast")

pytest_plugins = ["helpers.browsing"]
CASES = Path(__file__).parents[2] / "shared" / "cases"


@pytest.fixture(scope="session")
def cases() -> Path:
    """The folder of real models and data; tests that ask for it carry the marker `cases`."""
    if not CASES.is_dir():
        pytest.skip(f"{CASES} is absent: this test needs its real models and data")
    return CASES


def pytest_collection_finish() -> None:
    """The modules and tests are here to stay: the garbage collector need not go through them
    again and again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(
        20_000
    )  # what tests leave behind is little: at 700 a tenth of their time went into looking for it


def _cpu() -> float:
    """CPU seconds of this process and of its children that have ended."""
    spent = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in spent)


_STARTED = pytest.StashKey[float]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, Any, Any]:
    """What a test cost, its fixtures included, is in the report of its teardown."""
    report = yield
    if call.when == "teardown":
        report.user_properties.append(("cpu", _cpu() - item.stash[_STARTED]))
    return report


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    item.stash[_STARTED] = _cpu()


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """The tests that cost most, and the whole: the allowance is in CONTRIBUTING.md; no test
    fails by it."""
    spent = {
        report.nodeid: seconds
        for reports in terminalreporter.stats.values()
        for report in reports
        for name, seconds in getattr(report, "user_properties", ())
        if name == "cpu"
    }
    dearest = sorted(spent.items(), key=lambda one: -one[1])[:15]
    terminalreporter.section("CPU seconds")
    for nodeid, seconds in dearest:
        terminalreporter.write_line(f"{seconds:7.1f}  {nodeid}")
    tests, whole = sum(spent.values()), _cpu()
    terminalreporter.write_line(
        f"{whole:7.1f}  in all; {tests:.1f} of them in {len(spent):,} tests"
    )
