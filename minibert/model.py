"""The whole model: ids in, one vector per token out.

Holds BertModel, its result BertOutput, the Pooler, and how a mask becomes a bias on the attention
scores. Follows [D18] section 3. Read next: head_config.py.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from minibert.config import BertConfig
from minibert.embeddings import Embeddings
from minibert.encoder import Encoder


class BertOutput(NamedTuple):
    """What BertModel returns, always; in the dtype of its parameters, but for autocast."""

    last_hidden_state: Tensor  # (B, T, H), state L; rows at padded positions mean nothing
    pooler_output: Tensor | None  # (B, H), in [-1, 1]; None for a model without a pooler


class Pooler(nn.Module):
    """One vector per sequence, from C of [D18] section 3, the last of [CLS]: tanh(W C + b).

    Not in the paper, which uses C as it is: google-research/bert@eedf571 modeling.py:224-232.
    """

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.activation = nn.Tanh()

    def forward(self, hidden_states: Tensor) -> Tensor:
        """(B, T, H) -> (B, H)."""
        pooled: Tensor = self.activation(self.dense(hidden_states[:, 0]))
        return pooled


class BertModel(nn.Module):
    """BERT without heads: embeddings, L encoder layers, pooler.

    A fresh model starts as BERT did: weights from a normal distribution cut off at two standard
    deviations, biases 0. It is in training mode; eval() switches dropout off. A checkpoint that was
    published without a pooler takes has_pooler=False.

    Source: google-research/bert@eedf571 modeling.py:107-232 and 375-377.
    """

    def __init__(self, config: BertConfig, has_pooler: bool = True) -> None:
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        self.encoder = Encoder(config)
        self.pooler = Pooler(config) if has_pooler else None
        self.apply(self._initialise)

    def forward(
        self,
        input_ids: Tensor,
        token_type_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> BertOutput:
        """Turn ids into vectors.

        Args:
            input_ids: int64 or int32, (B, T), in [0, V).
            token_type_ids: the same, the segment of each token. None means segment 0.
            attention_mask: the same or bool, 1 = real, 0 = padding. None means all real. A row
                without any real token gives numbers without meaning, but never NaN.

        Raises:
            ValueError: for another shape, dtype or range, or too many tokens.
        """
        self._check_inputs(input_ids, token_type_ids, attention_mask)
        segments = torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids
        embedded = self.embeddings(input_ids, segments)  # (B, T, H)
        bias = None if attention_mask is None else attention_bias(attention_mask, embedded.dtype)
        last_hidden_state = self.encoder(embedded, bias)  # (B, T, H)
        pooler_output = None if self.pooler is None else self.pooler(last_hidden_state)  # (B, H)
        return BertOutput(last_hidden_state, pooler_output)

    def _initialise(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            std = self.config.initializer_range
            nn.init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std)
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)

    def _check_inputs(self, ids: Tensor, segments: Tensor | None, mask: Tensor | None) -> None:
        _check("input_ids", ids, ids, self.config.vocab_size)
        if segments is not None:
            _check("token_type_ids", segments, ids, self.config.type_vocab_size)
        if mask is not None:
            is_bool = getattr(mask, "dtype", None) == torch.bool
            _check("attention_mask", mask.int() if is_bool else mask, ids, 2)


def attention_bias(attention_mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Turn the caller's 0/1 mask into what is added to the attention scores.

    The softmax then gives a padded token the weight 0, so that no token reads from it.

    Args:
        attention_mask: integer or bool, (B, T); 1 = real, 0 = padding.
        dtype: of the scores.

    Returns:
        (B, 1, 1, T), for all heads and readers: 0 where the mask is 1; where it is 0, half of the
        dtype's most negative number (half, so that adding a score cannot overflow).

    Source: google-research/bert@eedf571 modeling.py:709-716, -10000; [V17] section 3.2.3 has -inf.
    """
    bias = torch.zeros(attention_mask.shape, dtype=dtype, device=attention_mask.device)
    bias = bias.masked_fill(attention_mask == 0, torch.finfo(dtype).min / 2)
    return bias[:, None, None, :]


def _check(name: str, ids: Tensor, like: Tensor, size: int) -> None:
    if not isinstance(ids, Tensor) or ids.dtype not in (torch.int64, torch.int32):
        got = ids.dtype if isinstance(ids, Tensor) else type(ids).__name__
        raise ValueError(f"{name} must be an int64 or int32 tensor, got {got}")
    if ids.dim() != 2 or ids.shape != like.shape or ids.numel() == 0:
        shape = "(B, T) with B and T from 1 up" if ids is like else tuple(like.shape)
        raise ValueError(f"{name} must have shape {shape}, got {tuple(ids.shape)}")
    if not torch.compiler.is_compiling():  # a look at values would cut the compiled graph in two
        lowest, highest = (int(value) for value in ids.aminmax())
        if lowest < 0 or highest >= size:
            raise ValueError(f"{name} go from {lowest} to {highest}, allowed is 0 to {size - 1}")
