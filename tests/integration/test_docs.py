"""The generated pages and the examples say what the code does, and the pages' blocks run.

The blocks of a page run in their order, in one namespace and one folder of the page's own:

- `python` runs, and so does `sh`, line by line; `# exit code 1` at the end of a line is expected;
- a block with a title is written to the file of that name;
- `text` right after a block is what it prints: its words are compared, not its numbers; a last
  line of `...` means the rest;
- `<!-- not run: REASON -->` before a block says why it cannot run here.

Tutorials and the README begin with nothing. Other pages find what `given` makes.
`HOLDFAST_DOCS=write pytest tests/integration/test_docs.py` writes what is printed now into the
pages.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from typer.testing import CliRunner

import holdfast
from holdfast.cli.main import app
from holdfast.data import open_data
from holdfast.evaluation.protocols import PROTOCOLS, chosen

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(
    r"^(?:<!-- not run: (?P<reason>.+?) -->\n)?"
    r'^```(?P<language>\w+)(?: title="(?P<title>[^"]+)")?\n(?P<text>.*?)^```\n',
    re.MULTILINE | re.DOTALL,
)
NOT_RUN = 18  # blocks of all pages together that may be left out
NEEDS = {
    "docs/tutorials/keras.md": ("keras", "tensorflow"),
    "docs/tutorials/detection.md": ("pycocotools",),
}
NOTHING = ("README.md", "docs/tutorials/")  # pages that begin with nothing
SLOW = (
    "docs/tutorials/keras.md",
    "docs/tutorials/detection.md",
    "docs/generate.md",
    "docs/scale.md",
)


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


GENERATED = load(ROOT / "docs" / "generate.py").PAGES


@pytest.mark.parametrize("name", list(GENERATED))
def test_generated_pages_are_up_to_date(name: str) -> None:
    assert (ROOT / "docs" / name).read_text(encoding="utf-8") == GENERATED[name](), "run make docs"


def test_every_field_of_an_attack_is_explained() -> None:
    fields_of = load(ROOT / "docs" / "generate.py").fields_of
    kinds = {type(maker()) for maker in holdfast.attacks.CATALOGUE.values()}
    assert not [
        (kind.__name__, name) for kind in kinds for name, *_, text in fields_of(kind) if not text
    ]


@pytest.mark.parametrize(
    "name", ["own_model", "quickstart", pytest.param("keras_model", marks=pytest.mark.slow)]
)
def test_an_example_runs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if name == "keras_model":
        pytest.importorskip("keras")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(ROOT / "examples")
    example = load(ROOT / "examples" / f"{name}.py")
    if name == "own_model":
        x, y = example.data()
        run = holdfast.evaluate(example.model(), (x[:40], y[:40]), "linf(0.1)", protocol="quick")
        assert run.robust_accuracy.value < run.clean_accuracy.value
    else:
        assert example.run.robust_accuracy.value < example.run.clean_accuracy.value
        assert capsys.readouterr().out


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    language: str
    text: str
    line: int
    title: str | None
    reason: str | None
    span: tuple[int, int]  # of its text within the page

    @property
    def runs(self) -> bool:
        return self.language in ("python", "sh") and self.title is None and self.reason is None


def blocks(page: str) -> list[Block]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return [
        Block(
            found["language"],
            found["text"],
            text.count("\n", 0, found.start("text")),
            found["title"],
            found["reason"],
            found.span("text"),
        )
        for found in BLOCK.finditer(text)
    ]


def _pages() -> list[str]:
    found = ("README.md", *sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("docs/**/*.md")))
    return [page for page in found if any(block.runs for block in blocks(page))]


PAGES = _pages()


def test_every_block_runs_but_for_a_few_with_a_reason() -> None:
    every = [(page, block) for page in PAGES for block in blocks(page)]
    assert sum(block.reason is not None for _, block in every) <= NOT_RUN
    fences = sum((ROOT / page).read_text(encoding="utf-8").count("\n```") for page in PAGES)
    assert fences == 2 * len(every), "a fence that was not read"


def test_the_page_of_python_names_is_complete() -> None:
    text = (ROOT / "docs/api.md").read_text(encoding="utf-8")
    shown = {name.rpartition(".")[2] for name in re.findall(r"^::: (\S+)", text, re.MULTILINE)}
    assert not set(holdfast.__all__) - {"attacks", "targets", "__version__"} - shown


def _anchors(page: Path) -> set[str]:
    """What links to a page may end in: its headings, as GitHub and the site write them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", head).strip().lower().replace(" ", "-") for head in headings}


def test_the_links_of_the_pages_lead_somewhere() -> None:
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/**/*.md")]
    for page in pages:
        text = re.sub(r"`[^`\n]*`", "", BLOCK.sub("", page.read_text(encoding="utf-8")))
        for link, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", text):
            there = page.parent / link if link else page
            assert there.exists(), f"{page.name}: {link}"
            assert not anchor or anchor in _anchors(there), f"{page.name}: {link}#{anchor}"


def test_the_calls_for_users_of_other_libraries_are_understood() -> None:
    """The texts of attacks, threats and protocols in the right column of the tables."""
    text = (ROOT / "docs/coming-from.md").read_text(encoding="utf-8")
    right = re.findall(r"^\| .+ \| (.+) \|$", text, re.MULTILINE)
    said = [part for cell in right for part in re.findall(r'"([a-z-]+\b[^"]*)"', cell)]
    assert len(said) > 50
    for part in said:
        name = part.partition("(")[0]
        if name in holdfast.attacks.CATALOGUE:
            chosen([part.replace("nb_iter", "40").replace("eps_iter / eps", "0.1")])
        elif name in ("linf", "l2", "l1"):
            holdfast.Threat.parse(part.replace("...", "0.1"))
        else:
            assert name in PROTOCOLS or name in ("labels", "runs/mine"), part


@pytest.mark.parametrize("page", ["keras", "pytorch", "tables"])
def test_a_job_takes_ten_lines_or_two_commands(page: str) -> None:
    text = (ROOT / f"docs/tutorials/{page}.md").read_text(encoding="utf-8")
    sections = re.findall(r"^## The job in (.+?)\n(.*?)(?=^## )", text, re.MULTILINE | re.DOTALL)
    assert {name for name, _ in sections} == {"ten lines of Python", "two commands"}
    for _, section in sections:
        jobs = {"python": 0, "sh": 0}
        for found in BLOCK.finditer(section):
            if found["language"] == "python":
                last = [line for line in found["text"].splitlines() if line.strip()]
                jobs["python"] = len(last)
            elif found["language"] == "sh":
                jobs["sh"] += len(found["text"].replace("\\\n", "").splitlines())
        assert jobs["python"] <= 10
        assert jobs["sh"] <= 2


SOURCES = {
    "mine.py": """\
import torch
from torch import nn


def build():
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    net.load_state_dict(torch.load("net.pt", weights_only=True))
    return net
""",
    "net.py": """\
import torch
from torch import nn


def make():
    torch.manual_seed(0)
    pooled = nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(2), nn.Flatten()
    return nn.Sequential(*pooled, nn.Linear(16, 4))
""",
    "numbers.py": """\
from torch import nn


def make():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 1))
""",
    "two.py": """\
import torch
from torch import nn


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(12 + 768, 4)

    def forward(self, table, image):
        return self.head(torch.cat([table, image.flatten(1)], 1))


make = Two
""",
    "gan.py": """\
from torch import nn


def build_generator():
    return nn.Sequential(nn.Linear(6, 64), nn.Tanh(), nn.Unflatten(1, (1, 8, 8)))


def build_discriminator():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 1))
""",
}
FEW = "rounds=1, batch_size=32, glance=40, judged=60"
SMALLER = {  # what the pages other than the tutorials say, and what runs in its place
    "--model gan": f'--model "gan({FEW}, steps=60, rate=2e-3, width=8)"',
    "build_discriminator --out": f'build_discriminator --model "own({FEW}, steps=4)" --out',
    "'own(": f"'own({FEW}, steps=4, ",
    "--per-class 1000": "--per-class 3",
    "--min-confidence 0.9": "",
    "mnist:DIR": "digits",
    "--resize 256 --crop 224": "--resize 36 --crop 32",
    "Threat.linf(0.3))": "Threat.linf(0.3), steps=2)",
    "--recipe standard": '--recipe "fast(epochs=1)" --protocol quick',
    "--synthetic-share 0.7": '--synthetic-share 0.7 --recipe "fast(epochs=1)" --protocol quick',
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that the pages other than the tutorials speak of, small."""
    folder = tmp_path_factory.mktemp("given")
    for name, text in SOURCES.items():
        (folder / name).write_text(text, encoding="utf-8")
    for split, count in (("train", 200), ("test", 24)):
        x, y = open_data("digits", split=split).rows(0, count)
        np.savez(folder / f"{split}.npz", x=x, y=y)
    torch.save(network().state_dict(), folder / "net.pt")
    rng, y = np.random.default_rng(0), np.arange(12) % 4
    images = rng.integers(0, 256, (12, 3, 16, 16), dtype=np.uint8)
    np.savez(folder / "set.npz", x=images, y=y)
    np.savez(folder / "numbers.npz", x=rng.random((12, 64), np.float32), y=rng.random(12))
    np.savez(folder / "two.npz", x=images, x2=rng.random((12, 12), np.float32), y=y)
    np.savez(folder / "limits.npz", scale=np.full((3, 16, 16), 0.01, np.float32))
    (folder / "imagenet.txt").write_text("n01440764 0\nn01443537 1\n", encoding="utf-8")
    for i, image in enumerate(images):
        place = folder / "photos" / ("n01440764", "n01443537")[i % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.moveaxis(image, 0, -1)).save(place / f"{i}.png")
    return folder


def network() -> nn.Module:
    """A linear classifier of digits [n, 1, 8, 8], fitted by least squares."""
    x, y = open_data("digits", split="train").rows(0, 400)
    seen = np.c_[x.reshape(400, 64), np.ones(400)]
    fitted = torch.from_numpy(np.linalg.lstsq(seen, np.eye(10)[y], rcond=1e-2)[0].T * 10).float()
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    net.load_state_dict({"1.weight": fitted[:, :64], "1.bias": fitted[:, 64]})
    return net


class Same(nn.Module):
    """An autoencoder or a denoiser that changes little."""

    def forward(self, x: torch.Tensor, sigma: Any = None) -> torch.Tensor:
        return 0.9 * x


def given(files: Path) -> dict[str, Any]:
    """The names that the pages other than the tutorials use without making them, and the files."""
    shutil.copytree(files, ".", dirs_exist_ok=True)
    x, y = (torch.from_numpy(part) for part in open_data("digits", split="test").rows(0, 24))
    net, two = network(), np.load("two.npz")
    return {
        "net": net, "x": x, "y": y, "target": holdfast.wrap(net),
        "x_train": x[:16], "x_test": x[16:], "ids": torch.arange(24),
        "two": load(Path("two.py")).make(), "images": two["x"] / np.float32(255),
        "tables": two["x2"], "labels": two["y"],
        "low": 0.0, "high": torch.ones(1, 8, 8), "scale": torch.ones(1, 8, 8),
        "mask": torch.ones(1, 8, 8), "denoiser": Same(), "ae": Same(), "held_out": x,
    }  # fmt: skip


def smaller(text: str) -> str:
    text = re.sub(" +--", " --", text)
    for said, ran in SMALLER.items():
        text = text.replace(said, ran)
    return text


def command(line: str) -> str:
    """What a line of a shell block prints."""
    line, _, expected = line.partition("# exit code ")
    words = shlex.split(line, comments=True)
    if words[:1] == ["holdfast"]:
        done = CliRunner().invoke(app, words[1:])
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        code, printed, said = done.exit_code, done.stdout, done.output
    else:
        ran = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)
        code, printed, said = ran.returncode, ran.stdout, ran.stdout + ran.stderr
    assert code == int(expected or 0), f"{line}\n{said}"
    return printed


def outcome(page: str, block: Block, names: dict[str, Any]) -> str:
    """What a block prints."""
    text = block.text.replace("\\\n", " ")
    if not page.startswith(NOTHING):
        text = smaller(text)
    if block.language == "sh":
        lines = text.splitlines()
        return "".join(command(line) for line in lines if line.split("#")[0].strip())
    printed = io.StringIO()
    code = compile("\n" * block.line + text, str(ROOT / page), "exec")
    with contextlib.redirect_stdout(printed):
        exec(code, names)
    return printed.getvalue()


def words(text: str) -> list[str]:
    """The words of a text without its numbers, lines and spacing."""
    return re.sub(r"[\d.,]+|[─-╿]+", " ", text).split()


def corrected(page: str, names: dict[str, Any]) -> Iterator[tuple[Block, str]]:
    """Run a page: its blocks of output, and what is printed where they stand."""
    printed = None
    for block in blocks(page):
        if block.title is not None:
            Path(block.title).parent.mkdir(parents=True, exist_ok=True)
            Path(block.title).write_text(block.text, encoding="utf-8")
        elif block.runs:
            printed = outcome(page, block, names)
            continue
        elif block.language == "text" and printed is not None:
            lines = [line.rstrip() for line in printed.strip("\n").splitlines()]
            if block.text.endswith("\n...\n"):
                lines[block.text.count("\n") - 1 :] = ["..."]
            yield block, "\n".join(lines) + "\n"
        printed = None


@pytest.mark.parametrize(
    "page", [pytest.param(p, marks=[pytest.mark.slow] if p in SLOW else []) for p in PAGES]
)
def test_the_blocks_of_a_page_run(
    page: str, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in NEEDS.get(page, ()):
        pytest.importorskip(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for block in blocks(page):  # modules of an earlier page
        monkeypatch.delitem(sys.modules, Path(block.title or "").stem, raising=False)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    names: dict[str, Any] = {"__name__": "page"}
    if not page.startswith(NOTHING):
        names |= given(files)
    text = (ROOT / page).read_text(encoding="utf-8")
    changed = [(b, new) for b, new in corrected(page, names) if words(b.text) != words(new)]
    if os.environ.get("HOLDFAST_DOCS") == "write":
        for block, new in reversed(changed):
            text = text[: block.span[0]] + new + text[block.span[1] :]
        if changed:
            (ROOT / page).write_text(text, encoding="utf-8")
    else:
        for block, new in changed:
            assert block.text == new, f"{page}:{block.line}: HOLDFAST_DOCS=write puts it right"
