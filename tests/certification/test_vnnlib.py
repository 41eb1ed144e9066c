"""Properties of VNN-LIB: what is read is what the text says, and what is decided is so."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.cases import case
from helpers.commands import holdfast, names, refused
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from holdfast import load
from holdfast.certification import decide, properties, vnnlib
from holdfast.certification.exchange import onnx_of
from holdfast.certification.vnnlib import Outputs
from holdfast.data import open_data
from holdfast.errors import InputError
from holdfast.runs.run import Run
from holdfast.targets.preprocess import Normalize

DECLARED = """
(declare-const X_0 Real) (declare-const X_1 Real) ; two inputs
(declare-const Y_0 Real) (declare-const Y_1 Real)
"""
BOX = "(assert (>= X_0 0)) (assert (<= X_0 1.0)) (assert (and (<= -1 X_1) (<= X_1 +1e-1)))\n"
NUMBERS = st.floats(-1e6, 1e6, allow_subnormal=False)


@st.composite
def parts(draw: st.DrawFn) -> vnnlib.Part:
    n, k = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    sides = draw(st.lists(st.tuples(NUMBERS, NUMBERS), min_size=n, max_size=n))
    lo, hi = np.sort(np.array(sides), axis=1).T
    sets = []
    for rows in draw(st.lists(st.integers(1, 3), min_size=1, max_size=3)):
        a = draw(st.lists(NUMBERS.filter(bool), min_size=rows * k, max_size=rows * k))
        b = draw(st.lists(NUMBERS, min_size=rows, max_size=rows))
        sets.append(Outputs(np.array(a).reshape(rows, k), np.array(b)))
    return vnnlib.Part(lo, hi, tuple(sets))


@given(parts())
def test_what_is_written_is_read_back_to_the_bit(part: vnnlib.Part) -> None:
    asked = vnnlib.parse(vnnlib.written(part.lo, part.hi, part.unsafe, "a comment (of one line"))
    (read,) = asked.parts
    assert (asked.inputs, asked.outputs) == (len(part.lo), part.unsafe[0].a.shape[1])
    assert np.array_equal(read.lo, part.lo)
    assert np.array_equal(read.hi, part.hi)
    for one, other in zip(read.unsafe, part.unsafe, strict=True):
        assert np.array_equal(one.a, other.a)
        assert np.array_equal(one.b, other.b)


def test_a_comparison_of_two_outputs_is_written_as_one() -> None:
    a = np.array([[1.0, -1.0]])
    text = vnnlib.written(np.zeros(1), np.ones(1), [Outputs(a, np.zeros(1))])
    assert "(<= Y_0 Y_1)" in text
    assert np.array_equal(vnnlib.parse(text).parts[0].unsafe[0].a, a)


# Formulas over integers, so that sums are exact: terms and what they are at x [2] and y [2].
def formulas(kind: str, depth: int) -> st.SearchStrategy[str]:
    number = st.integers(-3, 3)
    name = st.sampled_from([f"{kind}_0", f"{kind}_1"])
    if kind == "X":
        atom = st.builds("({} {} {})".format, st.sampled_from(["<=", ">="]), name, number)
    else:
        term = st.builds("(- (* {} {}) (+ {} {}))".format, number, name, name, number)
        atom = st.builds("({} {} {})".format, st.sampled_from(["<=", ">="]), term, term | name)
    if not depth:
        return atom
    inner = st.lists(formulas(kind, depth - 1), min_size=1, max_size=3).map(" ".join)
    return st.builds("({} {})".format, st.sampled_from(["and", "or"]), inner) | atom


def holds(formula: str, x: list[int], y: list[int]) -> bool:
    """A formula as Python's own words."""
    values = {f"{kind}_{i}": v for kind, side in (("X", x), ("Y", y)) for i, v in enumerate(side)}
    tokens = re.findall(r"[()]|[^\s()]+", formula)

    def value() -> int | bool:
        token = tokens.pop(0)
        if token != "(":
            return values[token] if token in values else int(token)
        word, parts = tokens.pop(0), []
        while tokens[0] != ")":
            parts.append(value())
        tokens.pop(0)
        first, *others = parts
        match word:
            case "and" | "or":
                return all(parts) if word == "and" else any(parts)
            case "<=" | ">=":
                return first <= others[0] if word == "<=" else first >= others[0]
            case "+" | "*":
                return first + others[0] if word == "+" else first * others[0]
        return first - others[0]

    return bool(value())


@settings(max_examples=40)
@given(
    formulas("X", 2),
    formulas("Y", 2),
    formulas("Y", 1),
    st.lists(st.lists(st.integers(-4, 4), min_size=4, max_size=4), min_size=1, max_size=8),
)
def test_a_property_holds_where_its_formulas_do(
    inputs: str, outputs: str, more: str, points: list[list[int]]
) -> None:
    box = "(and (<= -3 X_0) (<= X_0 3) (<= -3 X_1) (<= X_1 3))"
    asserts = [box, f"(or {box} {inputs})", f"(or (and {box} {outputs}) (and {box} {more}))", more]
    try:
        asked = vnnlib.parse(DECLARED + "".join(f"(assert {one})" for one in asserts))
    except InputError as error:
        assert re.search("box is empty|whatever the outputs|says nothing", str(error))  # noqa: PT017
        return
    for a, b, c, d in points:
        x, y = np.array([a, b]), np.array([c, d])
        found = any(part.broken(x, y) for part in asked.parts)
        assert found == all(holds(one, [a, b], [c, d]) for one in asserts)


def test_boxes_in_one_or_are_parts_of_their_own() -> None:
    both = " ".join(
        f"(and (>= X_0 {low}) (<= X_0 {low + 1}) (<= Y_0 {y}))"
        for low, y in ((0, 1), (5, 2), (0, 3))
    )
    text = f"{DECLARED}(assert (or {both}))(assert (<= 0 X_1 1))"
    asked = vnnlib.parse(text)
    assert [(part.lo[0], part.hi[0], len(part.unsafe)) for part in asked.parts] == [
        (0, 1, 2),
        (5, 6, 1),
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "X_0 is not declared"),
        (DECLARED, "X_0 has no lower bound"),
        (DECLARED + BOX, "says nothing of the outputs"),
        (DECLARED + "(assert (<= X_0 1))(assert (<= Y_0 Y_1))", "X_0 has no lower bound"),
        (DECLARED + BOX + "(assert (<= X_0 X_1))", "that is no box"),
        (DECLARED + BOX + "(assert (<= X_0 Y_1))", "compares an input with an output"),
        (DECLARED + BOX + "(assert (<= (* Y_0 Y_1) 1))", "is not linear"),
        (DECLARED + BOX + "(assert (<= (^ Y_0 2) 1))", "(^ Y_0 2) is no sum"),
        (DECLARED + BOX + "(assert (< Y_0 1))", "(< Y_0 1) is none of: and, or, <=, >="),
        (DECLARED + BOX + "(assert (not (<= Y_0 1)))", "is none of"),
        (DECLARED + BOX + "(assert (<= Y_0 1_0))", "'1_0' is no number"),
        (DECLARED + BOX + "(assert (<= Y_0 nan))", "'nan' is no number"),
        (DECLARED + BOX + "(assert (<= Y_0 1e999))", "beyond float64"),
        (DECLARED + BOX + "(assert (<= Y_2 1))", "'Y_2' is no number, and no variable"),
        (DECLARED + BOX + "(assert (<= Y_0 1)", "is not closed"),
        (DECLARED + BOX + "(assert (<= Y_0 1)))", "never opened"),
        (DECLARED + BOX + "(assert (>= X_0 2))(assert (<= Y_0 1))", "the box is empty"),
        (DECLARED + BOX + "(assert (<= Y_0 1))(assert (<= 1 0))", "holds for no input"),
        (DECLARED + "(declare-const X_3 Real)", "X_2 is not declared"),
        (DECLARED + "(declare-const Z Real)", "it declares Z"),
        (DECLARED + "(declare-const X_2 Int)", "is no declare-const of a Real"),
        ("(vnnlib-version <2.0>)", "is no declare-const of a Real or assert of VNN-LIB 1.0"),
        ("sat", "outside of parentheses"),
        ("(" * 100, "within each other"),
        (
            DECLARED + BOX + "(assert (or (<= Y_0 1) (<= Y_1 1)))" * 20,
            "more than 100,000 alternatives",
        ),
    ],
)
def test_what_is_no_property_is_refused_in_a_sentence(text: str, said: str) -> None:
    with pytest.raises(InputError) as error:
        vnnlib.parse(text)
    names(str(error.value), said)
    assert str(error.value).endswith(".")


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00", b"\x1f\x8b broken"])
def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / ("a.vnnlib.gz" if content and content[0] == 0x1F else "a.vnnlib")
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(InputError, match="cannot be read"):
        vnnlib.load(file)


class Absolute(nn.Module):
    """y = (|x_0| - |x_1|, x_0), by ReLUs."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        size = torch.relu(x) + torch.relu(-x)
        return torch.stack([size[:, 0] - size[:, 1], x[:, 0]], 1)


WIDE = "(assert (<= -1 X_0 1)) (assert (<= -1 X_1 1))\n"


@pytest.mark.parametrize(
    ("outputs", "answer"),
    [
        ("(assert (<= Y_0 -1.001))", "unsat"),
        ("(assert (<= Y_0 -0.999))", "sat"),
        ("(assert (or (<= Y_0 -1.001) (>= Y_1 1.001)))", "unsat"),
        ("(assert (or (<= Y_0 -1.001) (>= Y_1 0.999)))", "sat"),
        # neither row is proved on the whole box: y_0 <= -0.6 needs |x_0| <= 0.4
        ("(assert (<= Y_0 -0.6)) (assert (>= Y_1 0.45))", "unsat"),
        ("(assert (<= Y_0 -0.6)) (assert (>= Y_1 0.35))", "sat"),
        ("(assert (<= (+ Y_0 (* -0.5 Y_1)) -1.51))", "unsat"),
        ("(assert (<= (+ Y_0 (* -0.5 Y_1)) -0.9))", "sat"),
    ],
)
def test_what_is_decided_is_so(outputs: str, answer: str) -> None:
    asked = vnnlib.parse(DECLARED + WIDE + outputs)
    found = decide(Absolute(), asked, seconds=20)
    assert found.answer == answer
    assert (found.x is not None) == (answer == "sat")
    if found.x is not None:
        assert found.y is not None
        y = Absolute()(torch.from_numpy(found.x[None]))[0]
        assert np.array_equal(found.y, y.numpy())
        assert asked.parts[0].broken(found.x.astype(float), found.y.astype(float))


class Twice(nn.Module):
    """y = (0, x_1), the 0 as the difference of two equal ReLUs."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = torch.relu(x[:, [0, 0]])
        return torch.stack([z[:, 0] - z[:, 1], x[:, 1]], 1)


@pytest.mark.parametrize("order", ["{0}{1}", "{1}{0}"])
def test_of_conditions_at_once_the_one_with_the_highest_bound_is_tried_first(
    order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(properties, "FEW", 0)
    monkeypatch.setattr(properties, "ATTACKS", ("fgsm",))
    outputs = order.format("(assert (<= Y_0 -0.1))", "(assert (<= Y_1 0.5))")
    found = decide(Twice(), vnnlib.parse(DECLARED + WIDE + outputs), seconds=20)
    assert (found.answer, found.method) == ("unsat", "beta-crown")


@pytest.mark.parametrize("prove", [True, False])
def test_branch_and_bound_finds_counterexamples(
    prove: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(properties, "FEW", 0)
    monkeypatch.setattr(properties._Search, "_attacked", lambda *_: None)
    asked = vnnlib.parse(DECLARED + WIDE + "(assert (<= Y_0 -0.5))")
    found = decide(Absolute(), asked, seconds=20, prove=prove)
    assert (found.answer, found.method) == ("sat", "beta-crown")
    assert found.x is not None
    assert found.y is not None
    assert asked.parts[0].broken(found.x.astype(float), found.y.astype(float))


def test_each_box_of_a_property_is_decided() -> None:
    def asked(y: float) -> vnnlib.Property:
        both = f"(and (<= 0 X_0 1) (<= Y_1 -0.01)) (and (<= 2 X_0 3) (<= Y_1 {y}))"
        return vnnlib.parse(DECLARED + f"(assert (or {both}))(assert (<= 0 X_1 1))")

    assert decide(Absolute(), asked(1.99)).answer == "unsat"
    found = decide(Absolute(), asked(2.01))
    assert found.x is not None
    assert found.x[0] >= 2


def test_without_time_nothing_is_said_to_be_known() -> None:
    asked = vnnlib.parse(DECLARED + WIDE + "(assert (<= Y_0 -1.001))")
    found = decide(Absolute(), asked, seconds=0)
    assert (found.answer, found.method, found.x) == ("unknown", "", None)


def test_a_search_alone_proves_nothing() -> None:
    asked = vnnlib.parse(DECLARED + WIDE + "(assert (<= Y_0 -1.001))")
    found = decide(Absolute(), asked, prove=False, attack="fgsm")
    assert (found.answer, found.method) == ("unknown", "fgsm")


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (nn.Linear(3, 2), "the model takes no input of 2 numbers"),
        (nn.Linear(2, 3), "has 2 outputs, but the model gives 3"),
        (nn.Linear(2, 2).double(), "not of float32"),
        (nn.Sequential(nn.Linear(2, 2), nn.Softsign()), "softsign"),
    ],
)
def test_a_model_that_it_does_not_fit_is_refused(model: nn.Module, said: str) -> None:
    with pytest.raises(InputError) as error:
        decide(model, vnnlib.parse(DECLARED + WIDE + "(assert (<= Y_0 -1.001))"))
    names(str(error.value).lower(), said)


def test_a_box_beyond_float32_is_refused() -> None:
    box = "".join(f"(assert (>= X_{i} -1e300))(assert (<= X_{i} 1e300))" for i in range(2))
    with pytest.raises(InputError, match="beyond those of float32"):
        decide(Absolute(), vnnlib.parse(DECLARED + box + "(assert (<= Y_0 -1.001))"))


def one_output_of_the_demo(folder: Path, most: float) -> Path:
    """Whether the first score of the demo model is at most so much on a black image."""
    a, zero = np.eye(10)[:1], np.zeros(64)
    file = folder / "first.vnnlib"
    file.write_text(vnnlib.written(zero, zero + 0.01, [Outputs(a, np.array([most]))]))
    return file


def test_the_commands_decide_and_seek(tmp_path: Path) -> None:
    done = holdfast("certify", "demo", "--vnnlib", one_output_of_the_demo(tmp_path, -50))
    assert done.exit_code == 0
    assert done.stdout.startswith("unsat: no input that ")
    file = one_output_of_the_demo(tmp_path, 50)
    done = holdfast("certify", "demo", "--vnnlib", file, "--json")
    assert done.exit_code == 1
    said = json.loads(done.stdout)
    assert (said["answer"], said["method"]) == ("sat", "the middle of the box")
    text = Path(said["counterexample"]).read_text()
    assert text.startswith("sat\n((X_0 0.00")
    assert text.count("(Y_") == 10
    packed = tmp_path / "packed.vnnlib.gz"
    packed.write_bytes(gzip.compress(file.read_bytes()))
    done = holdfast("attack", "demo", "--vnnlib", packed, "--out", tmp_path / "found.txt")
    assert done.exit_code == 0
    assert done.stdout.startswith("sat: ")
    assert (tmp_path / "found.txt").read_text() == text


def test_what_says_nothing_of_a_property_is_refused(tmp_path: Path) -> None:
    file = one_output_of_the_demo(tmp_path, 50)
    asked = ["certify", "demo", "--vnnlib", file]
    names(refused("certify", "demo", "digits", "--vnnlib", file), "DATA")
    names(refused(*asked, "--threat", "linf(0.1)"), "--threat")
    names(refused(*asked, "--preprocess", "normalize(0.1, 0.3)"), "--preprocess")
    names(refused(*asked, "--out", file), "first.vnnlib exists")
    names(refused(*asked, "--out", "s3://bucket/found.txt"), "this machine")
    names(refused("certify", "demo", "--vnnlib", tmp_path / "none"), "none cannot be read")
    names(refused("certify", "demo", "--threat", "linf(0.1)"), "no DATA", "--vnnlib")
    names(refused("attack", "demo", "digits"), "no --threat")
    file.write_text("(assert (<= Y_0 1))")
    names(refused(*asked), "cannot be used", "Y_0")


def weights(folder: Path) -> Path:
    """A file of ONNX with the weights of the demo model."""
    file = folder / "demo.onnx"
    target = load("demo")
    target.bind((1, 8, 8))
    file.write_bytes(onnx_of(target))
    return file


@pytest.mark.parametrize("kind", ["torch", "onnx", "normalised"])
def test_what_is_exported_is_read_back(tmp_path: Path, kind: str) -> None:
    model = weights(tmp_path) if kind == "onnx" else "demo"
    more = ["--preprocess", "normalize(0.1, 0.9)"] if kind == "normalised" else []
    asked = ["digits", "--threat", "linf(0.1)", "--samples", "5:9", "--seconds-per-row", "0.001"]
    asked += ["--out", tmp_path / "run", "--export", tmp_path / "open", *more]
    done = holdfast("certify", model, *asked)
    assert done.exit_code == 0, done.output
    samples = Run(tmp_path / "run").samples.to_pylist()
    left = [(one["id"], one["label"]) for one in samples if one["status"] == "robust"]
    files = sorted((tmp_path / "open").glob("*.vnnlib"))
    assert left
    assert {file.name for file in files} == {f"row-{row}.vnnlib" for row, _ in left}
    own = load("demo", shape=(1, 8, 8), preprocess=[Normalize(0.1, 0.9)] if more else ())
    exported = load(str(tmp_path / "open" / "model.onnx"))
    if kind == "onnx":
        assert (tmp_path / "open" / "model.onnx").read_bytes() == Path(model).read_bytes()
    x, _ = open_data("digits").rows(5, 9)
    for row, label in left:
        (part,) = vnnlib.load(tmp_path / "open" / f"row-{row}.vnnlib").parts
        clean = x[row - 5].astype(float).ravel()
        assert np.allclose(part.lo, (clean - 0.1).clip(0), atol=1e-6)
        assert np.allclose(part.hi, (clean + 0.1).clip(0, 1), atol=1e-6)
        draws = np.random.default_rng(0).random((50, 64))
        inside = (part.lo + draws * (part.hi - part.lo)).astype(np.float32)
        rows = torch.from_numpy(inside.reshape(-1, 1, 8, 8))
        z, scores = own.scores(rows), exported.scores(rows)
        assert torch.allclose(z, scores, atol=1e-4)
        for point, y in zip(inside, scores.numpy().astype(float), strict=True):
            assert part.broken(point.clip(part.lo, part.hi), y) == (y.argmax() != label)


def test_an_export_that_is_no_box_is_refused(tmp_path: Path) -> None:
    asked = ["certify", "demo", "digits", "--export", tmp_path / "open", "--out", tmp_path / "run"]
    names(refused(*asked, "--threat", "l2(0.1)"), "no box", "linf")
    (tmp_path / "open").mkdir()
    names(refused(*asked, "--threat", "linf(0.1)"), "open exists")
    assert not (tmp_path / "run").exists()


def of_case(cases: Path, name: str, at: int, folder: Path) -> tuple[Path, Path, dict]:
    """The network of a stored instance, its property as a file, and the instance."""
    module = case(cases, name)
    instance, (lo, hi) = module.instances()[at], module.boxes()[at]
    rows = [
        (label, {instance["label"]: 1.0, label: -1.0}, 0.0) for label in instance["targets"] or ()
    ]
    sets = [Outputs(_one_row(row), np.array([b])) for _, row, b in rows]
    for unsafe in instance["unsafe_any_of"] or ():
        a = [_one_row({int(name[2:]): value for name, value in row.items()}) for row, _ in unsafe]
        sets.append(Outputs(np.concatenate(a), np.array([-shift for _, shift in unsafe])))
    file = folder / f"{name}_{at}.vnnlib"
    file.write_text(vnnlib.written(lo.astype(float).ravel(), hi.astype(float).ravel(), sets))
    return cases / name / instance["net"], file, instance


def _one_row(values: dict[int, float]) -> np.ndarray:
    a = np.zeros((1, 10))
    for j, value in values.items():
        a[0, j] = value
    return a


@pytest.mark.cases
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(("name", "at"), [("vnn_eran", 25), ("vnn_marabou_cifar10", 1)])
def test_a_stored_counterexample_is_found(cases: Path, tmp_path: Path, name: str, at: int) -> None:
    network, file, instance = of_case(cases, name, at, tmp_path)
    assert instance["truth"] == "sat"
    found = decide(network, file)
    assert found.answer == "sat"
    module = case(cases, name)
    assert module.violates(instance, module.run(module.session(instance["net"]), found.x))


@pytest.mark.slow
@pytest.mark.cases
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("name", ["vnn_eran", "vnn_oval21", "vnn_marabou_cifar10"])
def test_no_answer_is_another_than_the_known_one(cases: Path, tmp_path: Path, name: str) -> None:
    for at in range(0, len(case(cases, name).instances()), 6):
        network, file, instance = of_case(cases, name, at, tmp_path)
        found = decide(network, file, seconds=5)
        if instance["truth"] in ("sat", "unsat"):
            assert found.answer in (instance["truth"], "unknown"), at
