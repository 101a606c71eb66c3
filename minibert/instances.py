"""What BERT is pre-trained on: documents in, masked pairs of sentences out.

A document is a list of sentences, and a sentence a list of ids. `InstanceMaker` does with documents
what Google's create_pretraining_data.py does, draw for draw: the same seed gives the same instances
([D18] appendix A.1 and A.2). It never holds more than a block of documents: the blocks come one by
one from `blocks`, the documents from `read_documents`. Read next: instance_files.py.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import chain, islice
from random import Random
from typing import NamedTuple

from minibert.lines import Lines
from minibert.tokenizer import WordPieceTokenizer

Document = list[list[int]]  # sentences; none is empty

LONGEST_DOCUMENT = 1 << 18  # pieces; what is longer goes on as another document
BLOCK_PIECES = 1 << 20  # of which random sentences are drawn, and which are shuffled

_LINES = 100  # to be tokenized at once


@dataclass(frozen=True)
class Recipe:
    """How instances are made; the defaults are those of Google's program.

    Raises:
        ValueError: if a value is out of range.
    """

    max_length: int = 128  # tokens of an instance, [CLS] and [SEP] included
    masked_share: float = 0.15  # of the tokens, to be predicted
    most_masked: int = 20  # but no more than these
    short_share: float = 0.1  # of the documents, are cut into instances of some random length
    copies: int = 10  # of each document, with other pairs and masks
    whole_words: bool = False  # mask all pieces of a word or none

    def __post_init__(self) -> None:
        for name, least in (("max_length", 5), ("most_masked", 1), ("copies", 1)):
            if not getattr(self, name) >= least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        for name in ("masked_share", "short_share"):
            if not 0 <= getattr(self, name) <= 1:  # False for NaN
                raise ValueError(f"{name} must be between 0 and 1, got {getattr(self, name)}")


class Instance(NamedTuple):
    """One pair of sentences, or rather of stretches of some sentences."""

    input_ids: list[int]  # [CLS] A [SEP] B [SEP], with the masks
    first: int  # how many of them are segment 0: [CLS] A [SEP]
    positions: list[int]  # what is to be predicted, in ascending order
    labels: list[int]  # the ids that stood there
    is_random_next: bool  # B is from elsewhere; class 1 of the next-sentence head


class InstanceMaker:
    """Makes instances of documents, for one vocabulary and one recipe.

    Of the tokens, 15% are to be predicted: 80% of these are masked, 10% become some other piece,
    10% stay ([D18] section 3.1, task 1). B is what follows A in the document half of the time, else
    from another document (task 2). Not in the paper: [CLS] and [SEP] count, too, and 20 are enough;
    after a single sentence nothing follows, so that more than half of all B are random; and if ten
    draws do not hit another document, it is the same.

    Source: google-research/bert@eedf571 create_pretraining_data.py, whose functions
    create_training_instances, create_instances_from_document, create_masked_lm_predictions and
    truncate_seq_pair are here `make`, `_document`, `_masked` and `truncate`.
    """

    def __init__(self, tokenizer: WordPieceTokenizer, recipe: Recipe) -> None:
        ids = tokenizer.special_ids
        self.recipe = recipe
        self._cls, self._sep, self._mask = ids["[CLS]"], ids["[SEP]"], ids["[MASK]"]
        self._continues = [piece.startswith("##") for piece in tokenizer.vocabulary]

    def make(self, documents: Sequence[Document], random: Random) -> list[Instance]:
        """All copies of the instances of all documents, in random order.

        Raises:
            ValueError: if there are not two documents, so that none is another.
        """
        if len(documents) < 2:
            raise ValueError(
                f"the texts have {len(documents)} document, and random next sentences come from "
                "another one; put a blank line between documents"
            )
        documents = list(documents)
        random.shuffle(documents)
        made: list[Instance] = []
        for _ in range(self.recipe.copies):
            for number in range(len(documents)):
                made += self._document(documents, number, random)
        random.shuffle(made)
        return made

    def _document(
        self, documents: Sequence[Document], number: int, random: Random
    ) -> Iterator[Instance]:
        """Cut one document into stretches of the length that is wanted, and these into pairs."""
        document, room = documents[number], self.recipe.max_length - 3
        is_short = random.random() < self.recipe.short_share
        wanted = random.randint(2, room) if is_short else room
        start = end = length = 0
        while end < len(document):
            length += len(document[end])
            end += 1
            if end < len(document) and length < wanted:
                continue
            stretch = document[start:end]
            middle = random.randint(1, len(stretch) - 1) if len(stretch) > 1 else 1
            first = list(chain.from_iterable(stretch[:middle]))
            is_random_next = len(stretch) == 1 or random.random() < 0.5
            if is_random_next:
                second = _elsewhere(documents, number, wanted - len(first), random)
                end = start + middle  # what A did not take is taken up again
            else:
                second = list(chain.from_iterable(stretch[middle:]))
            first, second = truncate(first, second, room, random)
            yield self._masked(first, second, is_random_next, random)
            start, length = end, 0

    def _masked(
        self, first: list[int], second: list[int], is_random_next: bool, random: Random
    ) -> Instance:
        """Frame a pair, and choose and hide what is to be predicted."""
        ids = [self._cls, *first, self._sep, *second, self._sep]
        words: list[list[int]] = []  # what is chosen together: positions of a word, or of a piece
        for position in chain(range(1, len(first) + 1), range(len(first) + 2, len(ids) - 1)):
            # As in the source, a "##" that begins B, because B was cut there, counts to A's end.
            if self.recipe.whole_words and words and self._continues[ids[position]]:
                words[-1].append(position)
            else:
                words.append([position])
        random.shuffle(words)
        count = max(1, round(len(ids) * self.recipe.masked_share))
        count = min(self.recipe.most_masked, count)
        hidden: dict[int, int] = {}  # position -> what stood there
        for word in words:
            if len(hidden) == count:
                break
            if len(hidden) + len(word) <= count:
                for position in word:
                    hidden[position] = ids[position]
                    ids[position] = self._instead_of(ids[position], random)
        positions = sorted(hidden)
        labels = [hidden[position] for position in positions]
        return Instance(ids, len(first) + 2, positions, labels, is_random_next)

    def _instead_of(self, piece: int, random: Random) -> int:
        """[MASK], or 1 time in 10 the piece itself, or 1 time in 10 any piece of the vocabulary."""
        if random.random() < 0.8:
            return self._mask
        return piece if random.random() < 0.5 else random.randint(0, len(self._continues) - 1)


def _elsewhere(
    documents: Sequence[Document], number: int, wanted: int, random: Random
) -> list[int]:
    """Sentences in a row from another document than this, until there are so many pieces."""
    for _ in range(10):
        other = random.randint(0, len(documents) - 1)
        if other != number:
            break
    begin = random.randint(0, len(documents[other]) - 1)
    pieces: list[int] = []
    for sentence in documents[other][begin:]:
        pieces += sentence
        if len(pieces) >= wanted:
            break
    return pieces


def truncate(
    first: list[int], second: list[int], room: int, random: Random
) -> tuple[list[int], list[int]]:
    """Cut two texts to a common length: always the longer one, at a random end, a piece a time."""
    begins, ends = [0, 0], [len(first), len(second)]
    for _ in range(len(first) + len(second) - room):
        longer = 0 if ends[0] - begins[0] > ends[1] - begins[1] else 1
        if random.random() < 0.5:
            begins[longer] += 1
        else:
            ends[longer] -= 1
    return first[begins[0] : ends[0]], second[begins[1] : ends[1]]


def read_documents(names: Iterable[str], tokenizer: WordPieceTokenizer) -> Iterator[Document]:
    """Read files with a sentence a line, and a blank line between documents.

    The end of a file ends a document, too. "[SEP]" in a text is text. A line without any piece
    (control characters, say) is skipped; what is beyond LONGEST_DOCUMENT pieces is a new document.

    Args:
        names: of files, as minibert.lines.Lines takes them.
        tokenizer: of the model to be.

    Raises:
        OSError: if a file cannot be read, or is not UTF-8: names it, and the line.
    """
    for name in names:
        with closing(Lines(name)) as lines:
            texts = iter(lines)
            document: Document = []
            size = 0
            while block := list(islice(texts, _LINES)):
                rows = tokenizer.encode_ids(block, special_tokens_in_text=False)
                for text, (_, *sentence, _) in zip(block, rows, strict=True):
                    if document and (not text.strip() or size >= LONGEST_DOCUMENT):
                        yield document
                        document, size = [], 0
                    if sentence:
                        document.append(sentence)
                        size += len(sentence)
            if document:
                yield document


def blocks(documents: Iterable[Document], pieces: int = BLOCK_PIECES) -> Iterator[list[Document]]:
    """Gather documents until they have so many pieces; at least two, unless there is one in all."""
    block: list[Document] = []
    following: list[Document] = []  # what the next block would begin with, were it to have two
    size = 0
    for document in documents:
        if size < pieces or len(block) < 2:
            block.append(document)
            size += sum(map(len, document))
            continue
        following.append(document)
        if len(following) == 2:
            yield block
            block, following = following, []
            size = sum(len(sentence) for document in block for sentence in document)
    if block:
        yield block + following


def unigram_entropy(counts: Sequence[int]) -> float:
    """The mean of -log p in nats: the loss of who knows how often each piece comes, and no more.

    >>> round(unigram_entropy([2, 0, 1, 1]), 4)
    1.0397
    """
    total = sum(counts)
    return -sum(count / total * math.log(count / total) for count in counts if count)
