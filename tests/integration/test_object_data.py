"""Boxes and masks of every form are the same rows, follow the resizing of their images, and are
refused where they cannot be."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.object_files import NAMES, write_coco, write_images, write_masks, write_yolo
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from holdfast.boxes import check_boxes
from holdfast.data import Source, as_source, open_data
from holdfast.data.images import Resizing
from holdfast.errors import InputError
from holdfast.testing import scenes_of_digits

X, BOXES, MASKS = scenes_of_digits(6, seed=3)
X = np.rint(255 * X).astype(np.uint8) / np.float32(255)


def targets(boxes: np.ndarray) -> list[dict[str, torch.Tensor]]:
    """As torchvision's detectors take them."""
    own = [torch.from_numpy(one[one[:, 0] >= 0]) for one in boxes]
    return [{"boxes": one[:, 1:], "labels": one[:, 0].long()} for one in own]


class Scenes(Dataset):
    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, row: int) -> Any:
        if row >= len(X):
            raise IndexError(row)
        return torch.from_numpy(X[row]), targets(BOXES)[row]


def npz(home: Path, **arrays: np.ndarray) -> Source:
    np.savez(home / "set.npz", **arrays)
    return open_data(home / "set.npz")


def flat() -> dict[str, np.ndarray]:
    there = BOXES[..., 0] >= 0
    return {"boxes": BOXES[there], "counts": there.sum(1)}


FORMS: dict[str, Callable[[Path], Source]] = {
    "coco": lambda home: open_data(write_coco(home, X, BOXES)),
    "coco file": lambda home: open_data(write_coco(home, X, BOXES) / "instances.json"),
    "yolo": lambda home: open_data(write_yolo(home, X, BOXES)),
    "yolo file": lambda home: open_data(write_yolo(home, X, BOXES) / "data.yaml"),
    "counts": lambda home: npz(home, x=X, **flat()),
    "padded": lambda home: npz(home, x=X, boxes=BOXES),
    "arrays": lambda home: as_source((X, BOXES)),
    "targets": lambda home: as_source((X, targets(BOXES))),
    "lists": lambda home: as_source((X, [one[one[:, 0] >= 0] for one in BOXES])),
    "dataset": lambda home: as_source(Scenes()),
    "loader": lambda home: as_source(
        DataLoader(Scenes(), batch_size=4, collate_fn=lambda rows: tuple(zip(*rows, strict=True)))
    ),
    "hugging face": lambda home: as_source(
        [
            {
                "image": x,
                "objects": {
                    "bbox": np.concatenate([own[:, 1:3], own[:, 3:] - own[:, 1:3]], 1).tolist(),
                    "category": own[:, 0].astype(int).tolist(),
                },
            }
            for x, own in zip(X, (one[one[:, 0] >= 0] for one in BOXES), strict=True)
        ]
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_boxes_of_every_form_are_the_same_rows(form: str, tmp_path: Path):
    source = FORMS[form](tmp_path)
    x, y = source.rows(0, len(source))
    np.testing.assert_array_equal(x, X)
    np.testing.assert_array_equal(y, BOXES)
    x, y = source.rows(2, 4)
    np.testing.assert_array_equal(y, BOXES[2:4])
    assert source.fingerprint() == as_source((X, BOXES)).fingerprint()
    if form.startswith(("coco", "yolo")):
        assert source.class_names == tuple(NAMES)


@pytest.mark.parametrize("mode", ["L", "P"])
def test_masks_of_every_form_are_the_same_rows(mode: str, tmp_path: Path):
    masks = MASKS.copy()
    masks[:, :2] = 255
    (tmp_path / "names.txt").write_text("\n".join(["nothing", *NAMES]))
    folder = open_data(write_masks(tmp_path, X, masks, mode), classes=tmp_path / "names.txt")
    for source in (folder, npz(tmp_path, x=X, masks=masks)):
        x, y = source.rows(1, 5)
        np.testing.assert_array_equal(x, X[1:5])
        np.testing.assert_array_equal(y, masks[1:5])
        assert y.dtype == np.int64
    assert folder.class_names == ("nothing", *NAMES)


def test_boxes_and_masks_follow_the_resizing_of_their_images(tmp_path: Path):
    x = np.zeros((2, 1, 60, 100), np.float32)
    x[:, 0, 12:30, 40:70] = 1
    x[1, 0, 12:30, 40:70] = 0
    x[1, 0, 40:60, 0:20] = 1
    boxes = np.full((2, 2, 5), -1, np.float32)
    boxes[0, 0], boxes[1, 0] = (3, 40, 12, 70, 30), (3, 0, 40, 20, 60)
    coco = open_data(write_coco(tmp_path / "a", x, boxes), resize="30", crop="30")
    masks = open_data(
        write_masks(tmp_path / "b", x, x[:, 0].astype(np.int64)), resize="30", crop="30"
    )
    assert coco.shape == masks.shape == (1, 30, 30)
    images, y = coco.rows(0, 2)
    # halved, and ten pixels cut off at each side
    assert y[0, 0].tolist() == [3, 10, 6, 25, 15]
    assert (y[1] == -1).all()
    (_, said) = coco.remarks
    text = "Boxes that were left out: 1 outside the crop. Images without objects: 1 of 2."
    assert said == ("loading", text)
    _, classes = masks.rows(0, 2)
    down, across = np.nonzero(classes[0])
    assert (across.min(), down.min(), across.max() + 1, down.max() + 1) == (10, 6, 25, 15)
    assert (images[0, 0][classes[0] == 1] > 0.5).all()
    assert not classes[1].any()


def test_images_of_different_size_are_fitted_with_their_truths(tmp_path: Path):
    for home in ("images", "labels", "masks"):
        (tmp_path / "yolo" / home).mkdir(parents=True)
    for name, width, height in (("a", 40, 20), ("b", 20, 30)):
        Image.new("L", (width, height)).save(tmp_path / "yolo" / "images" / f"{name}.png")
        (tmp_path / "yolo" / "labels" / f"{name}.txt").write_text("0 0.5 0.5 0.5 1\n")
    (tmp_path / "yolo" / "masks").rmdir()
    source = open_data(tmp_path / "yolo").fitted(channels=3, size=(10, 10))
    x, y = source.rows(0, 2)
    assert x.shape == (2, 3, 10, 10)
    assert y.tolist() == [[[0, 2.5, 0, 7.5, 10]]] * 2
    assert source.class_names == ("0",)


def test_polygons_become_boxes_and_an_image_without_a_file_has_no_objects(tmp_path: Path):
    home = write_yolo(tmp_path, X[:3], BOXES[:3])
    (home / "labels" / "0000.txt").write_text("2 0.25 0.25 0.5 0.75 0.75 0.25\n\n")
    (home / "labels" / "0001.txt").unlink()
    source = open_data(home)
    _, y = source.rows(0, 2)
    assert y[0, 0].tolist() == [2, 16, 16, 48, 48]
    assert (y[1] == -1).all()
    assert "Images without objects: 1 of 3." in source.remarks[-1][1]


def test_splits_of_boxes_and_masks(tmp_path: Path):
    write_yolo(tmp_path / "a" / "train", X[:2], BOXES[:2])
    write_yolo(tmp_path / "a" / "valid", X[2:], BOXES[2:])
    write_coco(tmp_path / "b" / "train", X[:2], BOXES[:2])
    write_coco(tmp_path / "b" / "test", X[2:], BOXES[2:])
    for name, x in (("train", X[:2]), ("val", X[2:])):
        write_images(tmp_path / "c" / "images" / name, x)
        write_masks(tmp_path / "d", x, MASKS[: len(x)])
        (tmp_path / "c" / "masks").mkdir(exist_ok=True)
        (tmp_path / "d" / "masks").rename(tmp_path / "c" / "masks" / name)
    # COCO's own layout
    (tmp_path / "e" / "annotations").mkdir(parents=True)
    for name, x, boxes in (("train2017", X[:2], BOXES[:2]), ("val2017", X[2:], BOXES[2:])):
        file = write_coco(tmp_path / name, x, boxes) / "instances.json"
        file.rename(tmp_path / "e" / "annotations" / f"instances_{name}.json")
        (tmp_path / name / "images").rename(tmp_path / "e" / name)
    for home in "abce":
        for split, x in (("train", X[:2]), ("test", X[2:])):
            source = open_data(tmp_path / home, split=split)
            np.testing.assert_array_equal(source.rows(0, 9)[0], x)
        with pytest.raises(InputError, match="split 'extra'"):
            open_data(tmp_path / home, split="extra")


def test_crowds_foreign_and_flat_objects_are_left_out_and_said(tmp_path: Path):
    home = write_coco(tmp_path, X, BOXES)
    content = json.loads((home / "instances.json").read_text())
    before = len(content["annotations"])
    content["annotations"][0]["iscrowd"] = 1
    content["annotations"][1]["bbox"][2] = 0
    content["annotations"].append({**content["annotations"][2], "image_id": 999})
    (home / "instances.json").write_text(json.dumps(content))
    source = open_data(home)
    assert (source.rows(0, 6)[1][..., 0] >= 0).sum() == before - 2
    reasons = "1 of crowds (iscrowd), 1 of images that are not listed, 1 without an area."
    assert reasons in source.remarks[-1][1]


def test_the_class_numbers_of_categories_can_be_others(tmp_path: Path):
    home = write_coco(tmp_path, X, BOXES)
    numbers = {name: 90 - c for c, name in enumerate(NAMES)}
    (tmp_path / "numbers.json").write_text(json.dumps(numbers))
    source = open_data(home, classes=tmp_path / "numbers.json")
    there = BOXES[..., 0] >= 0
    assert (source.rows(0, 6)[1][..., 0][there] == 90 - BOXES[..., 0][there]).all()
    assert source.class_names is not None
    assert source.class_names[88] == "digit 2"


def edited(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], Source]:
    def make(home: Path) -> Source:
        file = write_coco(home, X, BOXES) / "instances.json"
        content = json.loads(file.read_text())
        change(content)
        file.write_text(json.dumps(content))
        return open_data(home)

    return make


def as_corners(content: dict[str, Any]) -> None:
    for one in content["annotations"]:
        x, y, width, height = one["bbox"]
        one["bbox"] = [x, y, x + width, y + height]


def line(text: str) -> Callable[[Path], Source]:
    def make(home: Path) -> Source:
        (write_yolo(home, X, BOXES) / "labels" / "0002.txt").write_text(text)
        return open_data(home)

    return make


def mask(image: Image.Image, name: str = "0003.png") -> Callable[[Path], Source]:
    def make(home: Path) -> Source:
        write_masks(home, X, MASKS)
        (home / "masks" / "0003.png").unlink()
        image.save(home / "masks" / name)
        return open_data(home)

    return make


def without_labels(home: Path) -> Source:
    for text in (write_yolo(home, X, BOXES) / "labels").iterdir():
        text.unlink()
    return open_data(home)


def named(home: Path, names: str) -> Source:
    (write_yolo(home, X, BOXES) / "data.yaml").write_text(names)
    return open_data(home)


def with_classes(home: Path) -> Source:
    (home / "names.txt").write_text("nothing\none\n")
    source = open_data(write_masks(home, X, MASKS), classes=home / "names.txt")
    source.rows(0, 6)
    return source


REFUSED: dict[str, tuple[Callable[[Path], Source], str]] = {
    "corners in COCO": (edited(as_corners), r"pixels out .*written as x0, y0, x1, y1, where COCO"),
    "fractions in COCO": (
        edited(lambda c: [one.update(bbox=[0.1, 0.2, 0.3, 0.4]) for one in c["annotations"]]),
        "in fractions of an image of 64 x 64",
    ),
    "another size": (
        edited(lambda c: c["images"][1].update(width=640)),
        r"0001.png is 64 x 64 \(width, height\), but .* says 640 x 64",
    ),
    "no category": (
        edited(lambda c: c["annotations"][2].update(category_id=5)),
        r"category_id 5 .*expected one of 10, 13",
    ),
    "no image": (
        edited(lambda c: c["images"][1].update(file_name="gone.png")),
        r"gone.png, which is not in .*1 of 6 images are missing",
    ),
    "no objects": (edited(lambda c: c.update(annotations=[])), "none of the 6 images"),
    "no boxes": (edited(lambda c: c["annotations"][0].pop("bbox")), "KeyError: 'bbox'"),
    "no JSON": (
        lambda home: open_data(
            (write_coco(home, X, BOXES) / "instances.json").write_text("[") and home
        ),
        "cannot be read",
    ),
    "negative": (
        edited(lambda c: c["annotations"][0].update(bbox=[50, 50, -20, -20])),
        "x1 or y1 is not above",
    ),
    "pixels in YOLO": (line("3 32 20 10 10"), r"line 1 of .*0002.txt.* seem to be pixels"),
    "corners in YOLO": (line("3 0.6 0.6 0.9 0.95"), "where YOLO has the middle"),
    "confidence": (line("3 0.5 0.5 0.2 0.2 0.9"), r"is '3 0.5 .*expected a class"),
    "words": (line("cat 0.5 0.5 0.2 0.2"), "is 'cat"),
    "an endless class": (line("1e400 0.5 0.5 0.2 0.2"), "is '1e400"),
    "no class": (line("nan 0.5 0.5 0.2 0.2"), "is 'nan"),
    "no file": (lambda home: open_data(home / "data.yaml"), "there is no file"),
    "an endless box": (
        edited(lambda c: c["annotations"][0].update(bbox=[0, 0, 10**400, 2])),
        "OverflowError",
    ),
    "no such class": (line("10 0.5 0.5 0.2 0.2"), r"the class 10, but data.yaml names 10 classes"),
    "half a class": (line("1.5 0.5 0.5 0.2 0.2"), "its class, in front, is no whole number"),
    "no labels": (without_labels, r"no label for any of the 6 images"),
    "no names": (lambda home: named(home, "nc: 3"), "no names of the classes"),
    "no YAML": (lambda home: named(home, "names: ["), "no YAML text"),
    "a mask of another size": (
        mask(Image.new("L", (64, 63))),
        r"0003.png is 64 x 63 .*0003.png is 64 x 64",
    ),
    "a mask in colours": (mask(Image.new("RGB", (64, 64))), r"in colours \(RGB\)"),
    "no mask": (mask(Image.new("L", (64, 64)), "other.png"), r"0003.png has no mask .*1 of 6"),
    "a JPEG": (mask(Image.new("L", (64, 64)), "0003.jpg"), "is a JPEG"),
    "0 and 255": (
        lambda home: open_data(write_masks(home, X, 255 * (MASKS > 0))),
        "write the class of the object as 1",
    ),
    "classes of masks": (with_classes, r"has the class \d+, but there are 2 classes"),
    "counts": (
        lambda home: npz(home, x=X, boxes=flat()["boxes"], counts=flat()["counts"] + 1),
        "sum up to",
    ),
    "no counts": (
        lambda home: npz(home, x=X, boxes=flat()["boxes"][:, :4], counts=flat()["counts"]),
        "expected boxes",
    ),
    "other dicts": (
        lambda home: as_source((X, [{"points": [1, 2]}] * 6)),
        "row 0 of arrays is a dict with points",
    ),
    "other numbers of labels": (
        lambda home: as_source((X, [{"boxes": [[0, 0, 2, 2]], "labels": [1, 2]}] * 6)),
        "expected \\[m, 4\\] and \\[m\\]",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_refused_in_one_sentence(case: str, tmp_path: Path):
    make, said = REFUSED[case]
    with pytest.raises(InputError, match=said) as caught:
        make(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("box", "said"),
    [
        ((1, 30, 30, 20, 20), "is it x, y, width, height"),
        ((1, 0.1, 0.1, 0.5, 0.5), "in fractions"),
        ((1, 30, 30, 70, 50), "6 pixels out of an image of 64 x 48"),
        ((4, 1, 1, 9, 9), "no whole number from 0 to 3"),
        ((-2, 1, 1, 9, 9), "no whole number from 0 to 3"),
        ((1, 1, np.nan, 9, 9), "expected finite numbers"),
    ],
)
def test_boxes_that_cannot_be(box: tuple[float, ...], said: str):
    good = np.array([[0, 0, 0, 64.5, 48.0], [3, 0.2, 0.3, 1, 1]])
    check_boxes(good, 64, 48, "row 0", classes=4)
    bad = np.concatenate([good[:0], np.array([box])])
    with pytest.raises(InputError, match=said):
        check_boxes(bad, 64, 48, "row 0", classes=4)


@pytest.mark.parametrize("resizing", [Resizing((20,)), Resizing((40, 32), (30, 26))])
def test_a_box_lies_where_its_pixels_do(resizing: Resizing):
    rng = np.random.default_rng(0)
    for _ in range(20):
        width, height = rng.integers(40, 90, 2)
        x0, y0 = rng.integers(0, 15, 2)
        x1, y1 = rng.integers(30, 40, 2)
        pixels = np.zeros((height, width), np.uint8)
        pixels[y0:y1, x0:x1] = 1
        small = np.asarray(resizing.labels(Image.fromarray(pixels)))
        assert small.shape[::-1] == resizing.size(width, height)
        down, across = np.nonzero(small)
        seen = [across.min(), down.min(), across.max() + 1, down.max() + 1]
        (box,) = resizing.boxes(np.array([[x0, y0, x1, y1]]), width, height)
        edges = np.array(small.shape[::-1] * 2)
        np.testing.assert_allclose(box.clip(0, edges), seen, atol=0.51)
