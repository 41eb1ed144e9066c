"""What other certifiers have got wrong: nothing of it is called a proof here."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from helpers.bounds import check_positive
from helpers.networks import CLASSES, KINDS, SHAPE, network
from torch import Tensor, nn

from holdfast import bounds
from holdfast.bounds import Margins, Rows, margins, region, trace
from holdfast.errors import InputError, SpecError
from holdfast.targets.target import Bounds
from holdfast.threats.threat import Threat

X = torch.full((2, *SHAPE), 0.5)
Y = torch.tensor([0, 1])


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def of(*rows: list[float], rounding: float = 0.0) -> Margins:
    lower = torch.tensor(rows, dtype=torch.float64)
    return Margins(lower, torch.full_like(lower, rounding), "crown")


@pytest.mark.parametrize("bad", [float("nan"), -float("inf"), 0.0, -1e-300])
def test_what_is_not_above_0_is_not_proved(bad: float) -> None:
    check_positive(bad)


def test_what_rounding_may_take_away_is_not_certified() -> None:
    found = of([float("inf"), 0.1], rounding=0.2)
    assert found.proved.tolist() == [True]
    assert found.certified.tolist() == [False]
    assert of([float("inf"), 0.1], rounding=float("nan")).certified.tolist() == [False]


@pytest.mark.parametrize("method", bounds.METHODS)
@pytest.mark.parametrize("weight", [float("nan"), float("inf")])
def test_a_network_that_is_not_finite_proves_nothing(method: str, weight: float) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(32, 6), nn.ReLU(), nn.Linear(6, CLASSES))
    with torch.no_grad():
        net[1].weight[2, 3] = weight
    found = margins(net, X, Y, "linf(0.001)", method=method)
    assert not found.proved.any()
    assert not found.certified.any()


def test_a_row_that_is_not_finite_or_outside_the_box_proves_nothing() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(32, CLASSES))
    with torch.no_grad():
        net[1].weight.zero_()
        net[1].bias.copy_(torch.tensor([1.0, 0, 0]))
    x = torch.full((4, *SHAPE), 0.5)
    x[1, 0, 0, 0], x[2, 0, 0, 0] = torch.nan, 1.5
    found = margins(net, x, torch.zeros(4, dtype=torch.long), "linf(0.1)")
    assert found.certified.tolist() == [True, False, False, True]


def test_an_error_on_the_way_proves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> Tensor:
        raise RuntimeError("out of memory\nand more")

    monkeypatch.setattr(bounds.Rows, "climb", fail)
    found = margins(network("dense", 0), X, Y, "linf(0.001)")
    assert not found.certified.any()
    assert found.reason == "out of memory"


class _Of(nn.Module):
    """A network around a function of the input and a linear layer."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.last = nn.Linear(32, CLASSES)
        self.dropout = nn.Dropout(0.5)
        self.register_buffer("seen", torch.zeros(()))
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def _counts(self: _Of, x: Tensor) -> Tensor:
    self.seen.add_(1)
    return self.last(x.flatten(1))


def _overwrites(self: _Of, x: Tensor) -> Tensor:
    h = self.last(x.flatten(1))
    h.view(-1).relu_()
    return h


def _part(context: Any) -> Any:
    def answer(self: _Of, x: Tensor) -> Tensor:
        with context():
            x = x - 0.5
        return self.last(x.flatten(1))

    return answer


REFUSED = {
    "operator sin": lambda self, x: self.last(x.sin().flatten(1)),
    "operator div of values that all": lambda self, x: self.last((x / (x + 1)).flatten(1)),
    "operator einsum of values": lambda self, x: self.last(
        torch.einsum("bchw,bcwk->bchk", x, x).flatten(1)
    ),
    "operator prelu of values": lambda self, x: self.last(
        nn.functional.prelu(x, x[0, :, 0, 0]).flatten(1)
    ),
    "operator pow, but for squares": lambda self, x: self.last((x**3).flatten(1)),
    "operator argmax": lambda self, x: self.last(x.flatten(1)) + x.max(1)[1].sum((1, 2))[:, None],
    "operator instance_norm by the statistics of the input": lambda self, x: self.last(
        nn.functional.instance_norm(x).flatten(1)
    ),
    "operator matmul of values": lambda self, x: self.last((x @ x).flatten(1)),
    "draws random numbers": lambda self, x: self.last((x + torch.rand_like(x)).flatten(1)),
    "randn, which draws": lambda self, x: self.last((x + torch.randn(SHAPE)).flatten(1)),
    "dropout, which draws": lambda self, x: self.last(nn.functional.dropout(x).flatten(1)),
    "operator add_, which overwrites": _counts,
    "operator relu_, which overwrites": _overwrites,
    "cannot write the network down": lambda self, x: self.last(
        (x if x.sum() > 3 else -x).flatten(1)
    ),
    "scores of shape": lambda self, x: x,
    "operator wrap_with_set_grad_enabled": _part(torch.no_grad),
    "operator wrap_with_autocast": _part(partial(torch.autocast, "cpu", dtype=torch.bfloat16)),
    "a window of padding alone": lambda self, x: nn.functional.max_pool2d(
        x[..., :3, :3], 2, 1, 1, dilation=4
    ).flatten(1),
    "operator round": lambda self, x: self.last(x.round().flatten(1)),
    "to torch.int64": lambda self, x: self.last(x.long().flatten(1) * 1.0),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_is_not_supported_is_named_and_proves_nothing(reason: str) -> None:
    net = _Of(REFUSED[reason])
    with pytest.raises(InputError, match=f"not supported: .*{reason}"):
        trace(net, X[:1])
    found = margins(net, X, Y, "linf(0.000001)")
    assert reason in found.reason
    assert not found.certified.any()


def test_an_operator_is_named_with_its_module_and_torch_prints_nothing(
    capfd: pytest.CaptureFixture[str],
) -> None:
    inner = nn.Sequential(nn.Conv2d(2, 4, 1), nn.GroupNorm(2, 4))
    net = nn.Sequential(inner, nn.Flatten(), nn.Linear(64, CLASSES))
    with pytest.raises(InputError, match=r"operator group_norm, in 0\.1 \(GroupNorm\)\.$"):
        trace(net, X[:1])
    sized = _Of(lambda self, x: self.last(x.flatten(1)[:, : int(x.sum())]))
    with pytest.raises(InputError, match="cannot write the network down"):
        trace(sized, X[:1])
    assert capfd.readouterr() == ("", "")


def test_what_overwrites_its_own_result_is_followed() -> None:
    def twice(self: _Of, x: Tensor) -> Tensor:
        h = self.last(x.flatten(1))
        h += 0.1
        return h + h.relu_()

    net, x = _Of(twice), torch.rand(20, *SHAPE)
    assert torch.allclose(trace(net, X[:1])(x), net.double()(x.double()), atol=1e-12)


def test_a_constant_is_what_the_network_makes_of_it() -> None:
    """In float64 a small number is left of it, in float32 none."""

    def answer(self: _Of, x: Tensor) -> Tensor:
        return nn.functional.linear(x.flatten(1), (self.last.weight + 1e8) - 1e8)

    net = _Of(answer)
    assert bool((net(X) == 0).all())
    assert bool((trace(net, X[:1])(X) == 0).all())


@pytest.mark.parametrize("method", bounds.METHODS)
def test_what_has_no_gradient_still_counts(method: str) -> None:
    """Nothing reaches the input from behind a `detach` by torch's own gradients."""

    def answer(self: _Of, x: Tensor) -> Tensor:
        return self.last(torch.relu((x * 2 - 1).detach()).flatten(1))

    def attached(self: _Of, x: Tensor) -> Tensor:
        return self.last(torch.relu(x * 2 - 1).flatten(1))

    net = _Of(answer)
    found = margins(net, X, Y, "linf(0.1)", method=method).lower
    net.function = attached
    assert torch.equal(found, margins(net, X, Y, "linf(0.1)", method=method).lower)


def test_dropout_and_batch_normalisation_are_those_of_evaluation() -> None:
    """The module itself stays as it is."""
    net = nn.Sequential(network("residual", 1), nn.Dropout(0.9)).train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    graph = trace(net, X[:1])
    assert net.training
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    net.eval()
    assert torch.allclose(graph(X), net.double()(X.double()), atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_a_graph_answers_as_its_network(kind: str) -> None:
    for seed in range(10 if kind in ("limited", "gated") else 1):
        net = network(kind, seed)
        x = torch.rand(5, *SHAPE)
        assert torch.allclose(trace(net, x[:1])(x), net.double()(x.double()), atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_what_float32_adds_is_little(kind: str) -> None:
    net, x = network(kind, 5), torch.rand(50, *SHAPE)
    found = margins(net, x, torch.zeros(50, dtype=torch.long), "linf(0.01)")
    z = net(x).double()
    assert bool((z[:, :1] - z >= found.lower - found.rounding)[:, 1:].all())
    assert bool((found.rounding[:, 1:] > 0).all())
    assert float(found.rounding.max()) < 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_a_network_that_rounds_much_stays_above_its_bound(kind: str) -> None:
    """In bfloat16, with a unit of 2^-9: it falls below what holds in real arithmetic."""
    net = network(kind, 5).bfloat16()
    x, y = torch.rand(200, *SHAPE).bfloat16(), torch.zeros(200, dtype=torch.long)
    z = net(x).double()
    around = region(x.float(), Threat.linf(1e-6), Bounds())
    rows = Rows(trace(net.float(), x[:1].float()), around, y, 2.0**-9)
    rows.climb("crown")
    margin = (z[:, :1] - z)[:, 1:]
    assert bool((margin >= rows.rounded[:, 1:]).all())
    if kind not in ("limited", "gated"):  # lines of wide intervals are not tight enough for it
        assert bool((margin < rows.lower[:, 1:]).any())


def test_proofs_that_do_not_exist_are_refused_in_a_sentence() -> None:
    net = network("dense", 0)
    assert "not finite" in margins(net, X, Y, "linf(inf)").reason
    with pytest.raises(SpecError, match="no method is called 'crwn'; did you mean crown"):
        margins(net, X, Y, "linf(0.1)", method="crwn")
    with pytest.raises(InputError, match="expected a class a row"):
        margins(net, X, Y[:1], "linf(0.1)")


@pytest.mark.parametrize("y", [-1, CLASSES])
def test_a_class_that_there_is_not_is_refused_in_a_sentence(y: int) -> None:
    with pytest.raises(InputError, match=f"y has the class {y}, but the network has {CLASSES} sc"):
        margins(network("dense", 0), X, torch.tensor([0, y]), "linf(0.1)")


@pytest.mark.filterwarnings("ignore:.*weight_norm")
@pytest.mark.parametrize(
    "norm", [nn.utils.weight_norm, nn.utils.parametrizations.weight_norm, nn.utils.spectral_norm]
)
def test_normalised_weights_are_followed_after_a_step_too(norm: Any) -> None:
    net = nn.Sequential(nn.Flatten(), norm(nn.Linear(32, 6)), nn.ReLU(), nn.Linear(6, CLASSES))
    net(X).sum().backward()
    found = margins(net, X, Y, "linf(0.01)")
    assert not found.reason
    assert torch.allclose(trace(net, X[:1])(X), net.eval()(X).double(), atol=1e-5)


def test_only_the_class_of_a_targeted_threat_counts() -> None:
    net = network("dense", 3)
    y = net(X).argmax(1)
    aim = (y + 1) % CLASSES
    free = margins(net, X, y, "linf(0.01)")
    aimed = margins(net, X, y, f"linf(0.01, target={int(aim[0])})")
    assert aimed.lower[0, aim[0]] == free.lower[0, aim[0]]
    assert int(aimed.lower[0].isfinite().sum()) == 1


class _Arithmetic(nn.Module):
    """A linear layer, of which a constant is taken, times one, over one, by operators of torch."""

    def __init__(self, sub: str, mul: str, div: str) -> None:
        super().__init__()
        self.names = sub, mul, div
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        sub, mul, div = (getattr(torch, name) for name in self.names)
        return div(mul(sub(self.layer(x.flatten(1)), 0.1), 2.0), 4.0)


def test_other_names_of_an_operator_are_known() -> None:
    """`torch.multiply` is `torch.mul`; one that rounds its quotient down is neither."""
    usual = _Arithmetic("sub", "mul", "div")
    other = _Arithmetic("subtract", "multiply", "true_divide")
    other.load_state_dict(usual.state_dict())
    x, y = torch.full((2, 4), 0.5), torch.tensor([0, 1])
    found = [margins(net, x, y, "linf(0.01)") for net in (usual, other)]
    assert not any(one.reason for one in found)
    assert torch.equal(found[0].lower, found[1].lower)
    assert margins(_Arithmetic("sub", "mul", "floor_divide"), x, y, "linf(0.01)").reason
