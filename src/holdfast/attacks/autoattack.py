"""AutoAttack as an object that is called as an attack is; in `holdfast.evaluate` it is a
protocol."""

from __future__ import annotations

from dataclasses import dataclass

from holdfast.attacks.attack import Craft
from holdfast.spec import Options, option


@dataclass(frozen=True)
class AutoAttack(Craft, Options):
    """AutoAttack (Croce and Hein 2020, arXiv:2003.01690): its attacks in their order, each on the
    rows that are not broken yet.

    Example:
        >>> result = holdfast.attacks.AutoAttack()(model, x, y, "linf(8/255)")

    Raises:
        SpecError: no such version.
    """

    version: str = option(
        "standard", "plus: more restarts; rand: for a randomised model",
        choices=("standard", "plus", "rand"),
    )  # fmt: skip

    @property
    def protocol(self) -> str:
        """The name of its list of trials."""
        return "autoattack" if self.version == "standard" else f"autoattack-{self.version}"
