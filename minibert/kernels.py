"""Which of torch's kernels computes a thing: a matter of time alone, results agree to rounding.

Read next: encoder.py.
"""

import torch
from torch import Tensor, nn

HAS_ONEDNN = hasattr(torch.ops.mkldnn, "_linear_pointwise")


class Linear(nn.Linear):
    """x W^T + b, as nn.Linear, whose parameters it has; faster where nobody asks for gradients.

    In torch.inference_mode(), in float32 on a CPU, oneDNN computes it: the same to rounding. The
    library that torch uses there shares badly among the cores when x has few rows, as in one
    sentence. oneDNN's product knows no gradients, subclasses of Tensor, compiler or autocast, so
    where one of them may be at work, torch computes as ever. Tools that ask isinstance take it for
    an nn.Linear; those that compare types (torch.ao's quantize_dynamic) pass it by.
    """

    def forward(self, inputs: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        if not self._suits_onednn(inputs):
            return super().forward(inputs)
        product: Tensor = torch.ops.mkldnn._linear_pointwise(
            inputs.contiguous(), self.weight, self.bias, "none", [], ""
        )
        return product

    def _suits_onednn(self, inputs: Tensor) -> bool:
        weight = self.weight
        return (
            not torch.compiler.is_compiling()  # which has kernels of its own
            and torch.is_inference_mode_enabled()
            and type(inputs) is Tensor
            and type(weight) is nn.Parameter
            and inputs.dtype == weight.dtype == torch.float32
            and inputs.is_cpu
            and weight.is_cpu
            and weight.is_contiguous()  # with other strides it is a slow loop
            and HAS_ONEDNN
            and not torch.is_autocast_enabled("cpu")
        )


def is_slow_fused(query: Tensor) -> bool:
    """Whether attention is faster written out: for queries (B, A, T, D) in bfloat16 on a CPU.

    The fused kernel takes 1.2 to 2 times as long there. Up to 128 tokens, for (T, T) takes memory.
    """
    return query.is_cpu and query.dtype == torch.bfloat16 and query.shape[-2] <= 128


def has_hooks(module: nn.Module) -> bool:
    """Whether a hook stands on it or on any part of it."""
    return any(
        part._forward_hooks
        or part._forward_pre_hooks
        or part._backward_hooks
        or part._backward_pre_hooks
        for part in module.modules()
    )
