"""Models as people write them: that change their input, end the process, fail late, hold more than
tensors."""

from __future__ import annotations

import copy
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner, Result

import holdfast as hf
from holdfast.cli.main import app
from holdfast.errors import InputError
from holdfast.evaluation.judge import within
from holdfast.runs import store
from holdfast.targets import wrap
from holdfast.targets.wrappers import Ensemble
from holdfast.threats.threat import Threat

ATTACK = "pgd(steps=3, restarts=3)"
MODELS = """
import sys
import numpy as np
import torch
from torch import nn

LATER = 19  # questions, which is after the first look

class Tiny(nn.Module):
    asked = 0
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(4, 2)
    def forward(self, x):
        self.asked += 1
        self.before(x)
        return self.linear(x)
    def before(self, x): pass

class Exits(Tiny):
    def before(self, x): sys.exit(0)

class ExitsLater(Tiny):
    def before(self, x):
        if self.asked > LATER: sys.exit(0)

class Stops(Tiny):
    def before(self, x): raise GeneratorExit

class FailsLater(Tiny):
    def before(self, x):
        if self.asked > LATER: raise OSError("the disk is gone")

class FailsOnOne(Tiny):
    def before(self, x):
        if self.asked > LATER and len(x) == 1: raise ValueError("expected more than 1 value")

class Other(Tiny):
    def forward(self, x):
        self.asked += 1
        z = self.linear(x)
        return torch.cat([z, z], 1) if self.asked > LATER else z

class FewerRows(Tiny):
    def forward(self, x):
        self.asked += 1
        return self.linear(x)[:-1] if self.asked > LATER else self.linear(x)

def factory(): sys.exit(0)
def data(): sys.exit(0)
def rows():
    x = np.random.default_rng(0).random((24, 4)).astype(np.float32)
    with torch.no_grad():
        return x, Tiny()(torch.from_numpy(x)).argmax(1).numpy()
"""


class Tiny(nn.Module):
    """Four features, two classes; `change` is what the model does to its input first."""

    def __init__(self, change: str = "") -> None:
        super().__init__()
        self.change = change
        self.linear = nn.Linear(4, 2)
        with torch.no_grad():
            self.linear.weight.copy_(torch.tensor([[1.0, -1, 0.5, 0], [-1, 1, 0, 0.5]]))
            self.linear.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        if self.change == "clamp_":
            x.clamp_(0.3, 0.7)
        elif self.change == "mul_":
            x.mul_(3)
        elif self.change == "-=":
            x -= 0.5
        elif self.change == "data":  # which torch's own counter of writes does not see
            x.data.mul_(3)
        elif self.change == "rarely" and bool((x > 0.99).any()):
            x.mul_(3)
        return self.linear(x)


def numpy_model(change: str) -> Any:
    weight = np.array([[1.0, -1, 0.5, 0], [-1, 1, 0, 0.5]], np.float32)

    def scores(x: np.ndarray) -> np.ndarray:
        if change:
            np.clip(x, 0.3, 0.7, out=x)
        return x @ weight.T

    return scores


def rows(n: int = 24) -> tuple[np.ndarray, np.ndarray]:
    x = np.random.default_rng(0).random((n, 4), np.float32)
    return x, Tiny()(torch.from_numpy(x)).argmax(1).numpy()


def holdfast(*args: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in args], catch_exceptions=False)


def refused(*args: object) -> str:
    """The one sentence on standard error of a command that refuses; its exit code is 2."""
    done = holdfast(*args)
    assert done.exit_code == 2, done.output
    said = [
        line
        for line in done.stderr.splitlines()
        if line.strip() and not line.startswith("estimate: ")
    ]
    assert len(said) == 1
    assert said[0].startswith("error: ")
    return said[0]


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models.py").write_text(MODELS)
    return tmp_path


# ------------------------------------------------------------------ inputs that the model changes


@pytest.mark.parametrize("change", ["clamp_", "mul_", "-=", "data", "rarely"])
def test_no_model_can_change_the_data_or_an_example(change: str) -> None:
    """Line 7: a model that changes its input in place is given a copy: examples stay within eps,
    data as they are."""
    x, y = rows()
    x[0, 0] = 1.0
    y = Tiny(change)(torch.from_numpy(x.copy())).argmax(1).numpy()
    given, threat = x.copy(), Threat.linf(0.2)
    run = hf.evaluate(Tiny(change), (given, y), threat, attacks=["pgd(steps=4)", "square(steps=4)"])
    assert np.array_equal(given, x)
    assert run.manifest.metrics.counts["failed"] == 0
    assert run.manifest.metrics.counts["broken"] > 0
    for ids, stored in store.examples(run.folder):
        legal, _ = within(
            wrap(Tiny(), shape=(4,)), threat, torch.from_numpy(x[ids]), torch.from_numpy(stored)
        )
        assert bool(legal.all())


@pytest.mark.parametrize("model", [Tiny("clamp_"), numpy_model("clip")], ids=["torch", "numpy"])
def test_a_finding_says_that_the_model_changes_its_input(model: Any) -> None:
    """Line 7: the change is said in a finding; a model that changes nothing gets none."""
    for asked, expected in (
        (model, 1),
        (Tiny() if isinstance(model, nn.Module) else numpy_model(""), 0),
    ):
        found = hf.evaluate(
            asked, rows(), "linf(0.1)", attacks=["square(steps=2)"]
        ).verdict.findings
        assert sum(finding.check == "changes_input" for finding in found) == expected


def test_a_function_of_arrays_is_given_a_copy() -> None:
    """Line 7: a function that writes into the array that it is given writes into a copy."""
    x = torch.from_numpy(rows()[0])
    before = x.clone()
    target = wrap(numpy_model("clip"), framework="numpy", shape=(4,))
    target.scores(x)
    assert torch.equal(x, before)


def test_training_takes_a_model_that_changes_its_input() -> None:
    """Line 7: hardening too, whose attacks and losses ask the same model."""
    x, y = rows(200)
    hard = hf.harden(
        Tiny("clamp_"),
        (x, y),
        "linf(0.05)",
        recipe="fast(epochs=1, judge='')",
        protocol="quick",
        test_samples=8,
    )
    assert hard.after.metrics.clean_accuracy.n == 8


# ------------------------------------------------------------------ code that ends the process


@pytest.mark.parametrize("name", ["Exits", "ExitsLater", "Stops", "factory"])
def test_no_model_can_end_the_command(files: Path, name: str) -> None:
    """Line 8: a model or factory that calls sys.exit(0) ends in one sentence and exit code 2, never
    in success."""
    asked = (
        f"models.py:{name}",
        "models.py:rows",
        "--threat",
        "linf(0.1)",
        "--attack",
        ATTACK,
        "--out",
        "run",
    )
    text = refused("evaluate", *asked)
    assert "GeneratorExit" in text if name == "Stops" else "sys.exit()" in text
    assert "models.py:" in text
    assert not (files / "run" / "run.json").exists()


def test_no_data_nor_import_can_end_the_command(files: Path) -> None:
    """Line 8: nor can a data factory, or a file while it is imported."""
    end = ("--threat", "linf(0.1)", "--attack", ATTACK)
    assert "sys.exit()" in refused("evaluate", "models.py:Tiny", "models.py:data", *end)
    (files / "ends.py").write_text("raise SystemExit(0)\n")
    assert "sys.exit()" in refused("evaluate", "ends.py:model", "models.py:rows", *end)


@pytest.mark.parametrize(
    "command",
    [
        (
            "attack",
            "{}",
            "models.py:rows",
            "--threat",
            "linf(0.1)",
            "--attack",
            ATTACK,
            "--out",
            "a.npz",
        ),
        (
            "harden",
            "{}",
            "models.py:rows",
            "--threat",
            "linf(0.1)",
            "--out",
            "h",
            "--recipe",
            "fast(epochs=1)",
        ),
        ("train", "{}", "models.py:rows", "--out", "w.safetensors", "--epochs", "1"),
    ],
    ids=["attack", "harden", "train"],
)
def test_no_command_is_ended_by_a_model(files: Path, command: tuple[str, ...]) -> None:
    """Line 8: the same of every command that asks a model."""
    assert "sys.exit()" in refused(*(part.format("models.py:Exits") for part in command))


@pytest.mark.slow
def test_no_worker_is_ended_by_a_model(files: Path) -> None:
    """Line 8: nor is a training in several processes taken for done."""
    (files / "worker.py").write_text(
        MODELS + "\nclass ExitsInTraining(Tiny):\n    def before(self, x):\n"
        "        if self.training: sys.exit(0)\n"
        "def many():\n    x, y = rows()\n    return np.tile(x, (20, 1)), np.tile(y, 20)\n"
    )
    asked = (
        "train",
        "worker.py:ExitsInTraining",
        "worker.py:many",
        "--out",
        "w.safetensors",
        "--epochs",
        "1",
    )
    assert "sys.exit()" in refused(*asked, "--devices", "2")
    assert not (files / "w.safetensors").exists()


# ------------------------------------------------------------------ models that fail late


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("FailsLater", ("OSError: the disk is gone", "models.py:")),
        ("FailsOnOne", ("asked about 1 inputs", "expected more than 1 value")),
        ("Other", ("4 outputs", "gave 2 before")),
        ("FewerRows", ("[22, 2] for 23 inputs",)),
    ],
)
def test_a_model_that_fails_after_the_first_look(
    files: Path, name: str, words: tuple[str, ...]
) -> None:
    """Line 28: a model that raises later, for some number of rows, or gives another shape: one
    sentence."""
    asked = (
        "evaluate",
        f"models.py:{name}",
        "models.py:rows",
        "--threat",
        "linf(0.5)",
        "--attack",
        ATTACK,
    )
    text = refused(*asked, "--out", "run", *(("--batch-size", 23) if name == "FailsOnOne" else ()))
    for word in words:
        assert word in text
    assert "--resume" not in text  # nothing was finished, and nothing is left
    assert not Path("run").exists()


def test_a_run_goes_on_once_its_model_works_again(files: Path) -> None:
    """Line 28: what was measured before the model failed is kept."""
    broken = (
        MODELS.replace("class FailsLater(Tiny)", "class Was(Tiny)")
        + "\nclass FailsLater(Tiny): pass\n"
    )
    asked = (
        "evaluate",
        "models.py:FailsLater",
        "models.py:rows",
        "--threat",
        "linf(0.5)",
        "--attack",
        ATTACK,
    )
    refused(*asked, "--out", "run")
    (files / "models.py").write_text(broken)
    assert holdfast(*asked, "--out", "run", "--resume").exit_code == 0
    assert (files / "run" / "run.json").exists()


def test_a_model_without_numbers() -> None:
    """Line 28: a model on the device meta is refused in a sentence."""
    with pytest.raises(InputError, match="device meta"):
        wrap(nn.Linear(4, 2, device="meta"))
    weight = torch.ones(4, 2, device="meta")
    with pytest.raises(InputError, match="device meta"):
        wrap(lambda x: x.to("meta") @ weight, framework="torch", shape=(4,))


# ---------------------------------------------------- modules that are not float32 tensors alone


class WithExtra(Tiny):
    """Holds what is no tensor in its state, as custom layers do."""

    scale: Any = 2.0

    def get_extra_state(self) -> Any:
        return {"scale": self.scale, "names": ["a", "b"], "table": np.arange(3)}

    def set_extra_state(self, state: Any) -> None:
        self.scale = state["scale"]


def quantised() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(
            copy.deepcopy(Tiny().eval()), {nn.Linear}, dtype=torch.qint8
        )


def test_a_fingerprint_needs_the_shape_of_the_inputs() -> None:
    target = wrap(nn.Linear(4, 2))
    for ask in (target.fingerprint, target.describe):
        with pytest.raises(InputError, match="once the shape of its inputs is known"):
            ask()
    target.labels(torch.zeros(1, 4))
    assert target.fingerprint() == wrap(target.model, shape=(4,)).fingerprint()  # pyright: ignore[reportAttributeAccessIssue]


def test_state_that_is_no_tensor_is_part_of_the_fingerprint(tmp_path: Path) -> None:
    """Line 18: `get_extra_state` is no AttributeError; it counts in the fingerprint, and training
    keeps it."""
    first, second = WithExtra(), WithExtra()
    assert wrap(first, shape=(4,)).fingerprint() == wrap(second, shape=(4,)).fingerprint()
    second.scale = 3.0
    assert wrap(first, shape=(4,)).fingerprint() != wrap(second, shape=(4,)).fingerprint()
    hard = hf.harden(
        second,
        rows(200),
        "linf(0.05)",
        recipe="fast(epochs=1, judge='')",
        protocol="quick",
        test_samples=8,
        out=tmp_path,
    )
    assert hard.model.scale == 3.0


def test_quantised_modules_are_measured(files: Path) -> None:
    """Line 18: a dynamically quantised module is measured by its scores; its weights are loaded
    from a file too."""
    net = quantised()
    run = hf.evaluate(net, rows(), "linf(0.5)", attacks=["square(steps=10)"])
    assert run.manifest.model.access == "scores"
    assert "no_gradients" in {finding.check for finding in run.verdict.findings}
    torch.save(net.state_dict(), files / "int8.pt")
    (files / "made.py").write_text(
        "import torch, warnings\nfrom torch import nn\nclass Tiny(nn.Module):\n    def "
        "__init__(self):\n"
        "        super().__init__()\n        self.linear = nn.Linear(4, 2)\n    def forward(self, "
        "x):\n        return self.linear(x)\ndef int8():\n    with warnings.catch_warnings():\n"
        "        warnings.simplefilter('ignore')\n"
        "        return torch.ao.quantization.quantize_dynamic(Tiny(), {nn.Linear}, "
        "dtype=torch.qint8)\n"
    )
    loaded = hf.load("int8.pt", arch="made.py:int8")
    loaded.bind((4,))
    x = torch.from_numpy(rows()[0])
    assert torch.equal(loaded.scores(x), wrap(net, shape=(4,)).scores(x))


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_modules_in_half_precision_are_cast_inside(kind: torch.dtype) -> None:
    """Line 18: a float16 or bfloat16 module takes float32 inputs, is judged as it is, and a finding
    says so."""
    net, (x, y) = Tiny().to(kind), rows()
    run = hf.evaluate(net, (x, y), "linf(0.3)", attacks=["pgd(steps=8)"])
    assert "half_precision" in {finding.check for finding in run.verdict.findings}
    assert run.manifest.metrics.counts["broken"] > 5
    target = wrap(net, shape=(4,))
    assert torch.equal(
        target.scores(torch.from_numpy(x)), net(torch.from_numpy(x).to(kind)).float()
    )
    _, pull = target.linearize(torch.from_numpy(x[:2]))
    tiny = torch.full((2, 2), 1e-9) * torch.tensor([1.0, -1])  # float16 has no such number
    assert bool((pull(tiny) != 0).any(1).all())


class Casts(nn.Module):
    """A module in half precision that casts its inputs itself."""

    def __init__(self, kind: torch.dtype) -> None:
        super().__init__()
        self.net, self.kind = Tiny().to(kind), kind

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.to(self.kind)).float()


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_modules_that_cast_their_inputs_themselves(kind: torch.dtype) -> None:
    """Line 18: their copy in float32 fails, so gradients are the module's own."""
    x = torch.from_numpy(rows()[0])
    target = wrap(Casts(kind), shape=(4,))
    assert torch.equal(target.scores(x), Casts(kind)(x))
    assert bool((target.linearize(x)[1](torch.tensor([[1.0, -1]]).expand(len(x), 2)) != 0).any())


def test_half_precision_is_hardened_in_float32() -> None:
    """Line 18: what is trained of a half-precision module is a copy in float32."""
    hard = hf.harden(
        Tiny().half(),
        rows(200),
        "linf(0.05)",
        recipe="fast(epochs=1, judge='')",
        protocol="quick",
        test_samples=8,
    )
    assert {weight.dtype for weight in hard.model.parameters()} == {torch.float32}


def test_outputs_of_several_dimensions() -> None:
    """Line 18: outputs [n, 2, 2] are refused for what they are, and are what a regression may
    give."""
    net = nn.Sequential(nn.Linear(4, 4), nn.Unflatten(1, (2, 2)))
    x, _ = rows()
    with pytest.raises(InputError, match=r"\[2, 2, 2\].*regression"):
        hf.evaluate(net, (x, np.zeros(len(x), np.int64)), "linf(0.1)", attacks=[ATTACK])
    truth = net(torch.from_numpy(x)).detach().numpy()
    target = wrap(net, task="regression(tolerance=0.05)")
    run = hf.evaluate(target, (x, truth), "linf(0.3)", attacks=[ATTACK])
    assert run.metrics.clean_accuracy.value == 1.0
    assert run.manifest.metrics.counts["broken"] == len(x)
    wide = nn.Sequential(nn.Linear(4, 6), nn.Unflatten(1, (2, 3)))
    with pytest.raises(InputError, match="2 x 3 outputs"):
        hf.evaluate(
            wrap(wide, task="multilabel"),
            (x, np.zeros((len(x), 3, 2))),
            "linf(0.3)",
            attacks=[ATTACK],
        )


@pytest.mark.parametrize("task", ["multilabel", "regression(tolerance=0.1)"])
@pytest.mark.parametrize("k", [1, 3])
def test_one_broken_row_of_a_task_that_is_not_one_of_classes(task: str, k: int) -> None:
    """Line 18: exactly one row left in a chunk is no IndexError, also where the model squeezes
    it."""

    class Squeezed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.linear = nn.Linear(4, k)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x).squeeze()

    x, _ = rows(1)
    z = Squeezed()(torch.from_numpy(x)).detach().reshape(1, k).numpy()
    y = (z > 0).astype(np.float32) if task == "multilabel" else z
    run = hf.evaluate(
        wrap(Squeezed(), task=task, bounds=(-2, 2)), (x, y), "linf(2)", attacks=["pgd(steps=10)"]
    )
    assert run.manifest.metrics.counts["broken"] == 1


def test_a_classifier_may_squeeze_its_last_row() -> None:
    """Line 18: [k] for one input is one row of scores, as a classifier with squeeze() gives it."""

    class Squeezed(Tiny):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).squeeze()

    found = [
        hf.evaluate(net, rows(5), "linf(0.3)", attacks=[ATTACK]).metrics
        for net in (Tiny(), Squeezed())
    ]
    assert found[0].counts == found[1].counts


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.GRU(3, 6, 2, batch_first=True, dropout=0.5)
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        assert not self.training
        return self.head(self.body(x)[0][:, -1])


def test_recurrent_layers_are_differentiated_in_a_mode_that_cudnn_can() -> None:
    """Line 18: while gradients are taken an LSTM or GRU is in train mode without dropout, and else
    in eval mode."""
    target, seen = wrap(Recurrent(), shape=(5, 3)), []
    body: Any = target.model.body  # pyright: ignore[reportAttributeAccessIssue]
    body.register_forward_pre_hook(lambda layer, _: seen.append((layer.training, layer.dropout)))
    x = torch.rand(3, 5, 3, generator=torch.Generator().manual_seed(0))
    exact = target.scores(x)
    z, pull = target.linearize(x)
    assert seen == [(False, 0.5), (True, 0.0)]
    assert (body.training, body.dropout) == (False, 0.5)
    assert torch.allclose(z, exact)
    assert bool((pull(torch.ones_like(z)) != 0).any())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="cuDNN needs a CUDA device")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_recurrent_layers_on_a_card(precision: str) -> None:
    """Line 18: "cudnn RNN backward can only be called in training mode" is not met."""
    x = np.random.default_rng(0).random((16, 5, 3), np.float32)
    target = wrap(Recurrent(), device="cuda", precision=precision)
    run = hf.evaluate(target, (x, np.zeros(16, np.int64)), "linf(0.1)", attacks=[ATTACK])
    assert sum(run.manifest.metrics.counts.values()) == 16


# ---------------------------------------------- what frameworks print; what the run says of them


def test_native_lines_are_dropped_unless_something_fails() -> None:
    """Line 31: native lines on standard error are dropped; Python's own and an error's cause are
    not."""
    code = (
        "import os, sys\nfrom holdfast import quiet\n"
        "def write():\n    with quiet.native_output():\n        os.write(2, b'noise')\n"
        "write()\nquiet.silence_frameworks()\nwrite()\nprint('own', file=sys.stderr)\n"
        "try:\n    with quiet.native_output():\n        os.write(2, b'cause')\n        raise "
        "OSError\nexcept OSError: pass\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "noiseown\ncause"  # a library call drops nothing


def test_versions_name_only_what_was_used() -> None:
    """Line 32: the versions name a framework only where the model is one of its models."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x, y = rows()
    own = {"python", "holdfast", "torch", "numpy"}
    asked = [
        Tiny(),
        numpy_model(""),
        make_pipeline(StandardScaler(), LogisticRegression()).fit(x, y),
    ]
    found = [
        set(
            hf.evaluate(
                model, (x, y), "linf(0.1)", attacks=["square(steps=2)"]
            ).manifest.provenance.versions
        )
        for model in asked
    ]
    assert found == [own, own, own | {"scikit-learn"}]


def test_an_estimator_fitted_on_a_table_is_asked_with_its_columns() -> None:
    """A Pipeline that selects columns by name, and says no word of names that are missing."""
    pd = pytest.importorskip("pandas")
    from sklearn.compose import ColumnTransformer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    rng = np.random.default_rng(0)
    x = rng.uniform(size=(40, 2)).astype(np.float32)
    table, y = (
        pd.DataFrame(x, columns=["length", "width"]),
        np.where(x[:, 0] > 0.5, "long", "short"),
    )
    by_name = ColumnTransformer([("scale", StandardScaler(), ["length", "width"])])
    for first in (StandardScaler(), by_name):
        model = make_pipeline(first, LogisticRegression()).fit(table, y)
        result = hf.attack(model, x, y, "linf(0.2)")  # a warning is an error in these tests
        assert (np.asarray(result.before) == (model.predict(table) == "short")).all()
        assert result.success.any()


def test_an_ensemble_says_of_each_member_what_there_is_to_say() -> None:
    """Lines 7 and 18: a second member that changes its input, or computes in half precision."""
    both = Ensemble([wrap(Tiny(), shape=(4,)), wrap(Tiny("clamp_").half(), shape=(4,))])
    both.scores(torch.from_numpy(rows()[0]))
    assert "half_precision" in dict(both.identity.remarks)
    assert both.identity.rewrites
