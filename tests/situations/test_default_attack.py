"""`attack` without a name of an attack runs one that the threat and the model allow."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import holdfast
from holdfast.cli.main import app
from holdfast.errors import SpecError

WEIGHTS = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
X = torch.tensor([[0.7, 0.2], [0.3, 0.9]])
Y = torch.tensor([0, 1])


def linear() -> torch.nn.Module:
    net = torch.nn.Linear(2, 2, bias=False)
    net.weight.data = WEIGHTS
    return net


@pytest.mark.parametrize("norm", ["linf", "l2", "l1", "l0"])
def test_an_eps_of_inf_gets_a_search_for_the_smallest_change(norm: str) -> None:
    result = holdfast.attack(linear(), X, Y, f"{norm}(inf)")
    assert result.success.all()
    if norm == "linf":  # half of the distance between the features
        np.testing.assert_allclose(result.size, [0.25, 0.3], rtol=0.05)


def test_scores_and_labels_alone_get_an_attack_that_needs_no_more() -> None:
    def scores(x: np.ndarray) -> np.ndarray:
        return x @ WEIGHTS.numpy().T

    def labels(x: np.ndarray) -> np.ndarray:
        return scores(x).argmax(1)

    blind = holdfast.wrap(scores)
    blinder = holdfast.wrap(labels, gives="labels", classes=2)
    for target in (blind, blinder):
        assert holdfast.attack(target, X.numpy(), Y.numpy(), "linf(0.4)").success.all()


def test_a_search_in_a_ball_names_those_that_seek_the_smallest_in_this_norm() -> None:
    with pytest.raises(SpecError, match=r"in l0: .*sigmazero") as caught:
        holdfast.attack(linear(), X, Y, "l0(inf)", "pgd")
    assert "ddn" not in str(caught.value)


def test_grey_images_without_an_axis_of_channels_become_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(
        "import torch\n\n\ndef build():\n    torch.manual_seed(0)\n"
        "    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))\n"
    )
    x = np.random.default_rng(0).integers(0, 256, (6, 8, 8), dtype=np.uint8)
    np.savez("set.npz", x=x, y=np.arange(6) % 3)
    line = ["net.py:build", "set.npz", "--threat", "linf(0.3)"]
    done = CliRunner().invoke(app, ["attack", *line, "--grid", "8bit", "--png", "png"])
    assert done.exit_code == 0, done.output
    files = sorted(Path("png").rglob("*.png"))
    assert files
    assert all(np.asarray(Image.open(file)).shape == (8, 8) for file in files)
    assert (
        CliRunner().invoke(app, ["evaluate", *line, "--attack", "fgsm", "--out", "run"]).exit_code
        == 0
    )
    assert "data:image/png" in Path("run/report.html").read_text()
