from pathlib import Path

import numpy as np
import pytest
import torch

from minibert.bert import Bert
from minibert.vectors import Reading, Text, with_spans

TEXT = "The walrus isn't here."
PAIR = ("A walrus", "It sings, loudly.")


def states(bert: Bert, text: str | tuple[str, str] = TEXT) -> torch.Tensor:
    return bert.states(text).hidden_states  # (L + 1, T, H)


def test_tokens(minilm: Bert) -> None:
    vectors = minilm.vectors(TEXT)
    expected = minilm.states(TEXT)
    assert vectors.tokens == expected.tokens
    assert vectors.offsets == expected.offsets
    assert vectors.vectors.dtype == np.float32
    assert vectors.vectors == pytest.approx(expected.hidden_states[-1].numpy(), abs=1e-5)
    without = minilm.vectors(TEXT, special_tokens=False)
    assert without.tokens == expected.tokens[1:-1]
    assert np.array_equal(without.vectors, vectors.vectors[1:-1])


@pytest.mark.parametrize(
    ("layers", "combine", "rows"),
    [
        (0, "sum", lambda s: s[0]),  # "Embeddings"
        (-2, "sum", lambda s: s[-2]),  # "Second-to-last hidden"
        (-1, "sum", lambda s: s[-1]),  # "Last hidden"
        ([-4, -3, -2, -1], [0.1, 0.2, 0.3, 0.4], lambda s: sum(w * s[n] for w, n in W)),
        ([-4, -3, -2, -1], "concat", lambda s: torch.cat(list(s[-4:]), dim=-1)),
        ("all", [1 / 6] * 6, lambda s: s[1:].mean(dim=0)),  # "Weighted sum all 12 layers"
        ("all", "sum", lambda s: s[1:].sum(dim=0)),
        (range(7), "max", lambda s: s.amax(dim=0)),
        ([1, -1], "mean", lambda s: (s[1] + s[6]) / 2),
        ([0, 3], "stack", lambda s: s[[0, 3]].transpose(0, 1)),
    ],
)
def test_every_row_of_table_7(minilm: Bert, layers, combine, rows) -> None:  # type: ignore[no-untyped-def]
    vectors = minilm.vectors(TEXT, layers, combine).vectors
    expected = rows(states(minilm)).numpy()
    assert vectors.shape == expected.shape
    assert vectors == pytest.approx(expected, abs=2e-5)


W = [(0.1, -4), (0.2, -3), (0.3, -2), (0.4, -1)]


@pytest.mark.parametrize(
    ("pooling", "pooled"),
    [
        ("mean", lambda rows: rows.mean(dim=0)),
        ("sum", lambda rows: rows.sum(dim=0)),
        ("max", lambda rows: rows.amax(dim=0)),
        ("first", lambda rows: rows[0]),
        ("last", lambda rows: rows[-1]),
        ("first+last", lambda rows: (rows[0] + rows[-1]) / 2),
    ],
)
def test_words(minilm: Bert, pooling, pooled) -> None:  # type: ignore[no-untyped-def]
    words = minilm.vectors(TEXT, unit="word", pooling=pooling)
    assert words.tokens == ["The", "walrus", "isn", "'", "t", "here", "."]
    assert [TEXT[start:end] for start, end in words.offsets] == words.tokens
    last = states(minilm)[-1]  # [CLS] the wal ##rus isn ' t here . [SEP]
    assert words.vectors[1] == pytest.approx(pooled(last[2:4]).numpy(), abs=1e-5)
    assert words.vectors[2] == pytest.approx(last[4].numpy(), abs=1e-5)


def test_the_words_of_a_list_are_taken_as_they_are(minilm: Bert) -> None:
    words = minilm.vectors([["The", "walrus", "isn't", "here."]], unit="word")
    assert words.tokens == ["The", "walrus", "isn't", "here."]
    assert words.offsets == [(0, 3), (4, 10), (11, 16), (17, 22)]
    last = states(minilm)[-1]
    assert words.vectors[2] == pytest.approx(last[4:7].mean(dim=0).numpy(), abs=1e-5)
    assert words.vectors[3] == pytest.approx(last[7:9].mean(dim=0).numpy(), abs=1e-5)
    with pytest.raises(ValueError, match="no token has a character from 2 up to 3 of"):
        minilm.vectors([["a", "\u200b", "b"]], unit="word")


def test_words_of_a_pair(minilm: Bert) -> None:
    words = minilm.vectors(PAIR, unit="word")
    assert words.tokens == ["A", "walrus", "It", "sings", ",", "loudly", "."]
    assert words.segments == [0, 0, 1, 1, 1, 1, 1]
    for text, offset, segment in zip(words.tokens, words.offsets, words.segments, strict=True):
        assert PAIR[segment][slice(*offset)] == text


def test_spans(minilm: Bert) -> None:
    last = states(minilm)[-1]
    span = minilm.vectors(TEXT, unit="span", span=(4, 16))
    assert span.tokens == ["walrus isn't"]
    assert span.vectors[0] == pytest.approx(last[2:7].mean(dim=0).numpy(), abs=1e-5)
    part = minilm.vectors(TEXT, unit="span", span=(8, 10), pooling="first")  # a part of ##rus
    assert part.vectors[0] == pytest.approx(last[3].numpy(), abs=1e-5)
    many = minilm.vectors([TEXT, "a walrus"], unit="span", span=[(4, 10), (2, 8)])
    assert many.tokens == ["walrus", "walrus"]
    spans = np.array([[4, 10], [2, 8]])
    assert minilm.vectors([TEXT, "a walrus"], unit="span", span=spans).tokens == many.tokens
    for wrong, says in [
        ((3, 4), "no token has a character from 3 up to 4"),
        ((90, 95), r"\(90, 95\) is no stretch of .The walrus isn"),
        ((4, 23), "is no stretch"),
        ((-3, -1), "is no stretch"),
        ((10, 4), "is no stretch"),
        ((4, 4), "is no stretch"),
        ([(1, 2), (3, 4)], "2 spans for 1 texts"),
        (None, "0 spans for 1 texts"),
    ]:
        with pytest.raises(ValueError, match=says):
            minilm.vectors(TEXT, unit="span", span=wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match='span goes with unit="span"'):
        minilm.vectors(TEXT, span=(0, 3))


@pytest.mark.parametrize(
    ("pooling", "pooled"),
    [
        ("mean", lambda rows: rows.mean(dim=0)),
        ("max", lambda rows: rows.amax(dim=0)),
        ("cls", lambda rows: rows[0]),
        ("mean_sqrt_len", lambda rows: rows.sum(dim=0) / len(rows) ** 0.5),
    ],
)
def test_sentences(minilm: Bert, pooling, pooled) -> None:  # type: ignore[no-untyped-def]
    texts = [TEXT, PAIR, "", "Another one."]
    vectors = minilm.vectors(texts, unit="sentence", pooling=pooling, normalize=False)
    assert vectors.vectors.shape == (4, 384)
    assert vectors.vectors.dtype == np.float32
    assert vectors.tokens == [TEXT, "A walrus ||| It sings, loudly.", "", "Another one."]
    for row, text in zip(vectors.vectors, texts, strict=True):
        assert row == pytest.approx(pooled(states(minilm, text)[-1]).numpy(), abs=1e-5)


def test_sentences_without_special_tokens(minilm: Bert) -> None:
    vectors = minilm.vectors(
        [TEXT, PAIR, ""], unit="sentence", normalize=False, special_tokens=False
    ).vectors
    assert vectors[0] == pytest.approx(states(minilm)[-1][1:-1].mean(dim=0).numpy(), abs=1e-5)
    pair = states(minilm, PAIR)[-1]  # [CLS] a wal ##rus [SEP] it sings , loudly . [SEP]
    expected = torch.cat([pair[1:4], pair[5:10]]).mean(dim=0)
    assert vectors[1] == pytest.approx(expected.numpy(), abs=1e-5)
    assert not vectors[2].any()  # a text without tokens


def test_the_pooler(minilm: Bert) -> None:
    vectors = minilm.vectors([TEXT, PAIR], unit="sentence", pooling="pooler", normalize=False)
    encoding = minilm.tokenizer.encode(*PAIR)
    with torch.inference_mode():
        ids, segments = encoding.input_ids, encoding.token_type_ids
        pooled = minilm.model(torch.tensor([ids]), torch.tensor([segments])).pooler_output
    assert vectors.vectors[1] == pytest.approx(pooled[0].numpy(), abs=1e-5)
    with pytest.raises(ValueError, match="the pooler reads the last layer"):
        minilm.vectors(TEXT, -2, unit="sentence", pooling="pooler")


def test_normalized(minilm: Bert) -> None:
    plain = minilm.vectors(TEXT).vectors
    unit = minilm.vectors(TEXT, normalize=True).vectors
    lengths = np.linalg.norm(plain, axis=1, keepdims=True)
    assert unit == pytest.approx(plain / lengths, abs=1e-6)


def test_many_texts_in_one_object(minilm: Bert) -> None:
    texts = [TEXT, "", "a", PAIR]
    vectors = minilm.vectors(texts)
    assert len(vectors) == 4
    for part, text in zip(vectors, texts, strict=True):
        alone = minilm.vectors(text)
        assert part.tokens == alone.tokens
        assert part.segments == alone.segments
        assert part.vectors == pytest.approx(alone.vectors, abs=1e-5)
    with pytest.raises(IndexError, match="there is no text 4: there are 4"):
        _ = vectors[4]
    assert len(minilm.vectors([])) == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"layers": 7}, "there is no layer 7: there are 0 to 6"),
        ({"layers": -8}, "there is no layer -8"),
        ({"layers": []}, "layers must be numbers"),
        ({"layers": "last"}, 'layers must be numbers or "all"'),
        ({"layers": None}, "layers must be numbers"),
        ({"layers": [1.5]}, "layers must be numbers"),
        ({"layers": "all", "combine": [1.0, 2.0]}, "2 weights for 6 layers"),
        ({"combine": [float("nan")]}, "combine must be weights or"),
        ({"combine": 2.0}, "combine must be weights or"),
        ({"combine": []}, "combine must be weights or"),
        ({"combine": None}, "combine must be weights or"),
        ({"unit": "sentence", "pooling": "cls", "special_tokens": False}, "'cls' is of .CLS.:"),
        ({"unit": "sentence", "pooling": "pooler", "special_tokens": False}, "'pooler' is of"),
        ({"texts": [["a", 5]]}, "the words of a text must be str, got .'a', 5."),
        ({"texts": [[["a"], ["b"]]]}, "the words of a text must be str"),
        ({"combine": "average"}, "combine must be weights or .*'sum', .* got 'average'"),
        ({"layers": [1, 2], "combine": [1.0]}, "1 weights for 2 layers"),
        ({"unit": "letter"}, "unit must be .* got 'letter'"),
        ({"pooling": "max"}, "a token is one vector"),
        ({"unit": "word", "pooling": "cls"}, "pooling of a word must be .* got 'cls'"),
        ({"unit": "sentence", "pooling": "sum"}, "pooling of a sentence must be in"),
        ({"long": "cut"}, "long must be 'windows', 'truncate' or 'error'"),
        ({"stride": -1}, "stride must be a number of tokens, got -1"),
        ({"stride": 5.5}, "stride must be a number of tokens, got 5.5"),
        ({"stride": 510, "texts": "a " * 600}, "602 tokens, more than the 512 positions"),
        ({"stride": 5, "long": "error"}, 'stride goes with long="windows"'),
        ({"texts": 5}, "texts must be"),
        ({"texts": ["a", 5]}, r"texts\[1\] must be a str"),
    ],
)
def test_wrong_arguments(minilm: Bert, arguments: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        minilm.vectors(**{"texts": TEXT, **arguments})  # type: ignore[arg-type]


def test_numbers_of_numpy_and_torch_are_numbers() -> None:
    for layers in (np.array([1, -1]), torch.tensor([1, -1]), [np.int64(1), -1], iter([1, -1])):
        reading = Reading(layers, torch.nn.Parameter(torch.tensor([0.5, 2.0])))  # type: ignore[arg-type]
        assert reading == Reading([1, -1], np.array([0.5, 2.0]))  # type: ignore[arg-type]
        assert reading == Reading([1, -1], [0.5, 2.0])
    assert Reading(np.int64(-1)) == Reading(-1)  # type: ignore[arg-type]
    assert Reading([-1], unit="sentence", pooling="pooler").states(3) == [3]


def test_readings() -> None:
    assert Reading(layers=[0, -1]).states(4) == [0, 4]
    assert Reading(layers="all").states(4) == [1, 2, 3, 4]
    assert with_spans([Text("a b")], Reading(unit="span"), (2, 3))[0].spans == [(2, 3)]


def test_half_precision_is_summed_in_float32(minilm: Bert) -> None:
    half = [torch.full((1, 1, 1), 1 + 2**-7, dtype=torch.bfloat16) for _ in range(12)]
    mixed = Reading(layers=list(range(12))).mix(half)
    assert mixed.dtype == np.float32
    assert mixed.item() == 12 * (1 + 2**-7)
    assert minilm.vectors("a").vectors.dtype == np.float32


def test_sentences_are_those_of_sentence_transformers(minilm: Bert, minilm_folder: Path) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    theirs = sentence_transformers.SentenceTransformer(str(minilm_folder), device="cpu")
    texts = [TEXT, "", "Björk’s naïve café", "walrus " * 100, "I ate an apple."]
    expected = theirs.encode(texts)
    got = minilm.vectors(texts, unit="sentence").vectors
    assert np.abs(got - expected).max() < 1e-5
    plain = minilm.vectors(texts, unit="sentence", normalize=False).vectors
    assert np.abs(plain - expected).max() > 1
