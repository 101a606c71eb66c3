import dataclasses
import json
import math
from typing import Any

import pytest
import torch
from conftest import PIECES, random_bert_with

from minibert.bert import Bert
from minibert.fill import to_json, to_table
from minibert.saving import save
from minibert.tokenizer import WordPieceTokenizer

TEXTS = ["I am the [MASK].", "The [MASK] am [MASK] a", "[MASK]", "a[MASK]b walrus [MASK] [MASK] ."]


# Measured: 9e-16 and 7e-7.
BOUNDS = {torch.float64: 1e-13, torch.float32: 3e-6}


@pytest.fixture(scope="module", params=BOUNDS, ids=["float64", "float32"])
def bert(request: pytest.FixtureRequest) -> Bert:
    return random_bert_with("masked-lm", dtype=request.param)


def bound(bert: Bert) -> float:
    return BOUNDS[bert.model.embeddings.word.weight.dtype]


@pytest.fixture(scope="module")
def pipeline(bert: Bert, tmp_path_factory: pytest.TempPathFactory) -> Any:
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("pipeline") / "model"
    save(bert, folder)
    dtype = bert.model.embeddings.word.weight.dtype
    return transformers.pipeline("fill-mask", str(folder), dtype=dtype)


def test_it_says_what_the_pipeline_says(bert: Bert, pipeline: Any) -> None:
    blanks = bert.fill(TEXTS, top_k=len(PIECES))
    assert [blank.text for blank in blanks] == [0, 1, 1, 2, 3, 3, 3]
    theirs = [pipeline(text, top_k=len(PIECES)) for text in TEXTS]
    several = [row for rows in theirs for row in (rows if isinstance(rows[0], list) else [rows])]
    for blank, rows in zip(blanks, several, strict=True):
        assert TEXTS[blank.text][blank.start : blank.end] == "[MASK]"
        assert sum(candidate.probability for candidate in blank.candidates) == pytest.approx(1)
        for candidate, row in zip(blank.candidates, rows, strict=True):
            assert candidate.ids == (row["token"],)
            assert candidate.probability == pytest.approx(row["score"], abs=bound(bert))
            if row["token"] > 4 and not isinstance(theirs[blank.text][0], list):
                ours = bert.tokenizer.tokenize(candidate.sequence)
                assert ours == bert.tokenizer.tokenize(row["sequence"])


def test_targets_of_one_piece_are_those_of_the_pipeline(bert: Bert, pipeline: Any) -> None:
    for text in TEXTS[:2]:
        for targets in (["a", "I", "##l", "the"], ["AM"]):
            rows = pipeline(text, targets=targets)
            rows = rows if isinstance(rows[0], list) else [rows]
            for blank, row in zip(bert.fill(text, targets=targets), rows, strict=True):
                got = {candidate.ids[0]: candidate.probability for candidate in blank.candidates}
                assert list(got) == [one["token"] for one in row]
                assert list(got.values()) == pytest.approx(
                    [one["score"] for one in row], abs=bound(bert)
                )
                assert {candidate.token for candidate in blank.candidates} == set(targets)


def test_a_target_of_several_pieces_is_never_its_first(bert: Bert) -> None:
    """The first given two [MASK]s after it, the second given the first, the third given both."""

    def one(text: str, target: str) -> float:
        (candidate,) = bert.fill(text, targets=[target])[0].candidates
        return candidate.probability

    (blank,) = bert.fill("I am the [MASK].", targets=["Walrus", "wa", "a"])
    got = {candidate.token: candidate.probability for candidate in blank.candidates}
    expected = (
        one("I am the [MASK] [MASK] [MASK].", "wa")
        * one("I am the wa[MASK][MASK].", "##l")
        * one("I am the wal[MASK].", "##rus")
    )
    # "wal" in a text is "wa ##l" for this vocabulary.
    assert got["Walrus"] == pytest.approx(expected, rel=1e-4)
    assert got["wa"] == pytest.approx(one("I am the [MASK].", "wa"), rel=1e-4)
    assert got["wa"] != pytest.approx(one("I am the [MASK] [MASK] [MASK].", "wa"), rel=1e-2)
    # It is what the text's own likelihood by words says of the word.
    (likelihood,) = bert.pseudo_log_likelihood("I am the walrus.", "word")
    assert math.log(got["Walrus"]) == pytest.approx(likelihood.log_probabilities[3], abs=1e-4)
    shown = {candidate.token: candidate for candidate in blank.candidates}["Walrus"]
    assert (shown.ids, shown.sequence) == ((8, 9, 10), "I am the Walrus.")


def test_how_many(bert: Bert) -> None:
    words = ["a", "b", "the", "i", "am", ".", "walrus"]
    assert len(bert.fill("[MASK]")[0].candidates) == 5
    assert len(bert.fill("[MASK]", top_k=2)[0].candidates) == 2
    assert len(bert.fill("[MASK]", targets=words)[0].candidates) == 7  # none is dropped unasked
    best = bert.fill("[MASK]", targets=words)[0].candidates
    assert bert.fill("[MASK]", 2, words)[0].candidates == best[:2]
    values = [candidate.probability for candidate in best]
    assert values == sorted(values, reverse=True)
    assert bert.fill([]) == []


def test_rows_to_spare_are_counted_but_never_named() -> None:
    bert = random_bert_with("masked-lm")
    fewer = dataclasses.replace(bert, tokenizer=WordPieceTokenizer(PIECES[:-2], lowercase=True))
    (blank,) = fewer.fill("I am [MASK].", top_k=12)
    (whole,) = bert.fill("I am [MASK].", top_k=14)
    assert [
        candidate for candidate in whole.candidates if candidate.ids[0] < 12
    ] == blank.candidates


def test_a_long_text_is_filled(bert: Bert) -> None:
    blanks = bert.fill("a b " * 10 + "[MASK]" + " the walrus" * 5)
    assert len(blanks[0].candidates) == 5


@pytest.mark.parametrize(
    ("texts", "arguments", "says"),
    [
        (["[MASK]", "I am [mask]."], {}, r"there is no \[MASK\] in 'I am \[mask\]\.'"),
        ("", {}, r"there is no \[MASK\] in ''"),
        ("[MASK]", {"top_k": 0}, "top_k must be from 1 to 14, got 0"),
        ("[MASK]", {"top_k": 15}, "top_k must be from 1 to 14, got 15"),
        ("[MASK]", {"targets": "a"}, "targets must be a list of words, got 'a'"),
        ("[MASK]", {"targets": []}, r"targets must be a list of words, got \[\]"),
        ("[MASK]", {"targets": ["a", "ζ"]}, "the target 'ζ' has no pieces in this vocabulary"),
        ("[MASK]", {"targets": [" "]}, "the target ' ' has no pieces in this vocabulary"),
        (7, {}, "texts must be a str or a list of str; no pairs here, got int"),
        ([("a [MASK]", "b")], {}, "no pairs here, got tuple"),
    ],
)
def test_what_cannot_be_filled(bert: Bert, texts: Any, arguments: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        bert.fill(texts, **arguments)


def test_a_model_without_the_head(minilm: Bert) -> None:
    with pytest.raises(ValueError, match="this takes the head masked-lm, got none; load"):
        minilm.fill("The capital of France is [MASK].")


def test_for_people_and_for_programs(bert: Bert) -> None:
    text = "The [MASK] am [MASK]"
    blanks = bert.fill(text, targets=["a", "walrus"])
    record = json.loads(to_json(text, blanks))
    assert record["text"] == text
    assert [mask["start"] for mask in record["masks"]] == [4, 14]
    candidate = blanks[1].candidates[0]
    assert record["masks"][1]["candidates"][0] == {
        **candidate._asdict(),
        "ids": list(candidate.ids),
    }
    first, second = (table.split("\n") for table in to_table(blanks).split("\n\n"))
    assert len(first) == len(second) == 2
    for row, candidate in zip(second, blanks[1].candidates, strict=True):
        assert row == f"{candidate.probability:.6f}  {candidate.token:6}  {candidate.sequence}"
