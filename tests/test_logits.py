import dataclasses

import pytest
import torch
from conftest import ODD, PIECES, random_bert_with, random_model

import minibert
from minibert.bert import Bert
from minibert.heads import BertWithHead, LinearHead, MaskedLMHead, PretrainingHead
from minibert.logits import find_part, logits
from minibert.model import BertOutput
from minibert.tokenizer import WordPieceTokenizer

TEXTS = ["i am", "the walrus . a b", "", "i am the walrus", "am i", "b"]


def test_the_part_of_pretraining_is_the_head() -> None:
    head = random_bert_with("pretraining").head
    assert isinstance(head, PretrainingHead)
    assert find_part(head, "masked-lm") is head.masked_lm
    assert find_part(head, "next-sentence") is head.next_sentence
    alone = random_bert_with("masked-lm").head
    assert find_part(alone, "masked-lm") is alone


def test_a_head_that_is_not_there() -> None:
    with pytest.raises(
        ValueError, match=r'takes the head masked-lm, got none; load\(\.\.\., head="m'
    ):
        find_part(None, "masked-lm")
    for name in ("sequence-classification", "pretraining"):
        with pytest.raises(ValueError, match=f"takes the head {name}, got the head pretraining;"):
            find_part(random_bert_with("pretraining").head, name)
    head = random_bert_with("question-answering").head
    with pytest.raises(ValueError, match="the head masked-lm, got the head question-answering"):
        find_part(head, "masked-lm")
    assert head is not None
    with pytest.raises(ValueError, match="the head is in training mode"):
        find_part(head.train(), "question-answering")


def test_they_are_those_of_each_text_alone() -> None:
    """In the order of the texts, though the longest goes first; some 60 rows in blocks of 64."""
    for name in ("masked-lm", "question-answering", "next-sentence"):
        bert = random_bert_with(name, dtype=torch.float64)
        part = find_part(bert.head, name)
        encodings = bert.tokenizer.encode_batch(TEXTS * 3)
        rows = list(logits(bert.model, part, encodings))
        assert len(rows) == 18
        for encoding, got in zip(encodings, rows, strict=True):
            with torch.no_grad():
                expected = BertWithHead(bert.model, part)(torch.tensor([encoding.input_ids]))
            assert isinstance(expected, torch.Tensor)
            expected = expected if part.config.reads_pooler else expected[0]
            assert got.shape == expected.shape
            assert (got - expected).abs().max() < 1e-13  # measured: 2e-14


def test_places() -> None:
    bert = random_bert_with("masked-lm")
    part = find_part(bert.head, "masked-lm")
    encodings = bert.tokenizer.encode_batch(TEXTS[:3])
    whole = list(logits(bert.model, part, encodings))
    some = list(logits(bert.model, part, encodings, [[1], [3, 0], [1]]))
    for rows, places, got in zip(whole, [[1], [3, 0], [1]], some, strict=True):
        assert (rows[places] - got).abs().max() < 1e-5
    assert list(logits(bert.model, part, [])) == []


def test_a_long_text_goes_through_as_windows() -> None:
    """As the vectors of Bert.vectors do; nothing is cut."""
    bert = random_bert_with("masked-lm")
    text = "a b i am the " * 9 + "walrus"
    (rows,) = logits(
        bert.model, find_part(bert.head, "masked-lm"), bert.tokenizer.encode_batch([text])
    )
    vectors = torch.from_numpy(bert.vectors(text).vectors)
    assert bert.head is not None
    with torch.no_grad():
        expected = bert.head(BertOutput(vectors, None))
    assert rows.shape == (50, len(PIECES))
    assert (rows - expected).abs().max() < 1e-5


def test_a_text_too_long_for_the_pooler_is_never_cut() -> None:
    bert = random_bert_with("next-sentence")
    encodings = bert.tokenizer.encode_batch(["a", "a " * 16])
    with pytest.raises(ValueError, match="text 2 has 18 tokens, more than the 17 that this model"):
        list(logits(bert.model, find_part(bert.head, "next-sentence"), encodings))


def test_half_precision_is_widened() -> None:
    bert = random_bert_with("masked-lm")
    half = Bert(ODD, bert.tokenizer, bert.model.bfloat16(), head=bert.head)
    assert isinstance(half.head, MaskedLMHead)
    part = half.head.bfloat16()
    (rows,) = logits(half.model, part, half.tokenizer.encode_batch(["i am"]))
    assert rows.dtype == torch.float32


def test_edits_take_part() -> None:
    bert = random_bert_with("masked-lm")
    part, encodings = find_part(bert.head, "masked-lm"), bert.tokenizer.encode_batch(["i am"])
    (before,) = logits(bert.model, part, encodings)
    with minibert.edit(bert.model, {"encoder.layers.0.attention": minibert.scale_by(0.0)}):
        (after,) = logits(bert.model, part, encodings)
    assert (before - after).abs().max() > 0.1


def test_a_model_in_training_mode() -> None:
    bert = Bert(ODD, WordPieceTokenizer(PIECES, True), random_model(ODD))
    bert = minibert.new_head(bert, "token-classification", ["x"])
    bert.model.train()
    assert isinstance(bert.head, LinearHead)
    with pytest.raises(ValueError, match="the model is in training mode"):
        list(logits(bert.model, bert.head, bert.tokenizer.encode_batch(["a"])))
    assert dataclasses.replace(bert, head=None).head is None
