"""Common corruptions against their reference: mean and variance of what comes out, and the time it
takes.

The parameters of ImageNet-C are compared with imagecorruptions (64 x 64 pixels: at 32 its motion
blur loses the end of the kernel), those of CIFAR-10-C with the authors' own script, whose file
--cifar-c names (hendrycks/robustness, ImageNet-C/create_c/make_cifar_c.py). Its motion blur asks
ImageMagick; that of imagecorruptions, which follows it, stands in. Both are older than the
libraries here: names that numpy, scipy and scikit-image dropped are put back.

    python benchmarks/corruptions.py [--images 300] [--repeats 3] [--threads 1] [--cifar-c
    make_cifar_c.py]
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
import types
import warnings
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from common import cifar10, interleaved, options, save, table
from torch.nn import functional

from holdfast.corruptions.kinds import KINDS, SEVERITIES, corrupt

warnings.simplefilter("ignore")

# a cloud or an angle sets the whole image's
ONE_DRAW = ("motion_blur", "snow", "frost", "fog", "elastic_transform")
DRAWS = 8


def revived() -> Any:
    """imagecorruptions, under libraries that no longer have all it imports."""
    found = importlib.util.find_spec("imagecorruptions")
    if found is None or found.submodule_search_locations is None:
        print(
            "skipped: imagecorruptions is not installed (with opencv-python-headless and "
            "scikit-image)."
        )
        raise SystemExit(0)
    root = Path(found.submodule_search_locations[0])
    import scipy.ndimage
    import skimage.filters

    resources = types.ModuleType("pkg_resources")
    resources.resource_filename = lambda _, path: os.path.join(root, path)  # pyright: ignore
    older = types.ModuleType("scipy.ndimage.interpolation")
    older.map_coordinates = scipy.ndimage.map_coordinates  # pyright: ignore
    sys.modules |= {"pkg_resources": resources, "scipy.ndimage.interpolation": older}
    vars(np).update(float_=np.float64, fromstring=np.frombuffer)
    blur = skimage.filters.gaussian

    def gaussian(
        image: np.ndarray, sigma: Any, multichannel: bool = False, **more: Any
    ) -> np.ndarray:
        return blur(image, sigma, channel_axis=-1 if multichannel else None, **more)

    skimage.filters.gaussian = gaussian
    import cv2
    import imagecorruptions

    cv2.setNumThreads(torch.get_num_threads())
    return imagecorruptions


def authors(path: Path, peer: Any) -> dict[str, Any]:
    """The functions of the authors' script for CIFAR-10-C."""
    import cv2

    class Streaked:
        """What the script asks of ImageMagick."""

        def __init__(self, blob: bytes) -> None:
            self.x = cv2.imdecode(np.frombuffer(blob, np.uint8), cv2.IMREAD_UNCHANGED)

        def motion_blur(self, radius: float, sigma: float, angle: float) -> None:
            self.x = np.rint(peer.corruptions._motion_blur(self.x, radius, sigma, angle)).astype(
                np.uint8
            )

        def make_blob(self) -> bytes:
            return cv2.imencode(".png", self.x)[1].tobytes()

    absent = (
        "torchvision",
        "torchvision.datasets",
        "torchvision.transforms",
        "wand",
        "wand.api",
        "wand.color",
    )
    stand_in = {name: mock.MagicMock() for name in absent}
    stand_in["wand.image"] = types.ModuleType("wand.image")
    stand_in["wand.image"].Image = object  # pyright: ignore
    functions: dict[str, Any] = {}
    with mock.patch.dict(sys.modules, stand_in):
        exec(path.read_text().partition("# /////////////// End Distortions")[0], functions)
    functions["MotionImage"] = Streaked
    return functions


def by_one(call: Callable[[Any], Any], images: np.ndarray) -> np.ndarray:
    """A function of one picture on many, [n, h, w, 3] bytes."""
    with contextlib.redirect_stdout(None), np.errstate(all="ignore"):
        return np.stack([np.asarray(call(image)).astype(np.uint8) for image in images])


Apart = tuple[tuple[float, float], tuple[float, float]]


def apart(ours: torch.Tensor, theirs: np.ndarray) -> Apart:
    """How far mean and variance are from the reference's, each with its standard error, in per cent
    of it.

    Both are of the same images, so the error is that of the differences image by image.
    """
    a, b = ours.double().movedim(1, -1).flatten(1).numpy(), theirs.reshape(len(theirs), -1) / 255
    moments = [np.stack([v.mean(1), ((v - v.mean()) ** 2).mean(1)]) for v in (a, b)]
    whole = moments[1].mean(1)
    far = 100 * (moments[0] - moments[1]) / whole[:, None]
    error = far.std(1) / np.sqrt(len(a))
    return (float(far[0].mean()), float(error[0])), (float(far[1].mean()), float(error[1]))


def main() -> None:
    chosen = options(
        __doc__,
        repeats=3,
        images=300,
        timed=64,
        also={"--cifar-c": {"type": Path, "help": "make_cifar_c.py"}},
    )
    peer = revived()
    np.random.seed(0)  # noqa: NPY002
    cv2 = sys.modules["cv2"]
    # photographs of frost are read once but where time is measured
    read, kept = cv2.imread, lru_cache(cv2.imread)
    x, _ = cifar10(chosen.images)
    large = (
        functional.interpolate(x, scale_factor=2, mode="bicubic").clamp(0, 1).mul(255).round() / 255
    )
    pictures = {size: to_bytes(images) for size, images in ((32, x), (64, large))}
    script = authors(chosen.cifar_c.resolve(), peer) if chosen.cifar_c else None
    frost = Path(str(peer.__file__)).parent / "frost"
    rows = []
    for kind in KINDS:
        worst: dict[str, list[Apart]] = {"imagenet": [], "cifar": []}
        times = DRAWS if kind in ONE_DRAW else 1
        ids = torch.arange(times * len(x))
        vars(cv2).update(imread=kept)
        for severity in SEVERITIES:
            theirs = by_one(
                partial(peer.corrupt, severity=severity, corruption_name=kind),
                np.tile(pictures[64], (times, 1, 1, 1)),
            )
            ours = corrupt(large.repeat(times, 1, 1, 1), kind, severity, ids, table="imagenet")
            worst["imagenet"].append(apart(ours, theirs))
            if script is not None:
                with contextlib.chdir(frost):
                    theirs = by_one(
                        lambda im, s=severity: script[kind](_picture(im), s),  # noqa: B023
                        np.tile(pictures[32], (times, 1, 1, 1)),
                    )
                ours = corrupt(x.repeat(times, 1, 1, 1), kind, severity, ids, table="cifar")
                worst["cifar"].append(apart(ours, theirs))
        vars(cv2).update(imread=read)
        some, small = x[: chosen.timed], pictures[32][: chosen.timed]

        def batched(kind: str = kind, some: torch.Tensor = some) -> None:
            for severity in SEVERITIES:
                corrupt(some, kind, severity, torch.arange(len(some)), table="imagenet")

        def reference(kind: str = kind, small: np.ndarray = small) -> None:
            for severity in SEVERITIES:
                by_one(partial(peer.corrupt, severity=severity, corruption_name=kind), small)

        spent = interleaved({"ours": batched, "reference": reference}, chosen.repeats)
        took = [
            [getattr(spent[name], clock) / 5 / chosen.timed * 1e6 for name in ("ours", "reference")]
            for clock in ("cpu", "wall")
        ]
        rows.append([kind, took, *(_worst(worst[name]) for name in ("imagenet", "cifar"))])
        print(rows[-1], flush=True)
    rows.append(["all 19", np.sum([row[1] for row in rows], 0), "", ""])
    head = [
        "kind",
        "Holdfast, µs",
        "reference, µs",
        "times faster",
        "by the clock",
        "ImageNet-C: mean, variance",
        "CIFAR-10-C: mean, variance",
    ]
    lines = [
        [kind, f"{a:.0f}", f"{b:.0f}", f"{b / a:.1f}", f"{d / c:.1f}", *rest]
        for kind, ((a, b), (c, d)), *rest in rows
    ]
    save(
        chosen.save,
        "Common corruptions against the reference",
        [
            "CPU time an image of 32 x 32 pixels, the mean of five severities, medians of "
            f"{chosen.repeats} "
            f"interleaved rounds of {chosen.timed} images, with the parameters of ImageNet-C for "
            "both.",
            "By the clock: how much sooner the batch is done than the loop over images, with as "
            "many threads as said "
            "for both. The last columns: the largest difference of the mean and of the variance of "
            "all pixels from "
            "those of the reference, over five severities, with its standard error, on "
            f"{chosen.images} images of CIFAR-10; kinds that draw one thing for a whole image are "
            f"drawn {DRAWS} times "
            "for each. The ice of frost is made, not photographed; its mean and deviations are the "
            "photographs'. "
            "imagecorruptions' elastic_transform lacks the affine part of the authors'.",
            table(head, lines),
        ],
        also=("imagecorruptions",),
    )


def _worst(pairs: list[Apart]) -> str:
    if not pairs:
        return "not measured"
    largest = [max(column, key=lambda pair: abs(pair[0])) for column in zip(*pairs, strict=True)]
    return ", ".join(f"{far:+.2f} ± {error:.2f} %" for far, error in largest)


def to_bytes(x: torch.Tensor) -> np.ndarray:
    return (x * 255).round().byte().movedim(1, -1).contiguous().numpy()


def _picture(image: np.ndarray) -> Any:
    from PIL import Image

    return Image.fromarray(image)


if __name__ == "__main__":
    main()
