"""The version from one place, and the wheel: what is built works without the checkout."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
from pathlib import Path

import pytest
from helpers.commands import holdfast

import holdfast as package
from holdfast.version import VERSION

ROOT = Path(__file__).parents[2]


def printed(*command: object) -> str:
    """What a command prints that runs in this folder and sees no checkout."""
    own = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, env=own, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_version() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", VERSION)
    assert package.__version__ == VERSION
    assert holdfast("--version").stdout == f"holdfast {VERSION}\n"
    started = [sys.executable, "-m", "holdfast", "--version"]
    assert subprocess.check_output(started, text=True) == f"holdfast {VERSION}\n"


def test_the_metadata_and_the_workflow_say_the_same_version() -> None:
    said = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert said["project"]["dynamic"] == ["version"]
    assert said["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "holdfast.version.VERSION"}
    workflow = (ROOT / "examples/github-actions.yml").read_text(encoding="utf-8")
    assert f"wheels/holdfast-{VERSION}-py3-none-any.whl" in workflow


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment that holds the wheel; what it depends on is that of this
    one."""
    pytest.importorskip("pip")
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT / "src", folder / "src", ignore=shutil.ignore_patterns("*.egg-info"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    alone = ("--no-deps", "--no-index")  # no network
    printed(*pip, "wheel", *alone, "--no-build-isolation", "--wheel-dir", folder, folder)
    (wheel,) = folder.glob("*.whl")
    assert wheel.name == f"holdfast-{VERSION}-py3-none-any.whl"
    venv.create(folder / "env", symlinks=True)
    programs = Path(sysconfig.get_path("scripts", "venv", {"base": str(folder / "env")}))
    printed(*pip, "--python", programs / "python", "install", *alone, wheel)
    home = printed(
        programs / "python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"
    )
    # A line of a .pth file is searched last, and its own .pth files (an editable one) are not read.
    Path(home.strip(), "shared.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")
    return programs


@pytest.mark.slow
def test_the_wheel_works_without_the_checkout(
    installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    python, program = installed / "python", installed / "holdfast"
    said = printed(
        python,
        "-c",
        "import holdfast; from importlib.metadata import version; "
        "print(holdfast.__file__, holdfast.__version__, version('holdfast'))",
    )
    where, *versions = said.split()
    assert Path(where).is_relative_to(installed.parent)
    assert versions == [VERSION, VERSION]
    for start in ([program], [python, "-m", "holdfast"]):
        assert printed(*start, "--version") == f"holdfast {VERSION}\n"
    assert "pgd" in printed(program, "list", "attacks")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"^```python\n(.*?)^```", readme, re.MULTILINE | re.DOTALL)
    assert "Run('runs/first'" in printed(python, "-c", example)
    printed(program, "report", "runs/first")
    assert (tmp_path / "runs/first/report.html").is_file()
    printed(program, "demo", "--recipe", "standard(epochs=1)")
    assert (tmp_path / "runs/demo/report.html").is_file()
