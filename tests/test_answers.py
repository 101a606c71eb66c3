import itertools
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import PIECES, random_bert_with

from minibert.answers import _best_window, _windows
from minibert.bert import Bert
from minibert.heads import BertWithHead

QUESTION = "am I"
CONTEXT = "The walrus, a b. I am the Walrus! b a a the walrus"  # 23 tokens; 10 fit beside it


@pytest.fixture(scope="module")
def bert() -> Bert:
    return random_bert_with("question-answering", dtype=torch.float64)


def spans_of_the_document(total: int, room: int, step: int) -> list[range]:
    """As convert_examples_to_features has it."""
    spans, start = [], 0
    while start < total:
        spans.append(range(start, min(start + room, total)))
        if spans[-1].stop == total:
            break
        start += min(len(spans[-1]), step)
    return spans


def has_most_context(spans: list[range], index: int, token: int) -> bool:
    """As _check_is_max_context has it."""
    best_score, best_index = None, None
    for number, span in enumerate(spans):
        if token in span:
            score = min(token - span.start, span[-1] - token) + 0.01 * len(span)
            if best_score is None or score > best_score:
                best_score, best_index = score, number
    return index == best_index


def by_hand(
    bert: Bert, context: str, longest: int, step: int
) -> tuple[dict[tuple[int, int], float], float]:
    """As write_predictions has it: the score of each span of tokens, and of no answer."""
    assert bert.head is not None
    document = bert.tokenizer.encode(context).input_ids[1:-1]
    query = bert.tokenizer.encode(QUESTION).input_ids
    windows = spans_of_the_document(len(document), 17 - len(query) - 1, step)
    scores, nulls = {}, []
    for index, window in enumerate(windows):
        ids = [*query, *document[window.start : window.stop], 3]
        segments = [0] * len(query) + [1] * (len(window) + 1)
        with torch.no_grad():
            whole = BertWithHead(bert.model, bert.head)
            starts, ends = whole(torch.tensor([ids]), torch.tensor([segments]))[0].unbind(-1)
        nulls.append((starts[0] + ends[0]).item())
        offset = len(query) - window.start
        for first, last in itertools.combinations_with_replacement(window, 2):
            if last - first < longest and has_most_context(windows, index, first):
                scores[first, last] = (starts[offset + first] + ends[offset + last]).item()
    return scores, min(nulls)


@pytest.mark.parametrize(("longest", "stride"), [(30, None), (3, 2), (1, 0), (4, 11)])
def test_every_answer_is_that_of_run_squad(bert: Bert, longest: int, stride: int | None) -> None:
    room = 12
    step = room // 2 if stride is None else room - stride
    scores, null = by_hand(bert, CONTEXT, longest, step)
    offsets = bert.tokenizer.encode(CONTEXT).offsets[1:-1]
    expected = sorted(scores.items(), key=lambda item: item[1], reverse=True)
    got = bert.answer(QUESTION, CONTEXT, 1000, longest, stride=stride)
    assert len(got) == len(expected) > 20
    total = sum(math.exp(score) for score in scores.values())
    for answer, ((first, last), score) in zip(got, expected, strict=True):
        assert answer.score == pytest.approx(score, abs=1e-12)
        assert (answer.start, answer.end) == (offsets[first][0], offsets[last][1])
        assert answer.text == CONTEXT[answer.start : answer.end]
        assert answer.probability == pytest.approx(math.exp(score) / total, rel=1e-9)
    assert bert.answer(QUESTION, CONTEXT, 3, longest, stride=stride) == got[:3]
    # And none: the best if it is more than the threshold above the best.
    best = expected[0][1]
    for threshold, first in ((null - best - 1e-9, True), (null - best + 1e-9, False)):
        with_none = bert.answer(QUESTION, CONTEXT, 1000, longest, threshold, stride)
        assert (with_none[0].text == "") == first
        assert [one.text for one in with_none].count("") == 1
        (none,) = (one for one in with_none if one.text == "")
        assert (none.start, none.end) == (0, 0)
        assert none.score == pytest.approx(null, abs=1e-12)
        assert sum(one.probability for one in with_none) == pytest.approx(1)
        assert [one.start for one in with_none if one.text] == [one.start for one in got]
    assert bert.answer(QUESTION, CONTEXT, 1, longest, 1e9, stride)[0].text == got[0].text


def test_the_window_of_a_token_is_that_of_run_squad(bert: Bert) -> None:
    for words in (1, 12, 13, 23, 40):
        whole = bert.tokenizer.encode(QUESTION, "a " * words)
        for stride in range(12):
            windows = _windows(whole, bert.model, stride)
            spans = spans_of_the_document(words, 12, 12 - stride)
            assert [range(window.start, window.end) for window in windows] == spans
            for token in range(words):
                assert has_most_context(spans, _best_window(windows, token), token)


def test_a_short_context_is_one_window(bert: Bert) -> None:
    got = bert.answer(QUESTION, "The walrus.", top_k=100)
    scores, _ = by_hand(bert, "The walrus.", 30, 6)
    assert len(got) == len(scores) == 15
    assert {answer.text for answer in got} >= {"The walrus.", "walrus", "The", "."}


def test_windows_are_of_384_tokens_128_apart() -> None:
    """By the numbers alone: the model is asked for its positions only."""
    tokenizer = random_bert_with("question-answering").tokenizer
    model: Any = SimpleNamespace(config=SimpleNamespace(max_position_embeddings=512))
    whole = tokenizer.encode("am i", "a b " * 300)
    windows = _windows(whole, model, None)
    assert [(window.start, window.end) for window in windows] == [
        (0, 379),
        (128, 507),
        (256, 600),
    ]
    assert [len(window.encoding) for window in windows] == [384, 384, 349]
    assert windows[1].encoding.tokens[:5] == ["[CLS]", "am", "i", "[SEP]", "a"]
    assert windows[1].encoding.offsets[4] == (256, 257)
    assert windows[2].encoding.tokens[-1] == "[SEP]"


@pytest.mark.parametrize(
    ("question", "context", "options", "says"),
    [
        ("", CONTEXT, {}, "the question or the context has no token"),
        (QUESTION, "", {}, "the question or the context has no token"),
        (QUESTION, " \n", {}, "the question or the context has no token"),
        ("", "", {}, "the question or the context has no token"),
        ("a " * 14, CONTEXT, {}, "with a question of 14 tokens a window has room for 0 of the con"),
        ("a " * 40, CONTEXT, {}, "with a question of 40 tokens a window has room for 0 of the con"),
        (QUESTION, CONTEXT, {"stride": 12}, "room for 12 of the context, and windows cannot share"),
        (QUESTION, CONTEXT, {"stride": -1}, "windows cannot share -1"),
        (QUESTION, CONTEXT, {"top_k": 0}, "top_k and max_answer_length must be at least 1"),
        (QUESTION, CONTEXT, {"max_answer_length": 0}, "top_k and max_answer_length must be at"),
        (7, CONTEXT, {}, "must be"),
    ],
)
def test_what_cannot_be_asked(
    bert: Bert, question: Any, context: str, options: Any, says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        bert.answer(question, context, **options)


def test_a_model_without_the_head() -> None:
    bert = random_bert_with("masked-lm")
    assert len(PIECES) == bert.config.vocab_size
    with pytest.raises(ValueError, match="the head question-answering, got the head masked-lm"):
        bert.answer(QUESTION, CONTEXT)
