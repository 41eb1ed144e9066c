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
# From the top: each part may import what stands on a line below its own.
LAYERS = """
    __main__
    cli
    testing tracking
    holdfast
    view audit
    hardening generation scale
    reporting
    certification
    training
    evaluation
    corruptions
    diagnostics
    attacks runs
    bounds
    targets
    data
    threats tasks
    arguments boxes decisions errors intervals losses memory norms pictures quiet rng spec tensors \
    usercode urls version
"""
RANK = {part: i for i, line in enumerate(LAYERS.split("\n")) for part in line.split()}
VOCABULARY = {part for part in RANK if RANK[part] == max(RANK.values())}
GROUPS = "gradient minimum_norm score decision transfer sparse universal".split()
ATTACK_FILES = [
    p for p in FILES if p.parts[0] == "attacks" and p.parts[1] in GROUPS and p.stem != "__init__"
]


def module(file: Path) -> str:
    """The name of a file's module within holdfast."""
    return ".".join(file.with_suffix("").parts).removesuffix("__init__").strip(".") or "holdfast"


MODULES = {module(file): file for file in FILES}


@functools.cache
def tree(file: Path) -> ast.Module:
    return ast.parse((ROOT / file).read_text(), str(file))


@functools.cache
def imports(file: Path) -> set[str]:
    """Full names of all that a file imports, at its top or later."""
    found: set[str] = set()
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} imports relatively"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def libraries(file: Path) -> set[str]:
    return {name.split(".")[0] for name in imports(file)}


def parts(file: Path) -> set[str]:
    """The parts of holdfast that a file imports from."""
    return {name.split(".")[1] for name in imports(file) if name.startswith("holdfast.")}


def looked_up(file: Path) -> set[str]:
    """The modules of holdfast that a file imports by a text."""
    calls = [node for node in ast.walk(tree(file)) if isinstance(node, ast.Call) and node.args]
    first = [call.args[0] for call in calls if "import_module" in ast.unparse(call.func)]
    names = {str(node.value) for node in first if isinstance(node, ast.Constant)}
    return {name for name in names if name.startswith("holdfast.")}


# The imports by a text that go up, and so in a circle: two methods of what stands below.
UPWARDS = {
    "attacks/attack.py": "holdfast.evaluation.attack",
    "runs/run.py": "holdfast.reporting.pages",
}


@functools.cache
def edges(file: Path) -> set[str]:
    """The modules of holdfast that a file imports, by their names in `MODULES`; those that it looks
    up by a text count too, but for those of `UPWARDS`."""
    every = imports(file) | looked_up(file) - {UPWARDS.get(str(file))}
    names = {name.removeprefix("holdfast.") for name in every if name.startswith("holdfast")}
    return {name if name in MODULES else name.rpartition(".")[0] or "holdfast" for name in names}


def circles(graph: dict[str, set[str]]) -> list[set[str]]:
    """The modules that reach one another: the circles of a graph."""
    left = dict(graph)
    while left:  # what imports nothing that is left, or is imported by nothing that is left, goes
        used = set().union(*left.values())
        done = {name for name in left if name not in used or not left[name] & left.keys()}
        if not done:
            break
        left = {name: left[name] - done for name in left.keys() - done}
    reached = {name: {name} for name in left}
    for _ in left:
        for name in left:
            reached[name] |= set().union(*(reached[other] for other in left[name]))
    found = {frozenset(o for o in reached[name] if name in reached[o]) for name in left}
    return [set(circle) for circle in found if len(circle) > 1]


def test_there_is_something_to_check() -> None:
    assert len(FILES) > 30
    assert {p.stem for p in ATTACK_FILES} >= {"pgd", "apgd", "sweep"}
    assert "norms" in edges(Path("threats/threat.py"))
    assert "targets.frameworks" in edges(Path("targets/registry.py"))  # by a text
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set()}) == [{"b", "c"}]


@pytest.mark.parametrize("file", FILES, ids=str)
def test_imports_point_one_way(file: Path) -> None:
    own = module(file).split(".")[0]
    assert own in RANK, f"{own} has no place among the layers"
    used = {name.split(".")[0] for name in edges(file)} - {own}
    wrong = {part for part in used if RANK[part] <= RANK[own]}
    assert not wrong or {own, *wrong} <= VOCABULARY, f"{file} imports {sorted(wrong)}"


def test_no_imports_go_in_a_circle() -> None:
    """Imports within functions and those for types alone count as any other."""
    assert not circles({name: edges(file) for name, file in MODULES.items()})


def test_two_modules_above_are_looked_up_by_their_names() -> None:
    """An attack that is called is judged as `holdfast.attack` judges, and `Run.report` writes the
    page that `holdfast.reporting` writes."""
    assert all(above in looked_up(Path(file)) for file, above in UPWARDS.items())


@pytest.mark.parametrize("file", ATTACK_FILES, ids=str)
def test_no_attack_imports_another(file: Path) -> None:
    """Its own variants are in files that are named after it."""
    others = {m for m in map(module, ATTACK_FILES) if not m.startswith(f"{module(file)}_")}
    assert not edges(file) & {"attacks", *others}


@pytest.mark.parametrize(
    "file", [p for p in FILES if p.parts[0] in ("reporting", "runs", "data", "view")], ids=str
)
def test_a_report_opens_without_torch(file: Path) -> None:
    torchy = {p.stem for p in FILES if len(p.parts) == 1 and "torch" in libraries(p)}
    assert "torch" not in libraries(file)
    assert not {name for name in imports(file) if name.startswith("safetensors.torch")}
    assert not parts(file) & (torchy | {"targets", "attacks", "evaluation"})


GENERIC = [Path("attacks/attack.py"), Path("attacks/problem.py"), Path("attacks/counts.py")]
GENERIC += [p for p in FILES if p.parts[0] == "evaluation" and p.stem != "protocols"]


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
    assert not edges(file) & set(map(module, ATTACK_FILES))


# Who may ask for a norm's name: the norms; the attack that picks its variant; the protocols, which
# are lists by norm; the words of a report, which cannot import torch.
KNOW_NORMS = {"norms.py", "attacks/attack.py", "evaluation/protocols.py", "reporting/words.py"}


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
    """A key that is called a norm means its name."""
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


FRAMEWORKS = set("keras jax onnx tensorflow sklearn xgboost lightgbm catboost".split())
LIBRARIES = FRAMEWORKS - {"sklearn"} | {"onnxruntime", "foolbox", "art", "torchvision", "ray"}


@pytest.mark.parametrize("file", FILES, ids=str)
def test_a_framework_is_imported_in_the_file_of_its_name_only(file: Path) -> None:
    assert libraries(file) & LIBRARIES <= {*file.parts, file.stem}


@pytest.mark.parametrize("file", [p for p in FILES if p.parts[0] == "targets"], ids=str)
def test_no_other_model_file_chooses_by_a_frameworks_name(file: Path) -> None:
    """Not in code: docstrings, messages and names of packages may."""
    if file.parts[1] == "frameworks" or file.name == "adapter.py":
        return
    nodes = list(ast.walk(tree(file)))
    words = {n.value for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str)}
    assert not words & FRAMEWORKS
    assert not any(name.startswith("holdfast.targets.frameworks.keras") for name in imports(file))


TESTS = Path(__file__).parents[1]
TEST_FILES = [p for p in sorted(TESTS.rglob("*.py")) if p.parent.name != "version1"]


@pytest.mark.parametrize("file", TEST_FILES, ids=lambda file: str(file.relative_to(TESTS)))
def test_no_test_module_imports_another(file: Path) -> None:
    """What two of them share is in `tests/helpers`."""
    assert not {name for name in libraries(file) if name.startswith(("test_", "conftest"))}


def test_every_test_module_has_a_name_of_its_own() -> None:
    """The folders are no packages: modules of one name would hide each other."""
    names = [file.stem for file in TEST_FILES if file.parent.name != "helpers"]
    assert len(names) == len(set(names))
