"""Fisher scores against what they stand for: the divergence and the distance of outputs, measured by quantizing."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from bitwright.errors import InputError
from bitwright.search.fisher import fisher_scores, log_likelihood, memory_needed, projection

UNITS = {"ab": ("a", "b"), "c": ("c",)}
STEP = 1e-3  # relative to weights of order one: small enough for the first order, large enough for float64


class Net(nn.Module):
    """Two linears that read one input, a norm, and one called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(6, 6) for _ in range(3))
        self.norm, self.head = nn.LayerNorm(6), nn.Linear(6, 5)

    def forward(self, x_TK: Tensor) -> Tensor:
        x_TK = self.norm(torch.tanh(self.a(x_TK)) * self.b(x_TK) + x_TK)
        out: Tensor = self.head(torch.tanh(self.c(torch.tanh(self.c(x_TK)))))
        return out


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net().double().requires_grad_(False)


@pytest.fixture
def inputs() -> list[Tensor]:
    return list(torch.randn(12, 4, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64))


def deltas(net: Net) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(2)
    return {n: STEP * torch.randn(6, 6, generator=generator, dtype=torch.float64) for n in ("a", "b", "c")}


def added(net: Net, error: Callable[[str, Tensor], Tensor]) -> dict[str, Callable[[Tensor], Tensor]]:
    """Linears whose outputs are off by an error that depends on the linear and its input."""
    own = {name: (net.get_parameter(f"{name}.weight"), net.get_parameter(f"{name}.bias")) for name in ("a", "b", "c")}
    return {name: lambda x, n=name, w=w, b=b: functional.linear(x, w, b) + error(n, x) for name, (w, b) in own.items()}


def rounded(net: Net, factor: float = 1) -> dict[str, Callable[[Tensor], Tensor]]:
    """Linears whose weights are off."""
    return added(net, lambda name, x: x @ (factor * deltas(net)[name]).T)


def changed(net: Net, members: tuple[str, ...], inputs: list[Tensor]) -> list[Tensor]:
    """The outputs with these linears' weights changed."""
    with torch.no_grad():
        for name in members:
            net.get_parameter(f"{name}.weight").add_(deltas(net)[name])
        outputs = [net(x) for x in inputs]
        for name in members:
            net.get_parameter(f"{name}.weight").sub_(deltas(net)[name])
    return outputs


def test_projections_give_the_squared_change_of_the_output(net: Net, inputs: list[Tensor]) -> None:
    texts = [partial(net, x) for x in inputs]
    scores = fisher_scores(net, UNITS, rounded(net), texts, projection, draws=400)
    for unit, members in UNITS.items():
        pairs = zip(changed(net, members, inputs), [net(x) for x in inputs], strict=True)
        squared = sum(float((after - before).square().sum()) for after, before in pairs) / len(inputs)
        assert scores[unit].fisher == pytest.approx(squared, rel=0.1)


def test_labels_drawn_from_the_model_give_twice_the_divergence(net: Net, inputs: list[Tensor]) -> None:
    texts = [partial(net, x) for x in inputs]
    scores = fisher_scores(net, UNITS, rounded(net), texts, log_likelihood, draws=400)
    for unit, members in UNITS.items():
        divergence = 0.0
        for after, x in zip(changed(net, members, inputs), inputs, strict=True):
            log_p, log_q = functional.log_softmax(net(x), -1), functional.log_softmax(after, -1)
            divergence += float((log_p.exp() * (log_p - log_q)).sum()) / len(inputs)
        assert scores[unit].fisher == pytest.approx(2 * divergence, rel=0.1)


def test_a_score_is_the_squared_product_of_weight_gradient_and_weight_error(net: Net, inputs: list[Tensor]) -> None:
    score = fisher_scores(net, {"c": ("c",)}, rounded(net), [partial(net, inputs[0])], projection, draws=1)["c"]
    net.requires_grad_(True)
    scalar = projection(net(inputs[0]), torch.Generator().manual_seed(0))
    (gradient,) = torch.autograd.grad(scalar, [net.c.weight])
    assert score.fisher == pytest.approx(float((gradient * deltas(net)["c"]).sum()) ** 2, rel=1e-9)


def test_the_diagonal_is_the_whole_where_errors_meet_one_output_only(net: Net, inputs: list[Tensor]) -> None:
    def one_output(_: str, x: Tensor) -> Tensor:
        error = torch.zeros_like(x)
        error[0, 2] = STEP
        return error

    texts = [partial(net, inputs[0])]
    only, every = (
        fisher_scores(net, {"b": ("b",)}, added(net, error), texts, projection)["b"]
        for error in (one_output, lambda _, x: torch.full_like(x, STEP))
    )
    assert only.diagonal == pytest.approx(only.fisher, rel=1e-9)
    assert every.diagonal != pytest.approx(every.fisher, rel=0.1)


def test_errors_twice_as_large_score_four_times_as_much(net: Net, inputs: list[Tensor]) -> None:
    texts = [partial(net, x) for x in inputs]
    once = fisher_scores(net, UNITS, rounded(net), texts, projection)
    twice = fisher_scores(net, UNITS, rounded(net, 2), texts, projection)
    for unit in UNITS:
        assert twice[unit].fisher == pytest.approx(4 * once[unit].fisher, rel=1e-9)
        assert twice[unit].diagonal == pytest.approx(4 * once[unit].diagonal, rel=1e-9)


def test_nothing_is_left_behind(net: Net, inputs: list[Tensor]) -> None:
    before = {name: value.clone() for name, value in net.state_dict().items()}
    fisher_scores(net, UNITS, rounded(net), [partial(net, inputs[0])], projection)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert not [module for module in net.modules() if module._forward_hooks]
    assert all(p.grad is None for p in net.parameters())
    assert not net(inputs[0]).requires_grad


def test_linears_that_a_text_does_not_reach_score_nothing(net: Net, inputs: list[Tensor]) -> None:
    net.add_module("expert", nn.Linear(6, 6))
    found = fisher_scores(
        net, {"expert": ("expert",), "c": ("c",)}, rounded(net), [partial(net, inputs[0])], projection
    )
    assert found["expert"].fisher == found["expert"].diagonal == 0 < found["c"].fisher


def test_no_text_is_refused_and_more_tokens_need_more_memory(net: Net) -> None:
    with pytest.raises(InputError, match="there are none"):
        fisher_scores(net, UNITS, rounded(net), [], projection)
    weights = 4 * sum(p.numel() for p in net.parameters())
    assert weights < memory_needed(net, "abc", 10) < memory_needed(net, "abc", 100)
