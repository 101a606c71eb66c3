"""The trainer against its definition written out plainly, and against the library it follows."""

from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from random import Random

import pytest

from minibert.normalizer import Normalizer
from minibert.tokenizer import WordPieceTokenizer
from minibert.vocabulary import SPECIAL_TOKENS
from minibert.vocabulary_training import count_words, train_vocabulary

UNCASED = Normalizer(lowercase=True, strip_accents=True, tokenize_chinese_chars=True)
TEXTS = [
    "The walrus and the carpenter were walking close at hand;",
    "They wept like anything to see such quantities of sand:",
    "'If this were only cleared away,' they said, 'it would be grand!'",
    "'If seven maids with seven mops swept it for half a year,",
    "Do you suppose,' the walrus said, 'that they could get it clear?'",
    "aaaaaaa aaaa aaaaa banana bananas ananas",
]


def by_definition(counts: Counter[str], size: int, least: int) -> list[str]:
    """Count all pairs anew before each merge."""
    words = [([word[0], *(f"##{c}" for c in word[1:])], n) for word, n in counts.items()]
    inside = {piece for pieces, _ in words for piece in pieces[1:]}
    vocabulary = [*SPECIAL_TOKENS, *sorted(set("".join(counts))), *sorted(inside)]
    while len(vocabulary) < size:
        frequency: Counter[tuple[str, str]] = Counter()
        for pieces, n in words:
            frequency.update({p: n * list(pairwise(pieces)).count(p) for p in pairwise(pieces)})
        order = {pair: (-n, *map(vocabulary.index, pair)) for pair, n in frequency.items()}
        pair = min(order, key=order.__getitem__, default=None)
        if pair is None or frequency[pair] < least:
            break
        piece = pair[0] + pair[1][2:]
        for pieces, _ in words:
            place = 0
            while place < len(pieces) - 1:
                if (pieces[place], pieces[place + 1]) == pair:
                    pieces[place : place + 2] = [piece]
                place += 1
        if piece not in vocabulary:
            vocabulary.append(piece)
    return vocabulary


@pytest.mark.parametrize("least", [1, 2, 3])
@pytest.mark.parametrize("size", [60, 75, 120, 1000])
def test_the_definition(size: int, least: int) -> None:
    counts = count_words(TEXTS, UNCASED)
    assert train_vocabulary(counts, size, least) == by_definition(counts, size, least)


def test_the_definition_on_real_text(shared: Callable[[str], Path]) -> None:
    with shared("corpus.txt").open(encoding="utf-8") as file:
        counts = count_words([next(file) for _ in range(300)], UNCASED)
    assert len(counts) > 700
    assert train_vocabulary(counts, 350) == by_definition(counts, 350, 2)


def by_tokenizers(texts: list[str], size: int) -> list[str]:
    tokenizers = pytest.importorskip("tokenizers")
    theirs = tokenizers.Tokenizer(tokenizers.models.WordPiece(unk_token="[UNK]"))
    theirs.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
    theirs.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    trainer = tokenizers.trainers.WordPieceTrainer(
        vocab_size=size, special_tokens=list(SPECIAL_TOKENS), show_progress=False
    )
    theirs.train_from_iterator(texts, trainer)
    ids: dict[str, int] = theirs.get_vocab()
    return sorted(ids, key=ids.__getitem__)


def test_the_same_as_tokenizers() -> None:
    """One word, since that library goes through several by chance."""
    random = Random(0)
    for length in range(10, 100, 5):
        # It numbers what stands inside a word as it comes; here that is sorted.
        word = "abcde" + "".join(random.choices("abcde", k=length - 5))
        word = f"a{word}"
        assert train_vocabulary({word: 1}, 60, least=1) == by_tokenizers([word], 60)


def test_nearly_the_same_as_tokenizers(shared: Callable[[str], Path]) -> None:
    """What that library leaves to chance is where pairs come equally often."""
    with shared("corpus.txt").open(encoding="utf-8") as file:
        texts = [next(file) for _ in range(5000)]
    ours, theirs = train_vocabulary(count_words(texts, UNCASED), 1000), by_tokenizers(texts, 1000)
    assert len(ours) == len(set(ours)) == len(theirs) == 1000
    assert len(set(ours) & set(theirs)) >= 995  # two of its own runs had 998 to 1000 in common


def test_the_order_of_the_texts_changes_nothing() -> None:
    forwards, backwards = (count_words(texts, UNCASED) for texts in (TEXTS, TEXTS[::-1]))
    assert list(forwards) != list(backwards)
    assert train_vocabulary(forwards, 150) == train_vocabulary(backwards, 150)


def test_a_tokenizer_of_it_knows_the_texts() -> None:
    vocabulary = train_vocabulary(count_words(TEXTS, UNCASED), 90)
    assert vocabulary[:5] == list(SPECIAL_TOKENS)
    tokenizer = WordPieceTokenizer(vocabulary, lowercase=True)
    for text in TEXTS:
        assert "[UNK]" not in tokenizer.tokenize(text)
    assert tokenizer.tokenize("The, z") == ["the", ",", "[UNK]"]


def test_cased_words_stay() -> None:
    cased = Normalizer(lowercase=False, strip_accents=False, tokenize_chinese_chars=True)
    assert count_words(["Élan élan"], cased) == {"Élan": 1, "élan": 1}
    assert count_words(["Élan élan"], UNCASED) == {"elan": 2}


def test_rare_characters_and_long_words_are_left_out() -> None:
    counts = {"abab": 9, "abq": 1, "a" * 101: 50}
    vocabulary = train_vocabulary(counts, 50, most_characters=2)
    assert vocabulary[5:] == ["a", "b", "##a", "##b", "ab", "##ab", "abab"]


def test_pairs_that_come_once_are_no_pieces() -> None:
    assert train_vocabulary({"ab": 1, "cd": 2}, 50)[5:] == ["a", "b", "c", "d", "##b", "##d", "cd"]


@pytest.mark.parametrize("counts", [{}, {"a" * 101: 5}])
def test_no_words(counts: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="no word to make a vocabulary of"):
        train_vocabulary(counts, 100)


def test_too_small() -> None:
    with pytest.raises(ValueError, match="8 special tokens and characters are more than 7 pieces"):
        train_vocabulary({"ab": 2, "a": 1}, 7)


@pytest.mark.parametrize("numbers", [{"least": 0}, {"most_characters": 0}])
def test_numbers_without_sense(numbers: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="take 1 or more"):
        train_vocabulary({"ab": 2}, 100, **numbers)
