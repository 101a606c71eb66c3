"""Instances against Google's program, draw for draw, and against the definition, by their share."""

import gzip
import hashlib
import json
import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from random import Random

import pytest

from minibert import instances as module
from minibert.instances import (
    Document,
    Instance,
    InstanceMaker,
    Recipe,
    blocks,
    read_documents,
    truncate,
    unigram_entropy,
)
from minibert.tokenizer import WordPieceTokenizer
from minibert.vocabulary import SPECIAL_TOKENS

WORDS, ENDINGS = 60, 40
PIECES = [*SPECIAL_TOKENS, *(f"w{n}" for n in range(WORDS)), *(f"##p{n}" for n in range(ENDINGS))]
CLS, SEP, MASK = (PIECES.index(token) for token in ("[CLS]", "[SEP]", "[MASK]"))

# What google-research/bert@d452612 create_pretraining_data.py makes of the documents of `invent`
# (whole words: as of eedf571, the newest): the sha256 of `written`, once per recipe.
GOOGLES = {
    Recipe(): "bbf77c6fcc0991bf",
    Recipe(whole_words=True): "f5b906b936905f10",
    Recipe(max_length=12, most_masked=2, short_share=1.0, copies=3): "58747d8fa4753a9e",
    Recipe(
        max_length=64, masked_share=0.4, short_share=0.0, copies=1, whole_words=True
    ): "2a502fafc77fc308",
}


@pytest.fixture(scope="module")
def tokenizer() -> WordPieceTokenizer:
    return WordPieceTokenizer(PIECES, lowercase=True)


def invent(documents: int, seed: int = 0) -> list[Document]:
    """Documents of 1 to 30 sentences, of 1 to 200 pieces."""
    random = Random(seed)
    lengths = (1, 2, 5, 15, 40, 200)
    return [
        [
            [
                random.randrange(len(SPECIAL_TOKENS), len(PIECES))
                for _ in range(random.choice(lengths))
            ]
            for _ in range(random.choice((1, 2, 5, 30)))
        ]
        for _ in range(documents)
    ]


def written(made: list[Instance]) -> str:
    return json.dumps([[*i[:-1], int(i.is_random_next)] for i in made])


@pytest.mark.parametrize("recipe", GOOGLES)
def test_the_same_as_googles_program(recipe: Recipe, tokenizer: WordPieceTokenizer) -> None:
    made = InstanceMaker(tokenizer, recipe).make(invent(20), Random(12345))
    assert hashlib.sha256(written(made).encode()).hexdigest()[:16] == GOOGLES[recipe]


def within_binomial_error(count: int, total: int, share: float) -> bool:
    """Whether a share is less than four standard errors off: 1 time in 16,000 by chance."""
    return abs(count / total - share) < 4 * math.sqrt(share * (1 - share) / total)


def hidden(made: list[Instance]) -> Iterator[tuple[int, int]]:
    """For each piece that is to be predicted: what stands there, and what stood there."""
    for instance in made:
        for position, label in zip(instance.positions, instance.labels, strict=True):
            yield instance.input_ids[position], label


def test_shares_are_those_of_the_definition(tokenizer: WordPieceTokenizer) -> None:
    """[D18] section 3.1 and appendix A.2."""
    random = Random(1)
    sentences = [  # all of 5 pieces, so that what is cut says nothing of what is not
        [random.randrange(len(SPECIAL_TOKENS), len(PIECES)) for _ in range(5)]
        for _ in range(50_000)
    ]
    documents = [sentences[n : n + 5000] for n in range(0, len(sentences), 5000)]
    made = InstanceMaker(tokenizer, Recipe(copies=2)).make(documents, Random(2))
    pairs = list(hidden(made))
    assert len(pairs) > 80_000
    masked = sum(now == MASK for now, _ in pairs)
    stayed = sum(now == was for now, was in pairs)
    # Of the 10% that become any piece, one in len(PIECES) becomes [MASK], or is what it was.
    assert within_binomial_error(masked, len(pairs), 0.8 + 0.1 / len(PIECES))
    assert within_binomial_error(stayed, len(pairs), 0.1 + 0.1 / len(PIECES))
    others = [now for now, was in pairs if now not in (MASK, was)]
    assert within_binomial_error(
        sum(now < PIECES.index("w30") for now in others), len(others), 34 / 104
    )
    # A stretch of one sentence has no next, and is random, too: here only at a document's end.
    assert within_binomial_error(sum(i.is_random_next for i in made), len(made), 0.5)
    assert all(len(i.positions) == min(20, round(0.15 * len(i.input_ids))) for i in made)


def restored(made: Instance) -> list[int]:
    """The ids as they were before anything was hidden."""
    ids = list(made.input_ids)
    for position, label in zip(made.positions, made.labels, strict=True):
        ids[position] = label
    return ids


def test_one_document_in_ten_is_short(tokenizer: WordPieceTokenizer) -> None:
    """Documents that tell their number, in sentences of one piece, each to fill ten instances."""
    documents = [[[5 + number]] * 1250 for number in range(100)]
    runs = 6
    short = 0
    for run in range(runs):
        made = InstanceMaker(tokenizer, Recipe(copies=1)).make(documents, Random(run))
        longest = dict.fromkeys(range(5, 105), 0)
        for instance in made:
            number = restored(instance)[1]
            longest[number] = max(longest[number], len(instance.input_ids))
        short += sum(length < 128 for length in longest.values())
    # Of 2 to 125 pieces, as is drawn for a short one, the last is the full length.
    assert within_binomial_error(short, runs * 100, 0.1 * 123 / 124)


def test_what_follows_follows(tokenizer: WordPieceTokenizer) -> None:
    """Sentences that tell where they stand: document and number."""
    documents = [[[5 + d, 25 + s] for s in range(40)] for d in range(20)]
    recipe = Recipe(max_length=32, short_share=0.3)
    for made in InstanceMaker(tokenizer, recipe).make(documents, Random(4)):
        ids = restored(made)
        assert (ids[0], ids[made.first - 1], ids[-1]) == (CLS, SEP, SEP)
        assert sorted(ids).count(SEP) == 2
        assert len(ids) <= 32
        first = [n for n in ids[1 : made.first - 1] if n < 25]
        second = [n for n in ids[made.first : -1] if n < 25]
        assert len({*first}) <= 1
        assert len({*second}) <= 1
        if first and second:
            assert (first[0] != second[0]) == made.is_random_next
        one, other = (
            [n for n in part if n >= 25] for part in (ids[: made.first], ids[made.first :])
        )
        for numbers in (one, other):  # sentences in a row
            assert all(right - left == 1 for left, right in pairwise(numbers))
        if one and other and not made.is_random_next:
            assert 1 <= other[0] - one[-1] <= 3  # more than 1 where both were cut


def test_whole_words(tokenizer: WordPieceTokenizer) -> None:
    """All pieces of a word are to be predicted, or none."""
    recipe = Recipe(whole_words=True, copies=2)
    documents = [[[5, 70, 80], [6], [7, 71]] * 30 for _ in range(20)]
    some = 0
    for made in InstanceMaker(tokenizer, recipe).make(documents, Random(5)):
        ids = restored(made)
        last = None
        for position in range(1, len(ids) - 1):
            is_inside = PIECES[ids[position]].startswith("##")
            if is_inside and position not in (1, made.first):
                assert (position in made.positions) == (last in made.positions)
                some += position in made.positions
            last = position
    assert some > 100


def test_long_sentences_are_cut_at_both_ends() -> None:
    first, second = list(range(1000)), list(range(1000, 1003))
    begin = {truncate(first, second, 20, Random(n))[0][0] for n in range(50)}
    assert len(begin) > 20
    for n in range(50):
        one, other = truncate(first, second, 20, Random(n))
        assert (len(one), other) == (17, second)  # the shorter is left alone
        assert one == list(range(one[0], one[0] + 17))
    assert truncate([1], [2], 20, Random(0)) == ([1], [2])


def test_one_document_is_refused(tokenizer: WordPieceTokenizer) -> None:
    with pytest.raises(ValueError, match="1 document, .* put a blank line between documents"):
        InstanceMaker(tokenizer, Recipe()).make(invent(1), Random(0))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_length", 4),
        ("most_masked", 0),
        ("copies", 0),
        ("masked_share", 1.1),
        ("short_share", -0.1),
        ("masked_share", math.nan),
    ],
)
def test_a_recipe_must_make_sense(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} must be"):
        Recipe(**{name: value})  # type: ignore[arg-type]


Write = Callable[..., list[str]]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def run(*contents: bytes) -> list[str]:
        names = [f"{number}.txt" for number in range(len(contents))]
        for name, content in zip(names, contents, strict=True):
            (tmp_path / name).write_bytes(content)
        return [str(tmp_path / name) for name in names]

    return run


def spell(documents: Iterator[Document]) -> list[list[str]]:
    return [[" ".join(PIECES[n] for n in sentence) for sentence in d] for d in documents]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"w1 w2\nw3\n\nw4\n", [["w1 w2", "w3"], ["w4"]]),
        (b"w1 w2\r\nw3\r\n\r\nw4", [["w1 w2", "w3"], ["w4"]]),
        (b"\n\n \t\nw1\n\n\n  \nw2\n\n\n", [["w1"], ["w2"]]),
        (b"\xef\xbb\xbfw1\n\x01\nw2", [["w1", "w2"]]),  # a line without any piece ends nothing
        (b"[SEP] w1", [["[UNK] [UNK] [UNK] w1"]]),  # text is text
        (b"", []),
        (b"\n\r\n", []),
    ],
)
def test_documents(
    content: bytes, expected: list[list[str]], write: Write, tokenizer: WordPieceTokenizer
) -> None:
    assert spell(read_documents(write(content), tokenizer)) == expected


def test_documents_of_several_files(
    write: Write, tmp_path: Path, tokenizer: WordPieceTokenizer
) -> None:
    names = write(b"w1\nw2", b"", b"w3\n\nw4")
    (tmp_path / "packed.gz").write_bytes(gzip.compress(b"w5\n"))
    names.append(str(tmp_path / "packed.gz"))
    expected = [["w1", "w2"], ["w3"], ["w4"], ["w5"]]  # the end of a file ends a document
    assert spell(read_documents(names, tokenizer)) == expected


def test_lines_that_are_no_text(write: Write, tokenizer: WordPieceTokenizer) -> None:
    names = write(b"w1\nw2\n\xff\n")
    with pytest.raises(OSError, match=r"line 3 of .*0\.txt is not UTF-8"):
        list(read_documents(names, tokenizer))


def test_a_long_document_is_cut(
    write: Write, tokenizer: WordPieceTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LONGEST_DOCUMENT", 10)
    found = spell(read_documents(write(b"w1 w2 w3 w4\n" * 7 + b"\nw5"), tokenizer))
    assert [len(document) for document in found] == [3, 3, 1, 1]


@pytest.mark.parametrize("documents", range(12))
def test_blocks_have_two_documents_and_lose_none(documents: int) -> None:
    given = [[[n] * 4] for n in range(documents)]
    found = list(blocks(iter(given), pieces=10))
    assert [document for block in found for document in block] == given
    assert all(len(block) >= min(2, documents) for block in found)
    assert all(len(block) <= 5 for block in found)  # 3 with 10 pieces, and 2 that are the last


def test_no_block_holds_more_than_it_must() -> None:
    """Documents are taken as they are needed, not all at once."""
    taken = 0

    def endless() -> Iterator[Document]:
        nonlocal taken
        while True:
            taken += 1
            yield [[5, 6]]

    stream = blocks(endless(), pieces=100)
    assert [len(next(stream)) for _ in range(3)] == [50, 50, 50]
    assert taken < 160


def test_unigram_entropy() -> None:
    assert unigram_entropy([0, 7, 0]) == 0
    assert unigram_entropy([5, 5, 5, 5]) == pytest.approx(math.log(4), abs=1e-15)


def test_after_ten_draws_a_document_is_its_own_next() -> None:
    """As in Google's code, and rare: once in a thousand for two documents."""

    class Same(Random):
        draws = 0

        def randint(self, a: int, b: int) -> int:  # noqa: ARG002
            self.draws += 1
            return 0

    random = Same()
    assert module._elsewhere([[[7]], [[8]]], 0, 1, random) == [7]
    assert random.draws == 10 + 1  # and one for the first sentence
