"""An objective: the points that a network is trained at, and the loss there. The two that need no
more than the base class are here."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor

from holdfast.attacks.gradient.pgd import PGD as Ascent
from holdfast.bounds.graph import Program
from holdfast.spec import Options, option
from holdfast.targets import TorchTarget
from holdfast.threats.threat import Threat
from holdfast.training.inner_attack import AttackNetwork, InnerAttack


@dataclass(frozen=True)
class Net:
    """The network that is trained: scores [n, k] of x that gradients flow through."""

    now: Callable[[Tensor], Tensor]
    given: Callable[[Tensor], Tensor]  # its scores as it was given, which training does not change
    inner: InnerAttack | None = None  # what finds points for it

    def __call__(self, x: Tensor) -> Tensor:
        return self.now(x)


class Objective(Options):
    """One way to train: `points` finds the points x' to train at, `loss` is what is then minimised.

    Below, p = softmax f(x) and p' = softmax f(x'). Where a subclass says no more than its fields,
    x' is the end of projected ascent of the cross-entropy, and the loss is the cross-entropy there.
    """

    asks: ClassVar[int] = 1  # points a row that the loss asks about
    further: ClassVar[int] = 0  # forwards a row in addition to those of the steps and of the loss
    # whether it changes inputs by amounts of their own units, which the columns of a table do not
    # share
    raw: ClassVar[bool] = False
    steps: int = 1  # of the inner attack
    step_size: float  # fraction of eps
    smoothing: float  # share of a label spread over all classes

    @property
    def passes(self) -> int:
        """Forward and backward passes that a row of one training step costs."""
        return 2 * self.steps + 2 * self.asks + self.further

    @property
    def replays(self) -> int:
        """Steps of the optimiser that one batch takes."""
        return 1

    def stronger(self) -> Objective:
        """The objective to go on with where the inner attack is fooled: one with twice the
        steps."""
        steps = max(2, 2 * self.steps)
        more: dict[str, Any] = {"steps": steps, "step_size": max(0.25, 1 / steps)}
        if "steps" in vars(self):  # where it is an option
            return replace(self, **more)  # pyright: ignore[reportArgumentType]
        return PGD(**more, smoothing=self.smoothing)

    def attack_network(self, target: TorchTarget) -> AttackNetwork | None:
        """A network that makes adversarial points and is trained too, newly initialised; None:
        there is none."""
        return None

    def program(self, target: TorchTarget, threat: Threat) -> Program | None:
        """The operators of the network where the objective bounds what it answers under the threat;
        None: it does not.

        Raises:
            InputError: no bounds are known of such a network, or under such a threat.
        """
        return None

    def proved(self, inner: InnerAttack, x: Tensor, y: Tensor) -> Tensor | None:
        """On which rows those bounds leave no other class: bool [n]; None: there are none."""
        return None

    def teach(self, inner: InnerAttack, x: Tensor, y: Tensor) -> None:
        """One step of that network, before the model's."""

    def points(self, inner: InnerAttack, x: Tensor, y: Tensor) -> Tensor:
        """The points x' to train at: [n, *shape], or several a row, [m n, *shape]: all first points
        come first."""
        return inner(Ascent(steps=self.steps, step_size=self.step_size, loss="ce"), x, y)

    def loss(self, net: Net, x: Tensor, x_adv: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The loss of each point, and the scores at x': [n] and [n, k], or [m n] and [m n, k].

        Whoever trains takes the mean, in which rows of some classes may count more.
        """
        return crossed(net, x_adv, y.repeat(len(x_adv) // len(y)), self.smoothing)


@dataclass(frozen=True, kw_only=True)
class Searching(Objective):
    """One that trains where an inner attack of several steps ends: their common options, by name.

    The defaults are those of the adversarial training of Madry et al. 2018 (arXiv:1706.06083).
    """

    steps: int = option(10, "of the inner attack", at_least=1)
    step_size: float = option(0.25, "fraction of eps", at_least=0)
    smoothing: float = option(0.0, "share of a label spread over all classes", at_least=0)


@dataclass(frozen=True)
class Standard(Objective):
    """CE(f(x), y): the undefended baseline."""

    steps = 0
    smoothing: float = option(0.0, "share of a label spread over all classes", at_least=0)

    def points(self, inner: InnerAttack, x: Tensor, y: Tensor) -> Tensor:
        return x


@dataclass(frozen=True)
class PGD(Objective):
    """CE(f(x'), y) at the end of projected gradient ascent (Madry et al. 2018,
    arXiv:1706.06083)."""

    steps: int = option(10, "of the inner attack", at_least=1)
    step_size: float = option(0.25, "fraction of eps", at_least=0)
    smoothing: float = option(0.0, "share of a label spread over all classes", at_least=0)


class Regularizer(Options, ABC):
    """One penalty. The fields are its hyperparameters; they only store."""

    weight: float
    costs: ClassVar[int] = 0
    raw: ClassVar[bool] = False  # as of an `Objective`, or whether it compares slopes in such units

    @property
    def passes(self) -> int:
        """Forward and backward passes that it costs a row of one training step."""
        return self.costs

    @abstractmethod
    def penalty(self, net: Net, inner: InnerAttack, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        """The mean over rows x [n, *shape] of classes y [n], weighted; z [m n, k] are the scores
        trained at."""


def crossed(net: Net, x: Tensor, y: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
    """The cross-entropy of each row at x, [n], and the scores there, [n, k]."""
    z = net(x)
    return F.cross_entropy(z, y, label_smoothing=smoothing, reduction="none"), z


def divergence(there: Tensor, z: Tensor) -> Tensor:
    """KL(p, p') of scores z at x and `there` at x': [n]."""
    return F.kl_div(there.log_softmax(1), z.log_softmax(1), reduction="none", log_target=True).sum(
        1
    )


def distance(there: Tensor, z: Tensor) -> Tensor:
    """|p' - p|^2 of the same: [n]."""
    return (there.softmax(1) - z.softmax(1)).square().sum(1)
