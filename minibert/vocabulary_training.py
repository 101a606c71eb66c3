"""A vocabulary for texts of one's own: counts of words in, pieces out.

What made BERT's own vocabularies was never released: it hung on internal libraries, says the README
of google-research/bert@eedf571, "Learning a new WordPiece vocabulary". What others use since is the
trainer of the `tokenizers` library, and this is its rule: begin with the characters, and again and
again make one piece of the two that stand side by side most often (Sennrich et al. 2016, arXiv
1508.07909). It is written out here, since that library numbers the characters inside words by
chance: with tokenizers 0.23.3 the same texts gave other ids each time, and where pairs come equally
often other pieces, too. Here the same texts give the same vocabulary. Read next: instances.py.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from heapq import heapify, heappop, heappush
from itertools import chain, pairwise
from pathlib import Path

from minibert.normalizer import Normalizer
from minibert.shards import replace
from minibert.tokenizer import WordPieceTokenizer
from minibert.vocabulary import SPECIAL_TOKENS
from minibert.wordpiece import MAX_CHARACTERS_PER_WORD

Pair = tuple[int, int]  # ids of pieces that stand side by side


def count_words(texts: Iterable[str], normalizer: Normalizer) -> Counter[str]:
    """How often each word comes, words being what the tokenizer will cut into pieces.

    Memory grows with the words that differ, not with the texts.

    >>> sorted(count_words(["The walrus!", "the"], Normalizer(True, True, True)).items())
    [('!', 1), ('the', 2), ('walrus', 1)]
    """
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(normalizer.space_out(text).split())
    return counts


def train_vocabulary(
    counts: Mapping[str, int], size: int, least: int = 2, most_characters: int = 1000
) -> list[str]:
    """Make a vocabulary of the words that texts have.

    >>> train_vocabulary({"low": 5, "lower": 2, "lot": 4}, size=18)[5:]
    ['e', 'l', 'o', 'r', 't', 'w', '##e', '##o', '##r', '##t', '##w', 'lo', 'low']

    Args:
        counts: word -> how often it comes.
        size: how many pieces there shall be, with the special tokens.
        least: a pair that comes less often is not made a piece.
        most_characters: only the most frequent ones; words with others will be [UNK].

    Returns:
        SPECIAL_TOKENS, the characters, then pieces in the order in which they were made. Fewer than
        `size` if no pair comes often enough. Of pairs that come equally often the one is taken
        whose first piece has the lowest id, then the second.

    Raises:
        ValueError: if there are no words, the special tokens and characters are more than size, or
            a number is less than 1.
    """
    if least < 1 or most_characters < 1:
        raise ValueError(f"take 1 or more, got least={least}, most_characters={most_characters}")
    usual = _usual_characters(counts, most_characters)
    words = sorted(
        word for word in counts if len(word) <= MAX_CHARACTERS_PER_WORD and usual.issuperset(word)
    )
    if not words:
        raise ValueError("the texts have no word to make a vocabulary of")
    vocabulary = [*SPECIAL_TOKENS, *_characters(words)]
    if len(vocabulary) > size:
        told = f"{len(vocabulary)} special tokens and characters"
        raise ValueError(f"{told} are more than {size} pieces; ask for more, or fewer characters")
    merging = _Merging(vocabulary, words, counts)
    while len(vocabulary) < size and (pair := merging.most_frequent(least)) is not None:
        merging.merge(pair)
    return vocabulary


def write_tokenizer(tokenizer: WordPieceTokenizer, folder: Path) -> None:
    """Write vocab.txt and tokenizer_config.json: a folder that `load_tokenizer` reads."""
    normalizer = tokenizer.normalizer
    settings = {
        "do_lower_case": normalizer.lowercase,
        "strip_accents": normalizer.strip_accents,
        "tokenize_chinese_chars": normalizer.tokenize_chinese_chars,
    }
    folder.mkdir(parents=True, exist_ok=True)
    pieces = "".join(f"{piece}\n" for piece in tokenizer.vocabulary)
    replace(folder / "vocab.txt", pieces.encode())
    replace(folder / "tokenizer_config.json", f"{json.dumps(settings, indent=2)}\n".encode())


def _usual_characters(counts: Mapping[str, int], most: int) -> set[str]:
    frequency: Counter[str] = Counter()
    for word, count in counts.items():
        for character in word:
            frequency[character] += count
    return set(sorted(frequency, key=lambda c: (-frequency[c], c))[:most])


def _characters(words: Iterable[str]) -> list[str]:
    """Each by itself, so that no word of one is unknown; then those that stand inside words."""
    inside = {f"##{character}" for word in words for character in word[1:]}
    return [*sorted(set(chain.from_iterable(words))), *sorted(inside)]


class _Merging:
    """Words as pieces, and how often each two pieces stand side by side.

    To merge a pair only the words that have it are looked at; all other counts stay.
    """

    def __init__(
        self, vocabulary: list[str], words: Sequence[str], counts: Mapping[str, int]
    ) -> None:
        self._vocabulary = vocabulary  # grows
        self._ids = {piece: number for number, piece in enumerate(vocabulary)}
        self._words = [
            [self._ids[word[0]], *(self._ids[f"##{c}"] for c in word[1:])] for word in words
        ]
        self._counts = [counts[word] for word in words]
        self._frequency: Counter[Pair] = Counter()
        self._places: defaultdict[Pair, set[int]] = defaultdict(set)  # words that have the pair
        for number in range(len(words)):
            self._count(number, 1)
        self._queue = [(-count, pair) for pair, count in self._frequency.items()]
        heapify(self._queue)

    def most_frequent(self, least: int) -> Pair | None:
        """The pair that comes most often; None if none comes `least` times."""
        while self._queue:
            count, pair = heappop(self._queue)
            if self._frequency[pair] == -count >= least:  # else it changed, and was queued anew
                return pair
        return None

    def merge(self, pair: Pair) -> None:
        """Make one piece of a pair wherever it stands, from the left."""
        left, right = pair
        piece = self._vocabulary[left] + self._vocabulary[right].removeprefix("##")
        merged = self._ids.setdefault(piece, len(self._vocabulary))
        if merged == len(self._vocabulary):  # else "th" "##e" was made of "t" "##he" before
            self._vocabulary.append(piece)
        touched: set[Pair] = set()
        for number in self._places.pop(pair):
            touched.update(self._count(number, -1))
            ids: list[int] = []
            for here in self._words[number]:
                if ids and ids[-1] == left and here == right:
                    ids[-1] = merged
                else:
                    ids.append(here)
            self._words[number] = ids
            touched.update(self._count(number, 1))
        for other in touched:
            if self._frequency[other] > 0:
                heappush(self._queue, (-self._frequency[other], other))
            else:
                del self._frequency[other]

    def _count(self, number: int, sign: int) -> list[Pair]:
        """Add the pairs of a word, or take them away; gives the pairs."""
        pairs = list(pairwise(self._words[number]))
        for pair in pairs:
            self._frequency[pair] += sign * self._counts[number]
            self._places[pair].add(number)  # stays when a pair goes: then nothing is found there
        return pairs
