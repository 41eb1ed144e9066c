"""For tests: an assertion on a model of your own, and small models of digits to try things on.

`assert_robust(model, data, threat, at_least=0.6)` fails where the model is less robust.

`BROKEN[name]()` gives a defence that hides robustness it does not have, `SOUND[name](seed)` a model
without any trick. All take [n, 1, 8, 8] in [0, 1] to 10 scores, and are trained on the embedded
digits in a second or two, each once a process; the same seed gives the same weights on the same
machine. `scenes_of_digits(n, seed)` gives images of several digits, with their boxes and masks.
Names are imported when first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from holdfast.testing.assertion import assert_robust
    from holdfast.testing.broken import BROKEN, Defence
    from holdfast.testing.scenes import Scenes, scenes_of_digits
    from holdfast.testing.sound import SOUND

__all__ = ["BROKEN", "SOUND", "Defence", "Scenes", "assert_robust", "scenes_of_digits"]

_HOMES = {
    "BROKEN": "broken",
    "Defence": "broken",
    "SOUND": "sound",
    "Scenes": "scenes",
    "assert_robust": "assertion",
    "scenes_of_digits": "scenes",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'holdfast.testing' has no attribute {name!r}")
    return getattr(importlib.import_module(f"holdfast.testing.{_HOMES[name]}"), name)
