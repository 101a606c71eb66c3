"""Examples as the model reads them: `Feature`, ids and what they should give.

What is longer than the model reads goes in windows, or for whole texts is cut. Follows [D18]
sections 4 and 5.3. Read next: finetuning.py.
"""

import logging
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from minibert.config import CheckpointError
from minibert.encoding import Encoding
from minibert.examples import Labelled, Question, Tagged
from minibert.tokenizer import WordPieceTokenizer

_log = logging.getLogger(__name__)

IGNORED = -100  # the label of a token that has none, as in torch


class Feature(NamedTuple):
    """One example, or a window of it; small, for a training has many."""

    example: int  # its number
    input_ids: NDArray[np.int32]  # (T,)
    second: int  # where segment 1 begins; T if there is none
    # int64: the number of its class, (); of each token's, or -100, (T,); for a question the first
    # and last token of the answer, (2,), both 0, [CLS], if it is not in here. Or float32: what a
    # regression should give, ().
    label: NDArray[Any]
    # int32: for tokens the number of the word that each begins, or -1, (T,); for a question the
    # characters of the context that each is, (T, 2), or -1 for those of the question. Else (0,).
    places: NDArray[np.int32]


def classes(labels: Iterable[str], name: str) -> tuple[str, ...]:
    """The labels that there are, sorted; a CheckpointError if they are all one.

    >>> classes(["b", "a", "b"], "train.tsv")
    ('a', 'b')
    """
    found = tuple(sorted(set(labels)))
    if len(found) < 2:
        raise CheckpointError(f"{name} has one class only, {found[0]!r}: there is nothing to learn")
    return found


def check_known(known: Sequence[str], placed: Iterable[tuple[str, str]]) -> None:
    """Labels must be of the classes; a CheckpointError names the place of the first that is not.

    Args:
        known: the classes.
        placed: (place, label).
    """
    names = set(known)
    for place, label in placed:
        if label not in names:
            more = f" and {len(known) - 10} more" if len(known) > 10 else ""
            raise CheckpointError(
                f"{place}: the label {label!r} is none of those that are trained: "
                f"{', '.join(known[:10])}{more}"
            )


def class_numbers(known: Sequence[str], examples: Sequence[Labelled]) -> list[int]:
    """For each example the number of its class; raises as check_known does."""
    check_known(known, ((example.place, example.label) for example in examples))
    numbers = {label: number for number, label in enumerate(known)}
    return [numbers[example.label] for example in examples]


def text_features(
    tokenizer: WordPieceTokenizer,
    examples: Sequence[Labelled],
    labels: Sequence[int] | Sequence[float],
    max_length: int,
) -> list[Feature]:
    """Of texts and pairs, which are cut to max_length tokens, with a warning that counts them.

    Args:
        tokenizer: of the model.
        examples: what was read.
        labels: for each the number of its class, an int; or of a regression, a float.
        max_length: as for WordPieceTokenizer.encode.
    """
    features, cut = [], 0
    for number, (example, label) in enumerate(zip(examples, labels, strict=True)):
        wanted = np.array(label, np.int64 if isinstance(label, int) else np.float32)
        encoding = tokenizer.encode(example.text, example.pair)
        if len(encoding) > max_length:
            encoding = tokenizer.encode(example.text, example.pair, max_length)
            cut += 1
        features.append(_feature(number, encoding, wanted, np.empty(0, np.int32)))
    if cut:
        _log.warning("%d of %d texts were cut to %d tokens", cut, len(examples), max_length)
    return features


def tag_features(
    tokenizer: WordPieceTokenizer,
    sentences: Sequence[Tagged],
    tags: Sequence[str],
    max_length: int,
) -> list[Feature]:
    """Of sentences: the first piece of each word has its tag, [D18] section 5.3.

    Args:
        tokenizer: of the model.
        sentences: what was read.
        tags: the classes, in order.
        max_length: of a window; windows share nothing, so that each word counts once.

    Raises:
        CheckpointError: if a tag is not among the classes.
    """
    known = {name: number for number, name in enumerate(tags)}
    features = []
    for number, sentence in enumerate(sentences):
        check_known(tags, ((sentence.place(n), tag) for n, tag in enumerate(sentence.tags)))
        wanted = np.array([known[tag] for tag in sentence.tags])
        starts = [0, *accumulate(len(word) + 1 for word in sentence.words)]
        last = -1
        text = " ".join(sentence.words)
        for window in tokenizer.encode_windows(text, max_length=max_length):
            places = np.full(len(window), -1, np.int32)
            for token, (start, _) in enumerate(window.offsets):
                word = int(np.searchsorted(starts, start, "right")) - 1
                if not window.special_tokens_mask[token] and word > last:
                    places[token] = last = word
            label = np.where(places < 0, IGNORED, wanted[places])
            features.append(_feature(number, window, label, places))
    return features


def question_features(
    tokenizer: WordPieceTokenizer,
    questions: Sequence[Question],
    max_length: int,
    stride: int = 128,
    max_question: int = 64,
) -> list[Feature]:
    """Of questions: [CLS] question [SEP] window of the context [SEP], [D18] section 4.2.

    Where there are several right answers, the first is to be learnt.

    Args:
        tokenizer: of the model.
        questions: what was read.
        max_length: of a window, with the question.
        stride: how many tokens two windows share.
        max_question: what is longer is cut to so many tokens, as in Google's run_squad.py.

    Raises:
        ValueError: if max_length leaves no room for windows that move on.
    """
    features = []
    for number, question in enumerate(questions):
        cut = tokenizer.encode(question.question, max_length=max_question + 2)
        asked = question.question[: cut.offsets[-2][1]]
        windows = tokenizer.encode_windows(
            asked, question.context, max_length=max_length, stride=stride
        )
        for window in windows:
            offsets = np.array(window.offsets, np.int32)
            inside = np.array(window.token_type_ids) * (1 - np.array(window.special_tokens_mask))
            places = np.where(inside[:, None] == 1, offsets, -1).astype(np.int32)
            label = np.array(_span(places, question.answers[:1]), np.int64)
            features.append(_feature(number, window, label, places))
    return features


def _span(places: NDArray[np.int32], answers: Sequence[tuple[str, int]]) -> tuple[int, int]:
    """The first and the last token of an answer, or twice 0 if not all of it is here."""
    tokens = np.flatnonzero(places[:, 0] >= 0)
    if len(tokens) == 0 or not answers:
        return 0, 0
    text, start = answers[0]
    starts, ends = places[tokens].T
    if start < starts[0] or start + len(text) > ends[-1]:
        return 0, 0
    first = int(np.searchsorted(ends, start, "right"))
    last = int(np.searchsorted(starts, start + len(text), "left")) - 1
    return (int(tokens[first]), int(tokens[last])) if first <= last else (0, 0)


def _feature(
    example: int, encoding: Encoding, label: NDArray[Any], places: NDArray[np.int32]
) -> Feature:
    ids = np.array(encoding.input_ids, np.int32)
    return Feature(example, ids, len(ids) - sum(encoding.token_type_ids), label, places)
