import itertools
import math

import pytest
import torch
from conftest import PIECES, random_bert_with

from minibert.bert import Bert
from minibert.heads import BertWithHead
from minibert.likelihood import chain, log_probabilities
from minibert.logits import find_part

MASK = PIECES.index("[MASK]")


@pytest.fixture(scope="module")
def bert() -> Bert:
    return random_bert_with("pretraining", dtype=torch.float64)


def said(bert: Bert, ids: list[int], place: int, piece: int) -> float:
    """The logarithm of the probability of a piece, by the whole model and nothing else."""
    assert bert.head is not None
    with torch.no_grad():
        logits = BertWithHead(bert.model, bert.head)(torch.tensor([ids]))
    return math.log(logits[0][0, place].softmax(-1)[piece].item())


def test_each_token_is_masked_in_turn(bert: Bert) -> None:
    """[S20] section 2, word for word, on "I am the walrus." = 2 5 6 7 8 9 10 11 3."""
    texts = ["I am the walrus.", "b"]
    first, second = bert.pseudo_log_likelihood(texts)
    ids = [2, 5, 6, 7, 8, 9, 10, 11, 3]
    assert first.tokens == ["i", "am", "the", "wa", "##l", "##rus", "."]
    assert [texts[0][start:end] for start, end in first.offsets] == [
        *("I", "am", "the", "wa", "l", "rus", ".")
    ]
    for number, got in enumerate(first.log_probabilities, start=1):
        masked = [*ids[:number], MASK, *ids[number + 1 :]]
        assert got == pytest.approx(said(bert, masked, number, ids[number]), abs=1e-12)
    assert first.total == pytest.approx(sum(first.log_probabilities), abs=1e-12)
    assert second.tokens == ["b"]
    assert second.total == pytest.approx(said(bert, [2, MASK, 3], 1, 13), abs=1e-12)


def test_a_word_is_masked_from_the_left(bert: Bert) -> None:
    """Kauf and Ivanova 2023: the piece itself, and those of its word to the right of it."""
    (likelihood,) = bert.pseudo_log_likelihood("I am the walrus.", "word")
    assert likelihood.tokens == ["I", "am", "the", "walrus", "."]
    assert likelihood.offsets[3] == (9, 15)
    expected = (
        said(bert, [2, 5, 6, 7, MASK, MASK, MASK, 11, 3], 4, 8)
        + said(bert, [2, 5, 6, 7, 8, MASK, MASK, 11, 3], 5, 9)
        + said(bert, [2, 5, 6, 7, 8, 9, MASK, 11, 3], 6, 10)
    )
    assert likelihood.log_probabilities[3] == pytest.approx(expected, abs=1e-12)
    (by_token,) = bert.pseudo_log_likelihood("I am the walrus.")
    assert likelihood.log_probabilities[:3] == by_token.log_probabilities[:3]
    assert abs(likelihood.log_probabilities[3] - sum(by_token.log_probabilities[3:6])) > 0.1


def test_the_probabilities_of_all_rows_sum_to_one(bert: Bert) -> None:
    """What the chain rule is for."""
    part = find_part(bert.head, "masked-lm")
    encoding = bert.tokenizer.encode("I am the [MASK].")
    pieces = range(len(PIECES))
    for length in (1, 2, 3):
        rows = itertools.product(pieces, repeat=length)
        chains = [chain(encoding, 4, 5, row, MASK) for row in rows]
        total = sum(math.exp(value) for value in log_probabilities(bert.model, part, chains))
        assert total == pytest.approx(1, abs=1e-12)


def test_a_chain_changes_nothing_else(bert: Bert) -> None:
    encoding = bert.tokenizer.encode("a [MASK] b", "the [MASK] .")
    questions = chain(encoding, 6, 7, [8, 9], MASK)
    assert [question.encoding.input_ids for question in questions] == [
        [2, 12, MASK, 13, 3, 7, MASK, MASK, 11, 3],
        [2, 12, MASK, 13, 3, 7, 8, MASK, 11, 3],
    ]
    assert {tuple(question.encoding.token_type_ids) for question in questions} == {
        (0, 0, 0, 0, 0, 1, 1, 1, 1, 1)
    }
    assert [(question.place, question.piece) for question in questions] == [(6, 8), (7, 9)]
    assert encoding == bert.tokenizer.encode("a [MASK] b", "the [MASK] .")


def test_texts_at_the_edge(bert: Bert) -> None:
    nothing, unknown = bert.pseudo_log_likelihood(["", "ζ"])
    assert (nothing.tokens, nothing.total) == ([], 0.0)
    assert unknown.tokens == ["[UNK]"]
    assert unknown.total == pytest.approx(said(bert, [2, MASK, 3], 1, 1), abs=1e-12)
    assert bert.pseudo_log_likelihood([]) == []
    (long,) = bert.pseudo_log_likelihood("a b " * 20)
    assert len(long.log_probabilities) == 40


def test_what_cannot_be_asked(bert: Bert) -> None:
    with pytest.raises(ValueError, match=r"text 2 has a \[MASK\]: fill it first"):
        bert.pseudo_log_likelihood(["a", "a [MASK]"])
    # Elsewhere a tuple is a pair; and offsets do not say of which text of it.
    for texts in ([("a", "b")], ("a", "b"), ["a", 3], None):
        with pytest.raises(ValueError, match="texts must be a str or a list of str"):
            bert.pseudo_log_likelihood(texts)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="unit must be 'token' or 'word', got 'sentence'"):
        bert.pseudo_log_likelihood("a", "sentence")
    with pytest.raises(ValueError, match="takes the head masked-lm, got the head next-sentence"):
        random_bert_with("next-sentence").pseudo_log_likelihood("a")
