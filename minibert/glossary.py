"""The glossary: what minibert calls each weight, and what a checkpoint calls it.

One row per tensor, read both ways: it loads, and it saves. Read next: pickles.py.
"""

from minibert.config import BertConfig
from minibert.head_config import HeadConfig

# minibert's name -> the checkpoint's name; {} is the number of the layer, from 0.
NAMES = {
    "embeddings.word.weight": "embeddings.word_embeddings.weight",
    "embeddings.token_type.weight": "embeddings.token_type_embeddings.weight",
    "embeddings.position.weight": "embeddings.position_embeddings.weight",
    "embeddings.norm.weight": "embeddings.LayerNorm.weight",
    "embeddings.norm.bias": "embeddings.LayerNorm.bias",
    "encoder.layers.{}.attention.query.weight": "encoder.layer.{}.attention.self.query.weight",
    "encoder.layers.{}.attention.query.bias": "encoder.layer.{}.attention.self.query.bias",
    "encoder.layers.{}.attention.key.weight": "encoder.layer.{}.attention.self.key.weight",
    "encoder.layers.{}.attention.key.bias": "encoder.layer.{}.attention.self.key.bias",
    "encoder.layers.{}.attention.value.weight": "encoder.layer.{}.attention.self.value.weight",
    "encoder.layers.{}.attention.value.bias": "encoder.layer.{}.attention.self.value.bias",
    "encoder.layers.{}.attention.output.weight": "encoder.layer.{}.attention.output.dense.weight",
    "encoder.layers.{}.attention.output.bias": "encoder.layer.{}.attention.output.dense.bias",
    "encoder.layers.{}.attention_norm.weight": "encoder.layer.{}.attention.output.LayerNorm.weight",
    "encoder.layers.{}.attention_norm.bias": "encoder.layer.{}.attention.output.LayerNorm.bias",
    "encoder.layers.{}.feed_forward.intermediate.weight": "encoder.layer.{}.intermediate.dense.weight",  # noqa: E501
    "encoder.layers.{}.feed_forward.intermediate.bias": "encoder.layer.{}.intermediate.dense.bias",
    "encoder.layers.{}.feed_forward.output.weight": "encoder.layer.{}.output.dense.weight",
    "encoder.layers.{}.feed_forward.output.bias": "encoder.layer.{}.output.dense.bias",
    "encoder.layers.{}.feed_forward_norm.weight": "encoder.layer.{}.output.LayerNorm.weight",
    "encoder.layers.{}.feed_forward_norm.bias": "encoder.layer.{}.output.LayerNorm.bias",
    "pooler.dense.weight": "pooler.dense.weight",
    "pooler.dense.bias": "pooler.dense.bias",
}

# The same for heads, which in their checkpoints stand beside "bert.", the encoder.
_MASKED_LM = {
    "dense.weight": "cls.predictions.transform.dense.weight",
    "dense.bias": "cls.predictions.transform.dense.bias",
    "norm.weight": "cls.predictions.transform.LayerNorm.weight",
    "norm.bias": "cls.predictions.transform.LayerNorm.bias",
    "decoder.weight": "cls.predictions.decoder.weight",
    "bias": "cls.predictions.bias",
}
_NEXT_SENTENCE = {
    "linear.weight": "cls.seq_relationship.weight",
    "linear.bias": "cls.seq_relationship.bias",
}
_CLASSIFIER = {"linear.weight": "classifier.weight", "linear.bias": "classifier.bias"}
HEAD_NAMES = {
    "masked-lm": _MASKED_LM,
    "next-sentence": _NEXT_SENTENCE,
    "pretraining": {
        **{f"masked_lm.{own}": theirs for own, theirs in _MASKED_LM.items()},
        **{f"next_sentence.{own}": theirs for own, theirs in _NEXT_SENTENCE.items()},
    },
    "sequence-classification": _CLASSIFIER,
    "token-classification": _CLASSIFIER,
    "multiple-choice": _CLASSIFIER,
    "question-answering": {"linear.weight": "qa_outputs.weight", "linear.bias": "qa_outputs.bias"},
}

WORD = NAMES["embeddings.word.weight"]
DECODER, BIAS = _MASKED_LM["decoder.weight"], _MASKED_LM["bias"]
SECOND_BIAS = "cls.predictions.decoder.bias"  # some files have it, and some have both


def checkpoint_names(config: BertConfig, has_pooler: bool = True) -> dict[str, str]:
    """Every tensor of one architecture: minibert's name -> the checkpoint's name.

    >>> checkpoint_names(BertConfig())["encoder.layers.11.attention_norm.bias"]
    'encoder.layer.11.attention.output.LayerNorm.bias'
    """
    names: dict[str, str] = {}
    for own, theirs in NAMES.items():
        if has_pooler or not own.startswith("pooler."):
            count = config.num_hidden_layers if "{}" in own else 1
            names |= {own.format(number): theirs.format(number) for number in range(count)}
    return names


def head_names(head: HeadConfig | None) -> dict[str, str]:
    """Every tensor of a head: minibert's name -> the checkpoint's name, beside the encoder's.

    A tied decoder is the word embedding in the file, too.
    """
    names = {} if head is None else dict(HEAD_NAMES[head.name])
    for own, theirs in names.items():
        if theirs == DECODER and head is not None and head.tied:
            names[own] = WORD
    return names


def modern_name(name: str) -> str:
    """Drop the prefix of models with heads; TensorFlow's gamma and beta are weight and bias."""
    name = name.removeprefix("bert.")
    for old, new in ((".LayerNorm.gamma", "weight"), (".LayerNorm.beta", "bias")):
        if name.endswith(old):
            return f"{name.removesuffix(old)}.LayerNorm.{new}"
    return name


def shown(name: str, most: int = 100) -> str:
    r"""A name out of a file, as a message tells it: on one line, and not at great length.

    >>> shown("evil\nname")
    "'evil\\nname'"
    """
    return (name if name.isprintable() else ascii(name))[:most]
