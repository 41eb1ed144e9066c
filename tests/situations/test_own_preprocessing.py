"""Preprocessing of the user's own: BGR minus the mean, a spectrogram, an equalised histogram."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner, Result

import holdfast as hf
from holdfast.cli.main import app
from holdfast.errors import InputError, SpecError
from holdfast.targets import wrap
from holdfast.targets.own_preprocessing import Own
from holdfast.targets.preprocess import given_again

ATTACK = "pgd(steps=5)"
MEAN = np.array([104.0, 117.0, 123.0], np.float32)
CODE = """
import numpy as np
import torch
from torch import nn

MEAN = np.array([104.0, 117.0, 123.0], np.float32)

def bgr(image):
    assert image.dtype == np.uint8 and image.shape[-1] == 3
    return image[:, :, ::-1].astype(np.float32) - MEAN

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([3.0, 2.0, -1.0]) / 100)
    def forward(self, x):
        z = torch.einsum("c,nchw->n", self.weight, x) / x[0, 0].numel() - 0.85
        return torch.stack([torch.zeros_like(z), z], 1)

def rows():
    x = np.random.default_rng(0).random((24, 3, 6, 6)).astype(np.float32)
    levels = np.round(x.transpose(0, 2, 3, 1) * 255).astype(np.uint8)
    seen = np.stack([bgr(i).transpose(2, 0, 1) for i in levels])
    return x, Net()(torch.from_numpy(seen)).argmax(1).numpy()
"""
HERE: dict[str, Any] = {}
exec(compile(CODE, __file__, "exec"), HERE)


def bgr(image: np.ndarray) -> np.ndarray:
    """As code for OpenCV does it: bytes [h, w, c] in, floats with the channels the other way round
    out."""
    assert image.dtype == np.uint8
    assert image.shape[-1] == 3
    return image[:, :, ::-1].astype(np.float32) - MEAN


def bgr_of_tensors(x: Tensor) -> Tensor:
    return x.flip(1) * 255 - torch.from_numpy(MEAN).view(3, 1, 1)


def louder(x: Tensor) -> Tensor:  # without a gradient, though of tensors
    return (x.detach() * 4).round() / 2


def equalised(image: np.ndarray) -> np.ndarray:  # bytes in, bytes out
    order = np.argsort(np.argsort(image.ravel(), kind="stable"))
    return (order * 255 // max(order.size - 1, 1)).astype(np.uint8).reshape(image.shape)


def spectrum(x: np.ndarray) -> np.ndarray:
    return np.abs(np.fft.rfft(x, axis=-1)).astype(np.float32)


def power(x: Tensor) -> Tensor:
    return torch.fft.rfft(x).abs()


def ends(x: Any) -> Any:
    raise SystemExit(0)


def holdfast(*args: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in args], catch_exceptions=False)


def test_channels_turned_and_shifted_are_attacked_as_their_twin_of_tensors() -> None:
    """Line 19: BGR minus the mean in numpy, image by image, breaks what the same in torch
    breaks."""
    x, y = HERE["rows"]()
    runs = {
        step.__name__: hf.evaluate(
            wrap(HERE["Net"](), preprocess=step), (x, y), "linf(4/255)", attacks=[ATTACK]
        )
        for step in (bgr, bgr_of_tensors)
    }
    own, twin = (run.manifest.metrics.counts for run in runs.values())
    assert own["broken"] == twin["broken"] > 3
    said = {
        name: [f.text for f in run.verdict.findings if f.check == "preprocess"]
        for name, run in runs.items()
    }
    assert "one image at a time" in said["bgr"][0]
    assert "BPDA" in said["bgr"][0]
    assert "tensors" in said["bgr_of_tensors"][0]
    assert "own gradient" in said["bgr_of_tensors"][0]


def test_the_substitute_gradient_knows_the_channels() -> None:
    """Line 19: the gradient of a function without one mixes and scales the channels as the function
    does."""
    x = torch.rand(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    slopes = []
    for step in (bgr, bgr_of_tensors):
        target = wrap(HERE["Net"](), preprocess=step, shape=(3, 6, 6))
        z, pull = target.linearize(x)
        slopes.append(pull(torch.ones_like(z)))
    assert torch.allclose(*slopes, rtol=0.05, atol=1e-4)


def test_a_step_of_tensors_that_breaks_the_graph() -> None:
    """Line 19: a function of tensors that cuts the gradient is passed straight through, each
    feature by its slope."""
    target = wrap(nn.Linear(4, 2), preprocess=[hf.Normalize(0.5, 0.5), louder], shape=(4,))
    _, pull = target.linearize(torch.rand(3, 4))
    weight: Tensor = target.model.weight  # pyright: ignore[reportAttributeAccessIssue, reportAssignmentType]
    g = pull(torch.tensor([[1.0, 0]]).expand(3, 2))
    assert torch.allclose(g, (weight[0] * 4).expand(3, 4), rtol=0.3)
    assert "BPDA" in dict(target.identity.remarks)["preprocess"]


def test_images_in_bytes_come_back_as_bytes() -> None:
    """Line 19: bytes of an image become raw units again; grey images are [h, w]; with Resize in the
    list."""
    target: Any = wrap(
        nn.Sequential(nn.Flatten(), nn.Linear(16, 2)),
        preprocess=[equalised, hf.Resize(4, 4)],
        shape=(1, 6, 6),
    )
    seen = target.preprocess[0](torch.rand(2, 1, 6, 6))
    assert seen.shape == (2, 1, 6, 6)
    assert float(seen.min()) == 0.0
    assert float(seen.max()) == 1.0
    _, pull = target.linearize(torch.rand(2, 1, 6, 6))
    assert bool((pull(torch.tensor([[1.0, -1]]).expand(2, 2)) != 0).any())


@pytest.mark.parametrize(("step", "access"), [(spectrum, "scores"), (power, "gradients")])
def test_a_spectrogram(step: Any, access: str) -> None:
    """Line 19: a change of shape without a gradient leaves scores, one of tensors is
    differentiated."""
    x = np.random.default_rng(0).random((12, 16), np.float32)
    target = wrap(nn.Linear(9, 2), preprocess=step, bounds=(0, 1))
    run = hf.evaluate(target, (x, np.zeros(12, np.int64)), "linf(0.1)", attacks=["square(steps=3)"])
    assert run.manifest.model.access == access
    assert {f.check for f in run.verdict.findings} >= {"preprocess"}


def test_modules_and_objects_count_with_all_that_they_hold() -> None:
    """Line 19: a module is named and hashed by its weights, a function by its source and what it
    reads."""

    def made(scale: float) -> Any:
        def scaled(x: Tensor) -> Tensor:
            return x * scale

        return scaled

    for a, b in ((nn.Linear(4, 4), nn.Linear(4, 4)), (made(2.0), made(3.0))):
        texts = [
            wrap(nn.Linear(4, 2), preprocess=step, shape=(4,)).describe()["preprocess"]
            for step in (a, a, b)
        ]
        assert texts[0] == texts[1] != texts[2]


def test_what_has_no_name_or_fails_is_refused() -> None:
    """Line 19: a lambda is refused with the remedy; a function that fails on all forms says how
    each failed."""
    with pytest.raises(InputError, match="define it with def"):
        wrap(nn.Linear(4, 2), preprocess=lambda x: x)
    with pytest.raises(InputError, match="no function"):
        wrap(nn.Linear(4, 2), preprocess=[3])  # pyright: ignore[reportArgumentType]
    with pytest.raises(SpecError, match="takes is"):
        Own.of(bgr, takes="pictures")
    with pytest.raises(InputError, match="takes='image'"):
        wrap(nn.Linear(4, 2), preprocess=bgr, shape=(4,))
    with pytest.raises(InputError, match="SystemExit"):  # line 8
        wrap(nn.Linear(4, 2), preprocess=ends, shape=(4,))


def test_the_command_line_names_a_function_and_verify_is_given_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Line 19: --preprocess file.py:function; the manifest names and hashes it; verify needs the
    same one."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prep.py").write_text(CODE)
    (tmp_path / "later.py").write_text(CODE.replace("- MEAN", "- MEAN - 9"))
    asked = ("prep.py:Net", "prep.py:rows")
    step = ("--preprocess", "prep.py:bgr")
    done = holdfast(
        "evaluate",
        *asked,
        "--threat",
        "linf(8/255)",
        "--attack",
        "pgd(steps=5)",
        *step,
        "--out",
        "run",
    )
    assert done.exit_code == 0, done.output
    said = json.loads((tmp_path / "run" / "run.json").read_text())["model"]["preprocess"]
    assert said[0].startswith("own(name='prep:bgr', sha256='")
    assert said[0].endswith("takes='image')")
    assert holdfast("verify", "run", *asked, *step).exit_code == 0
    without = holdfast("verify", "run", *asked)
    assert without.exit_code == 2
    assert "prep:bgr" in without.stderr
    other = holdfast("verify", "run", *asked, "--preprocess", "later.py:bgr")
    assert other.exit_code == 1
    assert "fingerprint" in other.output


def test_a_network_is_hardened_behind_it() -> None:
    """Line 19: training goes through the function too."""
    x, y = HERE["rows"]()
    x, y = np.tile(x, (9, 1, 1, 1)), np.tile(y, 9)
    target = wrap(HERE["Net"](), preprocess=bgr)
    hard = hf.harden(
        target,
        (x, y),
        "linf(1/255)",
        recipe="fast(epochs=1, judge='')",
        protocol="quick",
        test_samples=8,
    )
    assert hard.after.manifest.model.preprocess == hard.before.manifest.model.preprocess


@pytest.mark.parametrize(
    "text",
    [
        "strip(clean='evil.py:rows')",
        "strip('s3://bucket/rows.npz')",
        " Own (name='evil.py:f')",
        "reconstruct(net='evil.py:f')",
    ],
)
def test_nothing_that_a_manifest_names_is_opened(text: str) -> None:
    with pytest.raises(SpecError, match="1 functions as preprocessing"):
        given_again([text, "bgr"], [])
    assert given_again([text, "bgr"], ["strip('digits')"]) == ["strip('digits')", "bgr"]
