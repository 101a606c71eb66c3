"""LAMB against algorithm 2 of its paper, written out in numpy and float64."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from conftest import ODD
from numpy.typing import NDArray
from torch import nn

from minibert.lamb import Lamb, lamb
from minibert.model import BertModel

Array = NDArray[np.float64]

RATE, DECAY, EPSILON, BETA1, BETA2 = 0.1, 0.01, 1e-6, 0.9, 0.999


def by_definition(weights: Array, gradients: list[Array], adapts: bool, decay: float) -> Array:
    mean, square = np.zeros_like(weights), np.zeros_like(weights)
    for step, gradient in enumerate(gradients, 1):
        mean = BETA1 * mean + (1 - BETA1) * gradient
        square = BETA2 * square + (1 - BETA2) * gradient**2
        direction = (mean / (1 - BETA1**step)) / (np.sqrt(square / (1 - BETA2**step)) + EPSILON)
        direction = direction + decay * weights
        sizes = np.linalg.norm(weights), np.linalg.norm(direction)
        ratio = sizes[0] / sizes[1] if adapts and min(sizes) > 0 else 1.0
        weights = weights - RATE * ratio * direction
    return weights


def run(weights: Array, gradients: list[Array], adapts: bool, decay: float) -> Array:
    parameter = nn.Parameter(torch.tensor(weights))
    optimizer = Lamb([{"params": [parameter], "weight_decay": decay, "adapts": adapts}], EPSILON)
    for group in optimizer.param_groups:
        group["lr"] = RATE
    for gradient in gradients:
        parameter.grad = torch.tensor(gradient)
        optimizer.step()
    return parameter.detach().numpy()


def draws(count: int) -> Iterator[Array]:
    generator = np.random.default_rng(0)
    for _ in range(count):
        yield generator.normal(size=(7, 5))


@pytest.mark.parametrize("decay", [0.0, DECAY])
@pytest.mark.parametrize("adapts", [True, False])
def test_the_definition(adapts: bool, decay: float) -> None:
    weights, *gradients = draws(21)
    expected = by_definition(weights, gradients, adapts, decay)
    assert np.abs(run(weights, gradients, adapts, decay) - expected).max() < 1e-14


def test_a_tensor_of_zeros_moves() -> None:
    """A new bias has the norm 0: the ratio is 1, or it would stay 0 for ever."""
    _, *gradients = draws(4)
    zeros = np.zeros((7, 5))
    found = run(zeros, gradients[:1], True, DECAY)
    assert np.abs(found - by_definition(zeros, gradients[:1], True, DECAY)).max() < 1e-15
    assert np.abs(np.abs(found) - RATE).max() < 1e-4  # Adam's first step


def test_the_size_of_a_step_goes_with_the_weights() -> None:
    """[Y19] section 3: however large the gradient, |step| = rate |weights|."""
    weights, gradient = draws(2)
    for scale in (1e-4, 1.0, 1e4):
        moved = run(weights, [gradient * scale], True, 0.0) - weights
        assert np.linalg.norm(moved) == pytest.approx(RATE * np.linalg.norm(weights), rel=1e-12)


def test_biases_and_norms_are_neither_decayed_nor_adapted() -> None:
    model = BertModel(ODD)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    adapted, others = lamb(model, weight_decay=0.02).param_groups
    assert (adapted["weight_decay"], adapted["adapts"]) == (0.02, True)
    assert (others["weight_decay"], others["adapts"]) == (0.0, False)
    found = {names[id(parameter)] for parameter in others["params"]}
    assert found == {n for n in names.values() if n.endswith("bias") or "norm" in n}
    assert len(found) + len(adapted["params"]) == len(names)
    with pytest.raises(ValueError, match="weight_decay must be 0 or more, got nan"):
        lamb(model, weight_decay=float("nan"))


def test_what_it_knows_survives_saving() -> None:
    weights, *gradients = draws(7)
    expected = run(weights, gradients, True, DECAY)
    parameter = nn.Parameter(torch.tensor(weights))
    state = None
    for part in (gradients[:3], gradients[3:]):
        optimizer = Lamb([{"params": [parameter], "weight_decay": DECAY, "adapts": True}], EPSILON)
        optimizer.param_groups[0]["lr"] = RATE
        if state is not None:
            optimizer.load_state_dict(state)
        for gradient in part:
            parameter.grad = torch.tensor(gradient)
            optimizer.step()
        state = optimizer.state_dict()
    assert (parameter.detach().numpy() == expected).all()


def test_a_parameter_without_gradient_stays() -> None:
    parameter = nn.Parameter(torch.ones(3))
    optimizer = Lamb([{"params": [parameter], "weight_decay": DECAY, "adapts": True}])
    optimizer.param_groups[0]["lr"] = RATE
    optimizer.step()
    assert parameter.tolist() == [1, 1, 1]
    with pytest.raises(ValueError, match="no closure"):
        optimizer.step(lambda: 0.0)
