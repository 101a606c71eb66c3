"""Which vector is the embedding of a word? From all states to one vector per token, word or text.

There are as many answers as there are rows in [D18] section 5.3, table 7, and more: `Reading` names
one, and `read` carries it out. Read next: packing.py.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby
from math import isfinite
from operator import index
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from minibert.encoding import Encoding
from minibert.names import find_numbers

TextOrPair = str | tuple[str, str]

COMBINATIONS = ("sum", "mean", "max", "concat", "stack")
UNITS = ("token", "word", "span", "sentence")
POOLINGS = {
    "word": ("mean", "sum", "max", "first", "last", "first+last"),
    "sentence": ("mean", "max", "mean_sqrt_len", "cls", "pooler"),
}


@dataclass(frozen=True)
class Reading:
    """How states become vectors. "Sum of all 12" is layers="all"; [D18] table 7 has more.

    layers: number of a state, from 0 (the embedding output) to L, or from -1 (the last) down; or
        several; or "all", which is 1 to L.
    combine: what is done with several: "sum", "mean", "max"; "concat", one vector after the other;
        "stack", an axis of layers; or a weight for each.
    unit: "token"; "word": what white space parts, and each punctuation mark and ideograph, or the
        words of a list; "span": the tokens with a character in a stretch of the text; "sentence":
        the whole text or pair.
    pooling: from tokens to a word or span: "mean", "sum", "max", "first", "last", "first+last"
        (their mean). To a sentence: "mean", "max", "mean_sqrt_len" (the sum by the root of their
        number), "cls", "pooler".
    normalize: divide each vector by its length.
    special_tokens: whether [CLS] and [SEP] are tokens, and part of a sentence.

    Raises:
        ValueError: if a value is none of those that exist, or two of them contradict each other.
    """

    layers: int | Sequence[int] | str = -1
    combine: str | Sequence[float] = "sum"
    unit: str = "token"
    pooling: str = "mean"
    normalize: bool = False
    special_tokens: bool = True

    def __post_init__(self) -> None:
        told = 'layers must be numbers or "all"'
        object.__setattr__(self, "layers", _plain(self.layers, index, ("all",), told))
        told = f"combine must be weights or one of {COMBINATIONS}"
        object.__setattr__(self, "combine", _plain(self.combine, float, COMBINATIONS, told))
        if self.unit not in UNITS:
            raise ValueError(f"unit must be one of {UNITS}, got {self.unit!r}")
        known = POOLINGS["sentence" if self.unit == "sentence" else "word"]
        if self.pooling not in known:
            raise ValueError(f"pooling of a {self.unit} must be in {known}, got {self.pooling!r}")
        if self.unit == "token" and self.pooling != "mean":
            raise ValueError(f"a token is one vector: there is no {self.pooling!r} of it")
        if self.pooling == "pooler" and (self.layers not in (-1, [-1]) or self.combine != "sum"):
            raise ValueError("the pooler reads the last layer, -1, and no other")
        if self.pooling in ("cls", "pooler") and not self.special_tokens:
            raise ValueError(f"{self.pooling!r} is of [CLS]: special_tokens=False leaves that out")

    def states(self, num_hidden_layers: int) -> list[int]:
        """The numbers of the states that are read, from 0 to L; a ValueError if one is not there.

        >>> Reading(layers=[-2, -1]).states(12), Reading(layers="all").states(3)
        ([11, 12], [1, 2, 3])
        """
        count = num_hidden_layers + 1
        asked = range(1, count) if isinstance(self.layers, str) else self.layers
        asked = [asked] if isinstance(asked, int) else asked
        numbers = [number % count for number in find_numbers("layer", asked, count)]
        if not isinstance(self.combine, str) and len(self.combine) != len(numbers):
            raise ValueError(f"{len(self.combine)} weights for {len(numbers)} layers")
        return numbers

    def mix(self, states: Sequence[Tensor]) -> NDArray[np.float32]:
        """The layers that were asked for, (B, T, H) each, as one array.

        Returns:
            (B, T, H); for "concat" (B, T, layers times H); for "stack" (B, T, layers, H).
        """
        # Half precision is for the model; sums are made, and results kept, in float32 at least.
        wide = [state.float() if state.dtype.itemsize < 4 else state for state in states]
        if self.combine == "concat":
            mixed = torch.cat(wide, dim=-1)
        elif self.combine == "stack":
            mixed = torch.stack(wide, dim=2)
        elif not isinstance(self.combine, str):
            mixed = torch.stack([w * s for w, s in zip(self.combine, wide, strict=True)]).sum(dim=0)
        elif len(wide) == 1:
            mixed = wide[0]
        else:
            stacked = torch.stack(wide)
            if self.combine == "sum":
                mixed = stacked.sum(dim=0)
            else:
                mixed = stacked.mean(dim=0) if self.combine == "mean" else stacked.amax(dim=0)
        array: NDArray[np.float32] = mixed.cpu().numpy()
        return array


def _plain(given: Any, number: Callable[[Any], Any], words: tuple[str, ...], told: str) -> Any:
    """One of the words, or numbers of Python, from those of numpy and torch, too."""
    given = given.tolist() if hasattr(given, "tolist") else given
    if (isinstance(given, int) and number is index) or (isinstance(given, str) and given in words):
        return given
    try:
        numbers = [] if isinstance(given, str) else [number(part) for part in given]
    except TypeError:
        numbers = []
    if not numbers or not all(map(isfinite, numbers)):
        raise ValueError(f"{told}, got {given!r}")
    return numbers


@dataclass(frozen=True)
class Vectors:
    """Vectors of one text or many, row after row; `vectors[i]` has those of text i.

    Of a pair, offsets count in the text that the row is from: `segments` says which.
    """

    vectors: NDArray[np.float32]  # (N, H), or as `combine` makes them; N rows of all texts
    tokens: list[str]  # N tokens, words, spans or texts, as in `unit`
    offsets: list[tuple[int, int]]  # N places in the text, (0, 0) for an added token
    segments: list[int]  # N numbers: 0, or 1 in the second text of a pair
    starts: list[int]  # rows of text i: from starts[i] up to starts[i + 1]

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, text: int) -> "Vectors":
        if not 0 <= text < len(self):
            raise IndexError(f"there is no text {text}: there are {len(self)}")
        rows = slice(self.starts[text], self.starts[text + 1])
        lists = (self.tokens[rows], self.offsets[rows], self.segments[rows])
        return Vectors(self.vectors[rows], *lists, [0, rows.stop - rows.start])


class Text(NamedTuple):
    """A text or a pair, and the stretches of the first that are asked for (None: its words)."""

    first: str
    second: str | None = None
    spans: Sequence[tuple[int, int]] | None = None

    @classmethod
    def of(cls, item: TextOrPair | list[str]) -> "Text":
        """Take one item of a list of texts; a list is the words of a text.

        >>> Text.of(["don't", "stop"])
        Text(first="don't stop", second=None, spans=[(0, 5), (6, 10)])
        """
        if isinstance(item, tuple) and len(item) == 2:
            return cls(item[0], item[1])
        if isinstance(item, list):
            if not all(isinstance(word, str) for word in item):
                raise ValueError(f"the words of a text must be str, got {str(item)[:60]}")
            lengths = [len(word) for word in item]
            starts = [0, *accumulate(length + 1 for length in lengths)]
            spans = [(start, start + n) for start, n in zip(starts, lengths, strict=False)]
            return cls(" ".join(item), None, spans)
        return cls(item)  # whatever it is: the tokenizer says what is wrong with it

    @property
    def given(self) -> TextOrPair:
        """As the tokenizer takes it."""
        return self.first if self.second is None else (self.first, self.second)

    def between(self, segment: int, start: int, end: int) -> str:
        """The characters from start up to end, of the first text or the second."""
        return ((self.second or "") if segment else self.first)[start:end]


def read(reading: Reading, text: Text, encoding: Encoding, states: NDArray[np.float32]) -> Vectors:
    """The vectors of one text.

    Args:
        reading: which ones.
        text: the text.
        encoding: all of its tokens.
        states: what Reading.mix gave for them, (T, ...); for the pooler, (1, H).

    Raises:
        ValueError: if a stretch of the text has no token.
    """
    if reading.unit == "sentence":
        whole = text.first if text.second is None else f"{text.first} ||| {text.second}"
        rows = states if reading.pooling == "pooler" else states[_tokens(reading, encoding)]
        vectors = _pool(rows, reading.pooling)[None]
        result = Vectors(vectors, [whole], [(0, len(text.first))], [0], [0, 1])
    elif reading.unit == "token":
        tokens = _tokens(reading, encoding)
        result = Vectors(
            states[tokens],
            [encoding.tokens[n] for n in tokens],
            [encoding.offsets[n] for n in tokens],
            [encoding.token_type_ids[n] for n in tokens],
            [0, len(tokens)],
        )
    else:
        groups = _words(encoding) if text.spans is None else _spans(text, encoding)
        segments = [encoding.token_type_ids[group[0]] for group in groups]
        offsets = [(encoding.offsets[g[0]][0], encoding.offsets[g[-1]][1]) for g in groups]
        surfaces = [text.between(n, *span) for n, span in zip(segments, offsets, strict=True)]
        vectors = np.empty((len(groups), *states.shape[1:]), states.dtype)
        for row, group in enumerate(groups):
            vectors[row] = _pool(states[group], reading.pooling)
        result = Vectors(vectors, surfaces, offsets, segments, [0, len(groups)])
    if reading.normalize:
        lengths = np.linalg.norm(result.vectors, axis=-1, keepdims=True)
        result.vectors[...] /= np.maximum(lengths, 1e-12)
    return result


def _tokens(reading: Reading, encoding: Encoding) -> list[int]:
    added = encoding.special_tokens_mask
    return [n for n, is_added in enumerate(added) if reading.special_tokens or not is_added]


def _words(encoding: Encoding) -> list[list[int]]:
    """The tokens of each word, a list a word."""
    words = list(zip(encoding.token_type_ids, encoding.word_ids, strict=True))
    runs = groupby(range(len(words)), key=words.__getitem__)
    return [list(run) for (_, word), run in runs if word is not None]


def _spans(text: Text, encoding: Encoding) -> list[list[int]]:
    """The tokens that have a character in each stretch of the first text."""
    own = [
        (n, start, end)
        for n, (start, end) in enumerate(encoding.offsets)
        if not encoding.special_tokens_mask[n] and encoding.token_type_ids[n] == 0
    ]
    groups = []
    for start, end in text.spans or []:
        groups.append([n for n, first, last in own if first < end and last > start])
        if not groups[-1]:
            place = f"from {start} up to {end} of {text.first[:60]!r}"
            raise ValueError(f"no token has a character {place}")
    return groups


def _pool(rows: NDArray[np.float32], pooling: str) -> NDArray[np.float32]:
    """(n, ...) -> (...); zeros where there is nothing to pool."""
    if len(rows) == 0:
        return np.zeros(rows.shape[1:], rows.dtype)
    pooled: NDArray[np.float32]
    if pooling == "mean":
        pooled = rows.mean(axis=0)
    elif pooling == "sum":
        pooled = rows.sum(axis=0)
    elif pooling == "max":
        pooled = rows.max(axis=0)
    elif pooling == "mean_sqrt_len":
        pooled = rows.sum(axis=0) / np.sqrt(len(rows)).astype(rows.dtype)
    elif pooling == "first+last":
        pooled = (rows[0] + rows[-1]) / 2
    else:  # "first", "cls" and "pooler", or "last"
        pooled = rows[-1] if pooling == "last" else rows[0]
    return pooled


def with_spans(
    texts: list[Text], reading: Reading, span: tuple[int, int] | Sequence[tuple[int, int]] | None
) -> list[Text]:
    """The texts, each with its stretch if stretches are read; one stretch is for one text."""
    if reading.unit != "span":
        if span is not None:
            raise ValueError(f'span goes with unit="span", not {reading.unit!r}')
        return texts
    spans = [span] if isinstance(span, tuple) else [] if span is None else list(span)
    if len(spans) != len(texts):
        raise ValueError(f"{len(spans)} spans for {len(texts)} texts")
    for text, (start, end) in zip(texts, spans, strict=True):
        if isinstance(text.first, str) and not 0 <= start < end <= len(text.first):
            raise ValueError(f"({start}, {end}) is no stretch of {text.first[:60]!r}")
    return [text._replace(spans=[span]) for text, span in zip(texts, spans, strict=True)]


def join(parts: Sequence[Vectors]) -> Vectors:
    """The vectors of many texts, one after the other."""
    counts = [len(part.tokens) for part in parts]
    return Vectors(
        np.concatenate([part.vectors for part in parts]) if parts else np.empty((0, 0), np.float32),
        [token for part in parts for token in part.tokens],
        [offset for part in parts for offset in part.offsets],
        [segment for part in parts for segment in part.segments],
        [0, *accumulate(counts)],
    )
