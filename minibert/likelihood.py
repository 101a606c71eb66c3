"""How likely is a text? A masked LM says how likely each of its pieces is, given all the others.

The product of these is not the probability of the text, as each is given the others. The sum of
their logarithms is called its pseudo-log-likelihood. Two are in use:

    token   each token in turn is masked: [S20] Salazar et al. 2020, arXiv 1910.14659, section 2
    word    each word in turn, by its pieces from left to right: each piece is masked together with
            those after it in its word. PLL-word-l2r of Kauf and Ivanova 2023, arXiv 2305.10588

By "token" a rare word comes out as too likely, as each of its pieces gives the others away.

Read next: fill.py.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby, islice
from typing import NamedTuple

from minibert.encoding import Encoding
from minibert.heads import Head, LinearHead, MaskedLMHead
from minibert.logits import find_part, list_texts, logits
from minibert.model import BertModel
from minibert.tokenizer import WordPieceTokenizer


@dataclass(frozen=True)
class Likelihood:
    """How likely each token or word of a text is, given all the rest of it."""

    tokens: list[str]  # pieces, or words as the text has them; without [CLS] and [SEP]
    offsets: list[tuple[int, int]]  # where in the text each is from
    log_probabilities: list[float]  # natural logarithms, one for each of them

    @property
    def total(self) -> float:
        """Their sum: the pseudo-log-likelihood of the text."""
        return math.fsum(self.log_probabilities)


class Question(NamedTuple):
    """How likely is this piece at this place?"""

    encoding: Encoding  # of which the ids and segments count
    place: int
    piece: int  # its id


def pseudo_log_likelihood(
    model: BertModel,
    head: Head | None,
    tokenizer: WordPieceTokenizer,
    texts: str | Sequence[str],
    unit: str = "token",
) -> list[Likelihood]:
    """Say how likely texts are as they stand.

    Args:
        model: in eval mode.
        head: masked-lm or pretraining, of the model.
        tokenizer: of the model.
        texts: one or several, without [MASK]; a word that the vocabulary lacks counts as [UNK].
        unit: "token" or "word".

    Returns:
        A Likelihood for each text.

    Raises:
        ValueError: if a text has a [MASK], unit is neither, or the model has no such head.
    """
    part, mask = find_part(head, "masked-lm"), tokenizer.special_ids["[MASK]"]
    many = list_texts(texts)
    encodings = tokenizer.encode_batch(many)
    has_mask = [mask in encoding.input_ids for encoding in encodings]
    if any(has_mask):
        raise ValueError(f"text {has_mask.index(True) + 1} has a [MASK]: fill it first")
    words = [_words(encoding, unit) for encoding in encodings]
    chains = [
        chain(encoding, *span, encoding.input_ids[slice(*span)], mask)
        for encoding, spans in zip(encodings, words, strict=True)
        for span in spans
    ]
    numbers = iter(log_probabilities(model, part, chains))
    return [
        _likelihood(text, encoding, unit, spans, list(islice(numbers, len(spans))))
        for text, encoding, spans in zip(many, encodings, words, strict=True)
    ]


def chain(
    encoding: Encoding, start: int, end: int, pieces: Sequence[int], mask: int
) -> list[Question]:
    """Ask for pieces in a row, from left to right.

    Each is asked for when those before it are in place, and itself and those after it are masked.
    The product of the answers is the probability of the row, given the text around it and how many
    pieces it has: the chain rule.

    Args:
        encoding: a text.
        start: the row stands in it instead of the tokens from number `start`,
        end: up to `end`.
        pieces: ids of the row.
        mask: id of [MASK].
    """
    ids, segments = encoding.input_ids, encoding.token_type_ids
    segments = [*segments[:start], *[segments[start]] * len(pieces), *segments[end:]]
    questions = []
    for number, piece in enumerate(pieces):
        row = [*pieces[:number], *[mask] * (len(pieces) - number)]
        row = [*ids[:start], *row, *ids[end:]]
        asked = replace(encoding, input_ids=row, token_type_ids=segments)
        questions.append(Question(asked, start + number, piece))
    return questions


def log_probabilities(
    model: BertModel, head: MaskedLMHead | LinearHead, chains: Sequence[Sequence[Question]]
) -> list[float]:
    """The logarithm of the probability of each chain: the sum of those of its pieces."""
    # Many ask about one place of one text, such as the targets of a [MASK]: it is read once.
    asked: dict[tuple[int, ...], list[tuple[int, int]]] = {}
    encodings, places = [], []
    for number, questions in enumerate(chains):
        for encoding, place, piece in questions:
            key = (place, *encoding.input_ids)
            if key not in asked:
                asked[key] = []
                encodings.append(encoding)
                places.append([place])
            asked[key].append((number, piece))
    terms: list[list[float]] = [[] for _ in chains]
    for answers, rows in zip(asked.values(), logits(model, head, encodings, places), strict=True):
        logarithms = rows[0].log_softmax(dim=-1)
        for number, piece in answers:
            terms[number].append(logarithms[piece].item())
    return [math.fsum(row) for row in terms]


def _likelihood(
    text: str,
    encoding: Encoding,
    unit: str,
    spans: Sequence[tuple[int, int]],
    log_probabilities: list[float],
) -> Likelihood:
    offsets = [(encoding.offsets[a][0], encoding.offsets[b - 1][1]) for a, b in spans]
    if unit == "token":
        tokens = [encoding.tokens[start] for start, _ in spans]
    else:
        tokens = [text[start:end] for start, end in offsets]
    return Likelihood(tokens, offsets, log_probabilities)


def _words(encoding: Encoding, unit: str) -> list[tuple[int, int]]:
    """Which tokens each token or word of a text is, from and up to, without [CLS] and [SEP]."""
    places = [n for n, is_added in enumerate(encoding.special_tokens_mask) if not is_added]
    if unit == "token":
        return [(place, place + 1) for place in places]
    if unit != "word":
        raise ValueError(f"unit must be 'token' or 'word', got {unit!r}")
    runs = [list(run) for _, run in groupby(places, key=encoding.word_ids.__getitem__)]
    return [(run[0], run[-1] + 1) for run in runs]
