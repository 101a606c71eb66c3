"""What a tokenizer.json of the `tokenizers` library says, if it is one of BERT's.

It may name other steps than BERT's at each turn of the road from text to ids. They would give other
ids, so each is looked at, and refused where it differs. Read next: vocabulary.py.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from minibert.config import CheckpointError
from minibert.wordpiece import MAX_CHARACTERS_PER_WORD

# The settings of the model that are implemented.
_MODEL = {
    "unk_token": "[UNK]",
    "continuing_subword_prefix": "##",
    "max_input_chars_per_word": MAX_CHARACTERS_PER_WORD,
}
_STEPS = {"normalizer": "BertNormalizer", "pre_tokenizer": "BertPreTokenizer"}


def read_model(content: Mapping[str, Any]) -> tuple[list[str], Mapping[str, Any]]:
    """The pieces by id, and the settings of the normalizer.

    Raises:
        CheckpointError: if words are made in another way than BERT's, or pieces are.
    """
    model = content.get("model")
    model = model if isinstance(model, dict) else {}
    ids = model.get("vocab")
    if not isinstance(ids, dict) or model.get("type", "WordPiece") != "WordPiece":
        kind = model.get("type")
        raise CheckpointError(f"tokenizer.json has a tokenizer of kind {kind!r:.80}, not WordPiece")
    for key, value in _MODEL.items():
        if model.get(key, value) != value:
            raise CheckpointError(
                f"tokenizer.json: {key} {model[key]!r:.80}, only {value!r} is supported"
            )
    for step, kind in _STEPS.items():
        said = content.get(step)
        if not isinstance(said, dict) or said.get("type") != kind:
            raise CheckpointError(
                f"tokenizer.json has another {step} than {kind}, which BertTokenizer has"
            )
    normalizer: Mapping[str, Any] = content["normalizer"]
    if normalizer.get("clean_text") is not True:
        raise CheckpointError("tokenizer.json: clean_text must be true")
    has_numbers = all(type(number) is int for number in ids.values())
    pieces = sorted(ids, key=ids.__getitem__) if has_numbers else []
    if not pieces or [ids[piece] for piece in pieces] != list(range(len(pieces))):
        raise CheckpointError("tokenizer.json: the ids of the vocabulary are not 0, 1, 2, ...")
    return pieces, normalizer


def check_frame(content: Mapping[str, Any], vocabulary: Sequence[str]) -> None:
    """Refuse, by a CheckpointError, a frame that is not the one of encoding.py.

    Args:
        content: of the file.
        vocabulary: the pieces by id, added tokens included.
    """
    ids = {token: vocabulary.index(token) for token in ("[CLS]", "[SEP]") if token in vocabulary}
    fixed = {token[1:-1].lower(): [token, number] for token, number in ids.items()}
    two = [("[CLS]", 0), ("A", 0), ("[SEP]", 0), ("B", 1), ("[SEP]", 1)]
    steps = [
        {"SpecialToken" if name in ids else "Sequence": {"id": name, "type_id": segment}}
        for name, segment in two
    ]
    template = {
        "type": "TemplateProcessing",
        "single": steps[:3],
        "pair": steps,
        "special_tokens": {
            token: {"id": token, "ids": [number], "tokens": [token]}
            for token, number in ids.items()
        },
    }
    if content.get("post_processor") not in ({"type": "BertProcessing", **fixed}, template):
        raise CheckpointError(
            "tokenizer.json does not frame texts as BertTokenizer does: "
            "[CLS] A [SEP] and [CLS] A [SEP] B [SEP]"
        )
