import dataclasses
import re

import pytest
import torch
from conftest import ODD, random_model
from torch import nn

from minibert.plan import Plan, adamw, decay_groups, rate


@pytest.mark.parametrize(("steps", "warmup"), [(10, 0), (10, 3), (7, 7), (1, 0), (1, 1)])
def test_the_schedule_of_transformers(steps: int, warmup: int) -> None:
    transformers = pytest.importorskip("transformers")
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=2e-5)
    theirs = transformers.get_linear_schedule_with_warmup(optimizer, warmup, steps)
    plan = Plan(steps, 2e-5, warmup)
    for step in range(steps):
        assert rate(plan, step) == pytest.approx(theirs.get_last_lr()[0], rel=1e-12)
        optimizer.step()
        theirs.step()


def test_who_is_decayed_by_name() -> None:
    """As Google's code has it: not what is called LayerNorm, layer_norm or bias."""
    decayed, others = decay_groups(random_model(ODD))
    names = [name for name, _ in decayed]
    assert not [name for name in names if re.search("norm|bias", name)]
    assert all(re.search("norm|bias", name) for name, _ in others)
    assert len(names) == 3 + 6 * ODD.num_hidden_layers + 1
    assert len(others) == 2 + 10 * ODD.num_hidden_layers + 1


def test_a_norm_of_any_name_is_not_decayed() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
    decayed, others = decay_groups(model)
    assert [name for name, _ in decayed] == ["0.weight"]
    assert [name for name, _ in others] == ["0.bias", "1.weight", "1.bias"]


def test_frozen_and_tied_parameters() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, bias=False))
    model[1].weight = model[0].weight
    model[0].bias.requires_grad_(False)
    decayed, others = decay_groups(model)
    assert [name for name, _ in decayed] == ["0.weight"]  # once
    assert others == []


def test_what_decay_does() -> None:
    """With no gradient to speak of, a matrix shrinks by rate times decay and a bias stays."""
    model = nn.Linear(3, 3).double()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = adamw(model, weight_decay=0.1)
    for group in optimizer.param_groups:
        group["lr"] = 0.5
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    torch.testing.assert_close(model.weight.detach(), before["weight"] * (1 - 0.5 * 0.1))
    assert torch.equal(model.bias.detach(), before["bias"])


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"steps": 0}, "0 steps with 0 of warm-up"),
        ({"warmup": 11}, "10 steps with 11 of warm-up"),
        ({"learning_rate": 0.0}, "learning_rate must be more than 0, got 0.0"),
        ({"learning_rate": float("nan")}, "learning_rate must be more than 0, got nan"),
        ({"clip": -1.0}, "clip must be more than 0, got -1.0"),
        ({"patience": -1}, "patience must be 0 or more, got -1"),
    ],
)
def test_plans_that_make_no_sense(wrong: dict[str, float], told: str) -> None:
    with pytest.raises(ValueError, match=re.escape(told)):
        dataclasses.replace(Plan(10), **wrong)  # type: ignore[arg-type]
