"""LAMB: Adam for large batches, with a step in proportion to the weights of each tensor.

With it BERT was pre-trained in batches of 32,768 in 76 minutes ([Y19], arXiv 1904.00962). Read
next: vocabulary_training.py.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from minibert.plan import decay_groups


class Lamb(Optimizer):
    """[Y19] algorithm 2, for each tensor w with the gradient g, at its step t.

        m = b1 m + (1 - b1) g
        v = b2 v + (1 - b2) g^2
        r = (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + epsilon) + weight_decay w
        w = w - rate (|w| / |r|) r

    |w| is the norm of the whole tensor; the ratio is 1 where one of the norms is 0, and in a group
    with adapts=False. How Google's code departs from the paper: it leaves out the two corrections
    by 1 - b^t, google-research/albert@6ca4dfd lamb_optimizer.py:67-122; here they are made.

    Args:
        groups: of parameters, each with its weight_decay and adapts.
        epsilon: keeps r finite.
        betas: b1 and b2.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        epsilon: float = 1e-6,
        betas: tuple[float, float] = (0.9, 0.999),
    ) -> None:
        super().__init__(groups, {"lr": 0.0, "betas": betas, "eps": epsilon})

    @torch.no_grad()
    def step(  # type: ignore[override]
        self, closure: Callable[[], float] | None = None
    ) -> None:
        """Change the weights; a closure is not taken."""
        if closure is not None:
            raise ValueError("Lamb takes no closure; compute the gradients before its step")
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    direction = self._direction(parameter, parameter.grad, group)
                    ratio = _ratio(parameter, direction) if group["adapts"] else 1.0
                    parameter.sub_(direction * ratio * group["lr"])

    def _direction(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> Tensor:
        """Adam's, and the decay: r of the equation."""
        state, (beta1, beta2) = self.state[parameter], group["betas"]
        if not state:
            state["step"] = 0
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        state["step"] += 1
        mean, square = state["exp_avg"], state["exp_avg_sq"]
        mean.lerp_(gradient, 1 - beta1)
        square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        corrected_mean = mean / (1 - beta1 ** state["step"])
        corrected_square = square / (1 - beta2 ** state["step"])
        direction: Tensor = corrected_mean / (corrected_square.sqrt() + group["eps"])
        return direction.add_(parameter, alpha=group["weight_decay"])


def lamb(model: nn.Module, weight_decay: float = 0.01) -> Lamb:
    """LAMB as BERT uses it: biases and LayerNorms are not decayed, nor is their step adapted.

    Not in the paper: which ones. Source: google-research/albert@6ca4dfd lamb_optimizer.py:59-65.
    """
    if not weight_decay >= 0:  # False for NaN
        raise ValueError(f"weight_decay must be 0 or more, got {weight_decay}")
    decayed, others = decay_groups(model)
    return Lamb(
        [
            {"params": [p for _, p in decayed], "weight_decay": weight_decay, "adapts": True},
            {"params": [p for _, p in others], "weight_decay": 0.0, "adapts": False},
        ]
    )


def _ratio(parameter: Tensor, direction: Tensor) -> Tensor:
    size, length = parameter.norm(), direction.norm()
    return torch.where((size > 0) & (length > 0), size / length, 1.0)
