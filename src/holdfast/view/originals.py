"""The data that a user names, as the originals of rows: shown only where they are what was
measured, by their hash."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from holdfast.data import kind_of, open_data, suiting
from holdfast.data.laid import laid_as
from holdfast.data.source import Source
from holdfast.errors import InputError
from holdfast.runs.manifest import Manifest


@dataclass(frozen=True)
class Originals:
    """The rows of the data that `spec` names, as the command line takes it.

    Raises:
        InputError: it names none.
    """

    spec: str
    # each source with its fingerprint, which takes a pass over the data, by how a run reads it
    _opened: dict[str, tuple[Source, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        kind_of(self.spec)

    def row(self, manifest: Manifest, sample: int) -> np.ndarray:
        """The input [*shape] of one row of a run.

        Raises:
            InputError: these are not the data of the run, or they cannot be read as it says.
        """
        data = manifest.data
        key = f"{data.split} {data.loading} {manifest.model.shape} {manifest.model.bounds}"
        if key not in self._opened:
            source = _source(self.spec, manifest)
            self._opened[key] = source, source.fingerprint()
        source, fingerprint = self._opened[key]
        if fingerprint != data.fingerprint:
            raise InputError(
                f"The original is withheld: {self.spec} is not the data of this run, by its hash "
                f"({fingerprint[:12]}; the run says {data.fingerprint[:12]})."
            )
        return source.rows(sample, sample + 1)[0][0]


def _source(spec: str, manifest: Manifest) -> Source:
    shape, layout = tuple(manifest.model.shape), manifest.model.layout
    read = suiting(spec, manifest.data.loading)
    scale = manifest.model.bounds[1] <= 1
    source = open_data(spec, split=manifest.data.split or "test", scale=scale, **read)
    if len(shape) == 2:
        source = source.fitted(channels=1, size=(shape[0], shape[1]))
    elif len(shape) == 3:
        channels, *size = (shape[2], *shape[:2]) if layout == "nhwc" else shape
        known = channels if channels in (1, 3) else None
        source = source.fitted(channels=known, size=(size[0], size[1]))
    return laid_as(source, shape)
