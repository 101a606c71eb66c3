"""The Transformer encoder: the page for the wall.

From the smallest part to the whole: SelfAttention, FeedForward, EncoderLayer, Encoder.
Follows [V17] sections 3.1 to 3.3 in the sizes of [D18]. A module that computes nothing
(`nn.Identity`) gives a tensor a name, at which a hook can stand. Read next: model.py.
"""

import math

from torch import Tensor, nn
from torch.nn import functional as F

from minibert.config import BertConfig
from minibert.kernels import Linear, has_hooks, is_slow_fused


class SelfAttention(nn.Module):
    """Every token reads from every real token, in A heads at once.

        Attention(Q, K, V) = softmax(Q K^T / sqrt(D)) V              [V17] equation (1), figure 2
        MultiHead = Concat(head_1, ..., head_A) W_O                  [V17] section 3.2.2

    Submodules, in the order of the data:
        query, key, value: (B, T, H); head a is columns a D to (a + 1) D.
        scores: (B, A, T, T), row = the token that reads, column = the token that is read; scaled,
            and with the attention bias added.
        probabilities: (B, A, T, T), in [0, 1]; each row sums to 1.
        context: (B, A, T, D).
        output: (B, T, H).

    How the released model departs from the papers:
        All four projections have a bias. Dropout on the probabilities (modeling.py:724) is not in
        [V17] section 5.4. A negative number added to the scores keeps padding out (709-716).

    Source: google-research/bert@eedf571 modeling.py:558-751 and 853-861.
    """

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.query = Linear(config.hidden_size, config.hidden_size)
        self.key = Linear(config.hidden_size, config.hidden_size)
        self.value = Linear(config.hidden_size, config.hidden_size)
        self.scores = nn.Identity()
        self.probabilities = nn.Softmax(dim=-1)
        self.dropout = nn.Dropout(config.attention_probs_dropout_prob)
        self.context = nn.Identity()
        self.output = Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden_states: Tensor, attention_bias: Tensor | None) -> Tensor:
        """Vectors (B, T, H) and a bias (B, 1, 1, T) -> (B, T, H)."""
        query = self._split_heads(self.query(hidden_states))  # (B, A, T, D)
        key = self._split_heads(self.key(hidden_states))  # (B, A, T, D)
        value = self._split_heads(self.value(hidden_states))  # (B, A, T, D)
        context = self.context(self._attend(query, key, value, attention_bias))  # (B, A, T, D)
        joined = context.transpose(1, 2).flatten(2)  # (B, T, H)
        attended: Tensor = self.output(joined)  # (B, T, H)
        return attended

    def _split_heads(self, projected: Tensor) -> Tensor:
        """(B, T, H) -> (B, A, T, D)."""
        batch, tokens, _ = projected.shape
        return projected.view(batch, tokens, self.num_heads, -1).transpose(1, 2)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
        """Equation (1): three times (B, A, T, D) -> (B, A, T, D).

        Written out when somebody looks at the scores or probabilities, or drops some of them; else
        torch's fused kernel, which never holds the (T, T) matrix. Both agree to rounding.
        """
        is_dropped = self.dropout.training and self.dropout.p > 0
        if self._is_observed() or is_dropped or is_slow_fused(query):
            scores = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])  # (B, A, T, T)
            scores = self.scores(scores if bias is None else scores + bias)  # (B, A, T, T)
            probabilities = self.probabilities(scores)  # (B, A, T, T)
            written_out: Tensor = self.dropout(probabilities) @ value  # (B, A, T, D)
            return written_out
        return F.scaled_dot_product_attention(query, key, value, attn_mask=bias)

    def _is_observed(self) -> bool:
        """Whether a hook stands on a tensor that the fused kernel would not show."""
        return any(map(has_hooks, (self.scores, self.probabilities, self.dropout)))


class FeedForward(nn.Module):
    """Two linear maps with an activation between them, applied to each token alone.

        FFN(x) = GELU(x W_1 + b_1) W_2 + b_2                         [V17] equation (2), [H16]
        GELU(x) = x P(X <= x) = x (1 + erf(x / sqrt(2))) / 2         [H16] section 2

    Submodules: intermediate (B, T, I), activation (B, T, I), output (B, T, H).

    How the released model departs from the papers:
        [V17] has ReLU, [D18] appendix A.2 says GELU. The released weights were trained with the
        exact form, with erf; Google's code approximates it by tanh since commit bee6030.

    Source: google-research/bert@eedf571 modeling.py:264-277 and 865-878.
    """

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.intermediate = Linear(config.hidden_size, config.intermediate_size)
        self.activation = activation(config.hidden_act)
        self.output = Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """(B, T, H) -> (B, T, H)."""
        transformed: Tensor = self.output(self.activation(self.intermediate(hidden_states)))
        return transformed


def activation(name: str) -> nn.Module:
    """By hidden_act: GELU by erf ("gelu") or tanh, [H16] section 2, [D18] appendix A.2; or ReLU."""
    return nn.ReLU() if name == "relu" else nn.GELU("none" if name == "gelu" else "tanh")


class EncoderLayer(nn.Module):
    """Attention, then feed-forward; each is added to its input and the sum is normalised.

        x = LayerNorm(x + Sublayer(x))                               [V17] section 3.1, figure 1
        LayerNorm(x) = (x - mean) / sqrt(variance + eps) * g + b     [B16] equations (3) and (4)

    LayerNorm comes after the sum (post-LN). Most later models put it before the sublayer, which
    with BERT's weights gives other numbers and no error. Not in the paper: eps.

    Source: google-research/bert@eedf571 modeling.py:827-882; dropout as in [V17] section 5.4.
    """

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.attention = SelfAttention(config)
        self.attention_dropout = nn.Dropout(config.hidden_dropout_prob)
        self.attention_norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.feed_forward = FeedForward(config)
        self.feed_forward_dropout = nn.Dropout(config.hidden_dropout_prob)
        self.feed_forward_norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)

    def forward(self, hidden_states: Tensor, attention_bias: Tensor | None) -> Tensor:
        """Vectors (B, T, H) and a bias (B, 1, 1, T) -> (B, T, H)."""
        attended = self.attention_dropout(self.attention(hidden_states, attention_bias))
        attended = self.attention_norm(hidden_states + attended)  # (B, T, H)
        transformed = self.feed_forward_dropout(self.feed_forward(attended))
        layer_output: Tensor = self.feed_forward_norm(attended + transformed)  # (B, T, H)
        return layer_output


class Encoder(nn.Module):
    """L layers, one after the other. Layer i reads state i and writes state i + 1."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.num_hidden_layers))

    def forward(self, hidden_states: Tensor, attention_bias: Tensor | None) -> Tensor:
        """Vectors (B, T, H) and a bias (B, 1, 1, T) -> (B, T, H)."""
        for layer in self.layers:
            hidden_states = layer(hidden_states, attention_bias)
        return hidden_states
