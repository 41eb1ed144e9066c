"""Sounds: folders of WAV files of every coding, signals as arrays, and their size in decibels."""

from __future__ import annotations

import importlib.util
import runpy
import struct
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.commands import holdfast, names, refused
from scipy.io import wavfile
from torch import nn

import holdfast as hf
from holdfast.data import open_data
from holdfast.errors import InputError, SpecError

RATE, LENGTH = 8000, 64
NET = """\
import torch
from torch import nn


class Loud(nn.Module):
    def forward(self, x):
        power = x.square().mean(-1, keepdim=True)
        return torch.cat([power, 0.02 - power], 1) * 100


def net():
    return Loud()
"""


def tone(size: float, at: int, length: int = LENGTH) -> np.ndarray:
    return size * np.sin(2 * np.pi * (1 + at) * np.arange(length) / length + 0.3)


def coded(signal: np.ndarray, coding: str) -> np.ndarray:
    if coding == "uint8":
        return np.round(signal * 128 + 128).clip(0, 255).astype(np.uint8)
    if coding.startswith("float"):
        return signal.astype(coding)
    return np.round(signal * 2.0 ** (int(coding[3:]) - 1)).astype(coding)


def write(folder: Path, coding: str = "int16", length: int = LENGTH) -> None:
    for kind, size in (("loud", 0.5), ("quiet", 0.1)):
        (folder / kind).mkdir(parents=True)
        for i in range(4):
            wavfile.write(folder / kind / f"{i}.wav", RATE, coded(tone(size, i, length), coding))


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(NET)
    return tmp_path


@pytest.mark.parametrize(
    ("coding", "close"),
    [("uint8", 0.005), ("int16", 2e-5), ("int32", 1e-7), ("float32", 1e-7), ("float64", 1e-7)],
)
def test_every_coding_gives_the_same_signal(here: Path, coding: str, close: float) -> None:
    write(here / "sounds", coding)
    source = open_data("sounds")
    x, y = source.rows(0, 8)
    assert (x.shape, x.dtype, source.shape) == ((8, LENGTH), np.float32, (LENGTH,))
    assert source.class_names == ("loud", "quiet")
    assert y.tolist() == [0] * 4 + [1] * 4
    expected = [tone(size, i) for size in (0.5, 0.1) for i in range(4)]
    assert np.abs(x - expected).max() < close


def test_24_bits(here: Path) -> None:
    (here / "sounds" / "a").mkdir(parents=True)
    values = [0, 1, -1, (1 << 23) - 1, -(1 << 23)]
    with wave.open(str(here / "sounds/a/0.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(3)
        file.setframerate(RATE)
        file.writeframes(b"".join(struct.pack("<i", v)[:3] for v in values))
    x, _ = open_data("sounds").rows(0, 1)
    assert np.array_equal(x[0], np.array(values, np.float32) / (1 << 23))


def test_channels_come_first(here: Path) -> None:
    (here / "sounds" / "a").mkdir(parents=True)
    both = np.stack([tone(0.5, 0), tone(0.1, 1)], 1).astype(np.float32)
    wavfile.write(here / "sounds/a/0.wav", RATE, both)
    source = open_data("sounds")
    assert source.shape == (2, LENGTH)
    assert np.array_equal(source.rows(0, 1)[0][0], both.T)


def test_a_crop_cuts_out_the_middle(here: Path) -> None:
    write(here / "sounds", "float32")
    wavfile.write(here / "sounds/loud/9.wav", RATE, tone(0.5, 0, 80).astype(np.float32))
    with pytest.raises(InputError, match=r"9\.wav is of 80 samples .* 64 samples; give --crop"):
        open_data("sounds")
    x, _ = open_data("sounds", crop="60").rows(0, 5)
    assert np.array_equal(x[0], tone(0.5, 0).astype(np.float32)[2:62])
    assert np.array_equal(x[4], tone(0.5, 0, 80).astype(np.float32)[10:70])
    with pytest.raises(InputError, match=r"0\.wav has 64 samples, fewer than the 70 of --crop"):
        open_data("sounds", crop="70")
    for crop in ("0", "8,8", "-3", "1.5", "x", "9" * 5000):
        with pytest.raises(SpecError, match="such as 16000"):
            open_data("sounds", crop=crop)
    with pytest.raises(InputError, match="--resize is for"):
        open_data("sounds", resize="8")


def test_files_that_differ_are_refused(here: Path) -> None:
    write(here / "sounds")
    odd = here / "sounds/loud/9.wav"
    wavfile.write(odd, 2 * RATE, coded(tone(0.5, 0), "int16"))
    with pytest.raises(InputError, match=r"9\.wav is of 16000 Hz .* 8000 Hz; resample them"):
        open_data("sounds")
    wavfile.write(odd, RATE, np.zeros((LENGTH, 2), np.int16))
    with pytest.raises(InputError, match=r"9\.wav is of channels .*; mix them down"):
        open_data("sounds")


@pytest.mark.parametrize("content", ["", "RIFF", "hello" * 50, "cut", "none", "coding", "folder"])
def test_a_damaged_file_is_one_sentence(here: Path, content: str) -> None:
    write(here / "sounds")
    odd = here / "sounds/loud/9.wav"
    whole = (here / "sounds/loud/0.wav").read_bytes()
    if content == "folder":
        odd.mkdir()
    elif content == "none":
        wavfile.write(odd, RATE, np.zeros(0, np.int16))
    else:
        made = {"cut": whole[:100], "coding": whole[:20] + b"\x55\x00" + whole[22:]}
        odd.write_bytes(made.get(content, content.encode()))
    text = refused("evaluate", "net.py:net", "sounds", "--threat", "linf(0.1)", "--bounds=-1,1")
    names(text, "9.wav")


@pytest.mark.parametrize("at", range(0, 44, 3))
def test_any_byte_of_a_header_changed(here: Path, at: int) -> None:
    write(here / "sounds")
    first = here / "sounds/loud/0.wav"
    content = bytearray(first.read_bytes())
    content[at] ^= 0x41
    first.write_bytes(content)
    try:
        open_data("sounds").rows(0, 8)
    except InputError as error:
        assert "0.wav" in str(error)  # noqa: PT017


def test_the_command_line(here: Path) -> None:
    write(here / "sounds")
    asked = ("net.py:net", "sounds", "--threat", "linf(0.2)", "--bounds=-1,1", "--crop", "60")
    done = holdfast("evaluate", *asked, "--protocol", "quick", "--out", "runs/a")
    assert done.exit_code == 0, done.output
    assert hf.Run("runs/a").metrics.clean_accuracy.value == 1
    assert holdfast("verify", "runs/a", "net.py:net", "sounds", "--crop", "60").exit_code == 0
    text = refused("evaluate", *asked[:4], "--out", "runs/b")
    names(text, "[-0.5, 0.5]", "--bounds -1,1")


def test_loud_sounds_without_bounds() -> None:
    x = np.sign(np.stack([tone(1, i) for i in range(4)]))
    with pytest.raises(InputError, match="Sounds take --bounds -1,1"):
        hf.attack(wrapped((0, 1)), x, [0] * 4, "linf(0.1)", "fgsm")


def wrapped(bounds: tuple[float, float] = (-1, 1)) -> Any:
    names: dict[str, Any] = {}
    exec(NET, names)
    net: nn.Module = names["net"]()
    return hf.wrap(net.eval(), bounds=bounds)


def test_the_ratio_of_signal_and_change() -> None:
    x = torch.tensor(np.array([tone(0.5, 0), tone(0.1, 1), tone(0.5, 2)]), dtype=torch.float32)
    result = hf.attack(wrapped(), x, [0, 1, 1], "linf(0.3)", "pgd(steps=10)")
    assert result.success.tolist() == [False, True, False]
    delta = (result.x_adv - x).double()
    expected = 10 * torch.log10(x.double().square().sum(1) / delta.square().sum(1))
    rows = result.success
    assert torch.allclose(result.snr_db[rows], expected[rows])
    assert result.snr_db[~rows].isnan().all()
    middle = f"{float(np.median(expected[rows])):.1f} dB"
    assert f"signal-to-noise ratio: median {middle}" in result.summary()


def test_tables_and_images_say_no_ratio() -> None:
    x = np.full((2, LENGTH), 0.2)
    table = hf.attack(wrapped((0, 1)), x, [0, 0], "linf(0.2)", "pgd(steps=30)")
    assert table.success.all()
    assert "signal" not in table.summary()


@pytest.mark.slow
def test_a_published_network_of_sound(here: Path) -> None:
    """silero-vad's weights, from its wheel where that is installed; never shipped."""
    found = importlib.util.find_spec("silero_vad")
    if found is None or found.origin is None:
        pytest.skip("needs the wheel silero-vad (pip install --no-deps silero-vad)")
    bench = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks/silero_vad.py"))
    weights = Path(found.origin).parent / "data/silero_vad_16k.safetensors"
    x, y = bench["signals"](10)
    for i, signal in enumerate(x):
        (here / "sounds" / str(y[i])).mkdir(parents=True, exist_ok=True)
        wavfile.write(here / f"sounds/{y[i]}/{i:02}.wav", bench["RATE"], signal)
    model = hf.wrap(bench["network"](weights), bounds=(-1, 1))
    run = hf.evaluate(model, "sounds", "linf(0.008)", protocol="quick")
    assert run.clean_accuracy.value is not None
    assert run.robust_accuracy.value is not None
    assert run.clean_accuracy.value >= 0.9
    assert run.robust_accuracy.value <= run.clean_accuracy.value - 0.2
    assert " dB; " in hf.attack(model, x, y, "linf(0.008)").summary()
