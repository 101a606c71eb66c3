import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from conftest import ODD, PIECES, random_model

from minibert import blocks
from minibert.bert import Bert
from minibert.blocks import Block, encode_line, read_ahead, read_blocks
from minibert.job import Job
from minibert.lines import Lines
from minibert.tokenizer import WordPieceTokenizer
from minibert.vectors import Reading, Text


@pytest.fixture
def bert() -> Bert:
    return Bert(ODD, WordPieceTokenizer(PIECES, lowercase=True), random_model(ODD))


@pytest.fixture
def text(tmp_path: Path) -> str:
    (tmp_path / "text").write_text("a b a\na\n\na ||| b\na a a a\n")
    return str(tmp_path / "text")


def read(bert: Bert, job: Job) -> list[Block]:
    lines = Lines(job.input)
    return list(read_blocks(bert, job, lines, iter(lines)))


def sizes(bert: Bert, job: Job) -> list[int]:
    return [len(block.texts) for block in read(bert, job)]


def test_a_block_is_bounded(bert: Bert, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """5, 3, 2, 5 and 6 tokens."""
    assert sizes(bert, Job(text, "o")) == [5]
    monkeypatch.setattr(blocks, "BLOCK_LINES", 2)
    assert sizes(bert, Job(text, "o")) == [2, 2, 1]
    monkeypatch.setattr(blocks, "BLOCK_LINES", 99)
    monkeypatch.setattr(blocks, "BLOCK_TOKENS", 8)
    assert sizes(bert, Job(text, "o")) == [2, 3]
    monkeypatch.setattr(blocks, "BLOCK_JSON", 5 * 11 * 2 * 33)
    stack = Reading([0, 1], "stack")
    assert sizes(bert, Job(text, "o.jsonl", stack)) == [1, 2, 1, 1]
    assert sizes(bert, Job(text, "o", stack)) == [2, 3]  # which is written in any order
    monkeypatch.setattr(blocks, "BLOCK_JSON", 1)
    assert sizes(bert, Job(text, "o.jsonl", stack)) == [1] * 5


def test_what_a_block_tells(bert: Bert, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK_LINES", 3)
    first, second = read(bert, Job(text, "o", Reading(unit="word")))
    assert (first.first, second.first) == (0, 3)
    assert (first.end.lines, first.end.bytes) == (3, 9)
    assert second.end.lines == 5
    assert first.layout.starts == [0, 3, 4, 4]
    assert second.layout.tokens == ["a", "b", "a", "a", "a", "a"]
    assert second.layout.segments == [0, 1, 0, 0, 0, 0]
    assert first.layout.vectors.size == 0
    (whole,) = read(bert, Job(text, "o", Reading(unit="sentence", pooling="pooler")))[:1]
    assert whole.layout.starts == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("a ||| b", Text("a", "b")),
        ("  a ||| b \t", Text("  a", "b")),  # places are counted in the line as it is
        ("a ||| b ||| i", Text("a ||| b", "i")),  # Google's pattern is greedy
        (" ||| b", Text(" ||| b")),  # and sees the line without white space around it
        ("a ||| ", Text("a ||| ")),
        ("a|||b", Text("a|||b")),
        ("", Text("")),
    ],
)
def test_pairs(bert: Bert, line: str, text: Text) -> None:
    got, encoding, was_cut = encode_line(bert, Job("i", "o"), line, 1)
    assert (got, was_cut) == (text, False)
    stripped = line.strip()
    theirs = stripped.rpartition(" ||| ")
    expected = bert.tokenizer.encode(theirs[0] or theirs[2], theirs[2] if theirs[1] else None)
    assert encoding.input_ids == expected.input_ids


def test_the_next_block_is_read_meanwhile(
    bert: Bert, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "BLOCK_LINES", 1)
    is_read = [threading.Event() for _ in range(4)]

    def watched() -> Iterator[Block]:
        lines = Lines(text)
        for number, block in enumerate(read_blocks(bert, Job(text, "o"), lines, iter(lines))):
            if number < len(is_read):
                is_read[number].set()
            yield block

    blocks_read = read_ahead(watched())
    next(blocks_read)
    assert is_read[1].wait(30)
    assert not is_read[2].is_set()  # one ahead, and no more: memory is bounded
    assert len(list(blocks_read)) == 4


def test_what_is_wrong_with_a_line_is_raised_here(bert: Bert, tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(b"a\n\xe9\n")
    with (
        closing(Lines(str(tmp_path / "text"))) as lines,
        pytest.raises(OSError, match="line 2 of .*/text is not UTF-8"),
    ):
        list(read_ahead(read_blocks(bert, Job("i", "o"), lines, iter(lines))))


def test_a_pair_that_no_window_holds_is_told_by_its_line(bert: Bert, tmp_path: Path) -> None:
    """When it is read, and not when its block is computed."""
    (tmp_path / "text").write_text(f"a\n{'a ' * 20}||| b\n")
    with pytest.raises(ValueError, match="^line 2 has 24 tokens, .* have room for 0"):
        read(bert, Job(str(tmp_path / "text"), "o"))
