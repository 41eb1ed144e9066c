"""Standard error of a command holds its own lines alone, whatever framework the model is of."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the export to ONNX by TorchScript
@pytest.mark.parametrize("kind", [".keras", "saved_model", ".tflite", ".onnx"])
def test_a_command_prints_its_own_lines_alone(tmp_path: Path, kind: str) -> None:
    """Line 31: TensorFlow, TFLite, Keras and onnxruntime print nothing on standard error or
    output."""
    x = np.random.default_rng(0).random((8, 4), np.float32)
    np.savez(tmp_path / "rows.npz", x=x, y=(x[:, 0] > 0.5).astype(np.int64))
    model = _model(tmp_path, kind)
    asked = [
        model,
        "rows.npz",
        "--threat",
        "linf(0.1)",
        "--attack",
        "square(steps=2)",
        "--out",
        "run",
        "--json",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "holdfast", "evaluate", *asked],
        cwd=tmp_path, capture_output=True, text=True, check=True,
        env=os.environ | {"KERAS_BACKEND": "tensorflow"},
    )  # fmt: skip
    said = [line for line in done.stderr.splitlines() if line.strip()]
    assert [line.partition(":")[0] for line in said] == ["estimate", "report"]
    assert done.stdout.startswith("{")
    assert done.stdout == (tmp_path / "run" / "run.json").read_text() + "\n"


def _model(folder: Path, kind: str) -> str:
    """A file or folder of that kind, made in a process of its own where a framework is needed."""
    file = folder / ("model" if kind == "saved_model" else f"model{kind}")
    if kind == ".onnx":
        net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        torch.onnx.export(net, (torch.rand(1, 4),), str(file), dynamo=False,
                          dynamic_axes={"input": {0: "n"}},
                          input_names=["input"])  # fmt: skip
        return file.name
    code = (
        "import keras, sys\ndense = keras.layers.Dense\n"
        "model = keras.Sequential([keras.Input((4,)), dense(3, activation='relu'), dense(2)])\n"
        "if sys.argv[1].endswith('.keras'): model.save(sys.argv[1])\n"
        "else: model.export(sys.argv[1].removesuffix('.tflite'))\n"
        "if sys.argv[1].endswith('.tflite'):\n    import tensorflow as tf\n    made = "
        "tf.lite.TFLiteConverter.from_saved_model(sys.argv[1].removesuffix('.tflite')).convert()\n"
        "    open(sys.argv[1], 'wb').write(made)\n"
    )
    env = os.environ | {"KERAS_BACKEND": "tensorflow"}
    subprocess.run(
        [sys.executable, "-c", code, str(file)], env=env, capture_output=True, check=True
    )
    return file.name


def test_closed_standard_error_ends_no_command() -> None:
    """Line 31: a command started with `2>&-` has no standard error to keep quiet."""
    code = (
        "from holdfast import quiet\nquiet.silence_frameworks()\nwith quiet.native_output():\n    "
        "print('within')"
    )
    asked = ["sh", "-c", f'exec "$0" -c "{code}" 2>&-', sys.executable]
    done = subprocess.run(asked, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "within\n")
