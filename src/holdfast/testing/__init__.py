"""Small models of digits, broken defences and sound ones, for tests of the verdict and
for the docs.

`BROKEN[name]()` gives a defence that hides robustness it does not have, `SOUND[name](seed)` a model
without any trick. All take [n, 1, 8, 8] in [0, 1] to 10 scores, and are trained on the embedded
digits in a second or two, each once a process; the same seed gives the same weights on the same
machine.
"""

from __future__ import annotations

from holdfast.testing.broken import BROKEN, Defence
from holdfast.testing.sound import SOUND

__all__ = ["BROKEN", "SOUND", "Defence"]
