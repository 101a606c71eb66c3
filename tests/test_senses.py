import json
from pathlib import Path

import numpy as np
import pytest
import torch

from minibert.bert import Bert
from minibert.loading import load
from minibert.senses import Occurrence, excerpts, find_word, to_json, to_text

APPLES = ["I ate an apple.", "Apple released a phone, with an apple on it."]


def test_where_a_word_stands() -> None:
    assert find_word("apple", APPLES) == [
        Occurrence(0, 9, 14),
        Occurrence(1, 0, 5),
        Occurrence(1, 32, 37),
    ]
    assert find_word("C++", ["Use C++!"]) == [Occurrence(0, 4, 7)]
    assert find_word("interest rate", ["The interest rate."]) == [Occurrence(0, 4, 17)]
    assert find_word(" interest  rate", ["interest\nrate"]) == [Occurrence(0, 0, 13)]
    assert find_word("苹果", ["我吃苹果。"]) == [Occurrence(0, 2, 4)]  # no space around it
    assert find_word("iPhone", ["买iPhone吧"]) == [Occurrence(0, 1, 7)]
    assert find_word("a a", ["ba a a"]) == [Occurrence(0, 3, 6)]
    for word in ("pineapple", "app", "", "ate an orange"):
        with pytest.raises(ValueError, match="text 1 does not have the word"):
            find_word(word, APPLES)


def test_compared_layer_by_layer(minilm: Bert) -> None:
    comparison = minilm.compare("apple", APPLES)
    assert comparison.similarity.shape == (7, 3, 3)
    assert comparison.similarity[0] == pytest.approx(np.ones((3, 3)), abs=1e-6)
    assert comparison.similarity == pytest.approx(comparison.similarity.transpose(0, 2, 1))
    states = minilm.states(APPLES)
    places = [(0, states[0].tokens.index("apple")), (1, states[1].tokens.index("apple"))]
    for layer in range(1, 7):
        expected = torch.cosine_similarity(
            *(states[text].hidden_states[layer, place] for text, place in places), dim=0
        )
        assert comparison.similarity[layer, 0, 1] == pytest.approx(expected.item(), abs=1e-5)


def test_a_word_of_several_pieces_is_their_mean(minilm: Bert) -> None:
    comparison = minilm.compare("walrus", ["The walrus sings.", "A WALRUS"])
    means = [
        states.hidden_states[3, 2:4].mean(0) for states in minilm.states(["The walrus sings."])
    ]
    means += [minilm.states("A WALRUS").hidden_states[3, 2:4].mean(0)]
    expected = torch.cosine_similarity(*means, dim=0).item()
    assert comparison.similarity[3, 0, 1] == pytest.approx(expected, abs=1e-5)
    # Spelled in another way it would be another static vector; in capitals it is the same one.
    assert comparison.similarity[0, 0, 1] == pytest.approx(1, abs=1e-6)


def test_a_fruit_is_nearer_to_a_fruit(minilm: Bert) -> None:
    texts = ["I ate an apple.", "She peeled the apple and ate it.", "Apple released a phone."]
    last = minilm.compare("apple", texts).similarity[-1]
    assert last[0, 1] > last[0, 2] + 0.05


def test_for_people_and_for_programs(minilm: Bert) -> None:
    comparison = minilm.compare("apple", APPLES)
    lines = to_text(comparison, APPLES, 80).splitlines()
    assert lines[:2] == ["  1  I ate an [apple].", "  2  [Apple] released a phone, with an apple o"]
    assert max(map(len, lines)) <= 80
    assert lines[3].split() == ["layer", "1-2", "1-3", "2-3"]
    assert lines[4].split() == ["static", "1.00", "1.00", "1.00"]
    assert len(lines) == 3 + 1 + 7
    narrow = to_text(comparison, APPLES, 24).splitlines()
    assert narrow[3].split() == ["layer", "1-2", "1-3", "..."]
    record = json.loads(to_json(comparison))
    assert record["occurrences"] == [[0, 9, 14], [1, 0, 5], [1, 32, 37]]
    assert np.array(record["similarity"]) == pytest.approx(comparison.similarity, abs=1e-6)


def test_a_line_each_whatever_the_text_has(folder: Path) -> None:
    texts = ["a\nb\ta", "b a"]
    comparison = load(folder).compare("a", texts)
    assert excerpts(comparison, texts, 80) == ["[a] b a", "a b [a]", "b [a]"]


def test_one_text_is_no_list(folder: Path) -> None:
    for texts in ("a b a", []):
        with pytest.raises(ValueError, match="texts must be a list of str, and not empty, got"):
            load(folder).compare("a", texts)
    with pytest.raises(ValueError, match="text 2 and the word must be str, got None, 'a'"):
        load(folder).compare("a", ["a", None])  # type: ignore[list-item]


def test_a_cosine_is_at_most_1(folder: Path) -> None:
    texts = iter(["a b c", "b a", "a"] * 20)  # of a word with itself, rounding gave 1.0000001
    similarity = load(folder).compare("a", texts).similarity  # type: ignore[arg-type]
    assert similarity.shape[1] == 60
    assert np.abs(similarity).max() <= 1
