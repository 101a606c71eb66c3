"""Words to pieces: the longest that the vocabulary has, from the left.

Follows [W16] section 4.1 and google-research/bert@eedf571 tokenization.py:300-359. Read next:
encoding.py.
"""

from collections.abc import Mapping, Sequence

# Longer words become one [UNK]. The limit of `tokenizers`; Google's is 200.
MAX_CHARACTERS_PER_WORD = 100

# The most words that are remembered: 30 MB if they are English, 200 MB at the very worst.
MAX_WORDS = 1 << 17


class WordPieces(dict[str, tuple[int, ...]]):
    """Word -> ids of its pieces, which are found when the word is first looked up.

    At each place the longest piece that fits is taken, and never given back. A word some part of
    which has no piece is one [UNK], all of it. How the released models depart from the paper: it
    trains the vocabulary, and does not say how a word is then cut, which is Google's code; and it
    marks the beginning of words, not what continues them.

    >>> pieces = WordPieces({"[UNK]": 0, "un": 1, "##aff": 2, "##able": 3, "##a": 4})
    >>> pieces["unaffable"], pieces["unable"], pieces["affable"]
    ((1, 2, 3), (1, 3), (0,))
    """

    def __init__(self, ids: Mapping[str, int]) -> None:
        super().__init__()
        self._unknown = (ids["[UNK]"],)
        self._starts = {piece: i for piece, i in ids.items() if not piece.startswith("##")}
        self._insides = {piece[2:]: i for piece, i in ids.items() if piece.startswith("##")}

    def __missing__(self, word: str) -> tuple[int, ...]:
        if len(word) > MAX_CHARACTERS_PER_WORD:
            return self._unknown  # and not remembered, since it may be of any length
        if len(self) >= MAX_WORDS:
            self.clear()
        ids = self[word] = self._match(word)
        return ids

    def _match(self, word: str) -> tuple[int, ...]:
        ids = []
        start, pieces = 0, self._starts
        while start < len(word):
            end = len(word)
            while (piece := word[start:end]) not in pieces:
                end -= 1
                if end == start:  # not even one character is a piece
                    return self._unknown
            ids.append(pieces[piece])
            start, pieces = end, self._insides
        return tuple(ids)


def trace(word: str, pieces: Sequence[str]) -> str:
    """How a word was cut, for people; what was tried in vain stands in parentheses.

    >>> trace("unable", ["un", "##able"])
    'unable: (unable) (unabl) (unab) (una) un, ##able'
    """
    if pieces == ["[UNK]"]:
        return f"{word}: [UNK], since some part of it has no piece"
    taken = []
    start = 0
    for piece in pieces:
        end, prefix = start + len(piece.removeprefix("##")), "##" if start else ""
        tried = [f"({prefix}{word[start:stop]})" for stop in range(len(word), end, -1)]
        taken.append(" ".join([*tried, piece]))
        start = end
    return f"{word}: {', '.join(taken)}"
