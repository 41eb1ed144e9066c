"""Distil: a surrogate trained on the answers of a model that gives nothing but answers."""

from __future__ import annotations

import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from holdfast.errors import InputError
from holdfast.targets.frameworks.pytorch.target import TorchTarget
from holdfast.targets.target import Access, Bounds, Target, sealed


def distil(
    target: Target,
    x: Tensor,
    *,
    queries: int,
    module: nn.Module | None = None,
    step: float = 0.1,
    epochs: int = 20,
    batch_size: int = 64,
    rate: float = 1e-3,
    seed: int = 0,
) -> Target:
    """A surrogate that answers like the target, whose gradients a `Surrogate` uses.

    Substitute training (Papernot et al. 2017, arXiv:1602.02697, algorithm 1). Of the inputs as many
    are asked about as `queries` allows. What is left is spent in rounds: each trains on all answers
    so far, then moves every point by the sign of the surrogate's own gradient and asks about the
    result, which about doubles what is known.
    Differs from the paper: where the target gives scores, its softmax is learnt and not its label
    alone; the first round moves towards other classes, the next away, and so on (Papernot et al.
    2016, arXiv:1605.07277), each point by its own length, or many would return to where they came
    from.

    Args:
        x: inputs [n, *shape] in the target's raw units, of the kind to be attacked; labels are not
            needed.
        queries: the most points that the target is asked about; all are spent.
        module: what to train, on a copy, from raw inputs (images: nchw) to scores. Default: a small
            convolutional network for images, and three linear layers for other inputs.
        step: how far a point moves, give or take half of it, as a share of the bounds.
        epochs: passes over all answers in each round.
        seed: of the initial weights and of every order; the same seed gives the same weights on the
            same machine.

    Raises:
        InputError: no queries, no inputs, or no answers that can be learnt.
    """
    if queries < 1 or len(x) < 1:
        raise InputError(
            f"distil has {queries} queries and {len(x)} inputs; give at least 1 of each."
        )
    shape = tuple(x.shape[1:])
    target.bind(shape)
    with sealed(seed):
        net = _small_net(_turned(x[:1], target).shape[1:], target.task.k, target.bounds)
        net = (net if module is None else copy.deepcopy(module)).to(
            target.batcher.device, torch.float32
        )
        adam = torch.optim.Adam(net.parameters(), rate)
        asked = x[torch.randperm(len(x))[:queries].to(x.device)].to(
            target.batcher.device, torch.float32
        )
        answers = _ask(target, asked)
        sign = -1
        while True:
            for _ in range(epochs):
                _learn(net, adam, _turned(asked, target), answers, batch_size)
            left = queries - len(asked)
            if not left:
                break
            some = asked[torch.randperm(len(asked))[:left].to(asked.device)]
            length = (0.5 + torch.rand(len(some), *[1] * len(shape)).to(some)) * (
                target.bounds.high - target.bounds.low
            )
            shifted = (some + sign * step * length * _slope(net, some, target)).clamp(
                *target.bounds.sides(some)
            )
            asked, answers = (
                torch.cat([asked, shifted]),
                torch.cat([answers, _ask(target, shifted)]),
            )
            sign = -sign
    given = {"shape": shape, "bounds": target.bounds, "batch_size": target.batcher.size}
    return TorchTarget(net.eval(), layout={3: target.inputs.layout}.get(len(shape)), **given)


def _ask(target: Target, x: Tensor) -> Tensor:
    """What the target says, as probabilities [n, k]; one query a row. NaN where it refuses."""
    x = x.to(target.batcher.dtype)
    if target.access >= Access.SCORES:
        z = target.batcher.in_parts(target.scores, x)[:, : target.task.k]
        return z.softmax(1).float()
    labels = target.batcher.in_parts(target.labels, x)
    certain = F.one_hot(labels.clamp_min(0), target.task.k).float()
    return torch.where(labels[:, None] < 0, torch.nan, certain)


def _learn(
    net: nn.Module, adam: torch.optim.Optimizer, x: Tensor, answers: Tensor, batch_size: int
) -> None:
    """One pass over the answers that are any."""
    answered = answers.isfinite().all(1).nonzero()[:, 0]
    if not len(answered):
        raise InputError("the model under test refuses every input, so there is nothing to distil.")
    net.train()
    with torch.enable_grad():
        # Parts of even size: a batch norm cannot train on a last one of a single row.
        for rows in answered[torch.randperm(len(answered)).to(answered.device)].tensor_split(
            -(-len(answered) // batch_size)
        ):
            # Up to a constant the divergence from the target's softmax; for a label, the
            # cross-entropy.
            loss = F.cross_entropy(net(x[rows]), answers[rows])
            adam.zero_grad()
            loss.backward()
            adam.step()
    net.eval()


def _slope(net: nn.Module, x: Tensor, target: Target) -> Tensor:
    """The sign of the gradient of the score that leads at each x, over the others'."""
    parts = []
    for part in x.split(target.batcher.size):
        with torch.enable_grad():
            leaf = part.detach().clone().requires_grad_()
            leading = net(_turned(leaf, target)).log_softmax(1).amax(1).sum()
            parts.append(torch.autograd.grad(leading, leaf)[0].sign())
    return torch.cat(parts)


def _turned(x: Tensor, target: Target) -> Tensor:
    """Images as nchw."""
    return x.movedim(-1, 1) if target.inputs.layout == "nhwc" and x.ndim == 4 else x


class _Scaled(nn.Module):
    """Raw inputs so that `zero` becomes 0, and `one` 1."""

    def __init__(self, zero: float, one: float) -> None:
        super().__init__()
        self.zero, self.reach = zero, one - zero

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.zero) / self.reach

    def extra_repr(self) -> str:
        return f"{self.zero}, {self.reach}"


def shallow_net(target: Target, seed: int) -> nn.Module | None:
    """A network of two convolutions, each halved, and two linear layers, for the images of a bound
    target; None where its inputs are none.

    For `distil`: FGSM's examples transfer from it as often as from the default, or more often.
    """
    if target.shape is None or len(target.shape) != 3:
        return None
    c, h, w = _turned(torch.empty(1, *target.shape), target).shape[1:]
    with sealed(seed):
        return nn.Sequential(
            _Scaled(target.bounds.low, target.bounds.high),
            *(nn.Conv2d(c, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2, ceil_mode=True)),
            *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2, ceil_mode=True)),
            *(nn.Flatten(), nn.Linear(32 * -(-h // 4) * -(-w // 4), 128), nn.ReLU()),
            nn.Linear(128, target.task.k),
        )


def _small_net(shape: tuple[int, ...], k: int, bounds: Bounds) -> nn.Module:
    """For images: 3x3 convolutions, halved until a side is at most 8; for others: three linear
    layers."""
    centred = _Scaled((bounds.low + bounds.high) / 2, bounds.high)
    if len(shape) != 3:
        features = math.prod(shape)
        body: list[nn.Module] = [
            nn.Flatten(),
            nn.Linear(features, 128),
            nn.ReLU(),
            nn.Linear(128, 128),
            nn.ReLU(),
        ]
        return nn.Sequential(centred, *body, nn.Linear(128, k))
    (c, h, w), width, body = shape, 16, []
    while max(h, w) > 8:
        body += [nn.Conv2d(c, width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2, ceil_mode=True)]
        c, h, w, width = width, -(-h // 2), -(-w // 2), min(2 * width, 64)
    body += [
        nn.Conv2d(c, width, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2, ceil_mode=True),
        nn.Flatten(),
    ]
    body += [nn.Linear(2 * width * -(-h // 2) * -(-w // 2), 64), nn.ReLU(), nn.Linear(64, k)]
    return nn.Sequential(centred, *body)
