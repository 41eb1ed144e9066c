"""A softmax or a sigmoid at the end of a torch model changes nothing: the logits before it are
read."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import holdfast
from holdfast.targets import wrap
from holdfast.targets.target import Target
from holdfast.training.prepare import network_of

X = torch.rand(30, 1, 4, 4, generator=torch.Generator().manual_seed(1))


class Body(nn.Module):
    """Logits [n, k], times a scale."""

    def __init__(self, k: int = 3, scale: float = 300.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        first, last = nn.Linear(16, 12), nn.Linear(12, k)
        self.net = nn.Sequential(nn.Flatten(), first, nn.ReLU(), last)
        with torch.no_grad():
            last.weight.mul_(scale)
            last.bias.mul_(scale)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class Then(nn.Module):
    """A body, and a function of what it gives."""

    def __init__(self, body: nn.Module, end: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.body, self.end = body, end

    def forward(self, x: Tensor) -> Any:
        return self.end(self.body(x))


def two_columns(z: Tensor) -> Tensor:
    p = z.sigmoid()[:, 0]
    return torch.stack([1 - p, p], 1)


def formula(z: Tensor) -> Tensor:
    e = (z - z.amax(1, keepdim=True)).exp()
    return e / e.sum(1, keepdim=True)


def groups(z: Tensor) -> Tensor:
    return z.reshape(-1, 2, 2).softmax(2).reshape(-1, 4)


SOFTMAXES: dict[str, Callable[[nn.Module], Any]] = {
    "layer": lambda body: nn.Sequential(body, nn.Softmax(1)),
    "nested": lambda body: nn.Sequential(
        nn.Sequential(nn.Sequential(body), nn.Sequential(nn.Softmax(dim=-1)))
    ),
    "function": lambda body: Then(body, lambda z: F.softmax(z, dim=1)),
    "method": lambda body: Then(body, lambda z: z.softmax(-1)),
    "keyword": lambda body: Then(body, lambda z: torch.softmax(input=z, dim=1)),
    "kept from 0": lambda body: Then(body, lambda z: torch.clamp(z.softmax(1), min=1e-7)),
    "plain function": lambda body: lambda x: torch.softmax(body(x), 1),
    "shaped": lambda body: Then(body, lambda z: z[:, :, None, None].softmax(1).flatten(1)),
    "dict": lambda body: Then(body, lambda z: {"features": z * 2, "logits": z.softmax(1)}),
    "log-softmax": lambda body: Then(body, lambda z: z.log_softmax(1)),
    "log of softmax": lambda body: Then(body, lambda z: z.softmax(1).log()),
    "formula": lambda body: Then(body, formula),
    "two softmaxes": lambda body: Then(body, lambda z: (z + z.softmax(1) * 0).softmax(1)),
}
SIGMOIDS: dict[str, Callable[[nn.Module], Any]] = {
    "layer": lambda body: nn.Sequential(body, nn.Sigmoid()),
    "kept from 0 and 1": lambda body: Then(body, lambda z: z.sigmoid().clamp(1e-7, 1 - 1e-7)),
    "squeezed": lambda body: Then(body, lambda z: torch.sigmoid(z).squeeze(-1)),
    "formula": lambda body: Then(body, lambda z: 1 / (1 + torch.exp(-z))),
    "plain function": lambda body: lambda x: torch.special.expit(body(x))[:, 0],
}


def same(target: Target, logits: Target, *, exact: bool = True) -> None:
    """The same scores and gradients, and so the same statuses."""
    c = torch.randn(len(X), logits.task.k, generator=torch.Generator().manual_seed(2))
    (z, back), (known, pull) = target.linearize(X), logits.linearize(X)
    if exact:
        assert all(
            map(torch.equal, (target.scores(X), z, back(c)), (logits.scores(X), known, pull(c)))
        )
    c = c - c.mean(1, keepdim=True)  # of a loss, which no shift of the scores changes
    for a, b in ((target.scores(X), logits.scores(X)), (z, known)):
        assert torch.allclose(
            a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True), rtol=1e-4, atol=1e-3
        )
    assert torch.allclose(back(c), pull(c), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("scale", [1.0, 300.0])
@pytest.mark.parametrize("end", SOFTMAXES)
def test_the_logits_before_a_softmax_are_read(end: str, scale: float) -> None:
    """Line 2: wherever the softmax stands, scores and gradients are those of the same network
    without it."""
    body = Body(scale=scale).eval()
    exact = end != "formula"  # whose logits are shifted
    same(wrap(SOFTMAXES[end](body), shape=(1, 4, 4)), wrap(body, shape=(1, 4, 4)), exact=exact)


@pytest.mark.parametrize("scale", [1.0, 300.0])
@pytest.mark.parametrize("end", SIGMOIDS)
def test_the_logit_before_a_sigmoid_is_read(end: str, scale: float) -> None:
    """Line 2: of one output, which is a probability because a sigmoid stands there: class 1 above
    0.5."""
    body = Body(1, scale=scale).eval()
    target = wrap(SIGMOIDS[end](body), shape=(1, 4, 4))
    same(target, wrap(body, shape=(1, 4, 4)))
    assert target.head.probabilities
    assert torch.equal(target.labels(X), (body(X)[:, 0] > 0).long())


def test_two_columns_of_one_sigmoid_are_read() -> None:
    """Line 2: [1 - p, p] stacked, and one column of a softmax."""
    body = Body(1).eval()
    target = wrap(Then(body, two_columns), shape=(1, 4, 4))
    z = body(X)[:, 0]
    assert torch.allclose(target.scores(X), torch.stack([-z, z], 1))
    pair = Body(2).eval()
    one = wrap(Then(pair, lambda z: z.softmax(1)[:, 1]), shape=(1, 4, 4))
    assert torch.allclose(one.scores(X)[:, 1], pair(X)[:, 1] - pair(X)[:, 0])


def test_programs_are_read() -> None:
    """Line 2: a torch.export program and a TorchScript one."""
    body = Body().eval()
    whole = nn.Sequential(body, nn.Softmax(1)).eval()
    rows = {"input": {0: torch.export.Dim("rows", min=2)}}
    exported = torch.export.export(whole, (X,), dynamic_shapes=rows).module()
    same(wrap(exported, shape=(1, 4, 4)), wrap(body, shape=(1, 4, 4)), exact=False)
    with pytest.warns(DeprecationWarning, match="jit"):
        script = torch.jit.script(whole)
    target = wrap(script, shape=(1, 4, 4))
    same(target, wrap(body, shape=(1, 4, 4)), exact=False)
    assert torch.equal(script(X), whole(X))


@pytest.mark.parametrize(
    "end",
    [
        lambda z: z.softmax(0),
        lambda z: z.softmax(1) * 0.5,
        lambda z: z.softmax(1).clamp(0.2, 0.4),
        lambda z: z.softmax(1) + z,
        lambda z: z.softmax(1).clone().mul_(0.5),
        lambda z: z.sigmoid() * z,
    ],
)
def test_what_comes_after_an_activation_counts(end: Callable[[Tensor], Tensor]) -> None:
    """Line 2: outputs that are not simply the activation are taken as they are."""
    model = Then(Body(scale=1.0), end).eval()
    target = wrap(model, shape=(1, 4, 4))
    assert not target.head.reads
    assert torch.equal(target.scores(X), model(X))


def test_programs_that_end_in_another_softmax_are_taken_as_they_are() -> None:
    """Line 2: of a TorchScript one, over groups of its outputs."""
    model = Then(Body(4, scale=1.0), groups).eval()
    with pytest.warns(DeprecationWarning, match="jit"):
        script = torch.jit.trace(model, (X,))
    target = wrap(script, shape=(1, 4, 4))
    assert not target.head.reads
    assert torch.equal(target.scores(X), model(X))


def test_half_precision_programs_are_read() -> None:
    """Line 2: a TorchScript one in bfloat16."""
    whole = nn.Sequential(Body(scale=1.0), nn.Softmax(1)).eval().bfloat16()
    with pytest.warns(DeprecationWarning, match="jit"):
        script = torch.jit.trace(whole, (X.bfloat16(),))
    target = wrap(script, shape=(1, 4, 4))
    assert target.head.reads
    assert torch.allclose(target.scores(X).softmax(1), whole(X.bfloat16()).float(), atol=1e-2)


def test_probabilities_added_up_are_probabilities() -> None:
    """Line 2: of groups of classes; the linear layer at the end says nothing of what it gives."""
    body = Body(scale=1.0).eval()
    model = Then(body, lambda z: z.softmax(1) @ torch.tensor([[1.0, 0], [1, 0], [0, 1]])).eval()
    y = model(X).argmax(1)
    run = holdfast.evaluate(model, (X, y), "linf(0.02)", attacks=["fgsm"])
    assert run.manifest.model.probabilities


def test_a_softmax_over_one_output_is_what_it_gives() -> None:
    """Line 2: it is 1 whatever the input, so its logit would decide otherwise."""
    target = wrap(nn.Sequential(Body(1), nn.Softmax(1)).eval(), shape=(1, 4, 4), probabilities=True)
    assert target.labels(X).tolist() == [1] * len(X)


def test_half_precision_is_read() -> None:
    """Line 2: float16 rounds to 0 and 1 even sooner."""
    body = Body().eval()
    model = Then(body, lambda z: z.half().softmax(1))
    assert torch.equal(wrap(model, shape=(1, 4, 4)).scores(X), body(X).half().float())


def test_regression_keeps_its_sigmoid() -> None:
    """Line 2: numbers within (0, 1) are no probabilities, where the task says so; labels that may
    hold together are."""
    model = nn.Sequential(Body(2), nn.Sigmoid()).eval()
    numbers = wrap(model, shape=(1, 4, 4), task="regression(tolerance=0.1)")
    assert torch.equal(numbers.scores(X), model(X))
    assert not numbers.head.probabilities
    later = wrap(wrap(model, shape=(1, 4, 4)), task="regression(tolerance=0.1)")
    assert torch.equal(later.scores(X), model(X))
    labels = wrap(model, shape=(1, 4, 4), task="multilabel")
    assert torch.equal(labels.scores(X), model[0](X))


def test_the_fingerprint_is_the_users_models() -> None:
    """Line 2: with and without a softmax are two models; and neither is changed."""
    body = Body().eval()
    whole = nn.Sequential(body, nn.Softmax(1)).eval()
    before = copy.deepcopy(whole.state_dict())
    target: Any = wrap(whole, shape=(1, 4, 4))
    assert target.fingerprint() == wrap(whole, shape=(1, 4, 4)).fingerprint()
    assert target.fingerprint() != wrap(body, shape=(1, 4, 4)).fingerprint()
    assert isinstance(target.model, nn.Sequential)
    assert isinstance(target.model[1], nn.Softmax)
    assert all(torch.equal(before[name], value) for name, value in whole.state_dict().items())


def test_hardening_trains_on_logits_and_keeps_the_softmax() -> None:
    """Line 2: gradients on weights do not vanish either."""
    whole = nn.Sequential(Body(), nn.Softmax(1)).eval()
    target: Any = wrap(whole, shape=(1, 4, 4))
    network: Any = network_of(whole, target)
    z = target.live(network.net).outputs(X)
    assert torch.equal(z, whole[0](X))
    (g,) = torch.autograd.grad(
        F.cross_entropy(z, (z.argmax(1) + 1) % 3), [network.net[0].net[1].weight]
    )
    assert float(g.abs().max()) > 0
    assert isinstance(network.net[1], nn.Softmax)


def test_the_faster_twin_is_read() -> None:
    """Line 2: batch norm folded, channels last; and a model with logits is asked without a
    detour."""
    torch.manual_seed(0)
    features = nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 8, 3)
    )
    body = nn.Sequential(features, nn.Flatten(), nn.Linear(32, 3)).eval()
    target: Any = wrap(Then(body, lambda z: (300 * z).softmax(1)), shape=(1, 4, 4))
    assert target.gradients.approximate
    assert target.channels_last
    same(target, wrap(Then(body, lambda z: 300 * z), shape=(1, 4, 4)), exact=False)
    assert not wrap(body, shape=(1, 4, 4)).head.reads


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # of the compiler's own imports
# which the compiler itself asks for
@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")
@pytest.mark.parametrize("end", [nn.Softmax(1), nn.LogSoftmax(1)])
def test_a_compiled_twin_is_read(end: nn.Module) -> None:
    """Line 2: torch.compile."""
    body = Body().eval()
    target = wrap(nn.Sequential(body, end), shape=(1, 4, 4), compile=True)
    assert target.gradients.approximate
    known = wrap(body, shape=(1, 4, 4))
    for asked in (X, X[:7]):
        c = torch.ones(len(asked), 3).cumsum(1)
        (z, g), (expected, slope) = (t.pull(asked, lambda _, c=c: c) for t in (target, known))
        assert torch.allclose(z, expected, rtol=1e-4, atol=1e-3)
        assert torch.allclose(g, slope, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(("k", "eps"), [(1, 0.3), (3, 0.02)])
def test_statuses_are_those_of_the_logits(k: int, eps: float) -> None:
    """Line 2: row by row, and it is not what a saturated float32 leaves."""
    body = Body(k).eval()
    last = nn.Sigmoid() if k == 1 else nn.Softmax(1)
    y = wrap(body, shape=(1, 4, 4)).labels(X)
    runs = [
        holdfast.evaluate(model, (X, y), f"linf({eps})", attacks=["apgd(steps=10)"])
        for model in (body, nn.Sequential(body, last), Then(body, last))
    ]
    columns = [run.samples.column("status").to_pylist() for run in runs]
    assert columns[0] == columns[1] == columns[2]
    assert {"broken", "robust"} <= set(columns[0])
    assert "probabilities" in [finding.check for finding in runs[1].verdict.findings]


@pytest.mark.slow
@pytest.mark.parametrize("scale", [1.0, 30.0, 300.0])
@pytest.mark.parametrize("k", [1, 3])
def test_the_standard_protocol_leaves_what_it_leaves_of_logits(k: int, scale: float) -> None:
    """Line 2: the law, on the whole protocol: at most one point."""
    body = Body(k, scale).eval()
    y = wrap(body, shape=(1, 4, 4)).labels(X)
    last = nn.Sigmoid() if k == 1 else nn.Softmax(1)
    a, b = (
        float(holdfast.evaluate(m, (X, y), "linf(0.02)").robust_accuracy.value or 0)
        for m in (body, Then(body, last))
    )
    assert abs(a - b) <= 0.01
