import logging
from pathlib import Path

import numpy as np
import pytest
from conftest import PIECES

from minibert.config import CheckpointError
from minibert.examples import Labelled, Question, Tagged
from minibert.features import (
    check_known,
    class_numbers,
    classes,
    question_features,
    tag_features,
    text_features,
)
from minibert.tokenizer import WordPieceTokenizer

TOKENIZER = WordPieceTokenizer(PIECES, lowercase=True)
CLS, SEP, EYE, AM, THE, WA, L, RUS, DOT, A, B = (
    PIECES.index(piece)
    for piece in ("[CLS]", "[SEP]", "i", "am", "the", "wa", "##l", "##rus", ".", "a", "b")
)


def labelled(text: str, pair: str | None = None, label: str = "x", line: int = 2) -> Labelled:
    return Labelled(f"f line {line}", text, pair, label)


def test_classes() -> None:
    assert classes(["b", "10", "9", "b"], "f") == ("10", "9", "b")
    with pytest.raises(CheckpointError, match="^f has one class only, 'b': there is nothing to"):
        classes(["b", "b"], "f")
    rows = [labelled("a", label="x"), labelled("a", label="z", line=3)]
    assert class_numbers(["x", "z"], rows) == [0, 1]
    with pytest.raises(CheckpointError) as caught:
        class_numbers(["w", "x", "y"], rows)
    assert str(caught.value) == (
        "f line 3: the label 'z' is none of those that are trained: w, x, y"
    )
    with pytest.raises(CheckpointError, match=r"trained: 0, .*, 9 and 2 more$"):
        check_known([str(n) for n in range(12)], [("f", "z")])


def test_texts(caplog: pytest.LogCaptureFixture) -> None:
    rows = [labelled("I am."), labelled("a b", "walrus"), labelled("a a a a a a")]
    with caplog.at_level(logging.WARNING):
        features = text_features(TOKENIZER, rows, [1, 0, 1], 7)
    assert [list(feature.input_ids) for feature in features] == [
        [CLS, EYE, AM, DOT, SEP],
        [CLS, A, B, SEP, WA, L, SEP],
        [CLS, A, A, A, A, A, SEP],
    ]
    assert [feature.second for feature in features] == [5, 4, 7]
    assert [feature.label.item() for feature in features] == [1, 0, 1]
    assert features[0].label.dtype == np.int64
    assert caplog.messages == ["2 of 3 texts were cut to 7 tokens"]
    (number,) = text_features(TOKENIZER, rows[:1], [2.5], 7)
    assert number.label.dtype == np.float32
    assert number.label == 2.5


def test_tags_on_the_first_piece_of_a_word() -> None:
    """A word may be of several pieces, of several words of the tokenizer, or of none."""
    words = ["I", "walrus", "a.b", "\x00", "the"]
    sentence = Tagged(Path("f"), 5, words, ["O", "B", "C", "O", "D"])
    (feature,) = tag_features(TOKENIZER, [sentence], ["B", "C", "D", "O"], 17)
    assert list(feature.input_ids) == [CLS, EYE, WA, L, RUS, A, DOT, B, THE, SEP]
    assert list(feature.places) == [-1, 0, 1, -1, -1, 2, -1, -1, 4, -1]
    assert list(feature.label) == [-100, 3, 0, -100, -100, 1, -100, -100, 2, -100]


def test_tags_in_windows_count_once() -> None:
    sentence = Tagged(Path("f"), 5, ["a", "walrus", "b", "the"], ["O", "B", "C", "O"])
    windows = tag_features(TOKENIZER, [sentence], ["B", "C", "O"], 5)
    assert [list(window.input_ids[1:-1]) for window in windows] == [[A, WA, L], [RUS, B, THE]]
    assert [list(window.places) for window in windows] == [[-1, 0, 1, -1, -1], [-1, -1, 2, 3, -1]]
    with pytest.raises(CheckpointError, match="^f line 6: the label 'B' is none of those that"):
        tag_features(TOKENIZER, [sentence], ["C", "O"], 5)


CONTEXT = "the walrus. a b"


@pytest.mark.parametrize(
    ("text", "start", "expected"),
    [
        ("the", 0, [(4, 4), (0, 0), (0, 0), (0, 0)]),
        ("walrus", 4, [(5, 7), (4, 6), (0, 0), (0, 0)]),
        ("walrus.", 4, [(0, 0), (4, 7), (0, 0), (0, 0)]),  # not all of it is in the first
        ("rus", 7, [(7, 7), (6, 6), (5, 5), (4, 4)]),
        ("al", 5, [(5, 6), (4, 5), (0, 0), (0, 0)]),  # pieces that are cut are taken whole
        (". a b", 10, [(0, 0), (0, 0), (0, 0), (5, 7)]),
        (" ", 11, [(0, 0), (0, 0), (0, 0), (0, 0)]),  # there is no piece
    ],
)
def test_answers_in_windows(text: str, start: int, expected: list[tuple[int, int]]) -> None:
    assert CONTEXT[start : start + len(text)] == text
    question = Question("f", "1", "I am", CONTEXT, [(text, start), ("the", 0)])
    windows = question_features(TOKENIZER, [question], 9, stride=3)
    assert [list(window.input_ids) for window in windows] == [
        [CLS, EYE, AM, SEP, *pieces, SEP]
        for pieces in ([THE, WA, L, RUS], [WA, L, RUS, DOT], [L, RUS, DOT, A], [RUS, DOT, A, B])
    ]
    assert [tuple(window.label) for window in windows] == expected
    assert all(window.second == 4 for window in windows)
    assert windows[0].places.tolist() == [
        *[[-1, -1]] * 4,
        *[[0, 3], [4, 6], [6, 7], [7, 10]],
        [-1, -1],
    ]


def test_questions_that_are_long_or_have_no_answer() -> None:
    question = Question("f", "1", "a walrus b", "the a", [])
    (window,) = question_features(TOKENIZER, [question], 9, stride=1, max_question=3)
    assert list(window.input_ids) == [CLS, A, WA, L, SEP, THE, A, SEP]
    assert tuple(window.label) == (0, 0)
    (window,) = question_features(TOKENIZER, [question._replace(context="")], 9, stride=1)
    assert (window.places == -1).all()
    with pytest.raises(ValueError, match="stride must be from 0 to"):
        question_features(TOKENIZER, [question], 9, stride=8)
