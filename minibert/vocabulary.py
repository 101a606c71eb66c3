"""What a tokenizer is made of, read from its files: pieces and settings.

A model says these things in up to three files: vocab.txt, tokenizer_config.json and tokenizer.json.
Where two of them disagree, others silently take one; here that is an error, and so is whatever the
tokenizer would have to ignore. Read next: tokenizer.py.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from minibert.config import CheckpointError
from minibert.files import looks_like, read_bytes
from minibert.tokenizer_json import check_frame, read_model

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")

# Settings of tokenizer_config.json that are not implemented, with the values that are.
_IMPLEMENTED: dict[str, tuple[Any, ...]] = {
    "tokenizer_class": (
        None,
        "BertTokenizer",
        "BertTokenizerFast",
        "PreTrainedTokenizerFast",
        "TokenizersBackend",
    ),
    "word_tokenizer_type": (None, "basic"),
    "subword_tokenizer_type": (None, "wordpiece"),
    "do_basic_tokenize": (None, True),
    "never_split": (None, []),
    "pad_token": (None, "[PAD]"),
    "unk_token": (None, "[UNK]"),
    "cls_token": (None, "[CLS]"),
    "sep_token": (None, "[SEP]"),
    "mask_token": (None, "[MASK]"),
    "padding_side": (None, "left", "right"),
    "truncation_side": (None, "left", "right"),
}


class TokenizerParts(NamedTuple):
    """The arguments of WordPieceTokenizer, by their names there."""

    vocabulary: list[str]
    lowercase: bool
    strip_accents: bool | None
    tokenize_chinese_chars: bool
    added_tokens: list[str]


def read_vocabulary(path: str | os.PathLike[str]) -> list[str]:
    """Read a vocab.txt: UTF-8, a piece a line, the first line is id 0.

    Raises:
        CheckpointError: if the file cannot be read, is not UTF-8, or has a blank line.
    """
    content = read_bytes(Path(path))
    if what := looks_like(content):
        raise CheckpointError(f"{Path(path).name} is no vocabulary: {what}")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"not UTF-8 at byte {error.start}") from error
    # Only "\n" ends a line: str.splitlines would also cut inside U+0085, and shift all ids.
    lines = text.removesuffix("\n").split("\n")
    # Not any whitespace: a line of bert-base-chinese is U+2028 alone.
    if blank := next((number for number, line in enumerate(lines, 1) if not line.strip(" \r")), 0):
        raise CheckpointError(f"{Path(path).name} has a blank line, number {blank}")
    return [line.rstrip() for line in lines]


def settle(
    pieces: list[str] | None, settings: Mapping[str, Any], tokenizer_json: Mapping[str, Any] | None
) -> TokenizerParts:
    """Make one of what the files of a tokenizer say.

    Args:
        pieces: of vocab.txt, if there is one.
        settings: the content of tokenizer_config.json; empty if there is none.
        tokenizer_json: the content of tokenizer.json, if there is one.

    Raises:
        CheckpointError: if they contradict each other, ask for something that is not implemented,
            or leave open whether a vocabulary with capitals is for lower-cased text.
    """
    _check_settings(settings)
    normalizer: Mapping[str, Any] = {}
    if tokenizer_json is not None:
        own_pieces, normalizer = read_model(tokenizer_json)
        # A line is read without the space at its end; tokenizer.json may have kept it.
        if pieces is not None and pieces != [piece.rstrip() for piece in own_pieces]:
            raise CheckpointError("vocab.txt and tokenizer.json have different vocabularies")
        pieces = own_pieces
    if pieces is None:
        raise CheckpointError("there is neither a vocab.txt nor a tokenizer.json")
    lowercase = _agreed("do_lower_case", settings, "lowercase", normalizer)
    if lowercase is None:
        _check_uncased(pieces)
    strip_accents = _agreed("strip_accents", settings, "strip_accents", normalizer)
    chinese = "tokenize_chinese_chars"
    apart = _agreed(chinese, settings, "handle_chinese_chars", normalizer)
    extra = _read_added_tokens(pieces, settings, tokenizer_json or {})
    known = set(pieces)
    vocabulary = [*pieces, *(token for token in extra if token not in known)]
    if tokenizer_json is not None:
        check_frame(tokenizer_json, vocabulary)
    return TokenizerParts(
        vocabulary, lowercase is not False, strip_accents, apart is not False, extra
    )


def check_no_more_tokens(content: Mapping[str, Any]) -> None:
    """Of added_tokens.json, which old libraries wrote, no two readers make the same."""
    added = [token for token in content if token not in SPECIAL_TOKENS]
    if added:
        raise CheckpointError(
            f"added_tokens.json adds {added[0]!r:.80}, but not how it is found in a text; "
            "save the tokenizer with transformers 4.34 or newer, which says it"
        )


def _check_settings(settings: Mapping[str, Any]) -> None:
    for key, implemented in _IMPLEMENTED.items():
        value = settings.get(key)
        value = value.get("content") if isinstance(value, dict) else value
        if value not in implemented:
            known = " or ".join(repr(value) for value in implemented if value is not None)
            raise CheckpointError(f"{key} {value!r:.80} is not supported, only {known}")


def _check_uncased(pieces: list[str]) -> None:
    capital = next((p for p in pieces if p != p.lower() and not p.startswith("[")), None)
    if capital is not None:
        raise CheckpointError(
            f"the vocabulary has capitals ({capital!r}), but nothing says whether texts are "
            'lower-cased; put "do_lower_case": false or true into tokenizer_config.json'
        )


def _agreed(
    key: str, settings: Mapping[str, Any], other_key: str, normalizer: Mapping[str, Any]
) -> bool | None:
    """What two files say under their two keys; None if neither says anything."""
    values = [settings.get(key), normalizer.get(other_key)]
    for value in values:
        if value is not None and not isinstance(value, bool):
            raise CheckpointError(f"{key} must be true or false, got {value!r}")
    said = [value for value in values if value is not None]
    if len(set(said)) > 1:
        raise CheckpointError(
            f"tokenizer_config.json has {key} {said[0]}, but tokenizer.json {other_key} {said[1]}"
        )
    return said[0] if said else None


def _read_added_tokens(
    pieces: list[str], settings: Mapping[str, Any], tokenizer_json: Mapping[str, Any]
) -> list[str]:
    """Tokens besides SPECIAL_TOKENS that are to be found in texts as they are written."""
    size = len(pieces)
    added = []
    for number, token, asked in _added_entries(pieces, settings, tokenizer_json):
        if 0 <= number < len(pieces):
            if pieces[number] != token:
                raise CheckpointError(f"added token {token!r} has the id of {pieces[number]!r}")
        elif number != size:
            raise CheckpointError(f"added token {token!r} has the id {number}; {size} is next")
        else:
            size += 1
        if token not in SPECIAL_TOKENS:
            if asked:
                raise CheckpointError(
                    f"added token {token!r} is {asked[0]}: not supported; where that does not "
                    f"matter, add it as AddedToken({token!r}, normalized=False) and save again"
                )
            added.append(token)
    return added


def _added_entries(
    pieces: list[str], settings: Mapping[str, Any], tokenizer_json: Mapping[str, Any]
) -> list[tuple[int, str, list[str]]]:
    """Each added token by its id, with those of its flags that are set and not implemented."""
    flags = ("normalized", "lstrip", "rstrip", "single_word")
    try:
        entries = tokenizer_json.get("added_tokens") or [
            {**entry, "id": int(number)}
            for number, entry in (settings.get("added_tokens_decoder") or {}).items()
        ]
        named = _named_tokens(settings)
        if others := named.keys() - {entry["content"] for entry in entries}:
            ids = {piece: number for number, piece in enumerate(pieces)}
            entries = [*entries, *({**named[token], "id": ids[token]} for token in others)]
        found = [(e["id"], e["content"], [flag for flag in flags if e.get(flag)]) for e in entries]
        if any(type(entry[0]) is not int or not entry[1].strip() for entry in found):
            raise ValueError("an id is no number, or a token is blank")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        says = f"added tokens of an unknown form, or not in the vocabulary ({error!s:.80})"
        raise CheckpointError(says) from error
    return sorted(found, key=lambda entry: entry[0])


def _named_tokens(settings: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Tokens that are special without being in added_tokens_decoder, as in older files."""
    named: dict[str, dict[str, Any]] = {}
    for key in ("additional_special_tokens", "extra_special_tokens"):
        tokens = settings.get(key) or []
        if not isinstance(tokens, list | dict):
            raise TypeError(f"{key} is no list")
        for token in tokens.values() if isinstance(tokens, dict) else tokens:
            entry = {"content": token} if isinstance(token, str) else token
            named[entry["content"]] = entry
    return named
