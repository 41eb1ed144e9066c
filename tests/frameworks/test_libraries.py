"""Models of libraries on top of a framework, as users have them: Hugging Face's classifiers,
Equinox's modules."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.commands import holdfast as cli
from helpers.models import close, draw

import holdfast
from holdfast.targets import Target

pytestmark = pytest.mark.slow  # the imports alone take seconds

FACTORY = """
import torch
from transformers import {kind}Config, {kind}ForImageClassification

def make():
    torch.manual_seed(0)
    return {kind}ForImageClassification({kind}Config(num_channels=1, num_labels=3, {shape}))
"""
KINDS = {
    "ViT": "image_size=8, patch_size=4, hidden_size=16, num_hidden_layers=1, "
    "num_attention_heads=2, intermediate_size=8, initializer_range=0.5",
    "ResNet": "embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], layer_type='basic'",
}


def made(text: str) -> Any:
    place: dict[str, Any] = {}
    exec(text, place)
    return place["make"]()


def pulled(target: Target, x: torch.Tensor, c: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    z, pull = target.linearize(x)
    return z, pull(c)


@pytest.mark.parametrize("kind", KINDS)
def test_classifiers_of_hugging_face_go_as_they_are(kind: str, tmp_path: Path) -> None:
    """Randomly initialised and tiny: scores and gradients are the library's own, from Python and by
    a factory."""
    pytest.importorskip(
        "transformers", reason="transformers is not installed: pip install 'holdfast[frameworks]'"
    )
    text = FACTORY.format(kind=kind, shape=KINDS[kind])
    model = made(text).eval()
    mean = holdfast.Normalize([0.4], [0.2])
    x, c = draw(24, 1, 8, 8, dtype=torch.float32), draw(24, 3, seed=1, dtype=torch.float32)
    leaf = x.clone().requires_grad_()
    z = model(pixel_values=(leaf - 0.4) / 0.2).logits
    g = torch.autograd.grad((z * c).sum(), leaf)[0]
    found = pulled(holdfast.wrap(model, preprocess=mean, shape=(1, 8, 8)), x, c)
    close(found[0], z, rtol=1e-5, atol=1e-6)
    close(found[1], g, rtol=1e-4, atol=1e-6)

    (tmp_path / "hub.py").write_text(text)
    np.savez(tmp_path / "set.npz", x=x.numpy(), y=z.argmax(1).numpy())
    line = [f"{tmp_path}/hub.py:make", f"{tmp_path}/set.npz", "--preprocess", "normalize(0.4, 0.2)"]
    messages = json.loads(
        cli(
            "evaluate", *line, "--threat", "linf(0.3)", "--attack", "pgd(steps=20)", "--json"
        ).stdout
    )
    assert messages["metrics"]["clean_accuracy"]["value"] == 1
    assert messages["model"]["access"] == "gradients"
    assert messages["metrics"]["robust_accuracy"]["value"] < 1


def test_modules_of_equinox_are_functions_of_jax() -> None:
    pytest.importorskip("jax")
    eqx = pytest.importorskip(
        "equinox", reason="equinox is not installed: pip install 'holdfast[frameworks]'"
    )
    import jax

    class Net(eqx.Module):  # of one image, as Equinox's layers are
        conv: Any
        head: Any

        def __init__(self, key: Any) -> None:
            first, second = jax.random.split(key)
            self.conv = eqx.nn.Conv2d(1, 4, 3, stride=2, key=first)
            self.head = eqx.nn.Linear(36, 3, key=second)

        def __call__(self, x: Any) -> Any:
            return self.head(jax.nn.relu(self.conv(x)).ravel())

    net = Net(jax.random.key(0))
    x, c = draw(6, 1, 8, 8, dtype=torch.float32), draw(6, 3, seed=1, dtype=torch.float32)
    z, back = jax.vjp(jax.vmap(net), x.numpy())
    target = holdfast.wrap(jax.vmap(net), framework="jax", layout="nchw", shape=(1, 8, 8))
    found = pulled(target, x, c)
    close(found[0], torch.tensor(np.asarray(z)), rtol=1e-5, atol=1e-6)
    close(found[1], torch.tensor(np.asarray(back(c.numpy())[0])), rtol=1e-4, atol=1e-6)

    def ask(parameters: Any, x: Any) -> Any:  # the fingerprint covers what is bound
        return jax.vmap(eqx.combine(parameters, static))(x)

    parameters, static = eqx.partition(net, eqx.is_array)
    other = jax.tree.map(lambda w: w + 1, parameters)
    bound = [
        holdfast.wrap(functools.partial(ask, p), framework="jax", shape=(1, 8, 8))
        for p in (parameters, other)
    ]
    close(bound[0].scores(x), found[0], rtol=1e-5, atol=1e-6)
    assert bound[0].fingerprint() != bound[1].fingerprint()
