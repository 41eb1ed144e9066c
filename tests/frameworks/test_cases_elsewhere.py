"""Models of other frameworks that others trained, and the answers that are proved of them
(../shared/cases)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.cases import case, clean_percent, mnist
from helpers.commands import holdfast as cli
from helpers.models import Narrow

import holdfast
from holdfast.attacks import parse, run
from holdfast.targets import Access, Target, load, wrap
from holdfast.targets.target import GradientInfo
from holdfast.targets.wrappers import Surrogate
from holdfast.threats.threat import Targeted, Threat

# The loaders of the cases leave their files open.
ignored = ("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
pytestmark = [pytest.mark.cases, *(pytest.mark.filterwarnings(text) for text in ignored)]
MEAN = holdfast.Normalize(0.1307, 0.3081)


def cifar_bytes(cases: Path) -> tuple[np.ndarray, np.ndarray]:
    x, y = case(cases, "data_cifar10").load("first1000")
    return x.astype(np.float32), y


@pytest.mark.parametrize(
    ("model", "options", "percent", "modules"),
    [
        ("keras_aa_mnist/load.py:load", {}, 97.74, ["tensorflow"]),
        ("npz_rsl18a_mnist/load.py:logits", {}, 95.82, []),
        ("onnx_colt_mnist/mnist_0.1.onnx", {"preprocess": MEAN}, 99.16, ["onnx", "onnxruntime"]),
    ],
)
def test_clean_accuracy_on_mnist_is_the_tables(
    cases: Path, model: str, options: dict, percent: float, modules: list[str]
) -> None:
    for module in modules:
        pytest.importorskip(module)
    assert clean_percent(load(f"{cases}/{model}", **options), *mnist(cases)) == pytest.approx(
        percent, abs=1e-9
    )


def test_resnet8_takes_bytes_and_ends_in_a_softmax(cases: Path) -> None:
    """The table's 87.19 % is of 10,000 images, of which 1,000 are here: equal to plain Keras on
    these."""
    pytest.importorskip("tensorflow")
    x, y = cifar_bytes(cases)
    target = load(f"{cases}/keras_resnet8_cifar/pretrainedResnet.h5", bounds=(0, 255))
    ordinary = (
        case(cases, "keras_resnet8_cifar").load().predict({"input_1": x}, verbose=0).argmax(1)
    )
    assert clean_percent(target, x, y) == pytest.approx(
        100 * float((ordinary == y).mean()), abs=1e-9
    )
    assert [check for check, _ in target.identity.remarks] == ["probabilities"]
    result = holdfast.evaluate(target, (x[:100], y[:100]), "linf(8)", protocol="quick")
    assert result.robust_accuracy.value <= 0.02


def test_its_tflite_twin_gives_scores_alone(cases: Path) -> None:
    pytest.importorskip("tensorflow")
    x, y = cifar_bytes(cases)
    target = load(f"{cases}/keras_resnet8_cifar/pretrainedResnet_quant.tflite", bounds=(0, 255))
    assert target.access == Access.SCORES
    assert clean_percent(target, x, y) == pytest.approx(87.19, abs=3)


@pytest.mark.slow
def test_its_tflite_twin_falls_by_the_gradients_of_the_float_network(cases: Path) -> None:
    """Integers have no gradient: the figure by queries alone is said to be an upper bound
    (docs/limits.md)."""
    pytest.importorskip("tensorflow")
    x, y = (part[:40] for part in cifar_bytes(cases))
    whole = load(f"{cases}/keras_resnet8_cifar/pretrainedResnet.h5", bounds=(0, 255))
    twin = load(f"{cases}/keras_resnet8_cifar/pretrainedResnet_quant.tflite", bounds=(0, 255))
    known = holdfast.evaluate(whole, (x, y), "linf(2)").robust_accuracy.value
    for target in (Surrogate(twin, whole), twin):
        found = holdfast.evaluate(target, (x, y), "linf(2)")
        assert found.verdict.status == "upper-bound"
        assert "access" in {f.check for f in found.verdict.findings if f.severity == "amber"}
        if target is not twin:
            assert found.robust_accuracy.value == pytest.approx(known, abs=0.03)


def test_trees_score_as_their_dump_says(cases: Path) -> None:
    module = case(cases, "trees_lt_attack")
    trees, x, y = module.load("breast_cancer")
    target = load(f"{cases}/trees_lt_attack/breast_cancer_rf.json")
    target.bind(x.shape[1:])
    z = target.scores(torch.tensor(x, dtype=torch.float32))[:, 1].numpy()
    np.testing.assert_allclose(z[:60], [module.score(trees, row) for row in x[:60]], atol=1e-5)
    assert 100 * float(((z > 0) == (y == 1)).mean()) == pytest.approx(99.2, abs=0.05)


def test_the_tutorial_pipeline_gives_the_honest_figure(cases: Path, tmp_path: Path) -> None:
    """An MNIST network with a softmax output, saved as .h5, under FGSM at eps 0.3: one line, and a
    note."""
    tf = pytest.importorskip("tensorflow")
    keras = pytest.importorskip("keras")
    logits = case(cases, "keras_aa_mnist").load()
    keras.Model(logits.inputs, keras.layers.Softmax()(logits.outputs[0])).save(tmp_path / "net.h5")
    line = [
        f"{tmp_path}/net.h5",
        f"mnist:{cases}/data_mnist",
        "--threat",
        "linf(0.3)",
        "--attack",
        "fgsm",
        "--json",
    ]
    messages = json.loads(
        cli("evaluate", *line, "--samples", "500", "--out", str(tmp_path / "run")).stdout
    )
    assert "log-probabilities" in next(
        f["text"] for f in messages["verdict"]["findings"] if f["check"] == "probabilities"
    )
    x, y = mnist(cases)
    x, y = np.moveaxis(x[:500], 1, -1), y[:500]
    at = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(at)
        loss = tf.reduce_sum(tf.nn.sparse_softmax_cross_entropy_with_logits(y, logits(at)))
    shifted = np.clip(x + 0.3 * np.sign(tape.gradient(loss, at)), 0, 1)
    by_hand = (logits(shifted).numpy().argmax(1) == y) & (logits(x).numpy().argmax(1) == y)
    assert messages["metrics"]["robust_accuracy"]["value"] == pytest.approx(
        by_hand.mean(), abs=0.006
    )


# ---------------------------------------------------------------- proved answers


def boxed(target: Target, low: torch.Tensor, high: torch.Tensor) -> Target:
    """The model on u in [0, 1] that spans a box of its own inputs: linf(0.5) around the middle is
    the box."""
    found = wrap(lambda u: target.model(low + u * (high - low)), framework="torch")  # pyright: ignore
    found.bind(tuple(low.shape[1:]))
    # gradients are of the graph in torch: what it calls a success is asked of onnxruntime
    found.gradients = GradientInfo(approximate=True)
    return found


def solve(cases: Path, folder: str, truth: str, attack: str, nth: int = 1) -> list[bool]:
    """Whether each nth instance of this truth falls to an attack, as onnxruntime and the instance's
    own check say."""
    module, nets, broken_rows = case(cases, folder), {}, []
    asked = [
        (at, instance)
        for at, instance in enumerate(module.instances())
        if instance["truth"] == truth
    ]
    for at, instance in asked[::nth]:
        name = instance["net"]
        if name not in nets:
            nets[name] = (load(f"{cases}/{folder}/{name}"), module.session(name))
        target, session = nets[name]
        low, high = (
            torch.tensor(side).reshape(1, *target.model.shape) for side in module.boxes()[at]
        )
        inner, middle = boxed(target, low, high), torch.full_like(low, 0.5)
        y = inner.labels(middle)
        goals = instance["targets"]
        if goals is None:  # unsafe where one class stands above all others
            [terms] = instance["unsafe_any_of"]
            goals = sorted(
                {
                    int(name[2:])
                    for weights, _ in terms
                    for name, weight in weights.items()
                    if weight < 0
                }
            )
        broken_rows.append(False)
        for goal in goals:
            result = run(parse(attack), inner, middle, y, Threat.linf(0.5, goal=Targeted(goal)))
            x = low + result.best * (high - low)
            legal = bool(((x >= low - 1e-6) & (x <= high + 1e-6)).all())
            if legal and module.violates(instance, module.run(session, x.numpy())):
                broken_rows[-1] = True
                break
            assert not bool(result.broken), (
                f"{folder} {at}: the result says broken, and onnxruntime does not"
            )
    return broken_rows


def test_every_sat_instance_of_marabou_is_found(cases: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    assert (
        solve(cases, "vnn_marabou_cifar10", "sat", 'apgd(steps=100, loss="margin")') == [True] * 51
    )


@pytest.mark.parametrize(
    ("folder", "count"), [("vnn_eran", 13), ("vnn_oval21", 6), ("vnn_cifar10_resnet", 12)]
)
def test_nothing_succeeds_where_it_is_proved_that_nothing_can(
    cases: Path, folder: str, count: int
) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    # of each network some
    assert solve(cases, folder, "unsat", "apgd(steps=5)", nth=4) == [False] * count


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["vnn_eran", "vnn_oval21", "vnn_cifar10_resnet"])
def test_nor_does_a_longer_search_on_all(cases: Path, folder: str) -> None:
    pytest.importorskip("onnxruntime")
    assert not any(solve(cases, folder, "unsat", 'apgd(steps=100, loss="margin")'))


@pytest.mark.parametrize("images", [25, pytest.param(100, marks=pytest.mark.slow)])
def test_none_of_the_proved_images_of_colt_falls(cases: Path, images: int) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    target = load(f"{cases}/onnx_colt_mnist/mnist_0.1.onnx", preprocess=MEAN)
    result = holdfast.evaluate(target, mnist(cases), "linf(0.1)", samples=images)
    assert result.robust_accuracy.value == 1.0


@pytest.mark.slow
def test_rsl18a_lies_between_what_is_proved(cases: Path) -> None:
    """All 10,000 images: the adversarial error is at least 14.36 % and at most 30.81 %; plain PGD
    finds 11.5 %."""
    jnp = pytest.importorskip("jax.numpy")
    module = case(cases, "npz_rsl18a_mnist")
    weights = [jnp.asarray(w) for w in module.params()]
    target = wrap(lambda x: module.logits(x, jnp, weights), framework="jax", layout="nchw")
    result = holdfast.evaluate(target, mnist(cases), "linf(0.1)")
    assert 0.1436 <= 1 - result.robust_accuracy.value <= 0.3081


@pytest.mark.parametrize("attack", ["rays(steps=300)", "hopskipjump(steps=20)"])
def test_labels_alone_find_the_exact_distance_of_trees(cases: Path, attack: str) -> None:
    """Of the rows whose exact minimal distance a solver found; no attack may go below it."""
    folder = cases / "trees_lt_attack"
    exact = {
        row: size
        for row, _, size, _ in json.loads((folder / "exact_linf_breast_cancer.json").read_text())
    }
    _, x, y = case(cases, "trees_lt_attack").load("breast_cancer")
    rows = [row for row, size in exact.items() if size > 0][:40]
    inner = load(str(folder / "breast_cancer_rf.json"))
    inner.bind(x.shape[1:])
    target = Narrow(inner, Access.LABELS)
    found = run(
        parse(attack),
        target,
        torch.tensor(x[rows]).float(),
        torch.tensor(y[rows]).long(),
        Threat.linf(np.inf),
    )
    size, least = found.size.numpy(), np.array([exact[row] for row in rows])
    assert float(np.median(size)) <= 1.1 * float(np.median(least))
    assert bool((size >= least * (1 - 1e-5)).all())
