"""The demo model: a small convolutional network for 8x8 digits, with its weights."""

from __future__ import annotations

from importlib import resources

from safetensors.torch import load as load_bytes
from torch import nn


def demo_net() -> nn.Sequential:
    """The architecture alone: [n, 1, 8, 8] in [0, 1] to 10 logits."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(512, 32),
        nn.ReLU(),
        nn.Linear(32, 10),
    )


def demo_model() -> nn.Module:
    """The network trained on digits by cross-entropy alone: accurate, and undefended."""
    model = demo_net()
    model.load_state_dict(
        load_bytes(resources.files("holdfast.targets").joinpath("demo.safetensors").read_bytes())
    )
    return model.eval()
