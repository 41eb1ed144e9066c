"""The user's own data: what `path/file.py:factory` or `package.module:factory` returns. This form
runs code."""

from __future__ import annotations

import os

from holdfast import usercode
from holdfast.data.source import Source
from holdfast.errors import InputError


def open_factory(name: str, scale: bool) -> Source:
    """Call the factory that `name` spells; it gives whatever `as_source` takes but a text.

    Raises:
        InputError: no such file, module or factory; it raised; or it returned something else.
    """
    from holdfast.data.objects import FORMS, from_object

    spec = os.path.expanduser(name)
    make = usercode.find(spec)
    with usercode.importable(usercode.home(spec)):
        made = usercode.call(name, make)
        if isinstance(made, Source):
            return made
        if made is None or isinstance(made, (str, int, float)):
            raise InputError(f"{name} returned {type(made).__name__}; expected {FORMS}.")
        return from_object(made, scale=scale, name=name)
