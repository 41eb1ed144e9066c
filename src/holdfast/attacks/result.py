"""What an attack made of its rows, for a caller's own use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from holdfast.errors import InputError
from holdfast.spec import number

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, repr=False)
class AttackResult:
    """Adversarial examples, judged by the model itself; one entry a row in each array.

    The arrays are of the framework, and on the device, of the inputs that were attacked.

    Example:
        >>> result = holdfast.attack(model, x, y, "linf(0.3)", "fgsm")
        >>> result.x_adv[result.success]
    """

    x: Any  # [n, *shape] float: the inputs, in raw units
    # [n, *shape] float: the smallest example found; where there is none, the last input tried
    x_adv: Any
    y: Any  # [n] int: the true classes; [n, k] where there are k labels or outputs
    success: Any  # [n] bool: right at first, and x_adv is legal and fools the model
    wrong: Any  # [n] bool: misclassified before any attack
    skipped: Any  # [n] bool: of the class that is the target, and not attacked
    size: Any  # [n] float64: of x_adv - x in the threat's norm; NaN where there is no success
    before: Any  # [n] int: the class that the model gives x; negative: none
    after: Any  # [n] int: the class that it gives x_adv
    queries: Any  # [n] int: points asked about
    forwards: Any  # [n] int: passes of the model
    backwards: Any  # [n] int
    id: Any  # [n] int: row of the data
    attack: str
    threat: str
    survives_8bit: Any = None  # of images: [n] bool, also a success as a file of 8 bits holds it
    as_8bit: Any = (
        None  # of images: [n, *shape] float, x_adv rounded to the 256 levels of such a file
    )
    bounds: tuple[float, float] = (0.0, 1.0)
    layout: str = "nchw"

    def __len__(self) -> int:
        return len(self.y)

    def __repr__(self) -> str:
        return f"AttackResult({self.summary()})"

    def summary(self) -> str:
        """The counts and sizes in one line."""
        success, wrong, skipped, size = map(
            _numpy, (self.success, self.wrong, self.skipped, self.size)
        )
        attacked = ~wrong & ~skipped
        right, queries = int(attacked.sum()), _numpy(self.queries)[attacked]
        said = f"{self.attack} under {self.threat}: broke {int(success.sum()):,} of {right:,} rows"
        left = ((wrong, "wrong before"), (skipped, "of the target class"))
        more = [f"{int(rows.sum()):,} more {why}" for rows, why in left if rows.any()]
        if more:
            said += f" ({', '.join(more)})"
        if success.any():
            low, middle, high = (
                number(float(f"{v:.4g}")) for v in np.quantile(size[success], [0.25, 0.5, 0.75])
            )
            said += f"; size: median {middle}, half of them between {low} and {high}"
        return f"{said}; {queries.sum() / max(right, 1):,.1f} queries a row"

    def plot(self, n: int = 5) -> Figure:
        """Original, adversarial example and difference of the first n successes, then of other
        rows; a figure.

        Raises:
            InputError: the inputs are no images of one or three channels.
        """
        from matplotlib.figure import Figure

        x, found = (self._pictures(_numpy(part)) for part in (self.x, self.x_adv))
        success, before, after, y = map(_numpy, (self.success, self.before, self.after, self.y))
        rows = np.argsort(~success, kind="stable")[: max(1, n)]
        figure = Figure(figsize=(5.4, 1.9 * len(rows)), layout="constrained")
        axes = figure.subplots(len(rows), 3, squeeze=False)
        for line, i in zip(axes, rows, strict=True):
            change = found[i] - x[i]
            most = float(np.abs(change).max())
            truth = f", true class {y[i]}" if y.ndim == 1 and y[i] != before[i] else ""
            shown = (
                (x[i], f"original: {before[i]}{truth}"),
                (found[i], f"adversarial: {after[i]}"),
                (0.5 + change / (2 * most or 1), f"difference, at most {most * self._width:.3g}"),
            )
            for ax, (picture, title) in zip(line, shown, strict=True):
                ax.imshow(picture.clip(0, 1), cmap="gray", vmin=0, vmax=1)
                ax.set_title(title, fontsize=8)
                ax.set_axis_off()
        return figure

    @property
    def _width(self) -> float:
        return self.bounds[1] - self.bounds[0]

    def _pictures(self, x: np.ndarray) -> np.ndarray:
        """Rows as images [n, h, w] or [n, h, w, 3] in [0, 1]."""
        shape = x.shape[1:]
        if len(shape) == 3 and self.layout != "nhwc":
            x = np.moveaxis(x, 1, -1)
        if x.ndim not in (3, 4) or (x.ndim == 4 and x.shape[-1] not in (1, 3)):
            raise InputError(
                f"plot shows images of one or three channels, but the inputs are of shape {shape}."
            )
        if x.ndim == 4 and x.shape[-1] == 1:
            x = x[..., 0]
        return (x - self.bounds[0]) / self._width


def _numpy(value: Any) -> np.ndarray:
    return value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
