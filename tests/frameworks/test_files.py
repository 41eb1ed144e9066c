"""Models from files of other frameworks: what is refused, and what is said about it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import twins
from helpers.models import close

from holdfast.data import open_data
from holdfast.errors import InputError
from holdfast.targets import Access, load, wrap

X = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "name", ["net.keras", "net.h5", "net.onnx", "net.tflite", "net.pt2", "net.skops", "net.json"]
)
def test_a_damaged_file_is_one_sentence(name: str, tmp_path: Path) -> None:
    if name.endswith("tflite"):
        pytest.importorskip("tensorflow")
    path = tmp_path / name
    with pytest.raises(InputError, match="there is no file"):
        load(str(path))
    path.write_bytes(b"\x93 not a model at all")
    with pytest.raises(InputError, match=name.replace(".", r"\.")):
        load(str(path))
    path.write_bytes(b"<!DOCTYPE html><html>")
    with pytest.raises(InputError, match="web page"):
        load(str(path))


@pytest.mark.parametrize("suffix", ["keras", "h5"])
def test_keras_files(suffix: str, tmp_path: Path) -> None:
    pytest.importorskip("tensorflow")
    pytest.importorskip("keras")
    model = twins.keras_model(softmax=True)
    model.save(tmp_path / f"net.{suffix}")
    target = load(str(tmp_path / f"net.{suffix}"))
    target.bind((1, 8, 8))
    close(
        target.scores(X).softmax(1),
        torch.tensor(np.array(model(X.movedim(1, -1).numpy()))),
        rtol=1e-4,
        atol=1e-6,
    )
    assert [check for check, _ in target.identity.remarks] == ["probabilities"]
    again = load(str(tmp_path / f"net.{suffix}"))
    again.bind((1, 8, 8))
    assert target.fingerprint() == again.fingerprint()
    model.layers[-1].bias.assign_add(np.ones(10, np.float32))
    other = wrap(model)
    other.bind((1, 8, 8))
    assert other.fingerprint() != target.fingerprint()


def test_keras_weights_want_their_model(tmp_path: Path) -> None:
    pytest.importorskip("tensorflow")
    pytest.importorskip("keras")
    twins.keras_model().save_weights(tmp_path / "net.weights.h5")
    with pytest.raises(InputError, match="factory"):
        load(str(tmp_path / "net.weights.h5"))
    target = load(str(tmp_path / "net.weights.h5"), arch="helpers.twins:keras_model")
    target.bind((1, 8, 8))
    with pytest.raises(InputError, match="Keras model"):
        load(str(tmp_path / "net.weights.h5"), arch="helpers.twins:weights")


def test_a_sequential_of_an_old_keras(tmp_path: Path) -> None:
    """Line 17: an .h5 by a Keras before 2.2.3, whose Sequential is a list of layers, opens, and is
    left as it is."""
    pytest.importorskip("tensorflow")
    pytest.importorskip("keras")
    h5py = pytest.importorskip("h5py")
    model, path = twins.keras_model(), tmp_path / "net.h5"
    model.save(path)
    with h5py.File(path, "r+") as file:
        said = json.loads(file.attrs["model_config"])
        entry, *layers = said["config"]["layers"]
        layers[0]["config"]["batch_input_shape"] = entry["config"]["batch_shape"]
        file.attrs["model_config"] = json.dumps(said | {"config": layers})
        file.attrs["keras_version"] = "2.1.6"
    before = path.read_bytes()
    target = load(str(path))
    target.bind((1, 8, 8))
    close(
        target.scores(X),
        torch.tensor(np.array(model(X.movedim(1, -1).numpy()))),
        rtol=1e-4,
        atol=1e-5,
    )
    assert path.read_bytes() == before


def test_a_lambda_layer_is_not_run(tmp_path: Path) -> None:
    keras = pytest.importorskip("keras")
    pytest.importorskip("tensorflow")
    model = keras.Sequential([keras.layers.Input((4,)), keras.layers.Lambda(lambda x: x * 2)])
    model.save(tmp_path / "net.keras")
    with pytest.raises(InputError, match="--trust"):
        load(str(tmp_path / "net.keras"))
    load(str(tmp_path / "net.keras"), trust=True)


def test_an_unknown_operator_leaves_scores_and_is_named(tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    target = load(str(twins.onnx_file(tmp_path, last="Hardmax")))
    target.bind((1, 8, 8))
    assert target.access == Access.SCORES
    assert "Hardmax" in target.identity.remarks[0][1]


def test_estimators_of_scikit_learn(tmp_path: Path) -> None:
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.svm import LinearSVC

    x, y = open_data("digits").rows(0, 200)
    flat = np.asarray(x).reshape(200, -1)
    forest = RandomForestClassifier(5, random_state=0).fit(flat, y)
    target = wrap(forest)
    target.bind((1, 8, 8))
    assert target.access == Access.SCORES
    assert torch.equal(target.labels(torch.as_tensor(x)), torch.as_tensor(forest.predict(flat)))
    assert wrap(LinearSVC().fit(flat, y)).access == Access.SCORES
    io = pytest.importorskip("skops.io")
    io.dump(forest, tmp_path / "forest.skops")
    held = load(str(tmp_path / "forest.skops"), trust=True)
    held.bind((1, 8, 8))
    assert torch.equal(held.scores(X), target.scores(X))


def test_boosted_trees() -> None:
    x, y = open_data("digits").rows(0, 200)
    flat = np.asarray(x).reshape(200, -1)
    for module, name, options in (
        ("xgboost", "XGBClassifier", {"n_estimators": 3}),
        ("lightgbm", "LGBMClassifier", {"n_estimators": 3, "verbose": -1}),
    ):
        library = pytest.importorskip(module)
        model = getattr(library, name)(n_jobs=1, **options).fit(flat, y)
        target = wrap(model)
        target.bind((1, 8, 8))
        assert target.access == Access.SCORES
        assert torch.equal(target.labels(torch.as_tensor(x)), torch.as_tensor(model.predict(flat)))


def test_plain_functions_of_numpy_arrays() -> None:
    w = np.random.default_rng(0).standard_normal((64, 3)).astype(np.float32)
    scores = wrap(lambda x: x.reshape(len(x), -1) @ w)
    scores.bind((1, 8, 8))
    assert scores.access == Access.SCORES
    labels = wrap(
        lambda x: (np.asarray(x).reshape(len(x), -1) @ w).argmax(1),
        classes=3,
        framework="numpy",
        gives="labels",
    )
    labels.bind((1, 8, 8))
    assert labels.access == Access.LABELS
    assert torch.equal(labels.labels(X), scores.labels(X))
    unsaid = wrap(lambda x: (np.asarray(x).reshape(len(x), -1) @ w).argmax(1))
    with pytest.raises(InputError, match="how many classes"):
        unsaid.bind((1, 8, 8))


def test_several_outputs_need_a_choice() -> None:
    def two(x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"features": x.flatten(1), "head": x.flatten(1)[:, :4]}

    with pytest.raises(InputError, match="--output"):
        wrap(two).bind((1, 8, 8))
    target = wrap(two, output="head")
    target.bind((1, 8, 8))
    assert target.task.k == 4
    with pytest.raises(InputError, match="'tail'"):
        wrap(two, output="tail").bind((1, 8, 8))


@pytest.mark.parametrize("framework", ["numpy", "keras"])
def test_another_frameworks_output_is_chosen_once(framework: str) -> None:
    if framework == "keras":
        keras = pytest.importorskip("keras")
        image = keras.Input((8, 8, 1))
        flat = keras.layers.Flatten()(image)
        two = keras.Model(image, {"features": flat, "head": keras.layers.Dense(4)(flat)})
    else:

        def two(x: np.ndarray) -> dict[str, np.ndarray]:
            x = np.asarray(x).reshape(len(x), -1)
            return {"features": x, "head": x[:, :4]}

    target = wrap(two, output="head", framework=framework)
    target.bind((8, 8, 1) if framework == "keras" else (1, 8, 8))
    assert target.task.k == 4
    assert target.scores(torch.rand(3, *target.shape or ())).shape == (3, 4)


@pytest.mark.parametrize(
    ("module", "name", "extra"),
    [
        ("tensorflow", "net.tflite", "tensorflow"),
        ("keras", "net.keras", "keras"),
        ("onnxruntime", "net.onnx", "onnx"),
        ("skops", "net.skops", "sklearn"),
    ],
)
def test_an_absent_framework_is_one_sentence_that_names_the_extra(
    module: str, name: str, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for known in [m for m in sys.modules if m == module or m.startswith(f"{module}.")]:
        monkeypatch.delitem(sys.modules, known)
    monkeypatch.setitem(sys.modules, module, None)
    (tmp_path / name).write_bytes(b"anything")
    with pytest.raises(InputError, match=rf"holdfast\[{extra}\]"):
        load(str(tmp_path / name))


def test_no_framework_is_imported_before_it_is_needed() -> None:
    code = (
        "import sys, holdfast, holdfast.targets, holdfast.cli.main\n"
        "names = {'tensorflow', 'keras', 'jax', 'onnx', 'onnxruntime', 'xgboost', 'lightgbm', "
        "'httpx', 'skops'}\nprint(*sorted(names & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
