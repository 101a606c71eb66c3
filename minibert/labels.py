"""What a text is, and what its words are: the heads that say one of several labels.

A function for each, which Bert has as a method of the same name.

Words are tagged by their pieces, which may differ. Then a word is what its first piece is ("first":
the one that [D18] section 5.3 looks at), the likeliest by the mean of their probabilities ("mean"),
or what the surest piece is ("max"); "none" gives the pieces and no words. Neighbours make up spans:
"B-X" begins one, "I-X" or X goes on with it, and "O" is none. The score of a span is the mean of
its words'. So does the token-classification pipeline of transformers 5.23, which calls "none"
"simple" and "mean" "average".

Read next: answers.py.
"""

from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

from torch import Tensor

from minibert.encoding import Encoding
from minibert.heads import Head
from minibert.logits import find_part, list_texts, logits
from minibert.model import BertModel
from minibert.tokenizer import WordPieceTokenizer
from minibert.vectors import TextOrPair

AGGREGATIONS = ("first", "mean", "max", "none")


class Score(NamedTuple):
    """A class and how likely it is; for regression, the number itself."""

    label: str
    score: float


class Tag(NamedTuple):
    """A stretch of a text, text[start:end], what it is, and how likely that is."""

    label: str
    score: float
    start: int
    end: int


class Tagged(NamedTuple):
    """The words of a text with their labels, and the spans that these make up."""

    words: list[Tag]
    spans: list[Tag]  # labels without "B-" and "I-"; none for "O"


def join_pairs(first: str | Sequence[str], second: str | Sequence[str]) -> list[tuple[str, str]]:
    """Two texts as a pair, or two lists of texts as pairs; a ValueError for what is neither."""
    if isinstance(first, str) and isinstance(second, str):
        return [(first, second)]
    if isinstance(first, str) or isinstance(second, str) or len(first) != len(second):
        raise ValueError("first and second must be two texts, or two lists of equally many")
    return list(zip(first, second, strict=True))


def next_sentence(
    model: BertModel,
    head: Head | None,
    tokenizer: WordPieceTokenizer,
    pairs: Sequence[tuple[str, str]],
) -> list[float]:
    """Say how likely the second text of each pair follows the first: [D18] section 3.1, task 2.

    Args:
        model: in eval mode.
        head: next-sentence or pretraining, of the model.
        tokenizer: of the model.
        pairs: tuples of two texts.

    Returns:
        The probability of class 0 for each pair.

    Raises:
        ValueError: if a text has no token, a pair is too long, or the model has no such head.
    """
    part = find_part(head, "next-sentence")
    encodings = tokenizer.encode_batch(pairs)
    for number, encoding in enumerate(encodings):
        real = zip(encoding.token_type_ids, encoding.special_tokens_mask, strict=True)
        if {segment for segment, is_added in real if not is_added} != {0, 1}:
            raise ValueError(f"a text of the pair {pairs[number]!r} has no token")
    return [rows[0].softmax(dim=-1)[0].item() for rows in logits(model, part, encodings)]


def classify(
    model: BertModel,
    head: Head | None,
    tokenizer: WordPieceTokenizer,
    texts: TextOrPair | Sequence[TextOrPair],
    max_length: int | None = None,
) -> list[list[Score]]:
    """Say of which class each text or pair is: [D18] section 4.1.

    Args:
        model: in eval mode.
        head: sequence-classification, of the model.
        tokenizer: of the model.
        texts: one text, or a tuple of two for a pair; or a list of these.
        max_length: cut texts to so many tokens; None makes a text that is too long an error.

    Returns:
        For each text every class, the likeliest first: probabilities by softmax, or by sigmoid if
        several may be right. For regression plain numbers, in the order of the labels; also where
        there is one label and config.json has no problem_type, where the pipeline of transformers
        gives its sigmoid.

    Raises:
        ValueError: if a text is too long, or the model has no such head.
    """
    part = find_part(head, "sequence-classification")
    many = [texts] if isinstance(texts, str | tuple) else texts
    labels, problem = part.config.labels, part.config.problem_type
    results = []
    for rows in logits(model, part, tokenizer.encode_batch(many, max_length)):
        scores = rows[0]
        if problem == "multi_label_classification":
            scores = scores.sigmoid()
        elif problem == "single_label_classification":
            scores = scores.softmax(dim=-1)
        result = [Score(*pair) for pair in zip(labels, scores.tolist(), strict=True)]
        if problem != "regression":
            result.sort(key=lambda score: score.score, reverse=True)
        results.append(result)
    return results


def tag(
    model: BertModel,
    head: Head | None,
    tokenizer: WordPieceTokenizer,
    texts: str | Sequence[str],
    aggregation: str = "first",
) -> list[Tagged]:
    """Say what each word of each text is: [D18] section 5.3.

    Args:
        model: in eval mode.
        head: token-classification, of the model.
        tokenizer: of the model.
        texts: one or several, of any length: a long one goes through as windows.
        aggregation: "first", "mean", "max" or "none".

    Returns:
        For each text its words and its spans.

    Raises:
        ValueError: if there is no such aggregation, or the model has no such head.
    """
    part = find_part(head, "token-classification")
    if aggregation not in AGGREGATIONS:
        raise ValueError(f"aggregation must be one of {AGGREGATIONS}, got {aggregation!r}")
    many = list_texts(texts)
    encodings = tokenizer.encode_batch(many)
    results = []
    for encoding, rows in zip(encodings, logits(model, part, encodings), strict=True):
        probabilities, words = rows.softmax(dim=-1), []
        for places in _places(encoding, aggregation):
            score, label = _aggregate(probabilities[places], aggregation).max(dim=-1)
            start, end = encoding.offsets[places[0]][0], encoding.offsets[places[-1]][1]
            words.append(Tag(part.config.labels[int(label)], score.item(), start, end))
        results.append(Tagged(words, _spans(words)))
    return results


def _places(encoding: Encoding, aggregation: str) -> list[list[int]]:
    """The tokens of each word, or each by itself; without [CLS] and [SEP]."""
    places = [n for n, is_added in enumerate(encoding.special_tokens_mask) if not is_added]
    if aggregation == "none":
        return [[place] for place in places]
    return [list(run) for _, run in groupby(places, key=encoding.word_ids.__getitem__)]


def _aggregate(pieces: Tensor, aggregation: str) -> Tensor:
    """The probabilities of a word (labels), from those of its pieces (N, labels)."""
    if aggregation == "mean":
        return pieces.mean(dim=0)
    return pieces[pieces.amax(dim=-1).argmax() if aggregation == "max" else 0]


def _spans(tags: Sequence[Tag]) -> list[Tag]:
    """Join neighbours of one kind; a "B-" begins a new span.

    >>> spans = _spans([Tag("B-PER", 0.5, 0, 2), Tag("I-PER", 1.0, 3, 5), Tag("O", 1.0, 5, 6)])
    >>> [tuple(span) for span in spans]
    [('PER', 0.75, 0, 5)]
    """
    runs: list[list[Tag]] = []
    for one in tags:
        kind = one.label.removeprefix("I-")
        if runs and kind == runs[-1][0].label.removeprefix("B-").removeprefix("I-"):
            runs[-1].append(one)
        else:
            runs.append([one])
    spans = []
    for run in runs:
        kind = run[0].label.removeprefix("B-").removeprefix("I-")
        score = sum(one.score for one in run) / len(run)
        spans.append(Tag(kind, score, run[0].start, run[-1].end))
    return [span for span in spans if span.label != "O"]
