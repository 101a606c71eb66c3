"""A model with its weights laid out for this CPU: faster, most of all for few tokens.

The products with weights take most of the time, and a part of that goes into putting the weights
in the order in which the CPU reads them, at every call. `pack_model` does it once. Bulk work packs
by itself (batches.py); `pack` of loading.py is for texts that come one at a time.

Read next: workers.py.
"""

import copy

import torch
from torch import Tensor, nn

from minibert.model import BertModel


class PackedLinear(nn.Module):
    """x W^T + b as nn.Linear gives it, to rounding, by oneDNN on a W in its own order.

    The order is known to oneDNN alone, so there is no gradient; `packed.to_dense()` is W again.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach()
        self.register_buffer("packed", torch.ops.mkldnn._reorder_linear_weight(weight))
        self.register_buffer("bias", linear.bias.detach())

    def forward(self, inputs: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        product: Tensor = torch.ops.mkldnn._linear_pointwise(
            inputs, self.packed, self.bias, "none", [], ""
        )
        return product


def pack_model(model: BertModel) -> BertModel:
    """A packed copy, which shares what is no weight of a product; `refusal` says if there can be.

    Names and results stay, these to rounding.
    """
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    # deepcopy takes what its memo has as it is.
    memo: dict[int, object] = {id(linear): PackedLinear(linear) for linear in linears}
    memo |= {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, memo).eval()


def refusal(model: BertModel) -> str | None:
    """Why a model cannot be packed; None if it can."""
    word = model.embeddings.word.weight
    dtypes = [torch.float32]
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return "this torch has no oneDNN, which packs the weights"
    if torch.ops.mkldnn._is_mkldnn_bf16_supported():
        dtypes.append(torch.bfloat16)
    if is_packed(model):
        return "the model is packed already"
    if model.training or word.device.type != "cpu" or word.dtype not in dtypes:
        allowed = " or ".join(str(dtype) for dtype in dtypes)
        return (
            f"a model is packed in eval mode, on the CPU, in {allowed}; this is on {word.device} "
            f"in {word.dtype}, in {'training' if model.training else 'eval'} mode"
        )
    if has_hooks(model):
        return "hooks stand on the model, which the packed one would not have; remove them first"
    linears = (part for part in model.named_modules() if isinstance(part[1], nn.Linear))
    return next((f"{name} is {why}" for name, linear in linears if (why := _oddity(linear))), None)


def _oddity(linear: nn.Linear) -> str | None:
    """What makes a linear map more, or less, than x W^T + b; None if nothing does."""
    if type(linear) is not nn.Linear:
        return f"a {type(linear).__name__}, which may compute something else than nn.Linear"
    if "forward" in vars(linear):
        return "an nn.Linear with a forward of its own"
    return "an nn.Linear without a bias" if linear.bias is None else None


def is_packed(model: BertModel) -> bool:
    """Whether it comes from `pack_model`."""
    return any(isinstance(module, PackedLinear) for module in model.modules())


def has_hooks(model: nn.Module) -> bool:
    """Whether a hook stands on any part of a model."""
    return any(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        for module in model.modules()
    )
