"""The numbers that make a BERT: `BertConfig`, key by key the config.json of a published checkpoint.

Also what all files share: the letters of shapes, the tags of papers, `CheckpointError`.
Follows [D18] section 3 and google-research/bert@eedf571 modeling.py:31-83. Read next: unicode.py.

Shapes in comments and docstrings use one legend:

    B  batch, sequences in one call      H  hidden_size, width of a token's vector
    T  tokens in a sequence              A  num_attention_heads
    V  vocab_size, pieces known          D  head size, H / A
    L  num_hidden_layers                 I  intermediate_size, width inside the feed-forward layer

L, H and A are those of [D18]; Google's code has N for heads and H for the head size. On arXiv are
[V17] 1706.03762, [D18] 1810.04805, [H16] 1606.08415, [B16] 1607.06450, [W16] 1609.08144.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

_LARGEST = 10_000_000  # no size of a BERT is near; what is larger would only exhaust the memory
HIDDEN_ACTS = ("gelu", "gelu_new", "gelu_pytorch_tanh", "relu")  # exact by erf, tanh twice, ReLU

# Keys of config.json that change what is computed, with the one value that minibert implements.
_IMPLEMENTED: dict[str, Any] = {
    "model_type": "bert",
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
    "pruned_heads": {},
    "quantization_config": None,
}


class CheckpointError(Exception):
    """A file of a model is missing, broken or unsupported; says which one, and what to do."""


@dataclass(frozen=True)
class BertConfig:
    """The architecture of one BERT; the defaults are those of bert-base-uncased.

    initializer_range and the two probabilities (of dropping a number, not of keeping it) only
    matter in training. Not in the paper: the last two keys, which are Hugging Face's.

    Raises:
        ValueError: if a value is of the wrong type or out of range; names the key.
    """

    vocab_size: int = 30522  # V
    hidden_size: int = 768  # H, a multiple of num_attention_heads
    num_hidden_layers: int = 12  # L
    num_attention_heads: int = 12  # A
    intermediate_size: int = 3072  # I; 4 H in every model that Google released
    hidden_act: str = "gelu"  # one of HIDDEN_ACTS
    hidden_dropout_prob: float = 0.1  # on what each sublayer adds, in [0, 1)
    attention_probs_dropout_prob: float = 0.1  # on the attention probabilities, in [0, 1)
    max_position_embeddings: int = 512  # the most tokens in a sequence, [CLS] and [SEP] included
    type_vocab_size: int = 2  # segments that a token can belong to
    initializer_range: float = 0.02  # standard deviation of a fresh model's weights
    layer_norm_eps: float = 1e-12  # added to the variance; TensorFlow 1 had it built in
    pad_token_id: int | None = 0  # row of the word embedding that gets no gradient

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type is int and not (type(value) is int and 1 <= value <= _LARGEST):
                got = f"got {value!r:.80}"
                raise ValueError(f"{field.name} must be an int from 1 to {_LARGEST}, {got}")
            if field.type is float:
                _check_number(field.name, value, may_be_zero=field.name.endswith("dropout_prob"))
        width, heads = self.hidden_size, self.num_attention_heads
        if width % heads:
            raise ValueError(
                f"hidden_size {width} is not a multiple of num_attention_heads {heads}"
            )
        if self.hidden_act not in HIDDEN_ACTS:
            known = ", ".join(HIDDEN_ACTS)
            raise ValueError(f"hidden_act must be one of {known}, got {self.hidden_act!r:.80}")
        pad = self.pad_token_id
        if pad is not None and not (type(pad) is int and 0 <= pad < self.vocab_size):
            raise ValueError(f"pad_token_id must be an id below {self.vocab_size}, got {pad!r:.80}")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "BertConfig":
        """Read the content of a config.json.

        A missing key takes its default, as it does in Hugging Face's library: Google's own files
        have no layer_norm_eps. Keys that no forward pass depends on (use_cache, ...) are left out.

        Raises:
            ValueError: if a key asks for what minibert does not compute (another model_type, a
                decoder, relative positions), or has a value that the class refuses.
        """
        if not isinstance(values, Mapping):
            raise ValueError(f"expected a JSON object, got {type(values).__name__}")
        for key, implemented in _IMPLEMENTED.items():
            if values.get(key) not in (None, implemented):
                got = f"{values[key]!r:.80}"
                raise ValueError(f"{key} {got} is not supported, only {implemented!r} is")
        names = {field.name for field in fields(cls)}
        return cls(**{key: value for key, value in values.items() if key in names})


def _check_number(name: str, value: Any, may_be_zero: bool) -> None:
    """All floats of a BERT are probabilities or small numbers: at least 0, less than 1."""
    in_range = type(value) in (int, float) and 0 <= value < 1  # False for NaN
    if not in_range or (value == 0 and not may_be_zero):
        least = "at least" if may_be_zero else "more than"
        raise ValueError(f"{name} must be a number {least} 0 and less than 1, got {value!r:.80}")
