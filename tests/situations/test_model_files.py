"""Models as people have them: files of other tools, live objects, checkpoints of training
frameworks, regressors."""

from __future__ import annotations

import argparse
import os
import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
import torch
from helpers.commands import refused
from safetensors.torch import save_file
from sklearn.calibration import CalibratedClassifierCV
from sklearn.ensemble import (
    IsolationForest,
    RandomForestClassifier,
    RandomForestRegressor,
    VotingClassifier,
)
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import holdfast
from holdfast.errors import InputError
from holdfast.targets import load, wrap

DRAW = np.random.default_rng(0)
X = DRAW.random((60, 4)).astype(np.float32)
Y = (X[:, 0] > 0.4).astype(int) + (X[:, 0] > 0.7)
NET = "from torch import nn\ndef net(): return nn.Sequential(nn.Linear(4, 3))\n"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("nets.py").write_text(NET)


def labels(model: Any) -> np.ndarray:
    target = wrap(model)
    target.bind((4,))
    return target.labels(torch.from_numpy(X)).numpy()


def weights() -> dict[str, torch.Tensor]:
    return {"0.weight": torch.arange(12.0).reshape(3, 4), "0.bias": torch.zeros(3)}


def fits(name: str) -> bool:
    target = load(name, arch="nets.py:net")
    target.bind((4,))
    return torch.equal(target.scores(torch.eye(4)), weights()["0.weight"].T)


def forest(**options: Any) -> RandomForestClassifier:
    return RandomForestClassifier(3, random_state=0, **options).fit(X, Y)


@pytest.mark.parametrize(
    "model",
    [
        make_pipeline(StandardScaler(), RandomForestClassifier(3, random_state=0)),
        CalibratedClassifierCV(RandomForestClassifier(3, random_state=0), cv=2),
        VotingClassifier([("a", LogisticRegression()), ("b", KNeighborsClassifier(3))]),
    ],
    ids=lambda m: type(m).__name__,
)
def test_skops_files_of_scikit_learns_own_estimators(model: Any) -> None:
    """Line 17: a .skops file whose types are all scikit-learn's own is opened without --trust."""
    io = pytest.importorskip("skops.io")
    io.dump(model.fit(X, Y), "model.skops")
    assert (labels("model.skops") == model.predict(X)).all()


def test_skops_files_of_other_types_still_need_trust() -> None:
    """Line 17: what is not scikit-learn's own is refused by name, and so is a tree that leads out
    of its nodes."""
    io = pytest.importorskip("skops.io")
    from sklearn.preprocessing import FunctionTransformer

    io.dump(
        make_pipeline(FunctionTransformer(os.path.basename), LogisticRegression()), "model.skops"
    )
    with pytest.raises(InputError, match=r"posixpath\.basename.*--trust"):
        load("model.skops")
    model = forest()
    state = model.estimators_[0].tree_.__getstate__()
    state["nodes"]["left_child"][0] = 10**6
    model.estimators_[0].tree_.__setstate__(state)
    io.dump(model, "model.skops")
    with pytest.raises(InputError, match="damaged: a tree"):
        load("model.skops")


@pytest.mark.parametrize(
    ("name", "compress"), [("model.joblib", 3), ("model.joblib", 0), ("model.pkl", 0)]
)
def test_pickled_estimators_need_trust(name: str, compress: int) -> None:
    """Line 17: joblib's and pickle's files of estimators are opened with --trust, and else refused
    with the remedy."""
    joblib.dump(forest(), name, compress=compress)
    with pytest.raises(InputError, match=r"skops.*--trust"):
        load(name)
    assert (labels(load(name, trust=True)) == forest().predict(X)).all()
    Path(name).write_bytes(Path(name).read_bytes()[:99])
    with pytest.raises(InputError, match=name):
        load(name, trust=True)


@pytest.mark.parametrize("library", ["xgboost", "lightgbm"])
def test_boosters_live_and_in_files(library: str) -> None:
    """Line 17: a live Booster and its file (.json, .ubj, LightGBM's text) answer as the library
    does, in logits."""
    tool = pytest.importorskip(library)
    for k in (2, 3):
        y = np.minimum(Y, k - 1)
        if library == "xgboost":
            options = (
                {"objective": "multi:softprob", "num_class": 3}
                if k == 3
                else {"objective": "binary:logistic"}
            )
            model = tool.train(options | {"nthread": 1, "max_depth": 2}, tool.DMatrix(X, y), 3)
            names, said = ["model.json", "model.ubj"], model.predict(tool.DMatrix(X))
        else:
            options = (
                {"objective": "multiclass", "num_class": 3} if k == 3 else {"objective": "binary"}
            )
            options |= {"verbose": -1, "num_threads": 1, "min_data_in_leaf": 2}
            model = tool.train(options, tool.Dataset(X, y), 3)
            names, said = ["model.txt"], model.predict(X)
        expected = said.argmax(1) if k == 3 else said > 0.5
        assert (labels(model) == expected).all()
        target = wrap(model, shape=(4,))
        z = target.scores(torch.from_numpy(X))
        shown = z.softmax(1).numpy()
        assert np.allclose(shown if k == 3 else shown[:, 1], said, atol=1e-5)
        for name in names:
            model.save_model(name)
            assert (labels(name) == expected).all()
            content = Path(name).read_bytes()
            Path(name).write_bytes(content[: len(content) // 4])
            with pytest.raises(InputError, match=name):
                load(name)


@pytest.mark.parametrize(
    "renamed",
    [
        lambda n: f"model.{n}",
        lambda n: f"model.module._orig_mod.{n}",
        lambda n: f"_orig_mod.{n}",
        lambda n: n.replace("0.", "0._orig_mod."),
        lambda n: f"net.backbone.{n}",
    ],
    ids=["lightning", "mixed", "compiled", "inner", "deep"],
)
def test_names_before_the_names_of_weights(renamed: Any) -> None:
    """Line 17: what Lightning, DataParallel and torch.compile put before the names of weights is
    taken off."""
    state = {renamed(name): value for name, value in weights().items()}
    torch.save({"state_dict": state}, "net.ckpt")
    assert fits("net.ckpt")
    save_file(state, "net.safetensors")
    assert fits("net.safetensors")


def test_parts_other_than_the_model() -> None:
    """Line 17: weights of a loss or an average next to the model's own are left out; two models
    alike are refused."""
    own = {f"model.{name}": value for name, value in weights().items()}
    average = {f"ema_model.{name}": value + 1 for name, value in weights().items()}
    torch.save({"state_dict": own | average | {"loss.weight": torch.ones(3)}}, "net.ckpt")
    assert fits("net.ckpt")
    other = {f"other.{name}": value for name, value in weights().items()}
    torch.save({"state_dict": own | other}, "net.ckpt")
    with pytest.raises(InputError, match=r"2 times, under model\., other\."):
        load("net.ckpt", arch="nets.py:net")
    torch.save({"state_dict": own | {"model.1.weight": torch.ones(3)}}, "net.ckpt")
    with pytest.raises(InputError, match=r"unexpected: 1\.weight"):
        load("net.ckpt", arch="nets.py:net")


@pytest.mark.parametrize("key", ["state_dict", "model", "net", "ema_model_state_dict"])
def test_published_checkpoints(key: str) -> None:
    """The layouts of robustness benchmarks: where the weights lie, a model that is saved with its
    attacker, and constants of a normalisation that the file or the architecture has alone."""
    own = {f"module.{name}": value for name, value in weights().items()}
    torch.save({key: own, "epoch": 3, "optimizer": {"lr": 0.1}}, "net.pt")
    assert fits("net.pt")
    both = {f"module.model.{n}": v for n, v in weights().items()}
    both |= {f"module.attacker.model.{n}": v.clone() for n, v in weights().items()}
    further = {"module.normalizer.new_mean": torch.zeros(4)}
    torch.save({key: both | further}, "net.pt")
    assert fits("net.pt")


def test_constants_that_only_the_architecture_has() -> None:
    Path("nets.py").write_text(
        "import torch\nfrom torch import nn\n"
        "class Net(nn.Sequential):\n"
        "    def __init__(self):\n"
        "        super().__init__(nn.Linear(4, 3))\n"
        "        self.register_buffer('mu', torch.zeros(4))\n"
        "        self.register_buffer('sigma', torch.ones(4))\n"
        "    def forward(self, x): return super().forward((x - self.mu) / self.sigma)\n"
        "def net(): return Net()\n"
    )
    for state in (weights(), {f"module.model.{n}": v for n, v in weights().items()}):
        torch.save({"state_dict": state}, "net.pt")
        assert fits("net.pt")


def test_constants_that_only_the_file_has_change_what_the_model_sees() -> None:
    torch.save({"state_dict": weights() | {"mu": torch.zeros(4)}}, "net.pt")
    with pytest.raises(InputError, match=r"also holds mu, .*normalises.*the architecture"):
        load("net.pt", arch="nets.py:net")


def test_weights_that_do_not_fit_name_the_nearest_prefix() -> None:
    state = {"encoder.net.0.weight": torch.ones(3, 4), "encoder.net.1.bias": torch.ones(3)}
    torch.save({"state_dict": state}, "net.pt")
    with pytest.raises(InputError, match=r"without encoder\.net\. 1 of 2 names are the model's"):
        load("net.pt", arch="nets.py:net")


class Payload:
    """Leaves a folder behind if it is ever unpickled."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, ("ran",)


def test_checkpoints_whose_settings_hold_objects() -> None:
    """Line 17: the weights of a Lightning checkpoint are read without making the objects among its
    hyper-parameters."""
    own = {f"model.{name}": value for name, value in weights().items()}
    settings = {
        "hyper_parameters": {"net": Payload(), "kind": argparse.Namespace(a=1)},
        "best": np.float64(0.5),
    }
    torch.save({"state_dict": own, "epoch": 3} | settings, "net.ckpt")
    assert fits("net.ckpt")
    assert not Path("ran").exists()
    torch.save({"state_dict": own, "extra": Payload()}, "net.ckpt")
    with pytest.raises(InputError, match=r"wants to run code.*--trust"):
        load("net.ckpt", arch="nets.py:net")
    assert not Path("ran").exists()


def test_a_folder_of_transformers_is_one_sentence() -> None:
    """Line 17: a Hugging Face folder, and the weights in it, say how such a model is given."""
    Path("vit").mkdir()
    Path("vit/config.json").write_text("{}")
    save_file(weights(), "vit/model.safetensors")
    for name in ("vit", "vit/model.safetensors"):
        with pytest.raises(InputError, match=r"Hugging Face.*from_pretrained"):
            load(name)


def test_wrap_takes_what_load_takes() -> None:
    """Line 17: a path or text in Python means what it means on the command line, in every
    function."""
    for model in ("nets.py:net", "demo"):
        assert type(wrap(model)) is type(load(model))
    data = (torch.rand(4, 1, 8, 8), torch.arange(4))
    run = holdfast.evaluate("demo", data, "linf(0.1)", attacks=["fgsm"])
    assert run.manifest.metrics.clean_accuracy.n == 4
    with pytest.raises(InputError, match="there is no file"):
        wrap(Path("none.onnx"))


@pytest.mark.parametrize("kind", ["path", "proto", "session", "bytes"])
def test_onnx_models_live(kind: str) -> None:
    """Line 17: an ONNX path, ModelProto and InferenceSession are one model: same scores, same
    gradients."""
    onnx, runtime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    from onnx import TensorProto, helper, numpy_helper

    info = helper.make_tensor_value_info
    w = weights()
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["x", "w", "b"], ["z"], transB=1)],
        "net",
        [info("x", TensorProto.FLOAT, ["n", 4])],
        [info("z", TensorProto.FLOAT, ["n", 3])],
        [
            numpy_helper.from_array(w["0.weight"].numpy(), "w"),
            numpy_helper.from_array(w["0.bias"].numpy(), "b"),
        ],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(proto, "net.onnx")
    models = {
        "path": lambda: Path("net.onnx"),
        "proto": lambda: proto,
        "session": lambda: runtime.InferenceSession("net.onnx"),
        "bytes": lambda: runtime.InferenceSession(proto.SerializeToString()),
    }
    target = wrap(models[kind](), shape=(4,))
    x = torch.eye(4)
    z, pull = target.linearize(x)
    assert torch.equal(z, w["0.weight"].T)
    assert torch.equal(pull(torch.ones(4, 3)), w["0.weight"].sum(0).expand(4, 4))


@pytest.mark.parametrize("library", ["sklearn", "xgboost", "lightgbm", "booster"])
def test_regressors(library: str) -> None:
    """Line 18: a regressor is measured with a task of regression, and without one a true sentence
    asks for it."""
    y = X[:, 0] * 2
    if library == "sklearn":
        model = make_pipeline(StandardScaler(), LinearRegression()).fit(X, y)
    elif library == "lightgbm":
        model = (
            pytest.importorskip("lightgbm")
            .LGBMRegressor(n_estimators=3, verbose=-1, n_jobs=1)
            .fit(X, y)
        )
    else:
        model = pytest.importorskip("xgboost").XGBRegressor(n_estimators=3, n_jobs=1).fit(X, y)
    model = model.get_booster() if library == "booster" else model
    with pytest.raises(InputError, match=r"numbers.*--task \"regression"):
        wrap(model)
    target = wrap(model, task="regression(tolerance=0.5)")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # LightGBM's, of arrays without names
        run = holdfast.evaluate(target, (X[:20], y[:20]), "linf(0.05)", attacks=["square(steps=2)"])
    assert run.manifest.metrics.clean_accuracy.value > 0.5
    assert run.manifest.model.access == "scores"


def test_a_regressor_on_the_command_line() -> None:
    """Line 18: the same by --task; several outputs and detectors of outliers are what they are."""
    io = pytest.importorskip("skops.io")
    io.dump(RandomForestRegressor(2, random_state=0).fit(X, X[:, :2]), "model.skops")
    np.savez("set.npz", x=X, y=X[:, :2])
    text = refused(
        "evaluate",
        "model.skops",
        "set.npz",
        "--threat",
        "linf(0.05)",
        "--attack",
        "square(steps=2)",
    )
    assert "RandomForestRegressor names no classes" in text
    assert "--task" in text
    target = load("model.skops", task="regression(tolerance=0.5)", shape=(4,))
    assert target.scores(torch.from_numpy(X)).shape == (60, 2)
    outliers = IsolationForest(n_estimators=3, random_state=0).fit(X)
    assert (labels(outliers) * 2 - 1 == outliers.predict(X)).all()
    assert wrap(outliers).identity.class_labels == (-1, 1)


def of_itself(_: dict[str, torch.Tensor]) -> Any:
    content: dict[str, Any] = {}
    content["state_dict"] = content["model"] = content
    return content


def of_false_versions(state: dict[str, torch.Tensor]) -> Any:
    content = OrderedDict(state)
    content._metadata = 5  # pyright: ignore
    return content


@pytest.mark.parametrize(
    "made",
    [
        of_itself,
        of_false_versions,
        lambda state: {n: v.to_sparse() for n, v in state.items()},
        lambda state: {n: v.to("meta") for n, v in state.items()},
    ],
    ids=["of itself", "of false versions", "sparse", "without values"],
)
def test_hostile_weights_are_one_sentence(made: Any) -> None:
    torch.save(made(weights()), "odd.pt")
    with pytest.raises(InputError, match=r"odd\.pt"):
        load("odd.pt", arch="nets.py:net")
