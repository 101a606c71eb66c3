"""The same word in several sentences: how alike is it, layer by layer? [D18] against word2vec.

A static embedding (word2vec, GloVe) has one vector per word, whatever stands around it; BERT has
one per occurrence. Read next: logits.py.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from minibert.batches import mixed_states
from minibert.model import BertModel
from minibert.tokenizer import WordPieceTokenizer
from minibert.unicode import IDEOGRAPHS
from minibert.vectors import Reading, Text, read


class Occurrence(NamedTuple):
    """A word in one of several texts: texts[text][start:end]."""

    text: int
    start: int
    end: int


@dataclass(frozen=True)
class Comparison:
    """How alike the N occurrences of a word are to each other.

    similarity[0] is of the word embedding alone, without position, segment and LayerNorm, which is
    all that a static embedding would know: 1 for the same spelling. similarity[i] is of state i,
    which layer i writes. A word of several pieces is their mean.
    """

    occurrences: list[Occurrence]  # N, in the order of the texts
    similarity: NDArray[np.float32]  # (L + 1, N, N): cosines, in [-1, 1]


def find_word(word: str, texts: Sequence[str]) -> list[Occurrence]:
    """Where a word, or some words in a row, stand by themselves; case does not count.

    An ideograph is a word of its own, as for BERT.

    >>> find_word("apple", ["Apples are no apple.", "An APPLE"])
    [Occurrence(text=0, start=14, end=19), Occurrence(text=1, start=3, end=8)]

    Raises:
        ValueError: if a text has none.
    """
    found = []
    for number, text in enumerate(texts):
        if not isinstance(text, str) or not isinstance(word, str):
            raise ValueError(f"text {number + 1} and the word must be str, got {text!r}, {word!r}")
        inside = [Occurrence(number, *place) for place in _places(word.split(), text)]
        if not inside:
            raise ValueError(f"text {number + 1} does not have the word {word!r}: {text[:60]!r}")
        found += inside
    return found


def _places(words: list[str], text: str) -> Iterator[tuple[int, int]]:
    pattern = re.compile(r"\s+".join(map(re.escape, words)), re.IGNORECASE)
    begin = 0
    while words and (match := pattern.search(text, begin)):
        start, end = match.span()
        is_part = any(map(_is_inside, (text[start - 1 : start + 1], text[end - 1 : end + 1])))
        begin = start + 1 if is_part else end
        if not is_part:
            yield start, end


def _is_inside(two: str) -> bool:
    """Whether two neighbours are of one word."""
    return len(two) == 2 and all(re.match(r"\w", c) and c not in IDEOGRAPHS for c in two)


def compare(
    model: BertModel, tokenizer: WordPieceTokenizer, word: str, texts: Sequence[str]
) -> Comparison:
    """Compare a word with itself; see Bert.compare."""
    if isinstance(texts, str) or not (texts := list(texts)):
        raise ValueError(f"texts must be a list of str, and not empty, got {texts!r:.60}")
    occurrences = find_word(word, texts)
    wanted = [
        Text(text, spans=[(start, end) for place, start, end in occurrences if place == number])
        for number, text in enumerate(texts)
    ]
    encodings = tokenizer.encode_batch([text.first for text in wanted])
    layers = range(model.config.num_hidden_layers)
    reading = Reading(layers=[n + 1 for n in layers], combine="stack", unit="span")
    states = dict(mixed_states(model, encodings, reading))
    table = model.embeddings.word.weight.detach().float().cpu().numpy()
    rows = []
    for number, (text, encoding) in enumerate(zip(wanted, encodings, strict=True)):
        static = read(reading, text, encoding, table[encoding.input_ids][:, None])
        layered = read(reading, text, encoding, states[number])
        rows.append(np.concatenate([static.vectors, layered.vectors], axis=1))
    vectors = torch.from_numpy(np.concatenate(rows)).transpose(0, 1)  # (L + 1, N, H)
    units = torch.nn.functional.normalize(vectors, dim=-1)
    return Comparison(occurrences, (units @ units.transpose(1, 2)).clamp(-1, 1).numpy())


def to_json(comparison: Comparison) -> str:
    """One object: "occurrences", [text, start, end] each, and "similarity", layer by layer."""
    rounded = np.round(comparison.similarity.astype(float), 6).tolist()
    return json.dumps({"occurrences": comparison.occurrences, "similarity": rounded})


def excerpts(comparison: Comparison, texts: Sequence[str], width: int) -> list[str]:
    """Each occurrence in brackets, with what stands around it: "I ate an [apple]."."""
    shown = []
    for place, start, end in comparison.occurrences:
        text, room = re.sub(r"\s", " ", texts[place]), max(10, (width - (end - start) - 7) // 2)
        before, after = text[max(0, start - room) : start], text[end : end + room]
        shown.append(f"{before}[{text[start:end]}]{after}")
    return shown


def to_text(comparison: Comparison, texts: Sequence[str], width: int) -> str:
    """For people: the occurrences, numbered, and for each layer the similarity of each pair."""
    around = enumerate(excerpts(comparison, texts, width), start=1)
    lines = [f"{number:>3}  {excerpt}" for number, excerpt in around]
    count = len(comparison.occurrences)
    pairs = [(a, b) for b in range(count) for a in range(b)]
    shown = pairs[: max(1, (width - 6) // 8)]
    more = " ..." if len(shown) < len(pairs) else ""
    lines.append("layer " + "".join(f"{f'{a + 1}-{b + 1}':>8}" for a, b in shown) + more)
    for layer, similarity in enumerate(comparison.similarity):
        name = "static" if layer == 0 else str(layer)
        lines.append(f"{name:<6}" + "".join(f"{similarity[a, b]:8.2f}" for a, b in shown))
    return "\n".join(lines)
