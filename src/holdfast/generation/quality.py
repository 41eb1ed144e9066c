"""How good generated rows are: close to the real ones, as varied, of the class asked for, useful,
and no mere copies."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from holdfast.data import Source, from_arrays
from holdfast.data.part import Part
from holdfast.generation.nets import Frame, Reader
from holdfast.targets import TorchTarget
from holdfast.targets.target import Bounds, sealed
from holdfast.training.train import train

_SUBSET = 1000  # rows of which one KID is taken, in float64
_AT_ONCE = 500
_READ = 40_000  # rows that a classifier sees in its training, over all epochs


@dataclass
class Quality:
    """The measure of a generator. All distances but the copies' are between features of a network
    of the data's own domain, so they compare only where that network is the same."""

    n: int  # samples measured
    real: int  # real rows that they were measured against; none of them trained the generator
    # Frechet distance of two normal distributions (arXiv:1706.08500); biased upwards for few rows
    fid: float
    # the same between real training rows and those rows: what a perfect generator would reach
    fid_real: float
    kid: float  # squared maximum mean discrepancy, polynomial kernel, unbiased (arXiv:1801.01401)
    kid_real: float
    precision: float  # share of samples that lie among real rows (arXiv:1904.06991)
    recall: float  # share of real rows that lie among samples
    # by class: the share of samples that the classifier takes for what was asked
    right: list[float]
    # by class: how far samples differ among themselves, 1: as much as real rows do
    spread: list[float]
    trained: float  # accuracy on real rows of a classifier trained on samples
    trained_real: float  # and of one trained on as many real rows
    # share of samples nearer to a training row than 1 % of real rows are: 0.01 is no memory
    copies: float


def reader(frame: Frame, k: int, data: Source, seed: int, most: int = 10_000) -> Reader:
    """A small classifier trained on (some of) the data; a thousand steps or so."""
    rows = np.sort(np.random.default_rng(seed).permutation(len(data))[:most])
    part = Part(data, rows, "some rows")
    epochs = max(2, min(20, -(-_READ // len(part))))
    with sealed(seed):
        bounds = Bounds(float(frame.low.min()), float(frame.high.max()))
        target = TorchTarget(Reader(frame, k).to(frame.middle.device), bounds=bounds)
        target.bind(frame.raw)
        net = train(target, part, epochs=epochs, seed=seed)
        assert isinstance(net, Reader)
        net.size = (
            torch.from_numpy(features(net, some(part, 1000, seed)[0]))
            .square()
            .mean()
            .sqrt()
            .to(net.size)
        )
    return net.requires_grad_(False)


def measure(
    net: Reader,
    x: Tensor,
    y: Tensor,
    data: Source,
    test: Source,
    *,
    seed: int = 0,
    most: int = 10_000,
) -> Quality:
    """Measure samples x [n, *shape] of classes y [n].

    Args:
        net: whose features are compared.
        data: the rows that the generator was trained on; at most `most` of them are read.
        test: real rows that it was not trained on.
    """
    real, _ = some(data, len(x), seed)
    held, of = some(test, most, seed)
    f_made, f_real, f_held = (features(net, part) for part in (x, real, held))
    right, spread = by_class(net, x, y, held, of)
    precision, recall = covered(f_made, f_held)
    own = from_arrays(x.cpu().numpy(), y.cpu().numpy(), scale=False)
    return Quality(
        n=len(x),
        real=len(held),
        fid=fid(f_made, f_held),
        fid_real=fid(f_real, f_held),
        kid=kid(f_made, f_held),
        kid_real=kid(f_real, f_held),
        precision=precision,
        recall=recall,
        right=right,
        spread=spread,
        trained=accuracy(reader(net.frame, net.head.out_features, own, seed, len(x)), held, of),
        trained_real=accuracy(
            reader(net.frame, net.head.out_features, data, seed, len(x)), held, of
        ),
        copies=copies(x, held, data),
    )


def some(data: Source, most: int, seed: int) -> tuple[Tensor, Tensor]:
    """At most so many rows x [m, *shape] and classes y [m] of the data, drawn by the seed, in
    random order."""
    drawn = np.random.default_rng(seed).permutation(len(data))[:most]
    x, y = Part(data, np.sort(drawn), "some rows").rows(0, len(drawn))
    # what is read in the order of the data is put back: KID takes subsets in turn
    order = drawn.argsort().argsort()
    x, y = x[order], y[order]
    return torch.from_numpy(x).float(), torch.from_numpy(np.asarray(y, dtype=np.int64))


def features(net: Reader, x: Tensor) -> np.ndarray:
    """[n, 64] float64."""
    with torch.no_grad():
        parts = [net.features(part) for part in x.split(_AT_ONCE)]
    return torch.cat(parts).double().cpu().numpy()


def accuracy(net: Reader, x: Tensor, y: Tensor) -> float:
    return float((decided(net, x) == y.cpu()).double().mean())


def decided(net: Reader, x: Tensor) -> Tensor:
    """The classes [n] that a classifier decides for."""
    with torch.no_grad():
        return torch.cat([net(part).argmax(1).cpu() for part in x.split(_AT_ONCE)])


def by_class(
    net: Reader, x: Tensor, y: Tensor, real: Tensor, of: Tensor
) -> tuple[list[float], list[float]]:
    """Of each class: the share of samples recognised, and their spread in the frame relative to
    that of real rows."""
    seen, y, of = decided(net, x), y.cpu(), of.cpu()
    right, spread = [], []
    for c in range(net.head.out_features):
        mine, real_ones = x[y == c], real[of == c]
        right.append(int((seen[y == c] == c).sum()) / max(len(mine), 1))
        enough = len(mine) > 1 and len(real_ones) > 1
        spread.append(
            _spread(net.frame, mine) / max(_spread(net.frame, real_ones), 1e-12)
            if enough
            else float("nan")
        )
    return right, spread


def _spread(frame: Frame, x: Tensor) -> float:
    """The root of the mean squared distance between two rows."""
    u = frame.inward(x).flatten(1).double()
    return float((2 * u.var(0).sum()).sqrt())


def fid(a: np.ndarray, b: np.ndarray) -> float:
    """|mean difference|^2 + tr(A + B - 2 (A B)^(1/2)) of features [n, d] and [m, d]."""
    one, other = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    values, axes = np.linalg.eigh(one)
    root = (axes * np.sqrt(values.clip(0))) @ axes.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ other @ root).clip(0)).sum()
    apart = a.mean(0) - b.mean(0)
    return float(max(0.0, apart @ apart + np.trace(one) + np.trace(other) - 2 * cross))


def kid(a: np.ndarray, b: np.ndarray) -> float:
    """The unbiased squared MMD under (x.y / d + 1)^3, mean over subsets of 1,000; may be below
    0."""
    found = []
    for start in range(0, max(1, min(len(a), len(b)) - _SUBSET + 1), _SUBSET):
        x, y = a[start : start + _SUBSET], b[start : start + _SUBSET]
        (xx, yy, xy) = (((p @ q.T) / a.shape[1] + 1) ** 3 for p, q in ((x, x), (y, y), (x, y)))
        n, m = len(x), len(y)
        within = (xx.sum() - np.trace(xx)) / (n * (n - 1)) + (yy.sum() - np.trace(yy)) / (
            m * (m - 1)
        )
        found.append(within - 2 * xy.mean())
    return float(np.mean(found))


def covered(made: np.ndarray, real: np.ndarray, k: int = 3) -> tuple[float, float]:
    """Improved precision and recall: shares of each that lie within the k-nearest-neighbour balls
    of the other.

    As many of both are compared, up to 5,000.
    """
    n = min(len(made), len(real), 5000)
    a, b = torch.from_numpy(made[:n]), torch.from_numpy(real[:n])

    def within(points: Tensor, of: Tensor) -> float:
        reach = torch.cat(
            [torch.cdist(p, of).kthvalue(min(k + 1, n), 1).values for p in of.split(_AT_ONCE)]
        )
        inside = [(torch.cdist(p, of) <= reach).any(1) for p in points.split(_AT_ONCE)]
        return float(torch.cat(inside).double().mean())

    return within(a, b), within(b, a)


def copies(x: Tensor, held: Tensor, data: Source) -> float:
    """The share of samples that are closer to a training row than all but 1 % of the held-out rows
    are."""
    x, held = x[:2000].flatten(1).cpu(), held[:2000].flatten(1).cpu()
    closest = [torch.full((len(part),), torch.inf) for part in (x, held)]
    for start in range(0, len(data), 8192):
        rows = torch.from_numpy(data.rows(start, start + 8192)[0]).float().flatten(1)
        closest = [
            torch.minimum(
                best, torch.cat([torch.cdist(p, rows).amin(1) for p in part.split(_AT_ONCE)])
            )
            for best, part in zip(closest, (x, held), strict=True)
        ]
    return float((closest[0] < torch.quantile(closest[1], 0.01)).double().mean())
