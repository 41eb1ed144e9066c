"""Results: what a search counts, and what the judge then says of it to a caller."""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import IntEnum
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from holdfast.data.arrays import like
from holdfast.errors import InputError
from holdfast.intervals import Interval, interval
from holdfast.spec import number

if TYPE_CHECKING:
    from matplotlib.figure import Figure


# the largest legal size where eps is inf: that of anything found
UNLIMITED = torch.finfo(torch.float64).max


class Outcome(IntEnum):
    """How a row's search ended."""

    SURVIVED = 0  # all steps done, nothing found
    BROKEN = 1  # a legal point meets the goal
    FAILED = 2  # the model gave non-finite scores or gradients
    SPENT = 3  # the budget ended the search


@dataclass
class SearchResult:
    """What a search found and what it cost, as it counts itself; n rows, those that `run` was
    given, in their order. Only the judge says what of it is a success: see `AttackResult`."""

    size: Tensor  # [n] float64: the smallest perturbation that met the goal; inf if none
    # [n, *shape]: the point at it; if none, the legal one of the lowest margin (of labels: the
    # last)
    best: Tensor
    limit: Tensor  # [n] float64: the largest legal size
    # [n] float64: the lowest margin at a legal point (NaN for a target that gives labels)
    margin: Tensor
    outcome: Tensor  # [n] int8
    queries: Tensor  # [n] int64: points asked about
    forwards: Tensor  # [n] int64: model passes, more than queries where one question costs several
    backwards: Tensor  # [n] int64
    zero_gradients: Tensor  # [n] int64: gradients that were exactly zero

    @staticmethod
    def open(x: Tensor, limit: Tensor) -> SearchResult:
        """Nothing found yet for rows whose search starts at x."""
        count = [torch.zeros(len(x), dtype=torch.int64, device=x.device) for _ in range(4)]
        far = torch.full((len(x),), torch.inf, dtype=torch.float64, device=x.device)
        outcome = torch.zeros(len(x), dtype=torch.int8, device=x.device)
        return SearchResult(far, x.clone(), limit, far.clone(), outcome, *count)

    @property
    def broken(self) -> Tensor:
        return self.size <= self.limit

    def charge(
        self,
        rows: Tensor,
        *,
        queries: int | Tensor = 0,
        forwards: int | Tensor = 0,
        backwards: int = 0,
    ) -> None:
        for column, cost in (
            (self.queries, queries),
            (self.forwards, forwards),
            (self.backwards, backwards),
        ):
            if isinstance(cost, Tensor) or cost:
                column[rows] += cost

    def record(self, rows: Tensor, x: Tensor, size: Tensor) -> None:
        """Points x that met the goal, at these sizes; kept where smaller than what is known."""
        better = (size < self.size[rows]).nonzero()[:, 0]
        at = rows[better]
        self.size[at] = size[better]
        self.best[at] = x.index_select(0, better)
        self.outcome[rows[size <= self.limit[rows]]] = Outcome.BROKEN

    def end(self, rows: Tensor, outcome: Outcome) -> None:
        self.outcome[rows[self.outcome[rows] == Outcome.SURVIVED]] = outcome

    def columns(self) -> dict[str, Tensor]:
        return {field.name: getattr(self, field.name) for field in fields(self)}


@dataclass(frozen=True, repr=False)
class AttackResult:
    """Adversarial examples, judged by the model itself; one entry a row in each array.

    The arrays are of the framework, and on the device, of the inputs that were attacked.

    Example:
        >>> result = holdfast.attack(model, x, y, "linf(0.3)", "fgsm")
        >>> result.x_adv[result.success]
    """

    x: Any  # [n, *shape] float: the inputs, in raw units; or a DataFrame
    # [n, *shape] float: the smallest example found; where there is none, the input of the lowest
    # margin that was tried
    x_adv: Any
    y: Any  # [n] int: the true classes; [n, k] where there are k labels or outputs
    success: Any  # [n] bool: right at first, and x_adv is legal and fools the model
    wrong: Any  # [n] bool: misclassified before any attack
    # [n] bool: not attacked, since of the class that is the target, or with nothing to lose
    skipped: Any
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

    @property
    def clean_accuracy(self) -> Interval:
        """The share of the attacked rows, and of those wrong before, that are right before."""
        return self._share(~_numpy(self.wrong))

    @property
    def robust_accuracy(self) -> Interval:
        """The share of these rows that are right and were not broken: what this attack leaves of
        the clean accuracy, and so an upper bound."""
        return self._share(~_numpy(self.wrong) & ~_numpy(self.success))

    def _share(self, held: np.ndarray) -> Interval:
        counted = ~_numpy(self.skipped)
        return interval(int((held & counted).sum()), int(counted.sum()))

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
        left = ((wrong, "wrong before"), (skipped, "skipped"))
        more = [f"{int(rows.sum()):,} more {why}" for rows, why in left if rows.any()]
        if more:
            said += f" ({', '.join(more)})"
        if success.any():
            low, middle, high = (
                number(float(f"{v:.4g}")) for v in np.quantile(size[success], [0.25, 0.5, 0.75])
            )
            said += f"; size: median {middle}, half of them between {low} and {high}"
            if self._signals:
                middle = np.median(_numpy(self.snr_db)[success])
                said += f"; signal-to-noise ratio: median {middle:.1f} dB"
        return f"{said}; {queries.sum() / max(right, 1):,.1f} queries a row"

    @property
    def snr_db(self) -> Any:
        """[n] float64: the power of x over that of x_adv - x, in decibels; NaN where there is no
        success. The summary says its median where inputs [n, t] or [n, c, t] lie around 0."""
        x, found = (
            _numpy(part).reshape(len(self), -1).astype(float) for part in (self.x, self.x_adv)
        )
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = 10 * np.log10((x**2).sum(1) / ((found - x) ** 2).sum(1))
        return like(np.where(_numpy(self.success), ratio, np.nan), self.x)

    @property
    def _signals(self) -> bool:
        """Whether the inputs can be sounds or other series: rows of [t] or [c, t] around 0."""
        low, high = self.bounds
        return not hasattr(self.x, "columns") and _numpy(self.x).ndim in (2, 3) and low == -high

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
