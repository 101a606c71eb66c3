from typing import Any

import pytest
import torch
from conftest import random_bert_with

from minibert.bert import Bert
from minibert.head_config import PROBLEM_TYPES
from minibert.labels import Tag, _spans
from minibert.saving import save

TEXTS = ["I am the walrus.", "a", "The walrus a b Walrus, am I walrus", "ζ the"]
LABELS = ("O", "B-X", "I-X", "I-Y", "Z")


@pytest.mark.parametrize(
    ("labels", "problem"),
    [
        (("x", "y", "z"), PROBLEM_TYPES[0]),
        (("x", "y", "z"), PROBLEM_TYPES[1]),
        (("x",), PROBLEM_TYPES[1]),
        (("x", "y"), PROBLEM_TYPES[2]),
        (("x",), PROBLEM_TYPES[2]),
    ],
)
def test_classes_are_those_of_the_pipeline(
    tmp_path_factory: pytest.TempPathFactory, labels: tuple[str, ...], problem: str
) -> None:
    transformers = pytest.importorskip("transformers")
    bert = random_bert_with("sequence-classification", labels, problem)
    folder = tmp_path_factory.mktemp("classes") / "model"
    save(bert, folder)
    pipeline = transformers.pipeline("text-classification", model=str(folder), device="cpu")
    texts = [*TEXTS, ("I am", "the walrus")]
    for text, scores in zip(texts, bert.classify(texts), strict=True):
        given = {"text": text[0], "text_pair": text[1]} if isinstance(text, tuple) else text
        expected = {row["label"]: row["score"] for row in pipeline(given, top_k=None)}
        got = {score.label: score.score for score in scores}
        assert got == pytest.approx(expected, abs=1e-6)
        if problem == PROBLEM_TYPES[2]:
            assert tuple(got) == labels  # numbers for names, in their order
        else:
            assert list(got) == list(expected)
    assert bert.classify("a") == bert.classify(["a"])
    (alone,), among = bert.classify(("I am", "the walrus")), bert.classify(texts)[4]
    assert dict(alone) == pytest.approx(dict(among), abs=1e-6)


def test_a_long_text_is_cut_if_asked() -> None:
    bert = random_bert_with("sequence-classification", ("x", "y"))
    long = "a b " * 20
    with pytest.raises(ValueError, match="text 1 has 42 tokens, more than the 17 that this model"):
        bert.classify(long)
    assert bert.classify(long, max_length=17) == bert.classify("a b a b a b a b a b a b a b a")


@pytest.fixture(scope="module")
def tagger() -> Bert:
    bert = random_bert_with("token-classification", LABELS, dtype=torch.float64)
    assert bert.head is not None
    usual = torch.from_numpy(bert.vectors(" ".join(TEXTS)).vectors).mean(dim=0)
    weight = bert.head.get_parameter("linear.weight")
    with torch.no_grad():  # so that tokens are of different classes
        bert.head.get_parameter("linear.bias").copy_(-weight @ usual)
    return bert


@pytest.fixture(scope="module")
def pipeline(tagger: Bert, tmp_path_factory: pytest.TempPathFactory) -> Any:
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("tags") / "model"
    save(tagger, folder)
    return transformers.pipeline("token-classification", str(folder), dtype=torch.float64)


@pytest.mark.parametrize(
    ("aggregation", "theirs"),
    [("none", "simple"), ("first", "first"), ("mean", "average"), ("max", "max")],
)
def test_spans_are_those_of_the_pipeline(
    tagger: Bert, pipeline: Any, aggregation: str, theirs: str
) -> None:
    texts = [
        " ".join(word for n, word in enumerate(["walrus", "a", "Walrus", "the", "b"]) if m >> n & 1)
        for m in range(1, 32)
    ]
    labels, joined = set[str](), 0
    for text, tagged in zip(texts, tagger.tag(texts, aggregation), strict=True):
        rows = pipeline(text, aggregation_strategy=theirs)
        assert len(tagged.spans) == len(rows)
        for span, row in zip(tagged.spans, rows, strict=True):
            assert (span.label, span.start, span.end) == (
                row["entity_group"],
                row["start"],
                row["end"],
            )
            assert span.score == pytest.approx(float(row["score"]), abs=1e-12)
        labels |= {tag.label for tag in tagged.words}
        joined += len([tag for tag in tagged.words if tag.label != "O"]) - len(tagged.spans)
    assert len(labels) > 2
    assert joined > 9


def test_the_pieces_of_a_word_differ(tagger: Bert) -> None:
    """Or the ways to put them together could not be told apart."""
    found = {
        how: [tag for text in tagger.tag(TEXTS, how) for tag in text.words]
        for how in ("first", "mean", "max", "none")
    }
    assert len(found["none"]) > len(found["first"]) == len(found["mean"]) == len(found["max"])
    assert len({tuple(tags) for tags in found.values()}) == 4


def test_words_have_their_places(tagger: Bert) -> None:
    text = "  The  Wälrus, (a)"
    (tagged,) = tagger.tag(text)
    assert [text[tag.start : tag.end] for tag in tagged.words] == [
        *("The", "Wälrus", ",", "(", "a", ")")
    ]
    assert tagger.tag("") == [([], [])]
    assert tagger.tag([]) == []
    (long,) = tagger.tag("walrus a " * 30)
    assert len(long.words) == 60


def test_spans_of_labels() -> None:
    def joined(*labels: str) -> list[tuple[str, int, int]]:
        tags = [Tag(label, 0.5, n, n + 1) for n, label in enumerate(labels)]
        return [(label, start, end) for label, _, start, end in _spans(tags)]

    assert joined("B-X", "I-X", "B-X", "I-Y") == [("X", 0, 2), ("X", 2, 3), ("Y", 3, 4)]
    assert joined("I-X", "O", "I-X", "X") == [("X", 0, 1), ("X", 2, 4)]
    assert joined("N", "N", "V", "blood-type") == [("N", 0, 2), ("V", 2, 3), ("blood-type", 3, 4)]
    assert joined("O", "O") == joined() == []


def test_next_sentence_is_class_0(tmp_path_factory: pytest.TempPathFactory) -> None:
    transformers = pytest.importorskip("transformers")
    bert = random_bert_with("pretraining")
    folder = tmp_path_factory.mktemp("next") / "model"
    save(bert, folder)
    theirs = transformers.BertForNextSentencePrediction.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    first, second = ["I am", "the walrus", "a"], ["the walrus.", "a", "b b b b"]
    got = bert.next_sentence(first, second)
    for a, b, probability in zip(first, second, got, strict=True):
        with torch.no_grad():
            logits = theirs(**tokenizer(a, b, return_tensors="pt")).logits
        assert probability == pytest.approx(logits.softmax(-1)[0, 0].item(), abs=1e-6)
        assert bert.next_sentence(a, b) == pytest.approx(probability, abs=1e-6)
    assert len({round(probability, 3) for probability in got}) == 3


@pytest.mark.parametrize(
    ("first", "second", "says"),
    [
        ("a", "", r"a text of the pair \('a', ''\) has no token"),
        ("", "a", r"a text of the pair \('', 'a'\) has no token"),
        (["a", "b"], ["a", "\n"], r"a text of the pair \('b', '\\n'\) has no token"),
        ("a", ["b"], "first and second must be two texts, or two lists of equally many"),
        (["a", "b"], ["b"], "first and second must be two texts, or two lists of equally many"),
        ("a " * 9, "b " * 9, "text 1 has 21 tokens, more than the 17"),
    ],
)
def test_pairs_that_cannot_be(first: Any, second: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        random_bert_with("next-sentence").next_sentence(first, second)


def test_other_heads_are_refused(tagger: Bert) -> None:
    with pytest.raises(ValueError, match="the head sequence-classification, got the head token-c"):
        tagger.classify("a")
    with pytest.raises(ValueError, match="the head next-sentence, got the head token-class"):
        tagger.next_sentence("a", "b")
    with pytest.raises(ValueError, match=r"aggregation must be one of \('first', 'mean', .*'sum'"):
        tagger.tag("a", "sum")
    with pytest.raises(ValueError, match="no pairs here, got tuple"):
        tagger.tag([("i", "am")])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="the head token-classification, got none"):
        Bert(tagger.config, tagger.tokenizer, tagger.model).tag("a")
