"""A model with its weights laid out for this CPU: faster, most of all for few tokens.

The products with weights take most of the time, and a part of that goes into putting the weights
in the order in which the CPU reads them, at every call. `pack_model` does it once. Bulk work packs
by itself (batches.py); `pack` of loading.py is for texts that come one at a time.

Read next: workers.py.
"""

import copy

import torch
from torch import Tensor, nn

from minibert.encoder import EncoderLayer, FeedForward
from minibert.kernels import HAS_ONEDNN, Linear, has_hooks
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


class PackedFeedForward(nn.Module):
    """FeedForward whose activation is computed in the product before it, unless a hook looks on.

    So the widest tensor of a layer, (B, T, I), is written once, not twice.
    """

    def __init__(self, plain: FeedForward) -> None:
        super().__init__()
        self.intermediate, self.activation = plain.intermediate, plain.activation
        self.output = plain.output

    def forward(self, hidden_states: Tensor) -> Tensor:
        """(B, T, H) -> (B, T, H)."""
        inner, activation = self.intermediate, self.activation
        if has_hooks(inner) or has_hooks(activation):
            activated = activation(inner(hidden_states))  # (B, T, I)
        else:
            name = "relu" if isinstance(activation, nn.ReLU) else "gelu"
            form = "" if name == "relu" else activation.approximate
            activated = torch.ops.mkldnn._linear_pointwise(
                hidden_states, inner.packed, inner.bias, name, [], form
            )
        transformed: Tensor = self.output(activated)
        return transformed


def pack_model(model: BertModel) -> BertModel:
    """A packed copy, which shares what is no weight of a product; `refusal` says if there can be.

    Names and results stay, these to rounding.
    """
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    # deepcopy takes what its memo has as it is.
    memo: dict[int, object] = {id(linear): PackedLinear(linear) for linear in linears}
    memo |= {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    packed = copy.deepcopy(model, memo).eval()
    for part in list(packed.modules()):
        if isinstance(part, EncoderLayer) and _is_as_released(part.feed_forward):
            part.add_module("feed_forward", PackedFeedForward(part.feed_forward))
    return packed


def _is_as_released(part: nn.Module) -> bool:
    """Whether it is a FeedForward, its products packed, in which nobody has replaced anything."""
    return (
        type(part) is FeedForward
        and "forward" not in vars(part)
        and isinstance(part.intermediate, PackedLinear)
        and type(part.activation) in (nn.GELU, nn.ReLU)
        and "forward" not in vars(part.activation)
    )


def refusal(model: BertModel) -> str | None:
    """Why a model cannot be packed; None if it can."""
    word = model.embeddings.word.weight
    dtypes = [torch.float32]
    if not HAS_ONEDNN:
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
    if type(linear) not in (nn.Linear, Linear):
        return f"a {type(linear).__name__}, which may compute something else than nn.Linear"
    if "forward" in vars(linear):
        return "an nn.Linear with a forward of its own"
    return "an nn.Linear without a bias" if linear.bias is None else None


def is_packed(model: BertModel) -> bool:
    """Whether it comes from `pack_model`."""
    return any(isinstance(module, PackedLinear) for module in model.modules())
