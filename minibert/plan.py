"""How a model is trained: `Plan`, the learning rate of each step, and AdamW as BERT uses it.

Follows [D18] appendix A.2 and appendix A.3. The schedule of [V17] section 5.3, equation (3), is
another: after warm-up it goes down by the root of the step. Read next: journal.py.
"""

import math
from dataclasses import dataclass

from torch import nn
from torch.optim import AdamW

Named = list[tuple[str, nn.Parameter]]


@dataclass(frozen=True)
class Plan:
    """How a model is trained; what is trained, and on what, is a Task (training.py).

    Raises:
        ValueError: if a value makes no sense.
    """

    steps: int
    learning_rate: float = 5e-5  # the highest, at the end of warm-up
    warmup: int = 0  # steps
    clip: float = 1.0  # the gradient's norm at most; as in Google's code, and in no paper
    seed: int = 0  # of dropout
    bfloat16: bool = False  # compute in it where autocast says so; weights stay as they are
    evaluate_every: int = 0  # steps; 0 is at the end only
    save_every: int = 0  # the same
    watch: str = "loss"  # the metric that tells what is best: "loss" the least, others the largest
    patience: int = 0  # stop after so many evaluations that are no better, with the best; 0: never

    def __post_init__(self) -> None:
        if self.steps < 1 or not 0 <= self.warmup <= self.steps:
            raise ValueError(
                f"{self.steps} steps with {self.warmup} of warm-up: take 1 or more steps, and of "
                "these 0 or more for warm-up"
            )
        for name in ("learning_rate", "clip"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be more than 0, got {getattr(self, name)}")
        for name in ("evaluate_every", "save_every", "patience"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be 0 or more, got {getattr(self, name)}")


def rate(plan: Plan, step: int) -> float:
    """The learning rate of a step, counted from 0: up to its highest, then down to 0, in lines.

    >>> [rate(Plan(steps=6, warmup=2, learning_rate=1), step) for step in range(6)]
    [0.0, 0.5, 1.0, 0.75, 0.5, 0.25]

    With warm-up the first step has the rate 0, as in google-research/bert@eedf571
    optimization.py:29-54; there the decay begins at step 0, hidden by the warm-up.
    """
    if step < plan.warmup:
        return plan.learning_rate * step / plan.warmup
    return plan.learning_rate * (plan.steps - step) / max(1, plan.steps - plan.warmup)


def adamw(
    model: nn.Module,
    weight_decay: float = 0.01,
    epsilon: float = 1e-6,
    betas: tuple[float, float] = (0.9, 0.999),
) -> AdamW:
    """AdamW as BERT uses it: biases and LayerNorms are not decayed. `train` sets the rate.

    Not in the paper: which ones, and epsilon. Google's code leaves Adam's bias correction out;
    torch follows Adam as it was published.

    Source: google-research/bert@eedf571 optimization.py:56-65.
    """
    decayed, others = decay_groups(model)
    groups = [
        {"params": [parameter for _, parameter in decayed], "weight_decay": weight_decay},
        {"params": [parameter for _, parameter in others], "weight_decay": 0.0},
    ]
    return AdamW(groups, betas=betas, eps=epsilon, weight_decay=weight_decay, fused=True)


def decay_groups(model: nn.Module) -> tuple[Named, Named]:
    """The parameters that are trained: those to decay, and the biases and LayerNorms.

    By kind of module, not by name as in Google's code: there, what a name does not say is decayed.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.LayerNorm)]
    of_norms = {id(parameter) for norm in norms for parameter in norm.parameters()}
    decayed, others = Named(), Named()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            is_plain = id(parameter) in of_norms or name.endswith("bias")
            (others if is_plain else decayed).append((name, parameter))
    return decayed, others
