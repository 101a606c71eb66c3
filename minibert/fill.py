"""What could stand at [MASK]? The words that a masked LM finds likely, or those that you name.

This is what BERT was trained to answer, [D18] section 3.1, task 1. A word of n pieces is asked for
in the text with n times [MASK], from left to right: the probability of the first piece, times that
of the second when the first is in place, and so on (likelihood.py, `chain`). Compare it with words
of as many pieces, and with no others: that there are n is given, and nowhere asked.

Read next: labels.py.
"""

import json
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from minibert.encoding import Encoding
from minibert.heads import Head, LinearHead, MaskedLMHead
from minibert.likelihood import chain, log_probabilities
from minibert.logits import find_part, list_texts, logits
from minibert.model import BertModel
from minibert.tokenizer import WordPieceTokenizer

_MOST = 5  # candidates, where nobody says how many

_Ranked = tuple[str, tuple[int, ...], float]  # token, ids and probability of a candidate


class Candidate(NamedTuple):
    """What could stand where a [MASK] stands."""

    token: str  # a piece of the vocabulary, or a target as it was asked for
    ids: tuple[int, ...]  # of its pieces
    probability: float  # in [0, 1]
    sequence: str  # the text with it instead of this [MASK]


class Blank(NamedTuple):
    """A [MASK] in one of several texts, texts[text][start:end], and what could stand there."""

    text: int
    start: int
    end: int
    candidates: list[Candidate]  # the likeliest first


def fill(
    model: BertModel,
    head: Head | None,
    tokenizer: WordPieceTokenizer,
    texts: str | Sequence[str],
    top_k: int | None = None,
    targets: Sequence[str] | None = None,
) -> list[Blank]:
    """Say what could stand at each [MASK].

    Args:
        model: in eval mode.
        head: masked-lm or pretraining, of the model.
        tokenizer: of the model.
        texts: one or several, with a [MASK] or more: each is filled while the others stay.
        top_k: how many candidates; None means 5, or all targets.
        targets: words to ask for, instead of all pieces of the vocabulary.

    Returns:
        A Blank for each [MASK], text after text. Probabilities are over the whole vocabulary.

    Raises:
        ValueError: if a text has no [MASK], a target no pieces, or the model no such head.
    """
    part = find_part(head, "masked-lm")
    if top_k is not None and not 1 <= top_k <= len(tokenizer):
        raise ValueError(f"top_k must be from 1 to {len(tokenizer)}, got {top_k}")
    many = list_texts(texts)
    encodings = tokenizer.encode_batch(many)
    places = _find_masks(many, encodings, tokenizer.special_ids["[MASK]"])
    if targets is None:
        ranked = _likeliest(model, part, tokenizer, encodings, places, top_k or _MOST)
    else:
        ranked = _of_targets(model, part, tokenizer, encodings, places, targets)
    return [
        _blank(many[number], number, encodings[number].offsets[place], next(ranked)[:top_k])
        for number, found in enumerate(places)
        for place in found
    ]


def to_json(text: str, blanks: Sequence[Blank]) -> str:
    """One object for a text: "text" and "masks", each with its "candidates"."""
    masks = [
        {
            "start": blank.start,
            "end": blank.end,
            "candidates": [candidate._asdict() for candidate in blank.candidates],
        }
        for blank in blanks
    ]
    return json.dumps({"text": text, "masks": masks}, ensure_ascii=False)


def to_table(blanks: Sequence[Blank]) -> str:
    """For people: a row for each candidate, an empty line between two [MASK]s."""
    tables = []
    for blank in blanks:
        width = max(len(candidate.token) for candidate in blank.candidates)
        rows = [f"{c.probability:.6f}  {c.token:{width}}  {c.sequence}" for c in blank.candidates]
        tables.append("\n".join(rows))
    return "\n\n".join(tables)


def _find_masks(texts: Sequence[str], encodings: Sequence[Encoding], mask: int) -> list[list[int]]:
    """Which tokens of each text are [MASK]."""
    found = []
    for number, encoding in enumerate(encodings):
        found.append([place for place, piece in enumerate(encoding.input_ids) if piece == mask])
        if not found[-1]:
            raise ValueError(f"there is no [MASK] in {texts[number][:60]!r}")
    return found


def _find_pieces(
    tokenizer: WordPieceTokenizer, targets: Sequence[str]
) -> dict[str, tuple[int, ...]]:
    """The ids of each target: a piece as the vocabulary has it, or the pieces of what is none."""
    if isinstance(targets, str) or not targets:
        raise ValueError(f"targets must be a list of words, got {targets!r}")
    found: dict[str, tuple[int, ...]] = {}
    for target in targets:
        if target in tokenizer.vocabulary:
            found[target] = (tokenizer.vocabulary.index(target),)
        else:
            found[target] = tuple(tokenizer.encode(target).input_ids[1:-1])
        if not found[target] or tokenizer.special_ids["[UNK]"] in found[target]:
            raise ValueError(f"the target {target!r} has no pieces in this vocabulary")
    return found


def _likeliest(
    model: BertModel,
    head: MaskedLMHead | LinearHead,
    tokenizer: WordPieceTokenizer,
    encodings: Sequence[Encoding],
    places: Sequence[Sequence[int]],
    count: int,
) -> Iterator[list[_Ranked]]:
    """For each [MASK], the likeliest pieces."""
    for rows in logits(model, head, encodings, places):
        # Rows that a word embedding has to spare count, as they did in training; but none is a
        # piece that could be named.
        probabilities = rows.softmax(dim=-1)[:, : len(tokenizer)]
        top = probabilities.topk(min(count, len(tokenizer)))
        for values, ids in zip(top.values.tolist(), top.indices.tolist(), strict=True):
            ranked = zip(ids, values, strict=True)
            yield [(tokenizer.vocabulary[piece], (piece,), value) for piece, value in ranked]


def _of_targets(
    model: BertModel,
    head: MaskedLMHead | LinearHead,
    tokenizer: WordPieceTokenizer,
    encodings: Sequence[Encoding],
    places: Sequence[Sequence[int]],
    targets: Sequence[str],
) -> Iterator[list[_Ranked]]:
    """For each [MASK], the targets."""
    words, mask = _find_pieces(tokenizer, targets), tokenizer.special_ids["[MASK]"]
    chains = [
        chain(encoding, place, place + 1, ids, mask)
        for encoding, found in zip(encodings, places, strict=True)
        for place in found
        for ids in words.values()
    ]
    logarithms = log_probabilities(model, head, chains)
    for start in range(0, len(logarithms), len(words)):
        here = logarithms[start : start + len(words)]
        ranked = [
            (word, ids, math.exp(logarithm))
            for (word, ids), logarithm in zip(words.items(), here, strict=True)
        ]
        yield sorted(ranked, key=lambda candidate: candidate[2], reverse=True)


def _blank(text: str, number: int, offset: tuple[int, int], ranked: Sequence[_Ranked]) -> Blank:
    candidates = [
        Candidate(token, ids, probability, _put(text, *offset, token))
        for token, ids, probability in ranked
    ]
    return Blank(number, *offset, candidates)


def _put(text: str, start: int, end: int, token: str) -> str:
    """The text with a token instead of text[start:end], which is a word unless it begins with ##.

    >>> _put("I am a [MASK].", 7, 13, "##n"), _put("I am[MASK]x", 4, 10, "Bo")
    ('I am an.', 'I am Bo x')
    """
    before, after = text[:start], text[end:]
    if token.startswith("##") and before.strip():
        before, token = before.rstrip(), token[2:]
    elif before[-1:].isalnum() and token[0].isalnum():
        before += " "
    return before + token + (" " if token[-1].isalnum() and after[:1].isalnum() else "") + after
