"""Common corruptions: of the row alone, on the grid of bytes, of any size, and in a run that can be
checked."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import torch
from helpers.commands import assert_same_figures, holdfast, names, refused
from PIL import Image
from scipy import ndimage
from torch import Tensor

from holdfast.corruptions import filters, kinds, measure
from holdfast.corruptions.kinds import KINDS, SEVERITIES, corrupt
from holdfast.errors import InputError
from holdfast.rng import Keys
from holdfast.runs import metrics, store
from holdfast.runs.manifest import CorruptionInfo
from holdfast.targets import wrap
from holdfast.targets.demo import demo_model


def pictures(n: int, c: int, h: int, w: int) -> Tensor:
    """Smooth pictures with some texture, of bytes."""
    x = torch.from_numpy(np.random.default_rng(0).random((n, c, h, w), dtype=np.float32))
    x = 3 * (filters.smooth(x, 2.0) - 0.5) + 0.5 + 0.05 * x
    return (x.clamp(0, 1) * 255).round() / 255


@pytest.mark.parametrize("table", ["cifar", "imagenet"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_row_is_corrupted_alike_alone_and_in_company(kind: str, table: str) -> None:
    x, ids = pictures(5, 3, 32, 32), torch.tensor([7, 3, 900, 0, 12])
    whole = corrupt(x, kind, 4, ids, table=table)
    order = torch.tensor([4, 2, 0, 1, 3])
    assert torch.equal(
        whole,
        torch.cat([corrupt(x[i : i + 1], kind, 4, ids[i : i + 1], table=table) for i in range(5)]),
    )
    assert torch.equal(whole[order], corrupt(x[order], kind, 4, ids[order], table=table))
    assert not torch.equal(whole, x)
    steps = whole * 255
    assert float((steps - steps.round()).abs().max()) < 1e-3
    assert bool(((whole >= 0) & (whole <= 1)).all())


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 8, 11), (1, 28, 28), (3, 70, 65)], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_any_size_and_one_channel(kind: str, shape: tuple[int, int, int]) -> None:
    x, ids = pictures(2, *shape), torch.arange(2)
    far = [float((corrupt(x, kind, s, ids) - x).abs().mean()) for s in SEVERITIES]
    assert all(np.isfinite(far))
    assert max(far) > 0 or (kind, shape[0]) == ("saturate", 1) or min(shape[1:]) <= 11


def test_another_seed_or_id_gives_other_noise() -> None:
    x = pictures(1, 3, 16, 16)
    first, id_, seed = (
        corrupt(x, "snow", 3, torch.tensor([i]), s) for i, s in ((0, 0), (1, 0), (0, 1))
    )
    assert not torch.equal(first, id_)
    assert not torch.equal(first, seed)


def test_what_is_no_image_is_refused() -> None:
    for x in (torch.zeros(2, 3, 7, 32), torch.zeros(2, 4, 32, 32)):
        with pytest.raises(InputError, match="cannot be corrupted"):
            corrupt(x, "fog", 1, torch.arange(2))


def test_noise_has_the_moments_of_its_law() -> None:
    """On even grey, mid-range, where nothing is cut off: photons as Poisson has them, the rest as
    normal."""
    x, ids = torch.full((40, 3, 32, 32), 128 / 255), torch.arange(40)
    level = 128 / 255
    expected = {
        "gaussian_noise": 0.08,
        "speckle_noise": 0.12 * level,
        "shot_noise": np.sqrt(level / 100),
    }
    for kind, spread in expected.items():
        made = corrupt(x, kind, 3, ids, table="cifar").double()
        assert float(made.mean()) == pytest.approx(level - 0.5 / 255, abs=0.002)
        assert float(made.std()) == pytest.approx(spread, rel=0.02)
    made = corrupt(x, "impulse_noise", 5, ids, table="imagenet")
    assert float((made == 0).double().mean()) == pytest.approx(0.135, abs=0.005)
    assert float((made == 1).double().mean()) == pytest.approx(0.135, abs=0.005)


@pytest.mark.parametrize(
    ("law", "c"),
    [
        (kinds.gaussian_noise, 0.08),
        (kinds.shot_noise, 5),
        (kinds.impulse_noise, 0.27),
        (kinds.speckle_noise, 0.6),
    ],
)
def test_a_table_of_noise_holds_its_law(law: Callable[[float], np.ndarray], c: float) -> None:
    """What the places of the table give together, each with its own and its other byte."""
    table = kinds._alias(law, c).reshape(256, 256).astype(np.int64)
    chance = ((table >> 8) + 2**23) / 2**24
    found = chance / 256
    np.add.at(found, (np.arange(256)[:, None], table & 255), (1 - chance) / 256)
    assert np.abs(found - law(c)).max() < 1e-6


def test_clouds_look_alike_from_all_sides() -> None:
    """Neighbours down and across differ alike, at every distance that displacement made."""
    clouds = filters.plasma(16, 2.0, Keys.of(0, torch.arange(3000)))
    for far in (1, 2, 4, 8):
        down, across = ((clouds - clouds.roll(far, axis)).square().mean((1, 2)) for axis in (1, 2))
        assert float((down - across).mean() / across.mean()) == pytest.approx(0, abs=0.03)


def test_filters_are_those_of_scipy() -> None:
    x = torch.from_numpy(np.random.default_rng(0).random((2, 3, 12, 19)))
    kernel = filters.disc(3, 0.5)
    for image, ours in zip(x.flatten(0, 1), filters.convolve(x, kernel).flatten(0, 1), strict=True):
        assert (
            np.abs(ndimage.correlate(image.numpy(), kernel, mode="mirror") - ours.numpy()).max()
            < 1e-12
        )
    marked = x[:, :1] < 0.02
    marked[:, :, 3, 4] = True
    for image, ours in zip(
        marked[:, 0].numpy(), filters.distance(marked, 6)[:, 0].numpy(), strict=True
    ):
        assert np.abs(ndimage.distance_transform_edt(~image).clip(max=6) - ours).max() < 1e-6


@pytest.mark.parametrize("quality", [7, 25, 80])
@pytest.mark.parametrize("shape", [(3, 32, 32), (3, 37, 26), (1, 24, 24)], ids=str)
def test_jpeg_is_that_of_libjpeg(shape: tuple[int, int, int], quality: int, tmp_path: Path) -> None:
    """Up to single coefficients: libjpeg computes in fixed point, and near a half it may round the
    other way."""
    x = (pictures(9, *shape) * 255).round()
    far = []
    for image, ours in zip(
        x.movedim(1, -1).byte().numpy(), filters.jpeg(x, quality).movedim(1, -1), strict=True
    ):
        Image.fromarray(image[..., 0] if shape[0] == 1 else image).save(
            tmp_path / "a.jpg", quality=quality
        )
        theirs = np.asarray(Image.open(tmp_path / "a.jpg"), dtype=float).reshape(image.shape)
        far.append(np.abs(ours.numpy() - theirs).mean())
    assert np.median(far) < 0.5
    assert max(far) < 2


@pytest.mark.parametrize("new", [(24, 20), (13, 31), (5, 5)], ids=str)
def test_boxes_resize_as_pillow(new: tuple[int, int]) -> None:
    x = (pictures(1, 1, 32, 32) * 255).round()
    theirs = Image.fromarray(x[0, 0].byte().numpy()).resize(new[::-1], Image.Resampling.BOX)
    assert np.abs(filters.resized(x, new)[0, 0].numpy() - np.asarray(theirs)).max() <= 1


def test_scatter_takes_what_a_loop_would_take() -> None:
    """Pixel by pixel from the last, each takes what its neighbour holds at that moment."""
    x, key, reach = pictures(3, 2, 9, 12), Keys.of(0, torch.arange(3)), 2
    steps = (key.fold(0).uniform((2, 9 * 12)) * 2 * reach).long() - reach
    walked = x.clone()
    for row in range(3):
        for h in range(9 - reach, reach, -1):
            for w in range(12 - reach, reach, -1):
                down, right = (int(steps[row, axis, h * 12 + w]) for axis in (0, 1))
                walked[row, :, h, w] = walked[row, :, h + down, w + right]
    assert torch.equal(filters.scatter(x, reach, 1, key), walked)


def test_the_figures_of_a_table() -> None:
    """Two rows, right in all but fog, where the second is wrong at every severity; and a
    baseline."""
    label = pa.array([1, 2])
    samples = pa.table({"label": label, "clean_prediction": label})
    wrong = {name: [1, 0 if name.startswith("fog") else 2] for name in measure.COLUMNS}
    asked = CorruptionInfo(
        version=1, table="cifar", baseline="x", baseline_errors=dict.fromkeys(KINDS, 0.25)
    )
    found = metrics.corrupted(pa.table({"id": [0, 1], **wrong}), samples, asked)
    assert found.mean_accuracy.value == pytest.approx(1 - 1 / 30)
    assert found.relative_drop == pytest.approx(1 / 30)
    assert found.mce == pytest.approx(0.5 / 0.25 / 15)
    assert [p.accuracy.value for p in found.points if p.kind == "fog"] == [0.5] * 5
    assert len(found.points) == 95


ASKED = (
    "evaluate",
    "demo",
    "digits",
    "--threat",
    "linf(0.1)",
    "--attack",
    "fgsm()",
    "--corruptions",
)


def test_a_run_holds_and_shards_merge_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for rows, out in (("0:24", "whole"), ("0:10", "a"), ("10:24", "b")):
        assert holdfast(*ASKED, "--samples", rows, "--out", out).exit_code == 0
    manifest = store.read_manifest(Path("whole"))
    assert manifest.metrics.corruptions is not None
    assert manifest.costs.corruption_forwards == 24 * 95
    assert "Common corruptions" in Path("whole/report.html").read_text()
    assert holdfast("merge", "a", "b", "--out", "both").exit_code == 0
    assert_same_figures(store.read_manifest(Path("both")).metrics, manifest.metrics)
    assert holdfast("verify", "both", "demo", "digits").exit_code == 0
    again = holdfast(*ASKED, "--samples", "0:24", "--baseline", "whole", "--out", "again", "--json")
    assert json.loads(again.stdout)["metrics"]["corruptions"]["mce"] == pytest.approx(1)
    table = store.read_corruptions(Path("both"))
    at = table.schema.get_field_index("fog 5")
    other = pa.array([(v + 1) % 10 for v in table.column(at).to_pylist()], pa.int32())
    store.write_corruptions(Path("both"), table.set_column(at, "fog 5", other))
    done = holdfast("verify", "both", "demo", "digits")
    assert done.exit_code == 1
    names(
        done.stdout,
        "corruptions.parquet: its content was changed",
        "under fog 5 the model's decisions on rows 0",
    )


def test_a_baseline_must_be_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names(refused(*ASKED, "--baseline", "alexnet", "--out", "x"), "1,000 classes", "10")
    names(refused(*ASKED[:-1], "--baseline", "alexnet", "--out", "x"), "--corruptions")
    old = SimpleNamespace(
        metrics=SimpleNamespace(corruptions=True),
        corruptions=SimpleNamespace(version=1),
        data=SimpleNamespace(fingerprint="same"),
    )
    monkeypatch.setattr(store, "read_manifest", lambda _: old)
    with pytest.raises(
        InputError, match=r"old was measured with version 1 of the corruptions, not 2"
    ):
        measure.info(wrap(demo_model(), shape=(1, 8, 8)), (1, 8, 8), "old", "same")
