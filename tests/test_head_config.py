import dataclasses

import pytest

from minibert.head_config import HEADS, PROBLEM_TYPES, HeadConfig


@pytest.mark.parametrize("name", HEADS)
def test_the_names_are_those_of_transformers(name: str) -> None:
    transformers = pytest.importorskip("transformers")
    assert hasattr(transformers, HEADS[name])


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        ({}, ("LABEL_0", "LABEL_1")),
        ({"num_labels": 3}, ("LABEL_0", "LABEL_1", "LABEL_2")),
        ({"id2label": {"1": "bad", "0": "good"}}, ("good", "bad")),
        ({"id2label": {str(n): f"l{n}" for n in range(11)}}, tuple(f"l{n}" for n in range(11))),
        ({"id2label": {"0": "x"}, "num_labels": 7}, ("x",)),
    ],
)
def test_labels_are_read_as_transformers_reads_them(
    values: dict[str, object], labels: tuple[str, ...]
) -> None:
    assert HeadConfig.from_dict("token-classification", values).labels == labels
    transformers = pytest.importorskip("transformers")
    if "num_labels" not in values or "id2label" not in values:
        theirs = transformers.BertConfig(**values)
        assert tuple(theirs.id2label[n] for n in range(theirs.num_labels)) == labels


@pytest.mark.parametrize("name", HEADS)
def test_to_dict_is_what_from_dict_reads(name: str) -> None:
    labels = ("b", "a") if name.endswith("classification") else ()
    head = HeadConfig(name, labels)
    assert HeadConfig.from_dict(name, head.to_dict()) == head
    if name == "sequence-classification":
        for problem in PROBLEM_TYPES:
            other = dataclasses.replace(head, problem_type=problem, dropout=0.25)
            assert HeadConfig.from_dict(name, other.to_dict()) == other
    if name == "masked-lm":
        untied = dataclasses.replace(head, tied=False)
        assert HeadConfig.from_dict(name, untied.to_dict()) == untied


def test_one_label_is_regression_unless_config_json_says_otherwise() -> None:
    one: dict[str, object] = {"num_labels": 1}
    name = "sequence-classification"
    assert HeadConfig.from_dict(name, one).problem_type == "regression"
    assert HeadConfig.from_dict("token-classification", one).problem_type == PROBLEM_TYPES[0]
    assert HeadConfig.from_dict(name, {}).problem_type == PROBLEM_TYPES[0]
    one["problem_type"] = PROBLEM_TYPES[1]
    assert HeadConfig.from_dict(name, one).problem_type == PROBLEM_TYPES[1]
    one["problem_type"] = PROBLEM_TYPES[0]  # transformers refuses it, too
    with pytest.raises(ValueError, match="must be one of multi_label_classification, regression w"):
        HeadConfig.from_dict(name, one)


def test_dropout_is_the_classifiers_own_or_that_of_hidden_states() -> None:
    name = "token-classification"
    assert HeadConfig.from_dict(name, {"hidden_dropout_prob": 0.3}).dropout == 0.3
    values = {"hidden_dropout_prob": 0.3, "classifier_dropout": 0.0}
    assert HeadConfig.from_dict(name, values).dropout == 0


@pytest.mark.parametrize(
    ("name", "values", "expected"),
    [
        ("ner", {}, "there is no head 'ner'; there are masked-lm, next-sentence, "),
        ("token-classification", {"id2label": {"0": "a", "2": "b"}}, "must name the classes 0, 1"),
        ("token-classification", {"id2label": ["a", "b"]}, "id2label must name the classes"),
        ("token-classification", {"id2label": {}}, "id2label must name the classes"),
        ("token-classification", {"id2label": {"0": "a", "1": "a"}}, "labels, each once"),
        ("token-classification", {"num_labels": 1e12}, "num_labels must be an int from 1 to"),
        ("token-classification", {"num_labels": True}, "num_labels must be an int from 1 to"),
        ("sequence-classification", {"num_labels": 0}, "num_labels must be an int from 1 to"),
        ("sequence-classification", {"problem_type": "rank"}, "problem_type of sequence-class"),
        ("sequence-classification", {"classifier_dropout": "a"}, r"must be in \[0, 1\), got 'a'"),
        ("sequence-classification", {"classifier_dropout": 1.0}, r"must be in \[0, 1\), got 1.0"),
    ],
)
def test_what_cannot_be_is_refused(name: str, values: dict[str, object], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        HeadConfig.from_dict(name, values)


@pytest.mark.parametrize(
    "values",
    [
        {"num_labels": "x" * 10**5},
        {"id2label": ["x\n" * 10**5]},
        {"id2label": "x\n" * 10**5},
        {"id2label": {"0": "x\n" * 10**5, "1": "x\n" * 10**5}},
        {"id2label": {"0": "x\n" * 10**5}, "problem_type": "x"},
        {"problem_type": "x" * 10**5},
        {"classifier_dropout": [1] * 10**5},
    ],
)
def test_a_message_is_a_line_whatever_the_value(values: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="sequence-class|num_lab|id2label|dropout") as raised:
        HeadConfig.from_dict("sequence-classification", values)
    assert len(str(raised.value)) < 400
    assert "\n" not in str(raised.value)


def test_labels_go_with_classification_alone() -> None:
    with pytest.raises(ValueError, match="the head masked-lm has no labels to choose"):
        HeadConfig("masked-lm", ("a",))
    with pytest.raises(ValueError, match="needs labels, each once, got \\[\\]"):
        HeadConfig("sequence-classification")
