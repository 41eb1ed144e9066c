"""A folder of sound files (.wav): one sub-folder a class, read as rows are asked for."""

from __future__ import annotations

import re
import struct
import warnings
from collections import Counter
from pathlib import Path

import numpy as np

from holdfast.data.folder import labelled_files
from holdfast.data.source import Source
from holdfast.errors import InputError, SpecError, first_line

ENDINGS = {".wav", ".wave"}
_DAMAGE = (ValueError, EOFError, struct.error, MemoryError, UnboundLocalError, ZeroDivisionError)


class Waves(Source):
    """Signals float32 [t], or [c, t] of c channels, in [-1, 1]; labels int64 by the sorted names
    of the sub-folders, or as `classes` says.

    PCM of 8, 16, 24 and 32 bits is divided by its largest value, 2^(bits - 1); floats stay as they
    are. Signals are neither resampled nor padded.

    Args:
        crop: cut the middle so many samples out of each; None: all are of one length.

    Raises:
        InputError: no classes, a class without files, a damaged file, or files that differ in rate,
            channels or (without `crop`) length.
        SpecError: `crop` is no whole number.
    """

    def __init__(
        self, folder: Path, name: str, split: str, classes: Path | None, crop: str | None
    ) -> None:
        found = labelled_files(folder, split, classes, ENDINGS, "sounds (WAV)")
        self._paths, self._y, self.class_names = found
        self.name, self._crop = name, _length(crop)
        # of each file; the signals themselves do not stay in memory
        seen = [(rate, wave.shape) for rate, wave in map(_read, self._paths)]
        self._same([rate for rate, _ in seen], "{} Hz", "resample them to one rate first")
        shapes = [shape for _, shape in seen]
        self._same([s[:-1] for s in shapes], "channels {}", "mix them down to one first")
        if self._crop is None:
            advice = "give --crop 16000, which cuts the middle so many samples out of each"
            self._same([s[-1] for s in shapes], "{} samples", advice)
        else:
            short = min(range(len(shapes)), key=lambda i: shapes[i][-1])
            if shapes[short][-1] < self._crop:
                raise InputError(
                    f"{self._paths[short]} has {shapes[short][-1]:,} samples, fewer than the "
                    f"{self._crop:,} of --crop; give a smaller one, or leave the file out."
                )
        self.shape = (*shapes[0][:-1], self._crop or shapes[0][-1])

    def __len__(self) -> int:
        return len(self._paths)

    def rows(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        paths = self._paths[start:stop]
        x = np.empty((len(paths), *self.shape), np.float32)
        for row, path in enumerate(paths):
            _, wave = _read(path)
            first = (wave.shape[-1] - self.shape[-1]) // 2
            x[row] = wave[..., first : first + self.shape[-1]]
        return x, self.labels(start, stop)

    def labels(self, start: int, stop: int) -> np.ndarray:
        return self._y[start:stop].copy()

    def _same(self, values: list[object], words: str, advice: str) -> None:
        """Raises InputError: a file differs from most."""
        (usual, _), *others = Counter(values).most_common()
        if others:
            odd = next(i for i, value in enumerate(values) if value != usual)
            raise InputError(
                f"{self._paths[odd]} is of {words.format(values[odd])} and most files are of "
                f"{words.format(usual)}; {advice}."
            )


def _length(crop: str | None) -> int | None:
    if crop is None:
        return None
    if not re.fullmatch("0*[1-9][0-9]{0,17}", crop):
        raise SpecError(
            f"--crop {crop[:40]} is no length of a sound; expected samples, such as 16000."
        )
    return int(crop)


def _read(name: str) -> tuple[int, np.ndarray]:
    """The rate of a file, and its signal [t] or [c, t], float32.

    Raises:
        InputError: not a file, damaged, empty, or of another coding.
    """
    from scipy.io import wavfile

    path = Path(name)
    if not path.is_file():
        raise InputError(f"{path} is no file but a pipe, device or folder; expected a WAV file.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", wavfile.WavFileWarning)  # of chunks that are no sound
            warnings.filterwarnings("error", "Reached EOF")
            rate, wave = wavfile.read(path)
    except (*_DAMAGE, wavfile.WavFileWarning) as error:
        raise InputError(
            f"{path} cannot be read ({first_line(error)}); it is damaged, or not PCM of 8 to 32 "
            "bits or floats."
        ) from None
    if wave.size == 0:
        raise InputError(f"{path} holds no sound: it has 0 samples.")
    if wave.dtype == np.uint8:
        wave = (wave - np.float32(128)) / 128
    elif wave.dtype.kind == "i":
        # scipy gives 24 bits as the upper ones of 32
        wave = wave / 2.0 ** (8 * wave.dtype.itemsize - 1)
    return rate, np.ascontiguousarray(wave.T, np.float32)
