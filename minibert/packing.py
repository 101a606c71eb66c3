"""The same model with its weights laid out for this CPU: `pack`.

The products with weights take most of the time, and with few tokens most of that goes into putting
the weights in the order in which the CPU reads them, at every call. `pack` does it once.

Read next: saving.py.
"""

import copy
import dataclasses
import hashlib

import torch
from torch import Tensor, nn

from minibert.bert import Bert
from minibert.model import BertModel


class PackedLinear(nn.Module):
    """x W^T + b as nn.Linear gives it, to rounding, by oneDNN on a W in its own order.

    The order is known to oneDNN alone, so there is no gradient, and nothing to save.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach()
        packed = torch.ops.mkldnn._reorder_linear_weight(weight)
        self.register_buffer("packed", packed, persistent=False)
        self.register_buffer("bias", linear.bias.detach())
        # What the weight was, for the fingerprint that keeps the outputs of two models apart.
        digest = hashlib.sha256(weight.numpy().tobytes()).digest()
        self.register_buffer("sha256", torch.frombuffer(bytearray(digest), dtype=torch.uint8))

    def forward(self, inputs: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        product: Tensor = torch.ops.mkldnn._linear_pointwise(
            inputs, self.packed, self.bias, "none", [], ""
        )
        return product


def pack(bert: Bert) -> Bert:
    """A copy that is faster on a CPU, most of all for short texts: for use, not for training.

    Names, hooks and results stay, these to rounding. The copy holds weights of its own, as large as
    the model; what it was made from is as it was. It cannot be trained or saved.

    Args:
        bert: in eval mode, on the CPU, in float32.

    Raises:
        ValueError: if it is not, or was packed before, or this torch has no oneDNN.
    """
    word = bert.model.embeddings.word.weight
    if bert.model.training or word.device.type != "cpu" or word.dtype != torch.float32:
        raise ValueError(
            f"pack takes a model in eval mode, on the CPU, in float32; this is on {word.device} in "
            f"{word.dtype}, in {'training' if bert.model.training else 'eval'} mode"
        )
    if is_packed(bert.model):
        raise ValueError("the model is packed already")
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        raise ValueError("this torch has no oneDNN, which packs the weights")
    linears = [module for module in bert.model.modules() if isinstance(module, nn.Linear)]
    packed = {id(linear): PackedLinear(linear) for linear in linears}
    # Everything but the weights is copied by deepcopy, which takes what the memo has as it is.
    return dataclasses.replace(bert, model=copy.deepcopy(bert.model, packed).eval())


def is_packed(model: BertModel) -> bool:
    """Whether it comes from `pack`."""
    return any(isinstance(module, PackedLinear) for module in model.modules())
