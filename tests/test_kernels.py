import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import pytest
import torch
from conftest import ODD, random_model
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize
from torch.utils._python_dispatch import TorchDispatchMode

from minibert import kernels
from minibert.kernels import Linear


class Watched(TorchDispatchMode):
    """Counts the products of oneDNN, which are slow, without a word, on rows not in line."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if "_linear_pointwise" in str(func):
            self.count += 1
            assert args[0].is_contiguous()
            assert args[1].is_contiguous()
        return func(*args, **(kwargs or {}))


needs_onednn = pytest.mark.skipif(not kernels.HAS_ONEDNN, reason="this torch has no oneDNN")


def drawn(generator: int = 0) -> Linear:
    made = Linear(50, 33)
    draw = torch.Generator().manual_seed(generator)
    with torch.no_grad():
        made.weight.normal_(generator=draw)
        made.bias.normal_(generator=draw)
    return made


INPUTS = {
    "rows": torch.randn(7, 50),
    "one": torch.randn(50),
    "none": torch.randn(0, 4, 50),
    "a sentence": torch.randn(1, 12, 50),
    "many": torch.randn(40, 17, 50),
    "every second": torch.randn(3, 10, 50)[:, ::2],
    "the first of each": torch.randn(9, 5, 50)[:, 0],
    "turned": torch.randn(50, 8).t(),
}


@pytest.mark.parametrize("inputs", INPUTS.values(), ids=INPUTS)
def test_the_product(inputs: Tensor) -> None:
    """Against float64. Measured: 1.3e-5 in sums of 51 terms of size 1, float32's rounding."""
    made = drawn()
    exact = functional.linear(inputs.double(), made.weight.double(), made.bias.double())
    for context in (torch.inference_mode, torch.no_grad, torch.enable_grad):
        with context(), Watched():
            given = made(inputs)
        assert given.shape == exact.shape
        assert torch.allclose(given.double(), exact, rtol=0, atol=5e-5)


class Doubles(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def doubled(made: Linear) -> Linear:
    parametrize.register_parametrization(made, "weight", Doubles())
    return made


def turned(made: Linear) -> Linear:
    made.weight.data = made.weight.data.t().contiguous().t()
    return made


CASES: dict[str, tuple[bool, Callable[[Linear], nn.Module], AbstractContextManager[object]]] = {
    "as it is": (True, lambda made: made, nullcontext()),
    "a copy": (True, copy.deepcopy, nullcontext()),
    "autocast": (False, lambda made: made, torch.autocast("cpu", torch.bfloat16)),
    "float64": (False, lambda made: made.double(), nullcontext()),
    "another layout": (False, turned, nullcontext()),
    "a changed weight": (False, doubled, nullcontext()),
}


@needs_onednn
@pytest.mark.parametrize(("is_fast", "change", "context"), CASES.values(), ids=CASES)
def test_where_onednn_computes(
    is_fast: bool, change: Callable[[Linear], nn.Module], context: AbstractContextManager[object]
) -> None:
    """Only where it can: in another case it would be wrong, slow, or an error."""
    made = change(drawn())
    weight, bias = made.weight, made.bias
    inputs = torch.randn(3, 50).to(weight.dtype)
    with torch.inference_mode(), context:
        expected = functional.linear(inputs, weight, bias)
        with Watched() as watched:
            given = made(inputs)
    assert watched.count == is_fast
    assert given.dtype == expected.dtype
    assert torch.allclose(given, expected, rtol=0, atol=5e-5)


@needs_onednn
def test_without_inference_mode_torch_computes() -> None:
    made = drawn()
    inputs = torch.randn(3, 50, requires_grad=True)
    for context in (torch.no_grad(), torch.enable_grad()):
        with context, Watched() as watched:
            output = made(inputs)
        assert watched.count == 0
    output.sum().backward()
    assert inputs.grad is not None
    assert made.weight.grad is not None


@needs_onednn
def test_every_product_of_a_model() -> None:
    model = random_model(ODD)
    ids = torch.arange(12)[None]
    with torch.no_grad():
        expected = model(ids)
    with torch.inference_mode(), Watched() as watched:
        given = model(ids)
    assert watched.count == 6 * ODD.num_hidden_layers
    for one, other in zip(given, expected, strict=True):
        assert (one - other).abs().max() < 2e-6  # measured: 2.7e-7


def test_a_weight_that_changes_is_seen() -> None:
    made, inputs = drawn(), torch.randn(3, 50)
    with torch.inference_mode():
        before = made(inputs)
        made.weight.data.mul_(2)
        made.bias.data.mul_(2)
        assert torch.allclose(made(inputs), 2 * before, rtol=0, atol=5e-5)


def test_without_a_bias_and_without_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    made, inputs = Linear(50, 33, bias=False), torch.randn(3, 50)
    with torch.inference_mode():
        fast = made(inputs)
        monkeypatch.setattr(kernels, "HAS_ONEDNN", False)
        with Watched() as watched:
            plain = made(inputs)
    assert watched.count == 0
    assert torch.allclose(fast, plain, rtol=0, atol=1e-5)


def test_it_is_an_nn_linear() -> None:
    """For tools that look for one, and for names."""
    ours, theirs = Linear(50, 33), nn.Linear(50, 33)
    assert isinstance(ours, nn.Linear)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
def test_transforms() -> None:
    made, inputs = drawn(), torch.randn(5, 2, 50)
    expected = functional.linear(inputs, made.weight, made.bias).detach()
    with torch.inference_mode():
        mapped = torch.vmap(made)(inputs)
        _, tangent = torch.func.jvp(made, (inputs,), (inputs,))
    assert torch.allclose(mapped, expected, rtol=0, atol=5e-5)
    assert torch.allclose(tangent, expected - made.bias.detach(), rtol=0, atol=5e-5)


def test_the_compiler_sees_a_plain_product() -> None:
    """Of oneDNN's it would be an error: torch's default compiler takes that for a packed one."""
    seen = []

    def note(graph: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., object]:
        seen.append(graph.code)
        return graph.forward

    compiled = torch.compile(drawn(), backend=note)
    with torch.inference_mode():
        compiled(torch.randn(5, 50))
    assert len(seen) == 1
    assert "_linear_pointwise" not in seen[0]
