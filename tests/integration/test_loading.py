"""Models from files: what fits is loaded, what is damaged or dangerous is refused and never run."""

from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from helpers.commands import names, refused
from safetensors.torch import save_file
from torch import Tensor, nn

from holdfast.targets import frameworks, registry
from holdfast.targets.demo import demo_model
from holdfast.targets.loading import load

ARCH = "holdfast.targets.demo:demo_net"
NETS = """
from torch import nn
from holdfast.targets import Access, Target, TorchTarget
from holdfast.targets.demo import demo_model, demo_net

class Net(nn.Sequential):
    def __init__(self):
        super().__init__(*demo_net())

def neighbourly():
    import neighbour
    return neighbour.wrapped(demo_model())

def net(): return demo_model()
def raises(): raise OSError("no licence left")
def exits(): raise SystemExit(3)
def wants(depth): return demo_net()
def a_dict(): return {}
def wide(): return nn.Sequential(nn.Flatten(), nn.Linear(64, 20))
ready = demo_model()
number = 3

class Changed(nn.Module):
    def __init__(self, change):
        super().__init__()
        self.inner, self.change = demo_model(), change

    def forward(self, x):
        return self.change(self.inner(x))

def five_classes(): return Changed(lambda z: z[:, :5])
def three_axes(): return Changed(lambda z: z[:, :, None])
def a_pair(): return Changed(lambda z: (z, z))
def one_answer(): return Changed(lambda z: z.mean(0))
def key_error(): return Changed(lambda z: {}["logits"])

class Labels(Target):
    access = Access.LABELS

    def __init__(self):
        self.inner = TorchTarget(demo_model(), shape=(1, 8, 8))
        self.task = self.inner.task

    def scores(self, x): raise AssertionError("scores asked of a target that gives labels only")
    def labels(self, x): return self.inner.labels(x)
    def fingerprint(self): return "labels"
"""


class Payload:
    """Leaves a file behind if it is ever unpickled."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.mkdir, ("ran",)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nets.py").write_text(NETS)
    (tmp_path / "neighbour.py").write_text("def wrapped(model): return model\n")
    yield tmp_path
    for name in ("nets", "neighbour", "holdfast_user_nets"):
        sys.modules.pop(name, None)


def evaluate(*args: str) -> str:
    """The sentence that an evaluation of this model is refused with."""
    return refused(
        "evaluate",
        *args,
        "digits",
        "--threat",
        "linf(0.1)",
        "--attack",
        "pgd(steps=2)",
        "--samples",
        10,
    )


def weights(**changes: Tensor | None) -> dict[str, Tensor]:
    """The demo's weights with some changed, added, or left out (None)."""
    state = demo_model().state_dict() | {
        name.replace("_", "."): value for name, value in changes.items()
    }
    return {name: value for name, value in state.items() if value is not None}


def same(model: nn.Module) -> bool:
    """Whether a model gives the demo's scores."""
    x = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return bool(torch.equal(model(x), demo_model()(x)))


@pytest.mark.parametrize(
    "content",
    [
        weights(),
        {"state_dict": weights(), "epoch": 3},
        {"model_state_dict": weights(), "optimizer": {}},
        {f"module.{name}": value for name, value in weights().items()},
    ],
    ids=["bare", "nested", "checkpoint", "parallel"],
)
def test_weights_as_people_save_them(content: dict) -> None:
    torch.save(content, "net.pt")
    torch.save(content, "old.pt", _use_new_zipfile_serialization=False)
    assert same(load("net.pt", arch=ARCH))
    assert same(load("old.pt", arch=ARCH))
    assert same(load("old.pt", arch=ARCH, trust=True))


def test_weights_in_safetensors() -> None:
    save_file(weights(), "net.safetensors")
    assert same(load("net.safetensors", arch=ARCH))
    assert same(load("net.safetensors", arch="nets.py:Net"))


@pytest.mark.parametrize(
    "spec", ["nets.py:net", "nets:net", "nets.py:ready", "nets.py:neighbourly", "demo"]
)
def test_models_from_code(spec: str) -> None:
    assert same(load(spec))


def test_code_elsewhere_imports_its_neighbours(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "elsewhere").mkdir()
    monkeypatch.chdir(here / "elsewhere")
    assert same(load(f"{here}/nets.py:neighbourly"))
    assert str(here) not in sys.path


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"<!DOCTYPE html><html><body>404</body></html>", ("web page", "HTML", "download")),
        (b"\n  <html lang='en'>", ("web page", "HTML", "download")),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
            ("Git LFS pointer", "never fetched"),
        ),
        (b"", ("truncated or no checkpoint",)),
        (b"hello, world" * 20, ("no checkpoint",)),
    ],
    ids=["html", "html2", "lfs", "empty", "words"],
)
def test_files_that_are_no_weights(suffix: str, content: bytes, words: tuple[str, ...]) -> None:
    Path(f"net{suffix}").write_bytes(content)
    for trust in ([], ["--trust"]):
        names(evaluate(f"net{suffix}", "--arch", ARCH, *trust), f"net{suffix}", *words)


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.99])
@pytest.mark.parametrize("name", ["net.pt", "old.pt", "net.safetensors"])
def test_truncated_files(name: str, keep: float) -> None:
    torch.save(weights(), "net.pt")
    torch.save(weights(), "old.pt", _use_new_zipfile_serialization=False)
    save_file(weights(), "net.safetensors")
    path = Path(name)
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
    names(evaluate(name, "--arch", ARCH), name, "no checkpoint")


def test_missing_files() -> None:
    names(evaluate("none.pt", "--arch", ARCH), "there is no file none.pt", "check its path")
    names(evaluate("dmeo"), "'dmeo'", "a file of weights", "package.module:factory")


def test_weights_alone_ask_for_their_architecture() -> None:
    torch.save(weights(), "net.pt")
    names(evaluate("net.pt"), "net.pt", "weights alone", "--arch")


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("raw", [False, True], ids=["saved", "pickled"])
def test_a_pickle_that_wants_to_run_code(raw: bool, protocol: int) -> None:
    content = {"extra": Payload()} | weights()
    if raw:
        Path("net.pkl").write_bytes(pickle.dumps(content, protocol))
    else:
        torch.save(content, "net.pkl", pickle_protocol=protocol)
    text = evaluate("net.pkl", "--arch", ARCH)
    names(text, "net.pkl", "wants to run code", "--trust", "state_dict", "skops")
    assert protocol > 2 or "posix.mkdir" in text
    assert not Path("ran").exists()
    # the payload's result is no tensor
    names(evaluate("net.pkl", "--arch", ARCH, "--trust"), "dict of weights")
    assert Path("ran").is_dir()


@pytest.mark.parametrize("raw", [False, True], ids=["saved", "pickled"])
def test_a_pickled_module_needs_trust_and_its_class(raw: bool) -> None:
    net = load("nets:Net")
    net.load_state_dict(weights())
    if raw:
        Path("net.pkl").write_bytes(pickle.dumps(net))
    else:
        torch.save(net, "net.pkl")
    names(evaluate("net.pkl"), "net.pkl", "wants to run code", "--trust")
    assert same(load("net.pkl", trust=True))
    Path("nets.py").unlink()
    sys.modules.pop("nets")
    names(evaluate("net.pkl", "--trust"), "net.pkl", "not here", "'nets'", "state_dict")


@pytest.mark.parametrize(
    ("arch", "words"),
    [
        ("none.py:net", ("no file", "none.py", "path/file.py:name")),
        ("no.such.package:net", ("no module 'no.such.package'", "package.module:name")),
        ("nets", ("'nets'", "path/file.py:factory")),
        ("nets.py:nte", ("nets.py", "'nte'", "did you mean net")),
        ("nets.py:number", ("nets.py", "no callable 'number'")),
        ("nets.py:raises", ("nets.py:raises", "OSError", "no licence left", "nets.py:15")),
        ("nets.py:exits", ("nets.py:exits", "SystemExit", "3")),
        ("nets.py:wants", ("nets.py:wants", "TypeError", "depth")),
        ("nets.py:a_dict", ("--arch nets.py:a_dict", "dict", "torch module")),
        ("broken.py:net", ("broken.py", "SyntaxError")),
        ("needy.py:net", ("needy.py", "ModuleNotFoundError", "absent_library")),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_wrong_architectures(arch: str, words: tuple[str, ...]) -> None:
    torch.save(weights(), "net.pt")
    Path("broken.py").write_text("def net(:\n")
    Path("needy.py").write_text("import absent_library\n")
    names(evaluate("net.pt", "--arch", arch), *words)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("none.py:net", ("no file", "none.py")),
        ("nets.py:nte", ("nets.py", "'nte'", "did you mean net")),
        ("nets.py:raises", ("OSError", "no licence left")),
        ("nets.py:a_dict", ("dict", "torch module")),
        ("nets.py:five_classes", ("label 9", "5 classes", "0 to 4")),
        ("nets.py:three_axes", ("[2, 10, 1]", "[n, classes]")),
        ("nets.py:a_pair", ("tuple", "[n, classes]")),
        ("nets.py:one_answer", ("[10]", "[n, classes]")),
        ("nets.py:key_error", ("logits",)),
        ("nets.py:Labels", ("asks for GRADIENTS", "gives LABELS", "sweep")),
        ("nets.py:Labels", ("pgd(",)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_wrong_code_as_the_model(model: str, words: tuple[str, ...]) -> None:
    names(evaluate(model), *words)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (weights(**{"0_bias": None}), ("missing: 0.bias",)),
        (weights(head_bias=torch.zeros(3)), ("unexpected: head.bias",)),
        (weights(**{"0_bias": torch.zeros(3)}), ("of another shape: 0.bias (3,) for (16,)",)),
        (
            weights(**{"0_bias": None, "1_bias": torch.zeros(3)}),
            ("missing: 0.bias", "unexpected: 1.bias"),
        ),
        (
            {f"w{i}": torch.zeros(1) for i in range(9)},
            ("missing: 0.weight", "unexpected: w0", "and 4 more"),
        ),
    ],
    ids=["missing", "unexpected", "shape", "both", "many"],
)
def test_weights_that_do_not_fit(content: dict, words: tuple[str, ...]) -> None:
    for name, write in (("net.pt", torch.save), ("net.safetensors", save_file)):
        write(content, name)
        names(evaluate(name, "--arch", ARCH), name, ARCH, "Is it another model?", *words)


@pytest.mark.parametrize(
    ("content", "seen"),
    [
        (torch.zeros(3), "Tensor"),
        ([1, 2], "list"),
        ({"epoch": 3}, "dict"),
        ({0: torch.ones(1)}, "dict"),
    ],
)
def test_a_checkpoint_without_weights(content: object, seen: str) -> None:
    torch.save(content, "net.pt")
    names(evaluate("net.pt", "--arch", ARCH), "net.pt", f"holds a {seen}", "state_dict")


def test_a_helper_next_to_the_frameworks_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "shared_helper.py").write_text("VALUE = 1\n")
    usual, here = registry.frameworks(), [*frameworks.__path__, str(tmp_path)]
    monkeypatch.setattr(frameworks, "__path__", here)
    registry.frameworks.cache_clear()
    assert [found.name for found in registry.frameworks()] == [found.name for found in usual]
