"""The bottom of BERT: three lookups, a sum, a LayerNorm.

Follows [D18] section 3 "Input/Output Representations" and figure 2. Read next: kernels.py.
"""

import torch
from torch import Tensor, nn

from minibert.config import BertConfig


class Embeddings(nn.Module):
    """Input ids to vectors: E = LayerNorm(word + segment + position), [D18] figure 2.

    The result is state 0, what the first encoder layer reads.

    How the released model departs from the papers:
        The LayerNorm of the sum is in neither (modeling.py:520), and stands before the dropout of
        [V17] section 5.4. The vectors are not multiplied by sqrt(H) as in [V17] section 3.4, and
        positions are learned, where [V17] section 3.5 has sinusoids.

    Source: google-research/bert@eedf571 modeling.py:428-521.
    """

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.word = _table(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.token_type = _table(config.type_vocab_size, config.hidden_size)
        self.position = _table(config.max_position_embeddings, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, input_ids: Tensor, token_type_ids: Tensor) -> Tensor:
        """Ids (B, T) and segments (B, T) -> (B, T, H)."""
        length, most = input_ids.shape[1], self.position.num_embeddings
        if length > most:
            raise ValueError(
                f"{length} tokens are more than the {most} positions of this model; truncate "
                f"(max_length={most} for the tokenizer, --max-length {most}) or split the text"
            )
        # 0, 1, 2, ... in every row: padding on the left would move the words, and change them.
        positions = torch.arange(length, device=input_ids.device).expand_as(input_ids)  # (B, T)
        summed = self.word(input_ids) + self.token_type(token_type_ids) + self.position(positions)
        embedded: Tensor = self.dropout(self.norm(summed))
        return embedded


def _table(rows: int, width: int, padding_idx: int | None = None) -> nn.Embedding:
    """An embedding that BertModel or a checkpoint fills; torch would first draw it, for nothing."""
    return nn.Embedding(rows, width, padding_idx, _weight=torch.empty(rows, width))
