"""A network of sound: silero-vad's published weights, attacked on synthetic vowels and noises.

Silero VAD says for each 32 ms of sound at 16 kHz whether somebody speaks. Its wheel is neither a
dependency nor shipped: `pip download --no-deps silero-vad`, unzip it, and say where the file is.

    python benchmarks/silero_vad.py silero_vad/data/silero_vad_16k.safetensors
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from scipy.signal import lfilter
from torch import Tensor, nn

import holdfast as hf

RATE, FRAME, BEFORE, PAD = 16_000, 512, 64, 64  # samples: BEFORE of the last frame, PAD reflected
FRAMES = 8  # a signal is 0.256 s
LENGTH = FRAMES * FRAME


class SileroVad(nn.Module):
    """The network of 16 kHz, as the wheel's `tinygrad_model.py` has it: signals [n, t] in [-1, 1],
    t a multiple of 512, to the logit [n, 1] that somebody speaks: the highest of a frame."""

    def __init__(self) -> None:
        super().__init__()
        self.stft_conv = nn.Conv1d(1, 258, 256, stride=128, bias=False)
        self.conv1 = nn.Conv1d(129, 128, 3, padding=1)
        self.conv2 = nn.Conv1d(128, 64, 3, stride=2, padding=1)
        self.conv3 = nn.Conv1d(64, 64, 3, stride=2, padding=1)
        self.conv4 = nn.Conv1d(64, 128, 3, padding=1)
        self.lstm_cell = nn.LSTMCell(128, 128)
        self.final_conv = nn.Conv1d(128, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (BEFORE, 0))
        state, said = None, []
        for first in range(0, x.shape[1] - BEFORE, FRAME):
            state = self.lstm_cell(self._features(x[:, first : first + BEFORE + FRAME]), state)
            said.append(self.final_conv(state[0].relu()[..., None])[..., 0])
        return torch.cat(said, 1).amax(1, keepdim=True)

    def _features(self, frame: Tensor) -> Tensor:
        spectrum = self.stft_conv(F.pad(frame[:, None], (0, PAD), "reflect"))
        x = spectrum.unflatten(1, (2, 129)).square().sum(1).clamp_min(1e-12).sqrt()
        for layer in (self.conv1, self.conv2, self.conv3, self.conv4):
            x = layer(x).relu()
        return x[..., 0]


def network(weights: Path | str) -> SileroVad:
    """With the published weights."""
    net = SileroVad()
    net.load_state_dict(load_file(weights))
    return net.eval()


def vowels(count: int, draw: np.random.Generator) -> np.ndarray:
    """Pulses of a voice through four resonances of a throat, [count, LENGTH], peak 0.5."""
    formants = [(730, 1090, 2440), (270, 2290, 3010), (300, 870, 2240), (530, 1840, 2480)]
    made = []
    for _ in range(count):
        pitch = draw.uniform(90, 220) * (1 + 0.05 * np.sin(np.arange(LENGTH) / RATE * 30))
        pulses = np.diff(np.floor(np.cumsum(pitch) / RATE), prepend=0)
        sound = lfilter([1], [1, -0.95], pulses) + 0.01 * draw.normal(size=LENGTH)
        for centre in (*formants[draw.integers(len(formants))], 3500):
            radius = np.exp(-np.pi * draw.uniform(60, 120) / RATE)
            angle = 2 * np.pi * centre * draw.uniform(0.95, 1.05) / RATE
            sound = lfilter([1 - radius], [1, -2 * radius * np.cos(angle), radius**2], sound)
        made.append(0.5 * sound / np.abs(sound).max())
    return np.array(made, np.float32)


def noises(count: int, draw: np.random.Generator) -> np.ndarray:
    """Noise of several colours and loudness, [count, LENGTH]."""
    colour = draw.uniform(0, 0.95, count)
    white = draw.normal(size=(count, LENGTH))
    sound = np.array([lfilter([1], [1, -c], row) for c, row in zip(colour, white, strict=True)])
    return (draw.uniform(0.01, 0.3, (count, 1)) * sound / np.abs(sound).max(1)[:, None]).astype(
        "f4"
    )


def signals(count: int) -> tuple[np.ndarray, np.ndarray]:
    """So many noises (0), and as many vowels (1)."""
    draw = np.random.default_rng(0)
    x = np.concatenate([noises(count, draw), vowels(count, draw)])
    return x, np.repeat([0, 1], count)


def main(weights: str) -> None:
    model = hf.wrap(network(weights), bounds=(-1, 1))
    x, y = signals(50)
    print("| threat | robust accuracy | median dB of the examples |\n|---|---|---|")
    for threat in ("linf(0.0005)", "linf(0.002)", "linf(0.008)", "l2(0.05)", "l2(0.2)"):
        run = hf.evaluate(model, (x, y), threat, protocol="quick")
        result = hf.attack(model, x, y, threat, "pgd(steps=40)")
        ratio = f"{np.nanmedian(result.snr_db):.1f}" if result.success.any() else "none"
        print(f"| {threat} | {run.robust_accuracy.value:.2f} | {ratio} |", flush=True)
    print(f"\nclean accuracy {run.clean_accuracy.value:.2f}, the last verdict {run.verdict.status}")
    print(result.summary())


if __name__ == "__main__":
    main(sys.argv[1])
