"""What the source looks like in numbers, read from its syntax trees alone.

    python benchmarks/counts.py [FOLDER ...]     (default: src/holdfast)

Prints a table with a column for each folder, and then what the last folder holds of that kind, by
place. A statement is a node of the syntax tree that is one, docstrings apart. A function is as long
as from its `def` to its last line. A block stands twice where six non-blank lines in a row are
equal but for indentation; imports, signatures and the fields of classes are no part of a block.
"""

from __future__ import annotations

import ast
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from statistics import median

LONG, WIDE, SMALL, BLOCK = 60, 100, 65, 6
GROUPS = ("gradient", "minimum_norm", "score", "decision", "transfer", "sparse", "universal")
Function = ast.FunctionDef | ast.AsyncFunctionDef
Named = dict[str, list[str]]


def counts(root: Path) -> tuple[dict[str, object], Named]:
    """The figures of a source folder, and the places behind them."""
    text = {p.relative_to(root): p.read_text() for p in sorted(root.rglob("*.py"))}
    trees = {path: ast.parse(content) for path, content in text.items()}
    nodes = {path: list(ast.walk(tree)) for path, tree in trees.items()}
    every = [(path, node) for path, found in nodes.items() for node in found]
    lines = {path: content.splitlines() for path, content in text.items()}
    total = sum(map(len, lines.values()))

    statements = sum(isinstance(node, ast.stmt) for _, node in every)
    statements -= sum(len(list(_docstrings(found))) for found in nodes.values())
    conditional = [(path, node) for path, node in every if isinstance(node, ast.IfExp)]
    long = [
        f"{path}:{node.lineno} {node.name}, {_length(node)} lines"
        for path, node in every
        if isinstance(node, Function) and _length(node) > LONG
    ]
    inside = [one for one in long if one.startswith(("evaluation", "evaluate/", "attacks"))]
    attacks = [
        len(lines[path])
        for path in text
        if path.parts[0] == "attacks" and path.parts[1] in GROUPS and path.stem != "__init__"
    ]
    named: Named = {
        f"functions over {LONG} lines in evaluation and attacks": inside,
        f"functions over {LONG} lines elsewhere": [one for one in long if one not in inside],
        "conditional expressions within another": [
            f"{path}:{node.lineno}"
            for path, node in conditional
            if any(isinstance(n, ast.IfExp) for n in ast.walk(node) if n is not node)
        ],
        f"lines over {WIDE} characters": [
            f"{path}:{number}"
            for path, found in lines.items()
            for number, line in enumerate(found, 1)
            if len(line) > WIDE
        ],
        "import circles": list(_circles(root.name, trees)),
        f"blocks of {BLOCK} lines that occur twice": list(_repeated(lines, trees)),
    }
    figures: dict[str, object] = {
        "modules": len(text),
        "lines": f"{total:,}",
        "statements": f"{statements:,}",
        "attack files": len(attacks),
        "median lines of an attack file": median(attacks or [0]),
        f"attack files of at most {SMALL} lines": (
            f"{sum(n <= SMALL for n in attacks) / max(len(attacks), 1):.0%}"
        ),
        "conditional expressions per 1,000 lines": f"{1000 * len(conditional) / total:.1f}",
        **{name: len(places) for name, places in named.items()},
    }
    for name in ("Target", "Problem"):
        found = next(n for _, n in every if isinstance(n, ast.ClassDef) and n.name == name)
        methods, attributes = _surface(found)
        figures[f"`{name}`: public methods, attributes"] = f"{len(methods)}, {len(attributes)}"
        named[f"public methods of `{name}`"] = sorted(methods)
        named[f"public attributes of `{name}`"] = sorted(attributes)
    return figures, named


def _length(node: Function) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


def _docstrings(nodes: list[ast.AST]) -> Iterator[ast.stmt]:
    for node in nodes:
        if isinstance(node, ast.Module | ast.ClassDef | Function) and ast.get_docstring(
            node, False
        ):
            yield node.body[0]


def _surface(cls: ast.ClassDef) -> tuple[set[str], set[str]]:
    """Public methods and attributes of a class: its own, and those that it sets on itself."""
    methods, attributes = set[str](), set[str]()
    for node in cls.body:
        if isinstance(node, Function):
            shown = any("property" in ast.unparse(d) for d in node.decorator_list)
            (attributes if shown else methods).add(node.name)
        elif isinstance(node, (ast.AnnAssign, ast.Assign)):
            attributes |= {n.id for n in ast.walk(node) if _stored(n) and isinstance(n, ast.Name)}
    for node in ast.walk(cls):
        if isinstance(node, ast.Attribute) and _stored(node) and ast.unparse(node.value) == "self":
            attributes.add(node.attr)
    return {n for n in methods if n[0] != "_"}, {n for n in attributes if n[0] != "_"}


def _stored(node: ast.AST) -> bool:
    return isinstance(getattr(node, "ctx", None), ast.Store)


def _circles(package: str, trees: dict[Path, ast.Module]) -> Iterator[str]:
    """The sets of modules that import each other, wherever in their files."""
    name = {path: ".".join((package, *path.with_suffix("").parts)) for path in trees}
    name = {path: dotted.removesuffix(".__init__") for path, dotted in name.items()}
    graph: dict[str, set[str]] = {}
    for path, tree in trees.items():
        imported: set[str] = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                imported |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                whole = {f"{node.module}.{alias.name}" for alias in node.names}
                imported |= whole if whole <= set(name.values()) else whole | {str(node.module)}
        graph[name[path]] = (imported & set(name.values())) - {name[path]}
    reach = {one: _reached(graph, one) for one in graph}
    circles = {frozenset(n for n in reach[one] if one in reach[n]) for one in graph} - {frozenset()}
    for circle in sorted(circles, key=len, reverse=True):
        yield f"{len(circle)} modules: {', '.join(sorted(circle))}"


def _reached(graph: dict[str, set[str]], start: str) -> set[str]:
    seen, waiting = set[str](), [start]
    while waiting:
        fresh = graph[waiting.pop()] - seen
        seen |= fresh
        waiting += fresh
    return seen


def _repeated(lines: dict[Path, list[str]], trees: dict[Path, ast.Module]) -> Iterator[str]:
    """The first line of each stretch whose six lines stand elsewhere too."""
    places: dict[tuple[str, ...], list[tuple[Path, int, int]]] = defaultdict(list)
    for path, found in lines.items():
        apart = _apart(trees[path])
        kept = [
            (number, "" if number in apart else line.strip())
            for number, line in enumerate(found, 1)
            if line.strip()
        ]
        for start in range(len(kept) - BLOCK + 1):
            block = tuple(line for _, line in kept[start : start + BLOCK])
            if all(block):
                places[block].append((path, start, kept[start][0]))
    twice = [where for where in places.values() if len(where) > 1]
    begun = {(path, start) for where in twice for path, start, _ in where}
    for where in twice:
        if not any((path, start - 1) in begun for path, start, _ in where):
            yield " = ".join(f"{path}:{number}" for path, _, number in where)


def _apart(tree: ast.Module) -> set[int]:
    """The lines of imports, of signatures with their decorators, and of the fields of classes."""
    spans: list[tuple[int, int]] = []
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            spans.append((node.lineno, node.end_lineno or node.lineno))
        elif isinstance(node, ast.ClassDef | Function):
            first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
            spans.append((first, max(node.lineno, node.body[0].lineno - 1)))
        if isinstance(node, ast.ClassDef):
            fields = [n for n in node.body if isinstance(n, (ast.AnnAssign, ast.Assign))]
            spans += [(n.lineno, n.end_lineno or n.lineno) for n in fields]
    return {line for start, stop in spans for line in range(start, stop + 1)}


def main() -> None:
    own = Path(__file__).resolve().parents[1] / "src" / "holdfast"
    folders = [Path(given) for given in sys.argv[1:]] or [own]
    columns = [counts(folder.resolve()) for folder in folders]
    print("| count |" + " |" * len(columns))
    print("| --- |" + " --- |" * len(columns))
    for name in columns[0][0]:
        print("| " + " | ".join([name, *(str(figures[name]) for figures, _ in columns)]) + " |")
    for name, places in columns[-1][1].items():
        print(f"\n{name}: {len(places)}")
        print("".join(f"  {place}\n" for place in places), end="")


if __name__ == "__main__":
    main()
