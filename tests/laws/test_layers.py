"""Imports point one way, and each idea has one home; read from the source alone."""

from __future__ import annotations

import ast
import functools
from collections.abc import Sequence
from pathlib import Path

import pytest

import holdfast
from holdfast.attacks import CATALOGUE
from holdfast.norms import NORMS

ROOT = Path(holdfast.__file__).parent
FILES = sorted(p.relative_to(ROOT) for p in ROOT.rglob("*.py"))
VOCABULARY = set(
    "errors usercode quiet decisions rng norms tasks losses threat spec tensors".split()
)
# What each part may import, beside itself and the vocabulary.
MAY = {
    "data": {"errors", "usercode"},
    "targets": VOCABULARY,
    "attacks": VOCABULARY | {"targets"},
    "runs": VOCABULARY,
    "report": VOCABULARY | {"runs"},
    "evaluate": VOCABULARY | {"targets", "attacks", "runs", "data"},
    "certify": VOCABULARY | {"targets", "attacks", "runs", "data"},
    # it measures before and after
    "harden": VOCABULARY | {"targets", "attacks", "runs", "data", "evaluate"},
    # whose loop it shares
    "generate": VOCABULARY | {"targets", "attacks", "runs", "data", "evaluate", "harden"},
}
HELPERS = (
    "__init__",
    "attack",
    "problem",
    "ledger",
    "result",
    "pace",
    "planes",
    "foothold",
    "momentum",
    "copies",
    "crowd",
    "universal",
    "advgan",
    "patch",
)
ATTACK_FILES = [p for p in FILES if p.parts[0] == "attacks" and p.stem not in HELPERS]


@functools.cache
def tree(file: Path) -> ast.Module:
    return ast.parse((ROOT / file).read_text(), str(file))


@functools.cache
def imports(file: Path) -> set[str]:
    """Full names of all modules that a file imports, at its top or later."""
    found: set[str] = set()
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} imports relatively"
            found |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def parts(file: Path) -> set[str]:
    """The parts of holdfast that a file imports from."""
    return {name.split(".")[1] for name in imports(file) if name.startswith("holdfast.")}


def test_there_is_something_to_check() -> None:
    assert len(FILES) > 30
    assert {p.stem for p in ATTACK_FILES} >= {"pgd", "apgd", "sweep"}
    assert "holdfast.norms" in imports(Path("threat.py"))


@pytest.mark.parametrize("file", [p for p in FILES if p.parts[0] in MAY], ids=str)
def test_imports_point_one_way(file: Path) -> None:
    own = file.parts[0]
    wrong = (
        {p for p in parts(file) if (ROOT / p).is_dir() or (ROOT / f"{p}.py").is_file()}
        - MAY[own]
        - {own}
    )
    assert not wrong, f"{file} imports {sorted(wrong)}"


@pytest.mark.parametrize(
    "file", [p for p in FILES if p.stem in VOCABULARY and len(p.parts) == 1], ids=str
)
def test_the_vocabulary_knows_nothing_above_it(file: Path) -> None:
    assert parts(file) & {p.name for p in ROOT.iterdir()} <= VOCABULARY
    assert not parts(file) & set(MAY)


@pytest.mark.parametrize(
    "file", [p for p in FILES if p.parts[0] != "cli" and len(p.parts) > 1], ids=str
)
def test_nothing_but_the_command_line_imports_it(file: Path) -> None:
    assert "cli" not in parts(file)


@pytest.mark.parametrize("file", ATTACK_FILES, ids=str)
def test_no_attack_imports_another(file: Path) -> None:
    others = {f"holdfast.attacks.{p.stem}" for p in ATTACK_FILES}
    assert not imports(file) & others
    assert "holdfast.attacks" not in imports(file)


@pytest.mark.parametrize(
    "file", [p for p in FILES if p.parts[0] in ("report", "runs", "data")], ids=str
)
def test_a_report_opens_without_torch(file: Path) -> None:
    heavy = {"torch", "safetensors.torch"}
    assert not {name for name in imports(file) if name.split(".")[0] == "torch" or name in heavy}
    torchy = {p.stem for p in FILES if len(p.parts) == 1 and "torch" in imports(p)}
    assert not parts(file) & (torchy | {"targets", "attacks", "evaluate"})


GENERIC = [Path("attacks/attack.py"), Path("attacks/problem.py"), Path("attacks/ledger.py")]
GENERIC += [p for p in FILES if p.parts[0] == "evaluate" and p.stem != "protocols"]


@pytest.mark.parametrize("file", GENERIC, ids=str)
def test_the_loop_names_no_attack(file: Path) -> None:
    """Not in code: docstrings and messages may give an example call."""
    nodes = list(ast.walk(tree(file)))
    used = {n.id for n in nodes if isinstance(n, ast.Name)} | {
        n.attr for n in nodes if isinstance(n, ast.Attribute)
    }
    assert not used & {c.__name__ for c in CATALOGUE.values() if isinstance(c, type)}
    assert not {
        n.value for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str)
    } & set(CATALOGUE)
    assert not imports(file) & {f"holdfast.attacks.{p.stem}" for p in ATTACK_FILES}


# Who may ask for a norm's name: the norms; the attack that picks its variant; the protocols, which
# are lists by norm; the words of a report, which cannot import torch.
KNOW_NORMS = {"norms.py", "attacks/attack.py", "evaluation/protocols.py", "report/words.py"}


@pytest.mark.parametrize("file", [p for p in FILES if str(p) not in KNOW_NORMS], ids=str)
def test_nobody_branches_on_a_norm(file: Path) -> None:
    """No condition, look-up or assignment reads a norm's name.

    It is only printed, stored or handed on; and the table `NORMS` makes a norm of it.
    """
    for node in ast.walk(tree(file)):
        asked = [part for root in asked_about(node) for part in ast.walk(root)]
        found = [ast.unparse(part) for part in asked if speaks_of_a_norm(part)]
        assert not found, f"{file}:{getattr(node, 'lineno', 0)} branches on a norm: {found}"


def asked_about(node: ast.AST) -> Sequence[ast.AST]:
    """What a condition, a look-up or an assignment reads."""
    match node:
        case ast.Compare(left=left, comparators=[*others]):
            return () if any(map(is_norms, others)) else (left, *others)
        case ast.If(test=test) | ast.IfExp(test=test) | ast.While(test=test):
            return () if isinstance(test, ast.Compare | ast.BoolOp) else (test,)
        case ast.Match(subject=subject, cases=cases):
            return (subject, *(case.pattern for case in cases))
        case ast.Subscript(value=table, slice=key):
            return () if is_norms(table) else (key, *bare(key))
        case ast.Call(func=ast.Attribute(value=table, attr="get" | "pop"), args=[key, *_]):
            return () if is_norms(table) else (key, *bare(key))
        case ast.Assign(value=ast.Attribute() as value) | ast.NamedExpr(value=value):
            return (value,)
    return ()


def is_norms(table: ast.AST) -> bool:
    """Whether it is the table that makes a norm of its name."""
    return isinstance(table, ast.Name) and table.id == "NORMS"


def bare(key: ast.expr) -> tuple[ast.expr, ...]:
    """A key that is called a norm stands for its name."""
    named = isinstance(key, ast.Name | ast.Attribute) and ast.unparse(key).endswith("norm")
    return (ast.Constant("linf"),) if named else ()


def speaks_of_a_norm(node: ast.AST) -> bool:
    match node:
        case ast.Constant(value=str(word)):
            return word in NORMS
        case ast.Name(id=word):
            return word in {"LINF", "L2", "L1", "L0"}
        case ast.Attribute(value=owner, attr=word):
            return word == "norms" or (word == "name" and ast.unparse(owner).endswith("norm"))
    return False


@pytest.mark.parametrize(
    "line",
    [
        "RULES[p.norm.name]",
        "RULES.get(norm, 1)",
        "RULES['l2']",
        "name = threat.norm.name",
        "norm.name in attack.norms",
        "1 if norm.name == other else 2",
        "p.norm is L2",
    ],
)
def test_the_law_sees_a_norm(line: str) -> None:
    asked = [
        part
        for node in ast.walk(ast.parse(line))
        for root in asked_about(node)
        for part in ast.walk(root)
    ]
    assert any(map(speaks_of_a_norm, asked))


FRAMEWORKS = {
    "tensorflow",
    "keras",
    "jax",
    "onnx",
    "onnxruntime",
    "foolbox",
    "art",
    "torchvision",
    "ray",
}


@pytest.mark.parametrize("file", FILES, ids=str)
def test_a_framework_is_imported_in_the_file_of_its_name_only(file: Path) -> None:
    found = {name.split(".")[0] for name in imports(file)} & FRAMEWORKS
    assert found <= {file.stem}
