"""A model as a folder: `save`, in the layout and names of the Hub.

Read next: analysis.py.
"""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from minibert.bert import Bert
from minibert.folders import write_folder
from minibert.glossary import BIAS, DECODER, SECOND_BIAS, checkpoint_names, head_names
from minibert.packing import is_packed
from minibert.source import POOLING_FILES
from minibert.tokenizer import WordPieceTokenizer
from minibert.vocabulary import SPECIAL_TOKENS
from minibert.wordpiece import MAX_CHARACTERS_PER_WORD

_WEIGHTS = "model.safetensors"


def save(bert: Bert, folder: str | os.PathLike[str]) -> None:
    """Write a model in the Hub's layout, for minibert, transformers and what else reads it.

    The files are config.json, vocab.txt, tokenizer.json, tokenizer_config.json and
    model.safetensors; of a model for sentences also modules.json and 1_Pooling/config.json, for
    sentence-transformers. The head is written, too, if there is one: load it with head="auto". The
    weights keep their dtype: `load(folder, dtype=...)` with that dtype gives the same numbers, bit
    for bit.

    Args:
        bert: what to write.
        folder: a new one, or one that save wrote earlier; all of it is written, or nothing.

    Raises:
        ValueError: if the folder has other files, or the model is packed.
        CheckpointError: if it cannot be written; it is then as it was.
    """
    if is_packed(bert.model):
        raise ValueError("a packed model cannot be saved; save the one that it was made from")
    texts = _texts(bert)
    tensors = {name: tensor.cpu().contiguous() for name, tensor in _tensors(bert).items()}

    def fill(draft: Path) -> None:
        for name, text in texts.items():
            (draft / name).parent.mkdir(exist_ok=True)
            (draft / name).write_bytes(text.encode())
        try:
            save_file(tensors, draft / _WEIGHTS, {"format": "pt"})
        except SafetensorError as error:
            raise OSError(str(error)) from error
        # safetensors makes files that only their owner can read, whatever the umask.
        (draft / _WEIGHTS).chmod((draft / "config.json").stat().st_mode)

    write_folder(Path(folder), {*texts, *POOLING_FILES, _WEIGHTS}, fill)


def _texts(bert: Bert) -> dict[str, str]:
    """The content of every file but the weights."""
    says = bert.source.pooling if bert.source else None
    contents = {
        "config.json": _config(bert),
        "tokenizer.json": _tokenizer_json(bert.tokenizer),
        "tokenizer_config.json": _tokenizer_config(bert),
        **(says.files(bert.config.hidden_size) if says else {}),
    }
    # A line of nothing is not one: such a piece was U+2028 (bert-base-chinese), which readers
    # take for a space at the end of the line.
    lines = [f"{piece or chr(0x2028)}\n" for piece in bert.tokenizer.vocabulary]
    texts = {name: json.dumps(it, indent=2, ensure_ascii=False) for name, it in contents.items()}
    return {"vocab.txt": "".join(lines), **{name: f"{text}\n" for name, text in texts.items()}}


def _tensors(bert: Bert) -> dict[str, Tensor]:
    """Every weight under its name on the Hub."""
    names = checkpoint_names(bert.config, bert.model.pooler is not None)
    # Before the encoder's names stands "bert." where a head stands beside it.
    prefix = "bert." if bert.head else ""
    state = {prefix + names[own]: tensor for own, tensor in bert.model.state_dict().items()}
    if bert.head:
        named = head_names(bert.head.config)
        state |= {
            named[own]: tensor
            for own, tensor in bert.head.state_dict().items()
            if f"bert.{named[own]}" not in state  # a tied decoder
        }
        if DECODER in state:  # transformers reads its bias here, and that of a tied one there
            state[SECOND_BIAS] = state[BIAS].clone()
    return state


def _config(bert: Bert) -> dict[str, Any]:
    head = bert.head.config.to_dict() if bert.head else {"architectures": ["BertModel"]}
    return {**head, "model_type": "bert", **dataclasses.asdict(bert.config)}


def _tokenizer_config(bert: Bert) -> dict[str, Any]:
    tokenizer, normalizer = bert.tokenizer, bert.tokenizer.normalizer
    return {
        "tokenizer_class": "BertTokenizer",
        "do_lower_case": normalizer.lowercase,
        "strip_accents": normalizer.strip_accents,
        "tokenize_chinese_chars": normalizer.tokenize_chinese_chars,
        "model_max_length": bert.config.max_position_embeddings,
        "padding_side": tokenizer.padding_side,
        "truncation_side": tokenizer.truncation_side,
        **{f"{token[1:-1].lower()}_token": token for token in SPECIAL_TOKENS},
        "added_tokens_decoder": {str(entry.pop("id")): entry for entry in _special(tokenizer)},
    }


def _tokenizer_json(tokenizer: WordPieceTokenizer) -> dict[str, Any]:
    """What the `tokenizers` library reads, and with it most programs in other languages."""
    ids = tokenizer.special_ids
    normalizer = tokenizer.normalizer
    return {
        "version": "1.0",
        "added_tokens": _special(tokenizer),
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": normalizer.tokenize_chinese_chars,
            "strip_accents": normalizer.strip_accents,
            "lowercase": normalizer.lowercase,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {
            "type": "BertProcessing",
            "sep": ["[SEP]", ids["[SEP]"]],
            "cls": ["[CLS]", ids["[CLS]"]],
        },
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {
            "type": "WordPiece",
            "unk_token": "[UNK]",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": MAX_CHARACTERS_PER_WORD,
            "vocab": {piece: number for number, piece in enumerate(tokenizer.vocabulary)},
        },
    }


def _special(tokenizer: WordPieceTokenizer) -> list[dict[str, Any]]:
    off = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    ids = sorted((number, token) for token, number in tokenizer.special_ids.items())
    return [{"id": number, "content": token, **off, "special": True} for number, token in ids]
