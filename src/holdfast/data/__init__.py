"""Data: inputs and labels from files, folders, arrays or the user's own code, behind one
`Source`."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from holdfast.arguments import checked
from holdfast.data import cifar10, digits, factory, idx, layouts, libsvm, npz, saved
from holdfast.data.arrays import from_arrays
from holdfast.data.files import printable
from holdfast.data.source import Source
from holdfast.errors import InputError, listed, suggest
from holdfast.urls import is_url, place

__all__ = ["KINDS", "Source", "as_source", "from_arrays", "open_data"]

KINDS = {
    "digits": "digits: scikit-learn's 8x8 digits, embedded; [1, 8, 8]",
    "mnist": "mnist:DIR: MNIST's IDX files, plain or .gz; [1, 28, 28]",
    "fashion-mnist": "fashion-mnist:DIR: Fashion-MNIST's IDX files, plain or .gz; [1, 28, 28]",
    "cifar10": "cifar10:DIR: CIFAR-10's binary version; [3, 32, 32]",
    "idx": "idx:IMAGES,LABELS: any pair of IDX files, plain or .gz",
    "libsvm": "libsvm:FILE: LIBSVM's text, one row a line; index i is feature i",
    "npz": "FILE.npz: the arrays x and y (or x_test, y_test); further inputs are x2, x3, ..., "
    "groups group",
    "folder": "DIR: one sub-folder of images for each class, under train/ and test/ if there are "
    "splits; --resize 256 --crop 224 while loading, --classes FILE for their numbers",
    "coco": "DIR/instances.json: COCO's boxes of objects, with the images next to it or in images/",
    "yolo": "DIR with images/ and labels/: YOLO's boxes, `class x y width height` a line in "
    "fractions; the names of the classes in data.yaml",
    "masks": "DIR with images/ and masks/: grey or palette PNG of the same names, whose values are "
    "classes; 255 is not judged",
    "waves": "DIR: one sub-folder of .wav files for each class, of one rate and length, as [t] in "
    "[-1, 1]; --crop 16000 cuts out the middle, --classes FILE",
    "csv": "FILE.csv: columns of numbers or texts under a header, and y, label, target or class (or"
    " --label NAME); plain or .gz",
    "parquet": "FILE.parquet, or a folder of such: the same columns, a list column x, or a column "
    "of pictures as Hugging Face stores them; in all a column group names groups; also by URL: "
    "s3://bucket/FILE.parquet",
    "saved": "DIR: a Hugging Face dataset, as save_to_disk writes it, memory-mapped; its splits",
    "factory": "path/file.py:factory or package.module:factory: your own code, which is run",
}
_ENDINGS = {
    ".npz": "npz",
    ".csv": "csv",
    ".csv.gz": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".json": "coco",
    ".yaml": "yolo",
    ".yml": "yolo",
}
_PICTURES = ("folder", "coco", "yolo", "masks")
READERS = {
    "label": ("csv", "parquet"),
    "classes": ("folder", "waves", "coco", "masks"),
    "resize": (*_PICTURES, "parquet"),
    "crop": (*_PICTURES, "parquet", "waves"),
}
# of pictures: the shorter side, or height and width; of sounds the number of samples
Size: TypeAlias = str | int | tuple[int, int]
_FORMS = {
    kind: KINDS[kind].split(": ")[0]
    for kind in ("mnist", "fashion-mnist", "cifar10", "idx", "libsvm")
}


def open_data(
    spec: str | os.PathLike[str],
    *,
    split: str = "test",
    scale: bool = True,
    label: str | None = None,
    classes: str | os.PathLike[str] | None = None,
    resize: Size | None = None,
    crop: Size | None = None,
    random: Size | None = None,
) -> Source:
    """The source that `spec` names, in one of the forms of `KINDS`.

    Args:
        spec: for example `mnist:DIR` or `set.npz`, or a path.
        split: "test" or "train"; ignored by data that has no splits.
        scale: bytes become float32 in [0, 1]; else float32 in 0..255. Floats are never rescaled.
        label: the column of labels of a CSV or Parquet file; None: y, label, target or class.
        classes: a file with the class number of each folder of images, or of each category of
            COCO, or with the names of the classes of masks: see `data.classes.read_classes`.
        resize: of a folder of images, with their boxes or masks, and of pictures in Parquet: `256`
            (the shorter side), `224,224` (height, width), or `256,bicubic`.
        crop: of the same: the middle `224` x 224, or `height,width`, after the resize;
            of sounds: the middle `16000` samples.
        random: only so many rows, drawn at random: `5000`, or `5000,7` with a seed: see
            `data.part.at_random`.

    Raises:
        InputError: unknown, missing, damaged or empty data, a split that it lacks, or an option
            that it does not have.
        SpecError: a size that is none.
    """
    spec = os.fspath(spec)
    loading = _given(label=label, classes=classes, resize=resize, crop=crop)
    try:
        kind = kind_of(spec)
        _refuse_unread(loading, kind, spec)
        source = _open(kind, spec, split, scale, loading)
    except FileNotFoundError as error:
        raise InputError(
            f"there is no file {error.filename}; check its path, which starts from {os.getcwd()} "
            "if relative."
        ) from None
    except OSError as error:
        raise InputError(
            f"cannot read {error.filename or spec}: {error.strerror or error}."
        ) from None
    if kind != "factory":
        source.name, source.loading = printable(source.name), loading
    return _drawn(source, random)


def _drawn(source: Source, random: Size | None) -> Source:
    """The source, or some of its rows."""
    if random is None:
        return source
    from holdfast.data.part import at_random

    return at_random(source, _given(random=random)["random"])


def _given(**options: Size | os.PathLike[str] | None) -> dict[str, str]:
    """The options that were given, as the command line writes them."""
    given = {name: value for name, value in options.items() if value is not None}
    pairs = {n: ",".join(map(str, v)) for n, v in given.items() if isinstance(v, (tuple, list))}
    return {name: str(value) for name, value in given.items()} | pairs


def _refuse_unread(loading: dict[str, str], kind: str, what: str) -> None:
    """Refuse options of reading that data of this kind do not have."""
    for name in loading:
        if kind not in READERS[name]:
            takers = " or ".join(KINDS[taker].split(": ")[0] for taker in READERS[name])
            raise InputError(f"--{name} is for {takers}, but the data are {what}; leave it out.")


@checked
def as_source(
    data: Any,
    *,
    split: str = "test",
    scale: bool = True,
    label: str | None = None,
    classes: str | os.PathLike[str] | None = None,
    resize: Size | None = None,
    crop: Size | None = None,
    random: Size | None = None,
) -> Source:
    """Data in any form that a caller may hold, as a source: every command and function takes the
    same forms.

    Map-style datasets, files and arrays are read piece by piece. What cannot be (a DataLoader, a
    `tf.data.Dataset`, an iterator) is read once, and held in memory up to 2 GiB
    (`data.source.HELD`); more is refused.

    Args:
        data: a `Source`; the text that a command line takes, or a path; (x [n, ...], y [n]),
            arrays, tensors, lists or tables of any framework; a torch Dataset or DataLoader; a
            `tf.data.Dataset`, batched or not; a Hugging Face dataset; a Keras dataset; a DataFrame
            of pandas or a table of pyarrow with a column y, label, target or class; a dict with
            inputs and labels; any map-style dataset or iterator of pairs (x, y), of batches, or of
            dicts. Items may be pictures of Pillow: they become bytes [channels, height, width].
        split: of data that a text names.
        scale: bytes become float32 in [0, 1]; else float32 in 0..255, as a model with bounds of
            0 and 255 takes them.
        label: the column of labels of a DataFrame, a table of pyarrow, or a CSV or Parquet file;
            None: y, label, target or class.
        classes: of a folder: a file with the class number of each sub-folder, as `--classes`.
        resize: of a folder of images, while loading: 256 (the shorter side), (224, 224) (height,
            width), or "256,bicubic".
        crop: the middle 224 x 224 or (height, width) of each image of a folder, after the resize;
            the middle 16000 samples of each sound.
        random: only so many rows, drawn at random by key: 5000, or (5000, 7) with a seed. They are
            in ascending order, and numbered anew; `ids` of the source says which they are.

    Raises:
        InputError: none of these, data that cannot be read, or an option that they do not have.
        SpecError: a size that is none.

    Example:
        >>> data = holdfast.as_source("patients.csv", label="outcome")
        >>> holdfast.evaluate(model, data, "linf(0.1)")
        >>> x, y = data.rows(0, 100)
    """
    if isinstance(data, (str, os.PathLike)):
        return open_data(
            data,
            split=split,
            scale=scale,
            label=label,
            classes=classes,
            resize=resize,
            crop=crop,
            random=random,
        )
    loading = _given(label=label, classes=classes, resize=resize, crop=crop)
    if isinstance(data, Source):
        if loading:
            said = listed(list(loading), 4)
            raise InputError(
                f"{data.name} is a source, which is read already; give {said} with the text or the "
                "table that it is made of."
            )
        return _drawn(data, random)
    from holdfast.data.objects import from_object, is_table

    _refuse_unread(loading, "csv" if is_table(data) else "", f"of type {type(data).__name__}")
    return _drawn(from_object(data, scale=scale, **loading), random)


def to_train_and_measure(
    data: Any, test: Any, opened: Callable[[Any, str], Source]
) -> tuple[Source, Source | None]:
    """Rows to train on, and those to measure on; None: a part of them, for there are no others.

    A text or a path names both where its data have a split of each.

    Args:
        opened: the source of data in any form, and of a split.
    """
    source = opened(data, "train")
    if test is None and not isinstance(data, (str, os.PathLike)):
        return source, None
    judged = opened(data if test is None else test, "test")
    if test is None and judged.fingerprint() == source.fingerprint():  # no splits
        return source, None
    return source, judged


def suiting(data: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of reading that data of this kind have; other options stay."""
    kind = kind_of(data)
    return {n: said for n, said in options.items() if n not in READERS or kind in READERS[n]}


def kind_of(spec: str) -> str:
    """The key of `KINDS` that a text is of.

    Raises:
        InputError: of none.
    """
    kind, _, _ = spec.partition(":")
    if kind.lower() == "digits" or kind.lower() in _FORMS:
        return kind.lower()
    if is_url(spec):
        return "parquet"
    path = _path(spec)
    for ending, found in _ENDINGS.items():
        if path.name.lower().endswith(ending):
            return found
    if spec and path.is_dir():
        return _kind_of_folder(path)
    where, _, name = spec.rpartition(":")
    if where and name.isidentifier():
        return "factory"
    if spec and path.exists():
        raise InputError(
            f"{spec} is not a kind of data that can be read; expected one of "
            f"{', '.join(line.split(': ')[0] for line in KINDS.values())}."
        )
    raise InputError(
        f"there is no data {spec!r}, neither a kind nor a file or folder; {suggest(kind, KINDS)}"
    )


def _kind_of_folder(folder: Path) -> str:
    """By COCO's annotations, by folders of labels or masks next to that of the images, or by its
    first image or sound."""
    if saved.is_saved(folder):
        return "saved"
    if layouts.coco_files(folder):
        return "coco"
    for kind, other in (("masks", "masks"), ("yolo", "labels")):
        if layouts.is_paired(folder, other):
            return kind
    from holdfast.data import images, waves
    from holdfast.data.parquet_files import ENDINGS

    of = {"waves": waves.ENDINGS, "parquet": ENDINGS, "folder": images.ENDINGS}
    kinds = {ending: kind for kind, endings in of.items() for ending in endings}
    names = (name for _, _, names in os.walk(folder) for name in names)
    endings = (os.path.splitext(name)[1].lower() for name in names)
    return next((kinds[ending] for ending in endings if ending in kinds), "folder")


def _open(kind: str, spec: str, split: str, scale: bool, loading: dict[str, str]) -> Source:
    path, rest = _path(spec), spec.partition(":")[2]
    if kind in _FORMS and not rest:
        raise InputError(f"{kind} needs the place of its files; write {_FORMS[kind]}.")
    match kind:
        case "npz":
            return npz.open_npz(path, spec, split, scale)
        case "csv":
            from holdfast.data.table import open_csv

            return open_csv(path, spec, scale, **loading)
        case "parquet":
            from holdfast.data.parquet import open_parquet

            return open_parquet(place(spec) if is_url(spec) else path, spec, split, scale, loading)
        case "folder" | "coco" | "yolo" | "masks":
            return _open_pictures(kind, path, spec, split, scale, loading)
        case "saved":
            return saved.open_saved(path, spec, split, scale)
        case "waves":
            from holdfast.data.waves import Waves

            classes = None if "classes" not in loading else _path(loading["classes"])
            return Waves(path, spec, split, classes, loading.get("crop"))
        case "factory":
            return factory.open_factory(spec, scale)
        case "digits":
            if rest:
                raise InputError(
                    f"digits is embedded and takes nothing after it, but got {rest!r}; write "
                    "digits."
                )
            return digits.open_digits(spec, _known(split, digits.SPLITS, kind))
        case "cifar10":
            split = _known(split, cifar10.SPLITS, kind)
            return cifar10.open_cifar10(_path(rest), spec, split, scale)
        case "libsvm":
            return libsvm.open_libsvm(_path(rest), spec)
        case "idx":
            files = rest.split(",")
            if len(files) != 2 or not all(files):
                raise InputError(f"{spec!r} does not name two files; write {_FORMS[kind]}.")
            return idx.open_idx(_path(files[0]), _path(files[1]), spec, scale)
        case _:
            return idx.open_mnist(kind, _path(rest), spec, _known(split, idx.SPLITS, kind), scale)


def _open_pictures(
    kind: str, path: Path, spec: str, split: str, scale: bool, loading: dict[str, str]
) -> Source:
    from holdfast.data.images import Resizing

    resizing = Resizing.parse(loading.get("resize"), loading.get("crop"))
    classes = None if "classes" not in loading else _path(loading["classes"])
    match kind:
        case "coco":
            from holdfast.data.coco import open_coco

            return open_coco(path, spec, split, scale, classes, resizing)
        case "yolo":
            from holdfast.data.yolo import open_yolo

            return open_yolo(path, spec, split, scale, resizing)
        case "masks":
            from holdfast.data.masks import Masks

            return Masks(path, spec, split, scale, classes, resizing)
        case _:
            from holdfast.data.folder import Folder

            return Folder(path, spec, split, scale, classes, resizing)


def _known(split: str, splits: dict[str, Any], kind: str) -> str:
    if split not in splits:
        raise InputError(f"{kind} has no split {split!r}; {suggest(split, splits)}")
    return split


def _path(text: str) -> Path:
    path = Path(os.path.expanduser(text))
    if path.is_fifo() or path.is_char_device() or path.is_socket():
        raise InputError(f"{text} is a pipe or a device, not a file; save what it gives first.")
    return path
