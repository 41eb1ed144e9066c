"""The situations of real users that once ended in a wrong figure, a crash or a dead end: one line
each, with its tests.

The tests stand in `tests/situations/` and `tests/frameworks/`; the docstring of each begins with
its number.
"""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

import pytest

from holdfast.evaluation.protocols import PROTOCOLS

ROOT = Path(__file__).parents[2]
LINES = {
    1: "a raw score within [0, 1] is no probability",
    2: "a softmax or sigmoid at the end does not weaken the attack",
    3: "a model that knows nothing is not trusted",
    4: "hardening of unequal classes does not end in the largest one",
    5: "verify holds genuine runs, and no forged ones",
    6: "journal records carry a digest and their name",
    7: "models may change their input in place",
    8: "models may call sys.exit",
    9: "the size is the smallest that was found",
    10: "named attacks ascend the loss of their paper",
    11: "quick says what it is worth",
    12: "data in every form that people hold",
    13: "one meaning of layout everywhere",
    14: "folders of images of any size and mode",
    15: "class names",
    16: "one-hot labels",
    17: "files of models and of tables",
    18: "modules and heads of other kinds",
    19: "preprocessing of one's own",
    20: "sizes, masks and bounds as arrays of any library",
    21: "a refused command leaves nothing behind",
    22: "--resume goes on after --max-seconds",
    23: "--train-samples and --test-samples",
    24: "targeted attacks",
    25: "images of 8 bits",
    26: "a threat that cannot be read gets an example of one",
    27: "endpoints that are slow, odd or hostile",
    28: "models that fail late, or live nowhere",
    29: "hostile folders, data and options end in one sentence",
    30: "text from outside is inert in every report",
    31: "frameworks are quiet",
    32: "run.json names the frameworks that were used",
    33: "the estimate counts what the run takes",
}


@functools.cache
def documented() -> dict[int, list[str]]:
    """The tests of each line, by what their docstrings say."""
    found: dict[int, list[str]] = {line: [] for line in LINES}
    for path in sorted(
        [*ROOT.glob("tests/situations/test_*.py"), *ROOT.glob("tests/frameworks/test_*.py")]
    ):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                said = re.match(r"Line (\d+):", ast.get_docstring(node) or "")
                if said:
                    found[int(said[1])].append(f"{path.relative_to(ROOT)}::{node.name}")
    return found


@pytest.mark.parametrize("line", LINES, ids=[f"{line}: {text}" for line, text in LINES.items()])
def test_every_line_has_its_tests(line: int) -> None:
    assert documented()[line]


def test_quick_says_what_it_is_worth() -> None:
    """Line 11: `quick` says what was measured, also on networks that it was not tuned on."""
    for text in (
        PROTOCOLS["quick"][1],
        (ROOT / "docs" / "protocols.md").read_text(encoding="utf-8"),
    ):
        assert "within about a point" not in text
    assert "4 to 5" in (ROOT / "docs" / "protocols.md").read_text(encoding="utf-8")
