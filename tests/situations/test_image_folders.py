"""Folders of the images that people have: of any size and mode, of a subset of the classes, in any
order of axes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from typer.testing import CliRunner

import holdfast
from holdfast.cli.main import app
from holdfast.data import open_data
from holdfast.data.images import Resizing
from holdfast.errors import InputError, SpecError
from holdfast.targets import wrap
from holdfast.targets.preprocess import Resize

RNG = np.random.default_rng(0)
NET = """
import torch
from torch import nn

def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(4, 3))

def grey():
    return nn.Sequential(nn.Conv2d(1, 3, 4), nn.Flatten())
"""


def noise(mode: str, width: int, height: int) -> Image.Image:
    return Image.fromarray(RNG.integers(0, 256, (height, width, 4), np.uint8), "RGBA").convert(mode)


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Images of five modes and sizes in three classes; one was taken with the camera on its
    side."""
    home = tmp_path / "set"
    for name in ("n02", "n01", "n03"):
        (home / name).mkdir(parents=True)
    noise("RGB", 40, 30).save(home / "n01" / "0.png")
    noise("L", 20, 50).save(home / "n01" / "1.jpg")
    noise("RGBA", 33, 31).save(home / "n02" / "2.png")
    noise("CMYK", 44, 24).save(home / "n02" / "3.jpg")
    noise("P", 25, 25).save(home / "n03" / "4.gif")
    side = Image.Exif()
    side[0x0112] = 6
    noise("RGB", 60, 20).save(home / "n03" / "5.jpg", exif=side)
    (tmp_path / "net.py").write_text(NET)
    return home


def test_mixed_images_are_resized_and_cropped_while_loading(mixed: Path) -> None:
    """Line 14: the shorter side to 16, the middle 12 x 12, as torchvision's transforms do it on a
    picture upright."""
    source = open_data(mixed, resize="16", crop="12", scale=False)
    assert (len(source), source.shape) == (6, (3, 12, 12))
    x, y = source.rows(0, 6)
    same = holdfast.as_source(mixed, resize=16, crop=(12, 12), scale=False)
    assert (same.fingerprint(), same.loading["resize"]) == (source.fingerprint(), "16")
    assert y.tolist() == [0, 0, 1, 1, 2, 2]
    with Image.open(mixed / "n01" / "0.png") as image:
        small = image.resize((21, 16), Image.Resampling.BILINEAR).crop((4, 2, 16, 14))
    assert np.array_equal(x[0], np.moveaxis(np.asarray(small), -1, 0))
    with Image.open(mixed / "n03" / "5.jpg") as image:
        upright = image.transpose(Image.Transpose.ROTATE_270).resize(
            (16, 48), Image.Resampling.BILINEAR
        )
    assert np.array_equal(x[5], np.moveaxis(np.asarray(upright.crop((2, 18, 14, 30))), -1, 0))
    (said,) = source.remarks
    assert (
        "every image resized (the shorter side to 16, bilinear) and cropped to the middle 12 x 12"
        in said[1]
    )
    assert "1 of mode CMYK" in said[1]
    assert "1 turned upright" in said[1]


@pytest.mark.slow
@pytest.mark.parametrize("size", [(500, 333), (333, 500), (256, 256), (300, 257)])
def test_sizes_are_those_of_the_peers(size: tuple[int, int]) -> None:
    """Line 14: the sizes of Hugging Face's processors, which follow torchvision's rule."""
    transforms = pytest.importorskip("transformers.image_transforms")
    height, width = transforms.get_resize_output_image_size(
        np.zeros((*reversed(size), 3), np.uint8),
        224,
        default_to_square=False,
        input_data_format="channels_last",
    )
    assert Resizing((224,)).size(*size) == (width, height)


def test_a_sixteen_bit_image_keeps_its_levels(tmp_path: Path) -> None:
    """Line 14: 16 bits are brought to 8, not cut off."""
    (tmp_path / "a").mkdir()
    levels = (np.arange(16, dtype=np.uint16) * 4369).reshape(4, 4)
    Image.fromarray(levels).save(tmp_path / "a" / "0.png")
    assert open_data(tmp_path, scale=False).rows(0, 1)[0].ravel().tolist() == [
        17 * i for i in range(16)
    ]


@pytest.mark.parametrize(
    ("name", "text", "numbers"),
    [
        ("c.txt", "n01 7\nn02 3\nn03 0\n", [7, 7, 3, 3, 0, 0]),
        ("c.csv", "n01,7\nn02,3\nn03,0\n", [7, 7, 3, 3, 0, 0]),
        ("c.txt", "n03\nn02\nn00\nn01\n", [3, 3, 1, 1, 0, 0]),
        ("c.txt", "n03 tench, Tinca\nn02 goldfish\nn01 shark\n", [2, 2, 1, 1, 0, 0]),
        ("c.json", '["n03", "n02", "n00", "n01"]', [3, 3, 1, 1, 0, 0]),
        ("c.json", '{"n01": 7, "n02": 3, "n03": 0}', [7, 7, 3, 3, 0, 0]),
        ("c.json", '{"7": ["n01", "a"], "3": ["n02", "b"], "0": ["n03", "c"]}', [7, 7, 3, 3, 0, 0]),
    ],
)
def test_a_file_numbers_the_folders(
    name: str, text: str, numbers: list[int], mixed: Path, tmp_path: Path
) -> None:
    """Line 14: the class numbers of a subset of ImageNet, in the forms in which such lists are
    passed on."""
    (tmp_path / name).write_text(text)
    source = open_data(mixed, resize="8,8", classes=tmp_path / name)
    labels = source.rows(0, 6)[1].tolist()
    by_folder = {
        Path(path).parent.name: label for path, label in zip(source._files, labels, strict=True)
    }
    assert [by_folder[folder] for folder in ("n01", "n01", "n02", "n02", "n03", "n03")] == numbers
    assert source.class_names is not None
    assert len(source.class_names) == max(numbers) + 1
    (tmp_path / "short.txt").write_text("n01 7\nn02 3\n")
    with pytest.raises(InputError, match="the folder n03 is not among"):
        open_data(mixed, classes=tmp_path / "short.txt")


def test_the_models_own_resize_serves_while_loading(mixed: Path) -> None:
    """Line 14: images of many sizes with preprocess resize(8, 8) first are resized as they are
    loaded."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
    run = holdfast.evaluate(
        wrap(net, preprocess=Resize(8, 8)), str(mixed), "linf(0.05)", attacks=["fgsm"]
    )
    assert run.manifest.model.shape == [3, 8, 8]
    assert any("resized (8 x 8" in finding.text for finding in run.manifest.verdict.findings)
    with pytest.raises(InputError, match="give --resize 256 --crop 224"):
        holdfast.evaluate(net, str(mixed), "linf(0.05)", attacks=["fgsm"])


def test_images_become_grey_for_a_model_of_one_channel(mixed: Path) -> None:
    """Line 13: RGB, RGBA and palette images for a model that takes one channel, and grey ones for
    one of three."""
    net = nn.Sequential(nn.Conv2d(1, 3, 6), nn.Flatten())
    run = holdfast.evaluate(net, open_data(mixed, resize="6,6"), "linf(0.05)", attacks=["fgsm"])
    assert run.manifest.model.shape == [1, 6, 6]
    for path in mixed.rglob("*.*"):
        with Image.open(path) as image:
            grey = image.convert("L").resize((6, 6))
        path.unlink()
        grey.save(path.with_suffix(".png"))
    wide = nn.Sequential(nn.Conv2d(3, 3, 6), nn.Flatten())
    run = holdfast.evaluate(wide, str(mixed), "linf(0.05)", attacks=["fgsm"])
    assert run.manifest.model.shape == [3, 6, 6]


def test_every_command_loads_alike_and_verify_finds_the_options_again(
    mixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Line 14: evaluate and attack take --resize, --crop and --classes; verify reads them in the
    run; others refuse."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.json").write_text(json.dumps(["n03", "n02", "n01"]))
    how = ["--resize", "16", "--crop", "12", "--classes", "c.json"]

    def command(*args: str) -> str:
        done = CliRunner().invoke(app, list(args), catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.output

    model = ["net.py:net", "set"]
    command("evaluate", *model, *how, "--threat", "linf(0.1)", "--attack", "fgsm", "--out", "run")
    manifest = json.loads((tmp_path / "run" / "run.json").read_text())
    assert manifest["data"]["loading"] == {"resize": "16", "crop": "12", "classes": "c.json"}
    command("verify", "run", *model)
    command("attack", *model, *how, "--threat", "linf(0.1)", "--attack", "fgsm", "--out", "x.npz")
    with np.load("x.npz") as made:
        assert made["x"].shape == (6, 3, 12, 12)
    for wrong in (
        ["--resize", "tall"],
        ["--resize", "0"],
        ["--crop", "99", "--resize", "16"],
        ["--resize", "16,wavy"],
    ):
        done = CliRunner().invoke(
            app, ["evaluate", *model, *wrong, "--threat", "linf(0.1)"], catch_exceptions=False
        )
        assert done.exit_code == 2
        assert done.stderr.strip().startswith("error: ")
    with pytest.raises(SpecError, match="bilinear or bicubic"):
        open_data(mixed, resize="16,wavy")
    torch.manual_seed(0)
