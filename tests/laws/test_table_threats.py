"""Threats to tables: what the schema calls legal, and what the repair makes of any proposal."""

from __future__ import annotations

import builtins
import math
import os
import random
import string

import pytest
import torch
from scipy import optimize
from torch import Tensor, nn

from holdfast.attacks import parse
from holdfast.attacks.attack import run
from holdfast.attacks.score import genetic
from holdfast.errors import InputError, SpecError
from holdfast.evaluation import judge
from holdfast.targets import TorchTarget
from holdfast.targets.target import Bounds
from holdfast.threats.table.features import Feature
from holdfast.threats.table.language import Vocabulary
from holdfast.threats.table.schema import Schema
from holdfast.threats.threat import Threat

SCHEMA = """
[features]
loan = { bounds = [100, 1000] }
term = { type = "integer", bounds = [36, 60] }
payment = { bounds = [0, 100] }
open = { type = "integer", mutability = "increase", bounds = [0, 20] }
all = { type = "integer", bounds = [0, 40] }
grade = { type = "ordinal", values = [1, 2, 5] }
age = { mutability = "fixed" }
ratio = { bounds = [0, 1] }
home_own = { type = "binary" }
home_rent = { type = "binary" }
home_other = { type = "binary" }
kept = { type = "real", change = [-0.25, 0.5], bounds = [0, 10] }

[groups]
home = ["home_*"]

[formulas]
"per(a, b)" = "a / b"

[relations]
payment = "payment == per(loan, term) within 0.05"
term = "term in {36, 60}"
open = "open <= all"
busy = "open > 10 implies kept > 0"

[derived]
ratio = "open / all if all > 0 else 0"
"""
EPS = 0.3


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(3)
        self.register_buffer("w", torch.randn(12, 2, generator=g))
        self.register_buffer("unit", SCHEMA_OBJECT.unit.float())

    def forward(self, x: Tensor) -> Tensor:
        z = x / self.unit
        return (z - z.mean(1, keepdim=True)) @ self.w


SCHEMA_OBJECT = Schema.parse(SCHEMA)


def target_of(net: nn.Module) -> TorchTarget:
    target = TorchTarget(net.eval(), bounds=Bounds.of(SCHEMA_OBJECT.extent))
    target.bind((12,))
    return target


def rows(n: int = 24) -> Tensor:
    """Legal rows."""
    g = torch.Generator().manual_seed(1)
    u = torch.rand(n, 8, generator=g)
    term = torch.where(u[:, 0] < 0.5, 36.0, 60.0)
    loan = (200 + 700 * u[:, 1]).round()
    total = (1 + 38 * u[:, 2]).round()
    opened = (total * u[:, 3]).floor().clamp_max(20)
    grade = torch.tensor([1.0, 2.0, 5.0])[(3 * u[:, 4]).long()]
    home = torch.eye(3)[(3 * u[:, 5]).long()]
    columns = [loan, term, loan / term, opened, total, grade, 30 + 40 * u[:, 6], opened / total]
    return torch.cat([torch.stack(columns, 1), home, 1 + 8 * u[:, 7:]], 1)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1", "l0"])
def test_any_proposal_becomes_a_legal_row_within_eps(norm: str) -> None:
    x = rows()
    threat = getattr(Threat, norm)(4 if norm == "l0" else EPS, schema=SCHEMA_OBJECT)
    assert bool(threat.accepts(x).all())
    g = torch.Generator().manual_seed(2)
    point = threat.origin(x) + 0.2 * torch.randn(x.shape, generator=g).double()
    small = threat.norm.project(point - threat.origin(x), *_ball(threat, x))
    found = threat.repaired(x, threat.origin(x) + small, torch.full((len(x),), float(threat.eps)))
    legal, size = judge.within(target_of(Net()), threat, x, found)
    assert bool(legal.all())
    assert (size > 0).double().mean() > 0.7
    assert torch.equal(threat.apply(x, threat.origin(x)), x)
    assert torch.equal(threat.located(x, threat.apply(x, found)), found)
    again = threat.repaired(x, found, torch.full((len(x),), float(threat.eps)))
    assert torch.equal(threat.apply(x, again), threat.apply(x, found))


def _ball(threat: Threat, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    low, high = threat.sides(x, None)
    start = threat.origin(x)
    eps = torch.full((len(x), 1), float(threat.eps), dtype=torch.float64)
    return eps, low - start, high - start


ATTACKS = (
    "pgd(steps=5)",
    "apgd(steps=5)",
    "fmn(steps=5)",
    "capgd(steps=5)",
    "genetic(steps=3, population=8)",
    "square(steps=20)",
    "hopskipjump(steps=2)",
)


@pytest.mark.parametrize("text", ATTACKS)
def test_attacks_find_legal_rows_whatever_rows_are_with_them(text: str) -> None:
    x, target = rows(12), target_of(Net())
    y = target.labels(x)
    threat = Threat.l2(EPS, schema=SCHEMA_OBJECT)
    ids = torch.arange(len(x))
    whole = run(parse(text), target, x, y, threat, ids=ids)
    legal, _ = judge.within(target, threat, x[whole.broken], whole.best[whole.broken])
    shown = threat.apply(x, whole.best)[whole.broken]
    assert bool(legal.all())
    assert bool((target.labels(shown) != y[whole.broken]).all())
    at = torch.tensor([7, 2, 9])
    some = run(parse(text), target, x[at], y[at], threat, ids=ids[at])
    assert torch.equal(some.best, whole.best[at])
    assert torch.equal(some.forwards, whole.forwards[at])


def test_rows_are_bred_in_parts_to_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    x, target, found = rows(7), target_of(Net()), []
    y, threat, ids = target.labels(x), Threat.l2(EPS, schema=SCHEMA_OBJECT), torch.arange(7)
    attack = parse("genetic(steps=2, population=4)")
    for most in (genetic.MOST, 1, 3 * 4 * 12):  # all rows, one, three at once
        monkeypatch.setattr(genetic, "MOST", most)
        found.append(run(attack, target, x, y, threat, ids=ids).best)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


LINEAR = Schema.parse("""
[features]
a = { bounds = [0, 10] }
b = { bounds = [0, 20], scale = 10 }
n = { type = "integer", bounds = [0, 9], scale = 10 }
m = { type = "integer", bounds = [0, 9], mutability = "increase", scale = 10 }
d = { bounds = [0, 1], mutability = "decrease" }

[relations]
total = "a + b + n <= m + 12"
""")
WEIGHTS = torch.tensor([0.5, 0.3, 0.6, 0.4, -2.0], dtype=torch.float64)


class Line(nn.Module):
    """A line between two classes."""

    def forward(self, x: Tensor) -> Tensor:
        z = x @ WEIGHTS.to(x) - 6.5
        return torch.stack([-z, z], 1)


def best_margin(x: Tensor, y: Tensor, eps: float) -> float:
    """How far a legal row within linf(eps) of x [5] is on the other side of the line, at most."""
    side = 1 - 2 * int(y)
    low, high = (part[0] for part in LINEAR.limits(x[None]))
    low = torch.maximum(low, x.double() - eps * LINEAR.unit).numpy()
    high = torch.minimum(high, x.double() + eps * LINEAR.unit).numpy()
    total = optimize.LinearConstraint([[1, 1, 1, -1, 0]], -math.inf, 12)
    weights = side * WEIGHTS.numpy()
    box = optimize.Bounds(low, high)  # pyright: ignore[reportArgumentType]
    found = optimize.milp(-weights, integrality=[0, 0, 1, 1, 0], bounds=box, constraints=total)
    return float(weights @ found.x - side * 6.5)


def test_what_attacks_find_on_a_linear_model_is_what_a_milp_finds() -> None:
    """And what they find at half the eps they find again; gradients with a repair miss a few."""
    g = torch.Generator().manual_seed(0)
    x = torch.rand(120, 5, generator=g) * torch.tensor([10.0, 12, 10, 10, 1])
    x[:, 2:4] = x[:, 2:4].floor()
    x = x[LINEAR.legal(x, x)][:32]
    target = TorchTarget(Line().eval(), bounds=Bounds.of(LINEAR.extent))
    target.bind((5,))
    y, ids = target.labels(x), torch.arange(len(x))

    def broken(text: str, eps: float) -> Tensor:
        threat = Threat.linf(eps, schema=LINEAR)
        return run(parse(text), target, x, y, threat, ids=ids).broken

    margin = torch.tensor([best_margin(*row, 0.12) for row in zip(x, y, strict=True)])
    assert float(margin.abs().min()) > 1e-4
    evolved, climbed = broken("genetic(steps=25)", 0.12), broken("capgd(steps=20)", 0.12)
    assert torch.equal(evolved, margin > 0)
    assert not (climbed & ~evolved).any()
    assert 9 < climbed.sum() >= 0.9 * evolved.sum()
    assert not (broken("genetic(steps=5)", 0.06) & ~evolved).any()
    assert not (broken("capgd(steps=5)", 0.06) & ~climbed).any()


def test_l1_with_scales_of_costs_is_a_budget_of_cost() -> None:
    """Against a linear program over what is added and what is taken of each feature."""
    cost, weights = torch.tensor([0.5, 2.0, 0.25]), torch.tensor([0.3, 0.9, -0.2])
    features = [
        Feature(name, bounds=(0, 10), scale=float(1 / c))
        for name, c in zip("abc", cost, strict=True)
    ]
    schema = Schema(features, relations={"order": "a <= b + 4"})
    net = nn.Linear(3, 2)
    net.weight.data, net.bias.data = torch.stack([-weights, weights]), torch.tensor([5.0, -5.0])
    x = torch.rand(40, 3, generator=torch.Generator().manual_seed(4)) * 10
    x = x[schema.legal(x, x)]
    target = TorchTarget(net.eval(), bounds=Bounds.of(schema.extent))
    target.bind((3,))
    y, threat = target.labels(x), Threat.l1(2, schema=schema)
    gain = torch.zeros(len(x))
    for i, (row, label) in enumerate(zip(x.double(), y.tolist(), strict=True)):
        slope = (1 - 2 * label) * weights.double()
        spent = torch.cat([cost, cost])[None].numpy()
        order = torch.tensor([[1.0, -1, 0, -1, 1, 0]]).numpy()
        moves = optimize.linprog(
            -torch.cat([slope, -slope]).numpy(),
            A_ub=[*spent, *order],
            b_ub=[2, float(4 + row[1] - row[0])],
            bounds=[*((0, 10 - float(v)) for v in row), *((0, float(v)) for v in row)],
        )
        gain[i] = -moves.fun + (1 - 2 * label) * (float(row @ weights.double()) - 5)
    assert float(gain.abs().min()) > 5e-3
    found = run(parse("genetic(steps=20)"), target, x, y, threat, ids=torch.arange(len(x)))
    assert torch.equal(found.broken, gain > 0)
    assert 4 < found.broken.sum() < len(x)


def test_a_schema_round_trips() -> None:
    assert Schema.parse(SCHEMA_OBJECT.text()).text() == SCHEMA_OBJECT.text()
    names = [Feature('a "b" \\ c', bounds=(0, 1)), Feature("ü\n", "category", values=("x", "y"))]
    odd = Schema(names, tolerance=0.5)
    assert Schema.parse(odd.text()).names == odd.names


def holds(text: str, **columns: float) -> bool:
    words = Vocabulary({name: j for j, name in enumerate(columns)}, {}, {}, 0.0)
    values = torch.tensor(list(columns.values()), dtype=torch.float64)[:, None]
    return float(words.condition(text, "r").distance(values)) == 0


@pytest.mark.parametrize(
    ("text", "holding"),
    [
        ("a <= b", True),
        ("a > b", False),
        ("a < b < 3", True),
        ("a + 2 * b == 5", True),
        ("a == b within 1", True),
        ("abs(a - b) <= 0.5", False),
        ("a in {1, 2}", True),
        ("a not in [1, 2]", False),
        ("a > 0 implies b > 5", False),
        ("a > 1 implies b > 5", True),
        ("not (a > 0 and b > 0)", False),
        ("a > 3 or b == 2", True),
        ("(a if a > b else b) == 2", True),
        ("min(a, b) == 1 and max(a, b) == 2", True),
        ('sum("*") == 3', True),
        ("sum(a*) == 1", True),
        ("b ** 2 - a % 2 == 3", True),
        ("floor(b / 1.5) == 1", True),
        ("a / (b - 2) == 1", False),
        ("sqrt(-a) <= 1", False),
        ("-a < +b", True),
    ],
)
def test_what_relations_mean(text: str, *, holding: bool) -> None:
    assert holds(text, a=1.0, b=2.0) == holding


def test_a_negated_relation_holds_exactly_where_the_other_does_not() -> None:
    words = Vocabulary({"a": 0, "b": 1}, {}, {}, 0.1)
    grid = torch.linspace(-1, 1, 21, dtype=torch.float64)
    columns = torch.cartesian_prod(grid, grid).T
    for text in ("a <= b", "a < b", "a == b", "a != b", "a in {0, 1}", "a < 0 or b == 1"):
        one = words.condition(text, "r")
        assert torch.equal(one.distance(columns) == 0, one.negated().distance(columns) > 0)


PIECES = (
    "a", "b", "<=", "==", "implies", "within", "in", "{", "}", "(", ")", "[", "]", "1", "9e999",
    "'x'", '"a"', "sum", "__import__('os').system('touch /tmp/x')", "lambda: 0", "a.b", "f(", "*",
    "**", "%", "not", "and", "or", "if", "else", ",", ":=", "\0", "\\", "é", "=", "True", "None",
)  # fmt: skip


def test_five_hundred_odd_texts_are_relations_or_refused_in_a_sentence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for module, name in ((os, "system"), (builtins, "eval"), (builtins, "exec")):
        monkeypatch.setattr(module, name, lambda *_: pytest.fail("a text was run"))
    draw = random.Random(0)
    words = Vocabulary({"a": 0, "b": 1}, {}, {})
    columns = torch.ones(2, 3, dtype=torch.float64)
    for i in range(500):
        text = " ".join(draw.choices(PIECES, k=draw.randint(1, 9)))
        if i % 5 == 0:
            text = "".join(draw.choices(string.printable, k=draw.randint(0, 40)))
        try:
            found = words.condition(text, "relation r")
        except SpecError as error:
            said = str(error)
            assert said.startswith("relation r")
            assert said.rstrip().endswith((".", "?")), said
            assert len(said.splitlines()) == 1
        else:
            assert found.distance(columns).shape == (3,)


def test_a_formula_of_formulas_does_not_grow_without_end() -> None:
    formulas = {"f0(x)": "x + x"}
    formulas |= {f"f{i}(x)": f"f{i - 1}(x) + f{i - 1}(x)" for i in range(1, 40)}
    words = Vocabulary({"a": 0}, {}, {})
    with pytest.raises(SpecError, match="too long once"):
        words.with_formulas(formulas)
    one = words.with_formulas({"f(x)": "x + x"})
    with pytest.raises(SpecError, match="too long once"):
        one.condition("f(" * 30 + "a" + ")" * 30 + " <= 1", "relation r")
    with pytest.raises(SpecError):
        words.condition("(" * 5000 + "a" + ")" * 5000 + " <= 1", "relation r")
    with pytest.raises(SpecError, match="brackets"):
        words.condition("-" * 500 + "a <= 1", "relation r")
    with pytest.raises(SpecError, match="too many operations"):
        words.condition("a + " * 4000 + "a <= 1", "relation r")


def test_gradients_reach_what_a_formula_is_made_of() -> None:
    schema = SCHEMA_OBJECT
    x = rows(4)
    g = torch.zeros_like(x)
    g[:, 2] = 1.0  # the payment, which is loan over term
    found = schema.gradient(x, g)
    assert torch.allclose(found[:, 0], 1 / x[:, 1].double())
    assert not found[:, 2].any()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("[features]", "[features2]"), "features2"),
        ((SCHEMA, ""), "names no column"),
        (("[100, 1000]", "[1000, 100]"), "low is above"),
        (("open <= all", "opened <= all"), "did you mean open"),
        (("open <= all", "launch(open) <= all"), "unknown function"),
        (("open <= all", "open + all"), "says nothing that holds"),
        (("open <= all", "open <="), "cannot be read"),
        (('type = "ordinal"', 'type = "ordnal"'), "did you mean ordinal"),
        (('mutability = "fixed"', 'mutability = "free"'), "has no bounds"),
        (('["home_*"]', '["house_*"]'), "matches no column"),
        (('ratio = "open', 'rate = "open'), "ratio"),
        (("[relations]", "[relations"), "no TOML"),
        (("bounds = [100, 1000]", "bound = [100, 1000]"), "bounds"),
        (("within 0.05", "within loan"), "within"),
        (('open = "open <= all"', 'ratio = "ratio <= 0.5"'), "the relation ratio has the name of"),
        (("\n[features]", "tolerance = inf\n[features]"), "has the tolerance inf"),
        (("\n[features]", "tolerance = -1\n[features]"), "has the tolerance -1"),
        (("\n[features]", "tolerance = '1e-3'\n[features]"), "has the tolerance '1e-3'"),
        (("bounds = [100, 1000]", f"bounds = [100, 1{'0' * 400}]"), "expected two numbers"),
        (("bounds = [100, 1000]", f"bounds = [1, 2], scale = 1{'0' * 400}"), "has the scale"),
        (("values = [1, 2, 5]", f"values = [1, 1{'0' * 400}]"), "has the values"),
        (("open <= all", f"sum({'open, ' * 1000}all) <= 1"), "too many operations"),
        (("open <= all", "all < 1 implies " * 900 + "all < 1"), "too many operations"),
        (('["home_*"]', "3"), "group home is 3"),
        (('["home_*"]', "[]"), "group home is []"),
        (('["home_*"]', "[1, 2]"), "matches no column"),
        (('["home_*"]', "{ a = 1 }"), "expected a list of columns"),
        (('["home_*"]', '["home_*", "home_own"]'), "names a column twice"),
    ],
)
def test_a_schema_that_cannot_be_understood(change: tuple[str, str], words: str) -> None:
    with pytest.raises(SpecError) as error:
        Schema.parse(SCHEMA.replace(*change))
    assert words in str(error.value)


def test_what_is_no_schema_and_no_table_of_numbers_is_refused_in_a_sentence() -> None:
    with pytest.raises(SpecError, match="expected a Schema, which"):
        Threat.l2(0.1, schema="schema.toml")  # pyright: ignore[reportArgumentType]
    for rows_ in ([["a", "b"]], None, {"a": 1}):
        with pytest.raises(InputError, match="a schema is inferred from rows"):
            Schema.infer(rows_)


def test_groups_are_inferred_where_a_value_holds_an_underscore() -> None:
    names = ["use_car", "use_new_card", "use_new_home", "is_own_a", "is_own_b", "is_own_c"]
    x = torch.eye(3, dtype=torch.float64).repeat(2, 2)
    found = Schema.infer(x, names).groups
    assert found == {"use": names[:3], "is_own": names[3:]}


def test_mutability_bounds_and_types_are_ruled() -> None:
    x = rows(1)
    ruled = {
        "open: mutability": (3, -1.0),
        "age: mutability": (6, 1.0),
        "all: type": (4, 0.5),
        "grade: type": (5, 0.4),
        "loan: bounds": (0, 1e4),
        "home: one-hot": (8, 1.0),
        "kept: mutability": (11, -0.4),
    }
    for rule, (j, change) in ruled.items():
        other = x.clone()
        other[:, j] += change
        found = SCHEMA_OBJECT.violations(other, x)[0, SCHEMA_OBJECT.rules.index(rule)]
        assert float(found) > 0, rule
    assert math.isclose(float(SCHEMA_OBJECT.violations(x, x).sum()), 0)
