"""One language: the terms of the field and plain English, in names and in all that people read."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Parts of names (of functions, classes, parameters, attributes, variables, modules) that no name
# has, and what it is called instead.
NAMES = {
    "adopt": "take, or what it does",
    "announce": "on_progress, on_epoch, on_estimate, or print",
    "aside": "what it is",
    "asides": "what it is",
    "beat": "broken_by",
    "beside": "with, or further inputs",
    "board": "ensemble",
    "books": "counts, or result",
    "caution": "what it is",
    "copies": "shifted, changed or augmented inputs",
    "crowd": "population",
    "door": "model interface",
    "dull": "zero gradients",
    "exam": "probe",
    "examine": "probe",
    "examined": "probed",
    "fallen": "broken",
    "falls": "broken",
    "fare": "what it is",
    "fell": "broken",
    "finish": "build_manifest, or what it does",
    "foothold": "starting point",
    "foreign": "of another, or what it is",
    "freedom": "what it is",
    "glance": "summary",
    "graded": "with_truth",
    "idle": "unchanged, or what it is",
    "learned": "what it is",
    "legs": "stages",
    "lent": "substitute",
    "looks": "perceptual distance",
    "moved": "transformed, or after",
    "moving": "what it is",
    "near": "close, start, or max_margin",
    "pace": "rate, step_size or tau",
    "plain": "undefended, ordinary or untransformed",
    "plan": "settings, or schedule",
    "plans": "settings, or schedule",
    "planes": "channels",
    "rival": "other class",
    "rivals": "other classes",
    "several": "many, further or ensemble",
    "stands": "robust",
    "stood": "robust",
    "story": "what it is",
    "straight": "bpda",
    "team": "ensemble",
    "tell": "on_progress, on_epoch, on_estimate, or print",
    "told": "messages, or what it is",
    "untouched": "unchanged",
    "walk": "path, or search",
    "wanted": "required, or expected",
    "watch": "on_progress, on_epoch, on_estimate, or what it does",
    "way": "gradient source, or direction",
    "ways": "gradient sources",
}
# What no sentence says (patterns), and the plain words for it: in comments, strings, pages and the
# names of tests.
_ROW = r"(?:rows?|samples?|images?|inputs?|examples?|that|which) (?:still )?"
WORDS = {
    r"adopt(?:s|ed)?": "take",
    r"announces?": "say, or print",
    r"as (?:it|they) stands?": "as it is",
    r"at a glance|glances?": "summary",
    r"behind the door|doors?": "model interface; wrapped",
    r"beside": "with, next to, or in addition to",
    r"books": "counts, or result",
    r"by lot": "at random",
    r"cautio(?:n|us)|dull|foothold|crowd": "the field's term",
    r"exams?|examin(?:ations?|e[sd]?|ing)": "probe",
    r"fares?|fared": "what it does",
    r"graded": "with a truth",
    r"lends?|lent": "substitute",
    r"near(?=\s*=)|`near`": "max_margin",
    r"near(?:er)? to (?:falling|being broken)": "close to being broken",
    r"pace": "rate, or step",
    r"rivals?": "other, or competing, class",
    r"""["'`](?:straight|blurred)["'`]|through=(?=\W)""": "gradient='bpda', gradient='smoothed'",
    r"stands? for|stood for": "mean, or represent",
    r"stands? in for|stands?-ins?": "substitute",
    r"still stands?": "is still robust",
    r"the looks|its looks": "perceptual distance",
    r"the zoo": "the models of holdfast.testing",
    r"untouched": "unchanged",
    r"ways? around": "gradient source",
    r"(?<!random\s)walks?(?!=)": "path, or search",
    _ROW + r"falls?(?! (?:to|below|off|under))": "is broken",
    _ROW + r"(?:stands?|stood|fell|had fallen|have fallen)": "is robust; is broken",
    r"(?<![\w.)\]:\\])(?<!:\+)\.\d+": "0.5, with its zero",
}
# Where an old word is right: (file, word): the reason. Files and words are patterns.
ALLOWED: dict[tuple[str, str], str] = {
    ("tests/laws/test_words.py", "*"): "the lists themselves",
    ("CHANGELOG.md", "*"): "history keeps the words that it had",
    ("benchmarks/results/*", "*"): "measurements as they were written",
    ("src/holdfast/attacks/minimum_norm/brendelbethge.py", "walk*"): "its option `walks`",
    ("src/holdfast/attacks/minimum_norm/*deepfool.py", "rivals"): "the option of this name",
    ("src/holdfast/attacks/transfer/*.py", "copies"): "the options of this name",
    ("src/holdfast/diagnostics/probe.py", "exam"): "a key of the noise",
    ("docs/attacks.md", "rivals"): "the option of this name",
    ("docs/run-folder.md", "examined"): "a name in runs of before",
    ("tests/situations/older_wording/README.md", "examined"): "a folder",
    ("docs/attacks.md", "walk*"): "of the option `walks`",
    ("tests/conftest.py", "pytest_*"): "hooks of pytest",
    ("tests/attacks/test_deepfool.py", "rivals"): "the option of this name",
    ("tests/*", "glance"): "the option of a recipe",
    ("*", "looks_like"): "ordinary English",
    ("src/holdfast/*/audit_*.py", "*plan*"): "the plan of an audit, by its option",
    ("src/holdfast/runs/audit_plan.py", "AuditPlan"): "the same",
    ("tests/audit/test_audit_plan.py", "*[Pp][Ll][Aa][Nn]*"): "the same",
    ("tests/situations/test_older_wording.py", "*"): "what runs of before say",
    ("tests/situations/test_version1.py", "pace"): "what runs of before say",
    ("src/holdfast/generation/diffusion.py", "told"): "a name in the files of generators",
    ("src/holdfast/generation/model.py", "glance"): "the option of a recipe",
    ("src/holdfast/generation/quality.py", "copies"): "a figure in the files of generators",
    ("src/holdfast/runs/migration.py", "*"): "what runs of before say",
    ("src/holdfast/training/state.py", "rival"): "a name in the stored state of a training",
    ("src/holdfast/targets/*.py", "*[Ss][Tt][Rr][Aa][Ii][Gg][Hh][Tt]*"): "the straight-through "
    "estimator, by the field's name",
}
FILES = sorted(
    path.relative_to(ROOT)
    for part in ("src", "tests", "docs", "examples", "benchmarks")
    for path in (ROOT / part).rglob("*")
    if path.suffix in (".py", ".md", ".j2", ".yml")
)
FILES += [Path(page) for page in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
_NAME = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_WORDS = {
    re.compile(rf"(?i:(?<!\w)(?:{word})(?!\w))".replace(" ", r"\s+")): said
    for word, said in WORDS.items()
}


def names(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """The line of each name that a file gives, and the name."""
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                if not node.name.startswith("test_"):
                    yield node.lineno, node.name
            case ast.arg():
                yield node.lineno, node.arg
            case ast.Name(ctx=ast.Store()):
                yield node.lineno, node.id
            case ast.Attribute(ctx=ast.Store()):
                yield node.lineno, node.attr
            case ast.alias(asname=str(name)):
                yield node.lineno, name
            case _:
                pass


def prose(path: Path) -> Iterator[tuple[int, str]]:
    """The pieces of a file that people read, each with its first line."""
    text = (ROOT / path).read_text()
    if path.suffix != ".py":
        yield 1, text
        return
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in (tokenize.STRING, tokenize.COMMENT):
            yield token.start[0], token.string
        elif token.type == tokenize.NAME and token.string.startswith("test_"):
            yield token.start[0], token.string.replace("_", " ")


def faults(path: Path) -> Iterator[str]:
    """A sentence for each old word of a file."""
    if path.suffix == ".py":
        given = [(1, path.stem), *names(ast.parse((ROOT / path).read_text()))]
        for line, name in given:
            for part in _NAME.findall(name):
                if part.lower() in NAMES and not allowed(path, name):
                    yield f"{path}:{line}: {name} has {part}: {NAMES[part.lower()]}"
    for first, text in prose(path):
        for pattern, said in _WORDS.items():
            for found in pattern.finditer(text):
                if not allowed(path, found.group()):
                    line = first + text.count("\n", 0, found.start())
                    yield f"{path}:{line}: {found.group()!r}: {said}"


def allowed(path: Path, word: str) -> bool:
    return any(fnmatch(str(path), file) and fnmatch(word, name) for file, name in ALLOWED)


@pytest.mark.parametrize("path", FILES, ids=str)
def test_no_old_word_is_left(path: Path) -> None:
    assert not list(faults(path))
